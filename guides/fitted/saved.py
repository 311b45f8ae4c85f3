"""What a file of a saved posterior has to hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from guides.errors import DataError
from guides.program.data import Data, forms_from
from guides.program.program import Program
from guides.program.sites import nodes

__all__ = ["checked", "fields_of", "latent_shapes"]

_KINDS: dict[str, type | tuple[type, ...]] = {
    "family": str,
    "options": dict,
    "objective": str,
    "steps": int,
    "seed": int,
    "stop_reasons": (tuple, list),
    "seconds": dict,
    "info": (tuple, list),
    "losses": Tensor,
    "validation": Tensor,
    "flat": Tensor,
    "names": (tuple, list),
    "args": (tuple, list),
    "kwargs": dict,
}
_MAY_LACK: dict[str, type | tuple[type, ...]] = {
    "modules": (tuple, list),
    "batch_size": (int, type(None)),
    "forms": dict,
    "sites": dict,
    "sampled": dict,
    "solved": dict,
}
_PER_REPLICATE = ("losses", "validation", "stop_reasons", "info")


def checked(content: Mapping[str, Any], path: Any) -> dict[str, Any]:
    """Return the content of a file, if it is that of a posterior.

    :raises DataError: naming the entry that is missing or cannot be what it should.
    """

    def refuse(what: str) -> DataError:
        return DataError(f"{path} is damaged, or no posterior: {what}")

    for name, kind in {**_KINDS, **_MAY_LACK}.items():
        if name not in content:
            if name in _MAY_LACK:
                continue
            raise refuse(f"it lacks the entry {name!r}")
        if not isinstance(content[name], kind) or (kind is int and isinstance(content[name], bool)):
            raise refuse(f"its entry {name!r} is of the kind {type(content[name]).__name__}")
    flat = content["flat"]
    for name in ("flat", "losses", "validation"):
        value = content[name]
        if value.dim() != 2 or not value.is_floating_point():
            kind_of = f"{value.dim()}-dimensional, of {str(value.dtype).removeprefix('torch.')}"
            raise refuse(f"its entry {name!r} is {kind_of}, where floating-point numbers (replicates, ...) should be")
    if not len(flat):
        raise refuse("its parameters are those of no replicate")
    for name in _PER_REPLICATE:
        if len(content[name]) != len(flat):
            raise refuse(f"its entry {name!r} is of {len(content[name])} replicates, its parameters of {len(flat)}")
    if not bool(torch.isfinite(flat).all()):
        raise refuse("some of its parameters are not finite")
    for name in ("names", "stop_reasons"):
        if not all(isinstance(part, str) for part in content[name]):
            raise refuse(f"its entry {name!r} does not hold words")
    if not all(isinstance(part, Mapping) for part in content["info"]):
        raise refuse("its entry 'info' does not hold dictionaries")
    return dict(content)


def fields_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that every kind of posterior has, but for its program, from what a file holds."""
    as_they_are = ("family", "options", "losses", "objective", "steps", "seed", "seconds", "validation", "flat")
    return {
        **{name: content[name] for name in as_they_are},
        "stop_reasons": tuple(content["stop_reasons"]),
        "info": tuple(content["info"]),
        "training": replace(Data.of(content["args"], content["kwargs"]), forms=forms_from(content.get("forms", {}))),
        "run": None,
    }


def latent_shapes(program: Program) -> dict[str, tuple[int, ...]]:
    """Return the shape of every latent site, by which a file is known to be of a model."""
    return {name: tuple(nodes(program.prototype)[name]["value"].shape) for name in program.latents}
