"""What a guide is to those who ask: its parts, whether it has a density, which sites it computes from rows."""

from __future__ import annotations

import functools
from typing import Any

from pyro.infer.autoguide import AutoDelta, AutoGuideList

__all__ = ["amortized_sites", "is_point_mass", "marks_strata", "parts"]


def parts(guide: Any) -> list[Any]:
    """Return the guides that a list of guides, or of lists, is made of; a guide by itself if it is none."""
    return [leaf for part in guide for leaf in parts(part)] if isinstance(guide, AutoGuideList) else [guide]


def is_point_mass(guide: Any) -> bool:
    """Tell whether a guide, or a part of it, has no density."""
    return any(getattr(part, "is_point_mass", False) or isinstance(part, AutoDelta) for part in parts(guide))


def marks_strata(guide: Any) -> bool:
    """Tell whether a guide says itself what its strata are; those of a list or of a function are the choices in it."""
    return hasattr(guide, "num_strata") and not isinstance(guide, AutoGuideList)


def amortized_sites(guide: Any) -> frozenset[str]:
    """Return the names of the latent sites that a guide computes from the rows it is given: its attribute ``amortized``.

    Python lets nobody set an attribute of a bound method, so a method may have it from its function
    (``VAE.guide.amortized = ...``) or leave it to the object that it is a method of; a partial, to what it calls.
    """
    while isinstance(guide, functools.partial) and not hasattr(guide, "amortized"):
        guide = guide.func
    named = getattr(guide, "amortized", None)
    if named is None:
        of_owner = getattr(getattr(guide, "__self__", None), "amortized", None)
        named = of_owner if isinstance(of_owner, str | frozenset | set | list | tuple) else ()
    return frozenset([named] if isinstance(named, str) else named)
