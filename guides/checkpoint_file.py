"""Files that are written whole or not at all, and the one that long work saves its state to now and then."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import torch

from guides.errors import OptionError, StorageError, StorageWarning

__all__ = ["StateFile", "write_whole"]

_SECONDS_BETWEEN = 20.0


def write_whole(path: Path, write: Callable[[IO[bytes]], object], mode: int = 0o666) -> None:
    """Let ``write`` fill a new file and put it in the place of ``path``, on the disk before it has the name.

    The file has a name that nobody can foresee until then, and is removed if anything goes wrong.

    :param mode: the file's, as far as the umask lets it.
    :raises StorageError: if the disk is full, the folder does not allow it, or there is none.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error}") from error
    try:
        with os.fdopen(handle, "w+b") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if not _of_the_disk(error):
            raise
        raise StorageError(f"{path} cannot be written: {error}") from error
    _settle(path.parent)


def _of_the_disk(error: BaseException) -> bool:
    """Tell whether an error is the system's, also where torch's writer says so in its own words."""
    return isinstance(error, OSError) or (isinstance(error, RuntimeError) and "PytorchStreamWriter" in str(error))


def _settle(folder: Path) -> None:
    """Let the folder reach the disk too, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class StateFile:
    """The file of one piece of work.

    :param fingerprint: what must be equal for a saved state to be continued, each part under the words for it.
    :param other: what a file with another fingerprint belongs to, for the error.
    """

    def __init__(self, path: Path, fingerprint: Mapping[str, Any], other: str) -> None:
        self._path, self._fingerprint, self._other = path, dict(fingerprint), other
        self._last = time.monotonic()
        self._warned = False

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
            raise self.damaged(error) from error
        known = saved.get("fingerprint") if isinstance(saved, dict) else None
        if not isinstance(known, dict):
            raise self.refusal("it is no checkpoint of this version")
        differing = [k for k in {**known, **self._fingerprint} if known.get(k) != self._fingerprint.get(k)]
        if differing:
            raise self.refusal(", ".join(_difference(k, known.get(k), self._fingerprint.get(k)) for k in differing))
        return saved

    def refusal(self, differing: str) -> OptionError:
        """Return the error that the file belongs to other work.

        :param differing: what differs, in words.
        """
        return OptionError(
            f"checkpoint {self._path} belongs to {self._other}; delete it or give another path. What differs: {differing}"
        )

    def damaged(self, error: Exception | str) -> OptionError:
        """Return the error that the file cannot be used."""
        return OptionError(f"checkpoint {self._path} is damaged ({error}); delete it")

    @property
    def path(self) -> Path:
        """Where the file is."""
        return self._path

    @property
    def due(self) -> bool:
        """Whether the last time is long enough ago."""
        return time.monotonic() - self._last > _SECONDS_BETWEEN

    def write(self, content: dict[str, Any]) -> None:
        """Write the state; warn the first time that it cannot be written, since no work may be lost by that."""
        self._last = time.monotonic()
        whole = {"fingerprint": self._fingerprint, **content}
        try:
            write_whole(self._path, lambda file: torch.save(whole, file))
        except StorageError as error:
            if not self._warned:
                self._warned = True
                warnings.warn(f"checkpoint {error}; the work goes on without it", StorageWarning, stacklevel=2)


def _difference(name: str, known: Any, here: Any) -> str:
    """Name what differs, with both values where they say something (a hash does not)."""
    if (isinstance(known, str) and len(known) == 64) or known is None or here is None:
        return name
    return f"{name} ({known!r} there, {here!r} here)"
