"""A module whose import takes much memory, as that of masks and masked video does."""

from typing import Any

import torch  # noqa: F401


def nothing() -> dict[str, Any]:
    return {}
