"""Guides made of parts: what a list of guides is, as a whole, to those who ask a guide what it is."""

from __future__ import annotations

from typing import Any

from pyro.infer.autoguide import AutoDelta, AutoGuideList

__all__ = ["is_point_mass", "marks_strata", "parts"]


def parts(guide: Any) -> list[Any]:
    """Return the guides that a list of guides, or of lists, is made of; a guide by itself if it is none."""
    return [leaf for part in guide for leaf in parts(part)] if isinstance(guide, AutoGuideList) else [guide]


def is_point_mass(guide: Any) -> bool:
    """Tell whether a guide, or a part of it, has no density."""
    return any(getattr(part, "is_point_mass", False) or isinstance(part, AutoDelta) for part in parts(guide))


def marks_strata(guide: Any) -> bool:
    """Tell whether a guide says itself what its strata are; those of a list or of a function are the choices in it."""
    return hasattr(guide, "num_strata") and not isinstance(guide, AutoGuideList)
