"""The warning that something runs more slowly than it might, at the user's own line."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

from guides.errors import EagerFallbackWarning

__all__ = ["warn_slower"]

_HERE = str(Path(__file__).resolve().parents[1])


def warn_slower(message: str) -> None:
    """Warn of the line that called this library, however deep inside it the reason turned up."""
    level, frame, outermost = 1, sys._getframe(), 1
    while frame is not None:
        if frame.f_code.co_filename.startswith(_HERE):
            outermost = level
        level, frame = level + 1, frame.f_back  # type: ignore[assignment]
    warnings.warn(message, EagerFallbackWarning, stacklevel=outermost + 1)
