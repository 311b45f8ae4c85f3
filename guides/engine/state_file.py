"""A file that long work saves its state to now and then, and continues from."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch

from guides.errors import OptionError

__all__ = ["StateFile"]

_SECONDS_BETWEEN = 20.0


class StateFile:
    """The file of one piece of work.

    :param fingerprint: what must be equal for a saved state to be continued.
    :param other: what a file with another fingerprint belongs to, for the error.
    """

    def __init__(self, path: Path, fingerprint: str, other: str) -> None:
        self._path, self._fingerprint, self._other = path, fingerprint, other
        self._last = time.monotonic()

    def read(self, device: torch.device | None = None) -> dict[str, Any] | None:
        """Return what was saved last; ``None`` if there is no file.

        :param device: where the tensors go; by default where they were.
        :raises OptionError: if the file belongs to other work, or is damaged.
        """
        if not self._path.exists():
            return None
        try:
            saved = torch.load(self._path, weights_only=True, map_location=device)
        except Exception as error:  # torch reports a damaged file by many kinds of error
            raise OptionError(f"checkpoint {self._path} is damaged ({error}); delete it") from error
        if not isinstance(saved, dict) or saved.get("fingerprint") != self._fingerprint:
            raise OptionError(f"checkpoint {self._path} belongs to {self._other}; delete it or give another path")
        return saved

    @property
    def due(self) -> bool:
        """Whether the last time is long enough ago."""
        return time.monotonic() - self._last > _SECONDS_BETWEEN

    def write(self, content: dict[str, Any]) -> None:
        """Write the state under a temporary name and rename it."""
        self._last = time.monotonic()
        temporary = self._path.with_name(self._path.name + ".tmp")
        torch.save({"fingerprint": self._fingerprint, **content}, temporary)
        os.replace(temporary, self._path)
