"""The folder of compiled libraries, out of which nothing is run that this user did not put there whole.

A library is machine code: to load it is to run it. So the folder is this user's alone (mode 0700), and a file in it counts
only if this user owns it, nobody else may write to it, and its content has the hash that is part of its name. Whatever else
has a library's name is deleted, and the library made again. Files come in by a rename, once they are on the disk.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import os
import re
import shutil
import stat
import sys
import tempfile
import time
import warnings
from pathlib import Path

from guides.checkpoint_file import write_whole
from guides.errors import StorageWarning

__all__ = ["COMPILING", "cache_folder", "find", "keep", "remove", "usable_folder"]

COMPILING = "compiling-"
"""How the names of folders begin in which compilers work."""

_SUFFIXES = (".so", ".draws")  # libraries, and references of samplers
_MOST_BYTES = 2**28
_ABANDONED = 3600.0
_NAME = re.compile(r"[0-9a-f]+-(?P<hash>[0-9a-f]{64})\.\w+")
_READING = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))  # no links, no pipes
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_TEMPORARY: dict[int, Path] = {}  # by process, as a fork has its own


def cache_folder() -> Path | None:
    """Return where compiled loops are kept, an absolute path: ``$GUIDES_CACHE``, or a folder of the user's cache.

    A relative ``$GUIDES_CACHE`` counts from the user's cache, never from the current folder, and an ``$XDG_CACHE_HOME`` that
    is empty or relative is passed over, as its specification has it. ``None`` where no home is known.
    """
    chosen = os.environ.get("GUIDES_CACHE", "")
    with contextlib.suppress(RuntimeError):  # a ~ that leads nowhere
        chosen = os.path.expanduser(chosen)
    if os.path.isabs(chosen):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):
        try:
            base = str(Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache"))
        except RuntimeError:  # no HOME, and a user whom the system does not know
            return None
        if not os.path.isabs(base):
            return None
    return Path(base) / (chosen or "guides/compiled")


def usable_folder() -> Path:
    """Return the folder, made if need be; a temporary one of this process, with a warning, where it cannot be used.

    :raises OSError: if there is no place for a temporary folder either.
    """
    folder = cache_folder()
    wrong = "this user has no home" if folder is None else _not_private(folder)
    return folder if folder is not None and not wrong else _temporary(f"{folder or 'the cache'} ({wrong})")


def find(key: str, suffix: str) -> Path | None:
    """Return the library of a key, if there is one that may be run; delete what has its name and may not."""
    folder = cache_folder()
    if folder is None or not folder.is_dir() or _not_private(folder):
        folder = _TEMPORARY.get(os.getpid())
    for path in folder.glob(f"{key}-*{suffix}") if folder is not None else ():
        if _sound(path):
            with contextlib.suppress(OSError):
                os.utime(path)
            return path
        remove(path)
    return None


def keep(key: str, suffix: str, content: bytes) -> Path:
    """Put a library into the folder, under a name that holds its hash, and forget those not used for longest.

    :raises OSError: if it cannot be written.
    """
    folder = usable_folder()
    path = folder / f"{key}-{hashlib.sha256(content).hexdigest()}{suffix}"
    write_whole(path, lambda file: file.write(content), mode=0o600)
    _forget_oldest(folder, path)
    return path


def remove(path: Path) -> None:
    """Delete whatever has this name, if that is possible."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _not_private(folder: Path) -> str:
    """Make the folder if need be, and let nobody else in; return what keeps that from being so, or nothing."""
    try:
        folder.mkdir(parents=True, mode=0o700, exist_ok=True)
        if not _mine(folder.stat()):
            return "it belongs to another user"
        if os.name == "posix" and stat.S_IMODE(folder.stat().st_mode) != 0o700:
            folder.chmod(0o700)
            if folder.stat().st_mode & _OTHERS_WRITE:
                return "others may write to it, and that cannot be changed"
        for parent in folder.resolve().parents:
            mode = parent.stat().st_mode
            if mode & stat.S_IWOTH and not mode & stat.S_ISVTX and os.name == "posix":
                return f"anybody may put another in its place, as {parent} is open to all"
    except OSError as error:
        return str(error)
    return "" if os.access(folder, os.W_OK | os.X_OK) else "it cannot be written to"


def _mine(status: os.stat_result) -> bool:
    return not hasattr(os, "geteuid") or status.st_uid == os.geteuid()


def _temporary(instead_of: str) -> Path:
    """Return this process's own folder, with a warning when it is made."""
    number = os.getpid()
    if number not in _TEMPORARY:
        _TEMPORARY[number] = folder = Path(tempfile.mkdtemp(prefix="guides-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        warnings.warn(
            f"compiled code cannot be kept in {instead_of}; it is kept in a temporary folder until this process ends, so "
            "that others compile again. Set GUIDES_CACHE to an absolute path that only you may write to",
            StorageWarning,
            stacklevel=2,
        )
    return _TEMPORARY[number]


def _sound(path: Path) -> bool:
    """Tell whether a file is one that this user wrote, as a whole."""
    named = _NAME.fullmatch(path.name)
    try:
        handle = os.open(path, _READING)
        with os.fdopen(handle, "rb") as file:
            status = os.fstat(handle)
            private = stat.S_ISREG(status.st_mode) and _mine(status)
            private = private and not (os.name == "posix" and status.st_mode & _OTHERS_WRITE)
            content = file.read() if private and named else b""
    except OSError:
        return False
    return named is not None and private and hashlib.sha256(content).hexdigest() == named["hash"]


def _forget_oldest(folder: Path, new: Path) -> None:
    """Keep the libraries used last, as many as there is room for, and nothing of a compiler or a writer that was killed."""
    libraries: list[tuple[float, int, Path]] = []
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            status = path.lstat()
            abandoned = time.time() - status.st_mtime > _ABANDONED
            if path.suffix in _SUFFIXES and _NAME.fullmatch(path.name):
                libraries.append((status.st_mtime, status.st_size, path))
            elif path.suffix in _SUFFIXES or (path.suffix == ".tmp" and abandoned):  # an older version's, or a writer's
                path.unlink()
            elif path.name.startswith(COMPILING) and abandoned:
                shutil.rmtree(path, ignore_errors=True)
    room = _MOST_BYTES
    for _, size, path in sorted(libraries, reverse=True):
        room -= size
        if room < 0 and path != new:
            remove(path)
