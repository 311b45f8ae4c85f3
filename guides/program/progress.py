"""Whether to show progress."""

from __future__ import annotations

import sys

__all__ = ["shows_progress"]


def shows_progress(asked: bool | None) -> bool:
    """Return what was asked for; by default, whether standard error is a terminal."""
    return sys.stderr.isatty() if asked is None else asked
