"""Reading files of images: IDX as MNIST has it, and lines of zeros and ones."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from zoo.datasets.files import CorruptDataError

__all__ = ["read_idx", "read_zeros_and_ones"]

_UNSIGNED_BYTES = 8


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Return the bytes of a gzipped IDX file as an array.

    :param path: the file.
    :param dimensions: how many it must have: 1 for labels, 3 for images.
    :raises CorruptDataError: for a file that is cut off, no gzip, no IDX of bytes, or of other dimensions.
    """
    try:
        content = gzip.decompress(path.read_bytes())
    except EOFError as error:
        raise CorruptDataError(f"{path} is cut off: the gzip stream ends at byte {path.stat().st_size}") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise CorruptDataError(f"{path} is no gzip file, or damaged ({error})") from error
    header = 4 * (dimensions + 1)
    magic = bytes((0, 0, _UNSIGNED_BYTES, dimensions))
    if content[:4] != magic:
        raise CorruptDataError(
            f"{path}, byte 0: the magic number is 0x{content[:4].hex()}, where IDX of bytes in {dimensions} dimensions "
            f"has 0x{magic.hex()}"
        )
    if len(content) < header:
        raise CorruptDataError(f"{path} is cut off: {len(content)} bytes, not even the {header} of the header")
    shape = tuple(int(size) for size in np.frombuffer(content[4:header], dtype=">u4"))
    if len(content) != header + math.prod(shape):
        raise CorruptDataError(
            f"{path} has {len(content)} bytes unpacked, but its header promises {header} + {' x '.join(map(str, shape))}; "
            "it is cut off or damaged"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)


def read_zeros_and_ones(path: Path, rows: int, columns: int) -> np.ndarray:
    """Return the digits of a text file, ``(rows, columns)`` of uint8: lines of ``0`` and ``1`` with single spaces between.

    The layout is fixed, so the bytes are reshaped and checked instead of parsed: 0.25 s for the 78 MB of the training part
    of MNIST.

    :raises CorruptDataError: naming line and column, for another character, and for a file that ends early or goes on.
    """
    content = np.fromfile(path, dtype=np.uint8)
    width = 2 * columns
    if len(content) == rows * width - 1:  # no newline at the very end
        content = np.append(content, np.uint8(ord("\n")))
    whole = min(len(content) // width, rows)
    lines = content[: whole * width].reshape(whole, width)
    digits = lines[:, ::2] - np.uint8(ord("0"))
    wrong = (digits > 1).any(1) | (lines[:, 1:-1:2] != ord(" ")).any(1) | (lines[:, -1] != ord("\n"))
    if wrong.any():
        line = int(wrong.argmax())
        is_digit = np.arange(width) % 2 == 0
        separator = np.where(np.arange(width) == width - 1, ord("\n"), ord(" "))
        bad = np.where(is_digit, (lines[line] != ord("0")) & (lines[line] != ord("1")), lines[line] != separator)
        column = int(bad.argmax())
        wanted = "0 or 1" if is_digit[column] else "the end of the line" if column == width - 1 else "a space"
        raise CorruptDataError(
            f"{path}, line {line + 1}, column {column + 1}: found {chr(lines[line][column])!r} where {wanted} is expected"
        )
    if len(content) != rows * width:
        ends = "ends" if len(content) < rows * width else "goes on"
        raise CorruptDataError(
            f"{path}, line {whole + 1}: the file {ends} after {len(content)} bytes; {rows} lines of {columns} digits "
            "are expected"
        )
    return digits
