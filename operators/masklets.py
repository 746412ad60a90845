"""An object in a video, named by a phrase, a box or points, to its masklet: one mask a frame.

SAM 3 finds and follows every object that a phrase names; SAM 2 follows the one inside a box or under points. Both come
from transformers (`Sam3VideoModel`, `Sam2VideoModel`) and need neither torchvision nor timm: frames are prepared here,
to the numbers of their processors. Frames stream through; nothing but a model's memory of recent frames is kept.

With the optional package `kernels` SAM 3 also drops double detections and fills holes, by code that it fetches from the
hub; without it the masks, in which all objects are one, differ by specks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from operators.errors import AssetError
from operators.masklet_sessions import follow_phrase, follow_points
from operators.sam_audio import CheckpointError

if TYPE_CHECKING:
    from transformers import Sam2VideoModel, Sam3VideoModel

PHRASE_MODEL = "facebook/sam3"
POINT_MODEL = "facebook/sam2.1-hiera-large"
MAX_SIDE = 512
MAX_PHRASE_TOKENS = 32
# Each object costs memory, about 10 MB, and time; a phrase such as "person" finds a stadium full.
MAX_OBJECTS = 64
# Mean and deviation of the training pictures, per family (the defaults of transformers' processors).
_SAM3_PIXELS = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_SAM2_PIXELS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

Frame = tuple[float, Tensor]
Point = tuple[float, float, bool]


@dataclass(frozen=True)
class ObjectPrompt:
    """Which object: a `phrase`, or a `box` (left, top, right, bottom) and/or `points` (x, y, True = on the object).

    Box and points are in pixels of the upright frame shown at `at_seconds`; nothing is masked before it. A phrase
    counts for the whole video. Raises AssetError `bad_prompt`.
    """

    phrase: str | None = None
    box: tuple[float, float, float, float] | None = None
    points: tuple[Point, ...] = ()
    at_seconds: float = 0.0

    def __post_init__(self) -> None:
        place = self.box is not None or bool(self.points)
        if (self.phrase is not None) == place:
            raise bad_prompt("an object is named by a phrase, or by a box and points: exactly one of both")
        if self.phrase is not None and not self.phrase.strip():
            raise bad_prompt("the phrase is empty")
        numbers = [self.at_seconds, *(self.box or ()), *(v for x, y, _ in self.points for v in (x, y))]
        if not all(math.isfinite(number) and number >= 0 for number in numbers):
            raise bad_prompt("coordinates and times must be finite and not negative")
        if self.box is not None and not (self.box[0] < self.box[2] and self.box[1] < self.box[3]):
            raise bad_prompt(f"a box is left, top, right, bottom with left < right and top < bottom, got {self.box}")
        if self.points and self.box is None and not any(on for _, _, on in self.points):
            raise bad_prompt("no point lies on the object; give at least one that does")


class Masklets:
    """Makes masklets; loads a model when the first prompt of its kind comes.

    phrase_model, point_model: hub name or folder in transformers' layout of a SAM 3 and of a SAM 2 video model. `sam3`
    (with its `tokenizer`) and `sam2` are loaded ones instead. max_side: longer side of the masks, pixels; the models
    themselves draw at most 288 x 288, so more is not finer. dtype: of the models' weights.
    """

    def __init__(
        self,
        *,
        phrase_model: str | Path = PHRASE_MODEL,
        point_model: str | Path = POINT_MODEL,
        sam3: Sam3VideoModel | None = None,
        tokenizer: Callable[..., Any] | None = None,
        sam2: Sam2VideoModel | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        token: str | None = None,
        cache_dir: str | Path | None = None,
        max_side: int = MAX_SIDE,
    ) -> None:
        self.phrase_model, self.point_model = str(phrase_model), str(point_model)
        self.max_side = max_side
        self._device, self._dtype = torch.device(device), dtype
        self._hub: dict[str, Any] = {"token": token, "cache_dir": cache_dir}
        self._sam3 = sam3.eval().to(self._device) if sam3 is not None else None
        self._tokenizer = tokenizer
        self._sam2 = sam2.eval().to(self._device) if sam2 is not None else None

    def track(self, frames: Iterable[Frame], prompt: ObjectPrompt) -> Iterator[Frame]:
        """Frames (seconds, uint8 [3, H, W]), ascending -> (seconds, bool [h, w]), True on the object, one for each.

        h and w keep the shape of the picture within `max_side`. Several objects that a phrase names share the mask; an
        object that is out of sight has an empty one. With SAM 3 masks come up to 15 frames late: within that time it
        takes back what proves to be no object. Raises AssetError `bad_prompt` for a place outside the picture or a
        time outside the video, CheckpointError when a model cannot be loaded.
        """
        if prompt.phrase is not None:
            yield from self._phrase(frames, prompt.phrase)
        else:
            yield from self._place(frames, prompt)

    @torch.inference_mode()
    def _phrase(self, frames: Iterable[Frame], phrase: str) -> Iterator[Frame]:
        model, tokenizer = self._load_sam3()
        tokens = tokenizer(
            [phrase], padding="max_length", truncation=True, max_length=MAX_PHRASE_TOKENS, return_tensors="pt"
        )
        ids, mask = (tokens[name].to(self._device) for name in ("input_ids", "attention_mask"))
        model.max_num_objects = min(model.max_num_objects, MAX_OBJECTS)
        side = _side(model.config.image_size)
        shown = ((seconds, _size(picture), self._pixels(picture, side, _SAM3_PIXELS)) for seconds, picture in frames)
        for seconds, size, logits in follow_phrase(model, shown, phrase, ids, mask):
            yield seconds, self._draw(logits, size)

    @torch.inference_mode()
    def _place(self, frames: Iterable[Frame], prompt: ObjectPrompt) -> Iterator[Frame]:
        rest = iter(frames)
        first: Frame | None = None
        for seconds, picture in rest:
            if seconds >= prompt.at_seconds:
                first = (seconds, picture)
                break
            yield seconds, torch.zeros(self.mask_size(*_size(picture)), dtype=torch.bool)
        if first is None:
            raise bad_prompt(f"the video ends before {prompt.at_seconds:g} s, where the object is pointed at")
        model = self._load_sam2()
        side = _side(model.config.image_size)
        coordinates, labels = _points(prompt, *_size(first[1]), side)
        shown = (
            (seconds, _size(picture), self._pixels(picture, side, _SAM2_PIXELS))
            for seconds, picture in chain([first], rest)
        )
        for seconds, size, logits in follow_points(model, shown, coordinates.to(self._device), labels.to(self._device)):
            yield seconds, self._draw(logits, size)

    def mask_size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the masks of pictures of a size."""
        scale = min(1.0, self.max_side / max(height, width))
        return max(1, round(height * scale)), max(1, round(width * scale))

    def _pixels(self, picture: Tensor, side: int, statistics: tuple[tuple[float, ...], tuple[float, ...]]) -> Tensor:
        """uint8 [3, H, W] -> [3, side, side]: resized without cropping, rounded to whole steps again, normalised."""
        small = F.interpolate(
            picture.to(self._device).unsqueeze(0).float(),
            size=(side, side),
            mode="bilinear",
            antialias=True,
            align_corners=False,
        )
        mean, std = (torch.tensor(values, device=self._device).reshape(3, 1, 1) for values in statistics)
        return ((small[0].round().clamp(0, 255) / 255 - mean) / std).to(self._dtype)

    def _draw(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Logits [objects, h, w] -> bool on the CPU, True where any object is."""
        height, width = self.mask_size(*size)
        if not len(logits):
            return torch.zeros(height, width, dtype=torch.bool)
        larger = F.interpolate(logits.float().unsqueeze(1), size=(height, width), mode="bilinear", align_corners=False)
        return (larger > 0).any(0)[0].cpu()

    def _load_sam3(self) -> tuple[Sam3VideoModel, Callable[..., Any]]:
        if self._sam3 is None or self._tokenizer is None:
            from transformers import AutoTokenizer, Sam3VideoModel

            with _loading(self.phrase_model):
                tokenizer = self._tokenizer or AutoTokenizer.from_pretrained(self.phrase_model, **self._hub)
                model = self._sam3 or Sam3VideoModel.from_pretrained(self.phrase_model, dtype=self._dtype, **self._hub)
            self._sam3, self._tokenizer = model.eval().to(self._device), tokenizer  # type: ignore[arg-type]
        return self._sam3, self._tokenizer  # type: ignore[return-value]

    def _load_sam2(self) -> Sam2VideoModel:
        if self._sam2 is None:
            from transformers import Sam2VideoModel

            with _loading(self.point_model):
                model = Sam2VideoModel.from_pretrained(self.point_model, dtype=self._dtype, **self._hub)
            self._sam2 = model.eval().to(self._device)  # type: ignore[arg-type]
        return self._sam2


class _loading:
    """What goes wrong inside becomes a CheckpointError that names the model."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError | ValueError | ImportError | KeyError):
            raise CheckpointError(
                f"model {self.name!r} cannot be loaded ({error}). Give a folder in transformers' layout or a hub name "
                "(SAM 3 is gated: accept its licence on its page, then `hf auth login`)"
            ) from error


def bad_prompt(message: str) -> AssetError:
    return AssetError(
        "bad_prompt", message, "correct the object's phrase, box, points or time of this row", field="object"
    )


def _size(picture: Tensor) -> tuple[int, int]:
    return picture.shape[-2], picture.shape[-1]


def _side(image_size: Any) -> int:
    return int(image_size if isinstance(image_size, int) else image_size[0])


def _points(prompt: ObjectPrompt, height: int, width: int, side: int) -> tuple[Tensor, Tensor]:
    """Coordinates [1, 1, n, 2] in the model's square, labels [1, 1, n]: 1 on, 0 off the object, 2 and 3 box corners."""
    corners = [(*prompt.box[:2], 2), (*prompt.box[2:], 3)] if prompt.box is not None else []
    marks = [*corners, *((x, y, int(on)) for x, y, on in prompt.points)]
    outside = [(x, y) for x, y, _ in marks if x > width or y > height]
    if outside:
        raise bad_prompt(f"{outside[0]} lies outside the picture of {width} x {height} pixels")
    coordinates = torch.tensor([[x * side / width, y * side / height] for x, y, _ in marks])
    return coordinates[None, None], torch.tensor([label for _, _, label in marks], dtype=torch.int32)[None, None]
