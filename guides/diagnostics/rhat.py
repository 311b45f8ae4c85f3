"""R-hat across restarts: do independent optimisations end in the same place?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from guides.diagnostics.finding import (
    DrawsLike,
    Finding,
    Level,
    PosteriorLike,
    Undefined,
    diagnostics_registry,
)
from guides.fitted.groups import from_groups, import_arviz

__all__ = ["RHat", "r_hat"]

_SAME, _DIFFERENT = 1.01, 1.1
_MAX_ELEMENTS = 1000  # of one site; ArviZ loops over them in Python


@dataclass(frozen=True, kw_only=True)
class RHat(Finding):
    """Rank-normalised split R-hat of the draws, restarts as chains.

    :param r_hat: the largest over all elements of all latent sites.
    :param sites: site name -> largest over its elements.
    :param chains: number of restarts.
    """

    title: ClassVar[str] = "R-hat over restarts"
    r_hat: float
    sites: Mapping[str, float]
    chains: int

    def rows(self) -> list[tuple[str, str]]:
        """Return the largest value and the site it belongs to."""
        worst = max(self.sites, key=lambda name: self.sites[name])
        return [(self.title, f"{self.r_hat:.3f}  ({self.chains} restarts, largest at {worst!r})")]


@diagnostics_registry.register("r_hat")
def r_hat(posterior: PosteriorLike, draws: DrawsLike) -> Finding:
    r"""Compare the guides that independent restarts ended in, through ArviZ.

    .. math:: \hat R = \sqrt{(\tfrac{S-1}{S} W + \tfrac1S B) / W}

    on rank-normalised draws; W is the variance within a restart, B that between restarts. 1 means that the
    restarts agree; a difference of half a standard deviation between two restarts is about 1.03, of two about
    1.4.

    **Blind spot.** Restarts that all miss the same mode, or all have the same too narrow spread, agree
    perfectly: R-hat compares guides with each other, never with the posterior. Symmetric models (the hidden
    units of a network, the components of a mixture) have a large R-hat without being wrong in their
    predictions.

    References: Vehtari, Gelman, Simpson, Carpenter, Bürkner (2021), *Rank-normalization, folding, and
    localization: an improved R-hat*, https://doi.org/10.1214/20-BA1221
    """
    chains = draws.log_p.shape[0]
    if chains < 2:
        return Undefined(
            label=RHat.title,
            level="unknown",
            text="not defined for one restart: fit with replicates=4 to get it",
        )
    groups = {"posterior": {name: _varying(value) for name, value in draws.latents.items()}}
    groups["posterior"] = {name: value for name, value in groups["posterior"].items() if value.shape[-1]}
    if not groups["posterior"]:
        return Undefined(
            label=RHat.title,
            level="unknown",
            text="not defined: the draws of a restart do not vary",
            advice="compare the parameters and losses of the restarts instead",
        )
    values = import_arviz().rhat(from_groups(groups))
    dataset = values["posterior"] if "posterior" in getattr(values, "children", ()) else values
    sites = {str(name): float(np.nanmax(dataset[name].values)) for name in dataset.data_vars}
    worst = max(sites, key=lambda name: sites[name])
    level, text, advice = _verdict(sites[worst], worst, chains)
    return RHat(level=level, text=text, advice=advice, r_hat=sites[worst], sites=sites, chains=chains)


def _varying(value: Tensor) -> np.ndarray:
    """Return (C, S, E): the elements that vary in every restart, at most a thousand, evenly spaced."""
    flat = value.detach().cpu().double().reshape(*value.shape[:2], -1)
    flat = flat[..., (flat.amax(1) > flat.amin(1)).all(0)]
    return flat[..., :: max(1, math.ceil(flat.shape[-1] / _MAX_ELEMENTS))].numpy()


def _verdict(value: float, site: str, chains: int) -> tuple[Level, str, str]:
    figure = f"R-hat over {chains} restarts is {value:.3f} (site {site!r})"
    if math.isnan(value):
        return "unknown", f"{figure}: not a number", ""
    if value <= _SAME:
        return "good", f"{figure}: the restarts agree", ""
    if value <= _DIFFERENT:
        return (
            "usable",
            f"{figure}: the restarts differ a little",
            "train longer or with a decaying learning rate",
        )
    return (
        "unreliable",
        f"{figure}: the restarts ended in different places",
        "train longer; if the restarts end with equal losses all the same, the posterior has several modes (or symmetries),"
        " and"
        " one guide shows one of them: use 'ensemble', or keep to predictions, which symmetries leave alone",
    )
