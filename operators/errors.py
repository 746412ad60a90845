"""Errors that concern one asset: they become a row of the failures table and never end a run."""

from __future__ import annotations


class AssetError(Exception):
    """One asset (or one prompt on it) cannot be processed.

    `cause` is a short stable word for counting (`truncated`, `no_audio`, ...), `message` says what was found and
    `remedy` what the owner of the archive can do about it.
    """

    def __init__(self, cause: str, message: str, remedy: str, *, field: str = "uri") -> None:
        super().__init__(cause, message, remedy, field)
        self.cause = cause
        self.message = message
        self.remedy = remedy
        self.field = field

    def __str__(self) -> str:
        return f"{self.cause}: {self.message} (field {self.field}). Remedy: {self.remedy}"

    def __reduce__(self):  # survives the trip through Ray with its keyword argument
        return _rebuild, (self.cause, self.message, self.remedy, self.field)


def _rebuild(cause: str, message: str, remedy: str, field: str) -> AssetError:
    return AssetError(cause, message, remedy, field=field)
