"""What is left to do, held by the asset: segments are cut when they are looked at, as a million assets have many."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, overload

if TYPE_CHECKING:
    from pipeline.items import Item, Work


class Todo(Sequence["Work"]):
    """Works of assets, longest asset first. `works` makes those of one asset; it is asked anew at every look.

    `assets`: the items of each and its length in frames.
    """

    def __init__(self, assets: list[tuple[list[Item], int]], works: Callable[[list[Item], int], list[Work]]) -> None:
        assets.sort(key=lambda asset: -asset[1])
        self._assets, self._works = assets, works
        self._count = 0
        self.audio_frames = 0
        for work in self:
            self._count += 1
            if work.segment is not None:  # once an item: what progress counts
                self.audio_frames += len(work.items) * (work.segment.core_end - work.segment.core_start)

    def __iter__(self) -> Iterator[Work]:
        for items, total in self._assets:
            yield from self._works(items, total)

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Work: ...
    @overload
    def __getitem__(self, index: slice) -> list[Work]: ...
    def __getitem__(self, index: Any) -> Any:
        return list(self)[index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    @property
    def items(self) -> Iterator[Item]:
        """Items, each once."""
        for items, _ in self._assets:
            yield from items
