"""What sites a fitted model has: their kinds, dimensions, shapes and supports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from guides.program.program import Program
from guides.program.sites import (
    nodes,
    role,
)
from guides.program.supports import stated_support

__all__ = ["Site", "sites"]


_KINDS = ("latent", "enumerated", "observed", "conditioned", "deterministic")


@dataclass(frozen=True)
class Site:
    """What is known of one site of the model.

    :ivar kind: ``"latent"``, ``"observed"``, ``"deterministic"``, ``"conditioned"``: a latent that ``pyro.condition``
        holds fixed, or ``"enumerated"``: a discrete latent that is summed out.
    :ivar dims: a name per dimension of the value: the plate's for plate dimensions, ``<site>_dim_<i>`` for others.
    :ivar shape: shape of the value on the training data.
    :ivar support: constraint on the value, or ``None`` for deterministic sites.
    """

    name: str
    kind: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    support: Any


def sites(program: Program) -> dict[str, Site]:
    """Return the latent, observed and deterministic sites of a program's model."""
    return {name: _site(name, node, program) for name, node in nodes(program.prototype).items() if role(node) in _KINDS}


def _site(name: str, node: Any, program: Program) -> Site:
    kind = role(node)
    shape = list(node["value"].shape)
    # pyro.deterministic without event_dim calls the whole value one event, whatever plates it stands in.
    event_dim = node["fn"].event_dim
    event_dim = 0 if kind == "deterministic" and event_dim == len(shape) else event_dim
    dims = [f"{name}_dim_{i}" for i in range(len(shape))]
    for frame in node["cond_indep_stack"]:
        position = len(shape) - event_dim + frame.dim if frame.dim is not None else -1
        if 0 <= position < len(shape) and shape[position] == frame.size:
            dims[position] = frame.name
            if frame.name in program.follows.plates:
                shape[position] = program.size
    support = None if kind == "deterministic" else stated_support(node["fn"])
    return Site(name, kind, tuple(dims), tuple(shape), support)
