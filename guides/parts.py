"""Guides made of parts: what a list of guides is, as a whole, to those who ask a guide what it is."""

from __future__ import annotations

import math
from typing import Any

from pyro.infer.autoguide import AutoDelta, AutoGuideList

__all__ = ["choice_places", "is_point_mass", "num_strata", "parts"]


def parts(guide: Any) -> list[Any]:
    """Return the guides that a list of guides, or of lists, is made of; a guide by itself if it is none."""
    return [leaf for part in guide for leaf in parts(part)] if isinstance(guide, AutoGuideList) else [guide]


def num_strata(guide: Any) -> int:
    """Return how many strata a guide has, one for guides that say nothing; of a list, the combinations of its parts'."""
    return math.prod(int(getattr(part, "num_strata", 1)) for part in parts(guide))


def is_point_mass(guide: Any) -> bool:
    """Tell whether a guide, or a part of it, has no density."""
    return any(getattr(part, "is_point_mass", False) or isinstance(part, AutoDelta) for part in parts(guide))


def choice_places(guide: Any) -> dict[str, tuple[int, int]] | None:
    """Return which digit of the stratum's number each site that chooses a component takes, as (place, base).

    :returns: by site; empty for guides that have no strata of their own, whose choices are made at random; ``None`` for
        guides that mark the sites themselves.
    """
    if not isinstance(guide, AutoGuideList):
        return None if hasattr(guide, "num_strata") else {}
    found, place = {}, 1
    for part in parts(guide):
        count = int(getattr(part, "num_strata", 1))
        if count > 1:
            found[part.choice_site] = (place, count)
            place *= count
    return found
