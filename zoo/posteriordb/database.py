"""Finding and reading the files of posteriordb: which data a posterior has, those data, and reference draws.

A file is looked for in the clone of the public repository that ``POSTERIORDB`` names; without that variable below
``$ZOO_DATA/posteriordb``, then in the user's cache, then on the network.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.datasets.files import CorruptDataError, MissingDataError, find_file

__all__ = ["read_data", "read_draws", "read_posterior"]

URL = (
    "https://raw.githubusercontent.com/stan-dev/posteriordb/28f8d3d6e975315f42aa274a8399f21e07a43b30/"
    "posterior_database/{folder}/{file}"
)
_DRAWS = "reference_posteriors/draws/draws"


def read_posterior(name: str) -> Mapping[str, Any]:
    """Return what posteriordb says of a posterior: its model, its data, its reference draws, its parameters.

    :param name: the posterior, ``"arK-arK"``.
    :raises MissingDataError: if the file is nowhere to be found.
    :raises CorruptDataError: if it is not what it should be.
    """
    path = _find("posteriors", f"{name}.json")
    found = _parsed(path, path.read_bytes())
    if not isinstance(found, dict) or "data_name" not in found:
        raise CorruptDataError(f"{path} names no data set ('data_name'), as a posterior of posteriordb does")
    return found


def read_data(name: str) -> Mapping[str, Any]:
    """Return a data set as the Stan program is given it.

    :param name: the data set, ``"arK"``.
    :raises MissingDataError: if the file is nowhere to be found.
    :raises CorruptDataError: if it is not what it should be.
    """
    path = _find("data/data", f"{name}.json.zip")
    found = _unzipped(path)
    if not isinstance(found, dict):
        raise CorruptDataError(f"{path} holds a {type(found).__name__}, where data are an object with a value for each name")
    return found


def read_draws(name: str) -> dict[str, Tensor]:
    """Return reference draws by parameter, float64 of shape ``(chains, draws, *shape)``.

    Elements are stored one by one, as ``theta[3]`` or ``z[2,1]``, and put together here.

    :param name: the reference, which is not always called as the posterior is.
    :raises MissingDataError: if the file is nowhere to be found.
    :raises CorruptDataError: for chains that do not agree in their parameters or lengths, or lack an element.
    """
    path = _find(_DRAWS, f"{name}.json.zip")
    chains = _unzipped(path)
    if not isinstance(chains, list) or not chains or not all(isinstance(chain, dict) and chain for chain in chains):
        raise CorruptDataError(f"{path} does not hold a list of chains, each with the draws of every parameter")
    for number, chain in enumerate(chains[1:], 2):
        if chain.keys() != chains[0].keys():
            other = sorted(chain.keys() ^ chains[0].keys())
            raise CorruptDataError(f"{path}: chains 1 and {number} do not have the same parameters; one lacks {other[0]!r}")
    elements: dict[str, dict[tuple[int, ...], Tensor]] = {}
    for label in chains[0]:
        match = re.fullmatch(r"([A-Za-z]\w*)(?:\[(\d+(?:,\d+)*)\])?", label)
        if match is None:
            raise CorruptDataError(f"{path}: {label!r} is no name of a parameter or of one element, such as 'theta[3]'")
        place = tuple(int(index) - 1 for index in match[2].split(",")) if match[2] else ()
        try:
            values = torch.tensor([chain[label] for chain in chains], dtype=torch.float64)
        except (TypeError, ValueError) as error:
            raise CorruptDataError(f"{path}: the draws of {label!r} are not as many numbers in every chain") from error
        elements.setdefault(match[1], {})[place] = values
    return {parameter: _joined(path, parameter, parts) for parameter, parts in elements.items()}


def _joined(path: Path, name: str, parts: Mapping[tuple[int, ...], Tensor]) -> Tensor:
    """Return one parameter of its elements' draws."""
    shape = tuple(1 + max(place[axis] for place in parts) for axis in range(len(next(iter(parts)))))
    places = list(torch.cartesian_prod(*map(torch.arange, shape)).reshape(-1, len(shape)).tolist()) if shape else [[]]
    for place in map(tuple, places):
        if place not in parts:
            label = ",".join(str(index + 1) for index in place)
            raise CorruptDataError(f"{path}: parameter {name!r} has no element [{label}], though it has later ones")
    stacked = torch.stack([parts[tuple(place)] for place in places], -1)
    return stacked.reshape(*stacked.shape[:-1], *shape)


def _find(folder: str, file: str) -> Path:
    clone = os.environ.get("POSTERIORDB")
    if not clone:
        return find_file(f"posteriordb/posterior_database/{folder}", file, URL.format(folder=folder, file=file))
    root = Path(clone).expanduser()
    for place in (root / "posterior_database", root):
        if (found := place / folder / file).is_file():
            return found
    raise MissingDataError(
        f"POSTERIORDB={clone} has no posterior_database/{folder}/{file}: let it name a clone of "
        "https://github.com/stan-dev/posteriordb (git pull an old one), or unset it, and the file is looked for below "
        "$ZOO_DATA/posteriordb, in the cache and on the network"
    )


def _unzipped(path: Path) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:
            return _parsed(path, archive.read(path.name.removesuffix(".zip")))
    except KeyError:
        inside = ", ".join(archive.namelist()) or "nothing"
        raise CorruptDataError(f"{path} holds {inside}, and not {path.name.removesuffix('.zip')}") from None
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise CorruptDataError(
            f"{path} is no zip archive, or damaged ({error}); it may be cut off, or a pointer that stands for the file"
        ) from error


def _parsed(path: Path, content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        raise CorruptDataError(f"{path} is not valid JSON ({error}); it may be cut off") from error
