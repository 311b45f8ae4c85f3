"""Finding, verifying and reading the files of a data set.

A file is looked for in the folder that the environment variable ``ZOO_DATA`` names, then in the user's cache, then on the
network. What a user put there is only warned about when its hash differs; what was downloaded is refused.
"""

from __future__ import annotations

import hashlib
import math
import os
import warnings
from pathlib import Path

import numpy as np

from _posterior_zoo_registry.extras import needs

__all__ = ["CorruptDataError", "DataHashWarning", "MissingDataError", "find_file", "read_integers", "read_table"]


class MissingDataError(RuntimeError):
    """A file is neither on this machine nor to be had from the network; the message says what to put where."""


class CorruptDataError(ValueError):
    """A file does not hold what it should; the message names the file, and the line and column if there is one."""


class DataHashWarning(UserWarning):
    """A file under ``ZOO_DATA`` differs from the published one; the message names both hashes."""


def find_file(folder: str, name: str, url: str, sha256: str | None = None) -> Path:
    """Return the path of a file, downloading it if it is not on this machine.

    :param folder: folder of the data set below ``$ZOO_DATA`` and below the cache, ``"uci/yacht"``.
    :param name: name of the file.
    :param url: where it is published.
    :param sha256: its hash, or ``None`` if its content is verified otherwise.
    :raises MissingDataError: if it is nowhere to be found.
    :raises CorruptDataError: if a download has another hash.
    """
    root = os.environ.get("ZOO_DATA")
    if root and (local := Path(root).expanduser() / folder / name).is_file():
        _warn_of_other_hash(local, sha256)
        return local
    with needs("data", f"fetching {name}"):
        import pooch
    cache = Path(pooch.os_cache("pyro-posterior-zoo"))
    store = pooch.create(
        path=cache,
        base_url="",
        registry={f"{folder}/{name}": sha256 and f"sha256:{sha256}"},
        urls={f"{folder}/{name}": url},
    )
    wanted = Path(root or "$ZOO_DATA") / folder / name
    try:
        return Path(store.fetch(f"{folder}/{name}", downloader=pooch.HTTPDownloader(timeout=20)))
    except ValueError as error:
        raise CorruptDataError(
            f"the download of {url} is not the published file ({error}). Try again, or put the file at {wanted}"
        ) from error
    except OSError as error:
        searched = f"ZOO_DATA={root}" if root else "ZOO_DATA is not set"
        raise MissingDataError(
            f"{folder}/{name} is not on this machine ({searched}; cache {cache}) and could not be downloaded "
            f"({type(error).__name__}). Get {url} and put it at {wanted}, with ZOO_DATA naming the folder above {folder!r}"
        ) from error


def _warn_of_other_hash(path: Path, sha256: str | None) -> None:
    if sha256 is None:
        return
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != sha256:
        message = f"{path} is not the published file: its SHA-256 is {found}, the published one {sha256}"
        warnings.warn(message, DataHashWarning, stacklevel=2)


def read_table(path: Path) -> np.ndarray:
    """Return the whitespace-separated numbers in a file, float64 of shape ``(rows, columns)``; blank lines do not count.

    :raises CorruptDataError: for an empty file, a cell that is no finite number, or rows of different lengths.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise CorruptDataError(f"{path} is not text (byte {error.start}); it may be compressed or cut off") from error
    numbered = [(number, cells) for number, line in enumerate(lines, 1) if (cells := line.split())]
    if not numbered:
        raise CorruptDataError(f"{path} holds no numbers; it may be cut off")
    width = len(numbered[0][1])
    rows = []
    for number, cells in numbered:
        if len(cells) != width:
            raise CorruptDataError(f"{path}, line {number}: {len(cells)} columns where the lines before have {width}")
        rows.append([_number(path, number, column, cell) for column, cell in enumerate(cells, 1)])
    return np.array(rows)


def read_integers(path: Path, below: int) -> np.ndarray:
    """Return the numbers in a file, one per line: different integers from 0 to ``below - 1`` (written as floats if need be).

    :raises CorruptDataError: for an empty file and for any other content, naming the line.
    """
    table = read_table(path)
    if table.shape[1] != 1:
        raise CorruptDataError(f"{path}, line 1: {table.shape[1]} columns where one index per line is expected")
    values = table[:, 0]
    seen: set[float] = set()
    for place, value in enumerate(values, 1):
        if value != int(value) or not 0 <= value < below:
            raise CorruptDataError(f"{path}, entry {place}: {value:g} is no index from 0 to {below - 1}")
        if value in seen:
            raise CorruptDataError(f"{path}, entry {place}: index {value:g} occurs twice")
        seen.add(value)
    return values.astype(np.int64)


def _number(path: Path, line: int, column: int, cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise CorruptDataError(f"{path}, line {line}, column {column}: {cell[:40]!r} is not a finite number")
    return value
