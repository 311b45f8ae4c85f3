r"""The eight schools, centred and not: :class:`zoo.EightSchools` in its two forms.

Source: https://github.com/stan-dev/posteriordb, models ``eight_schools_centered`` and ``eight_schools_noncentered``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.eight_schools import EightSchools
from zoo.posteriordb.posterior import ReferencePosterior, posteriors, reals

__all__: list[str] = []

_CENTERED, _NONCENTERED = "eight_schools-eight_schools_centered", "eight_schools-eight_schools_noncentered"


def _arguments(data: Mapping[str, Any]) -> tuple[Tensor, ...]:
    return reals(data, "sigma", "y")


def _latents(draws: Mapping[str, Tensor]) -> dict[str, Tensor]:
    mu, tau = draws["mu"], draws["tau"]
    unit = (draws["theta"] - mu.unsqueeze(-1)) / tau.unsqueeze(-1)
    return {"mu": mu, "tau": tau, "theta_trans": unit}


posteriors.add(_CENTERED, ReferencePosterior(_CENTERED, EightSchools(centered=True), _arguments))
posteriors.add(_NONCENTERED, ReferencePosterior(_NONCENTERED, EightSchools(centered=False), _arguments, _latents))
