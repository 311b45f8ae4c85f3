r"""The weight of mesquite bushes by the volume of their canopy, both in logarithms.

.. math:: \log w_n \sim \mathcal{N}(\beta_1 + \beta_2 \log v_n,\ \sigma^2)

with flat priors on :math:`\beta` and on :math:`\sigma > 0`.

Source: https://github.com/stan-dev/posteriordb, model ``logmesquite_logvolume``; Gelman and Hill (2007).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro
import pyro.distributions as dist
from pyro.distributions import constraints
from torch import Tensor

from zoo.posteriordb.posterior import ReferencePosterior, posteriors, reals

__all__ = ["logmesquite_logvolume"]


def logmesquite_logvolume(log_volume: Tensor, log_weight: Tensor | None = None) -> Tensor:
    """Draw or observe the log weights of N bushes.

    :param log_volume: log of both diameters times the height of the canopy, ``(N,)``.
    :param log_weight: ``(N,)``.
    """
    beta = pyro.sample("beta", dist.ImproperUniform(constraints.real_vector, (), (2,)))
    sigma = pyro.sample("sigma", dist.ImproperUniform(constraints.positive, (), ()))
    with pyro.plate("data", len(log_volume)):
        return pyro.sample("log_weight", dist.Normal(beta[0] + beta[1] * log_volume, sigma), obs=log_weight)


def _arguments(data: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    diam1, diam2, height, weight = reals(data, "diam1", "diam2", "canopy_height", "weight")
    return (diam1 * diam2 * height).log(), weight.log()


posteriors.add(
    "mesquite-logmesquite_logvolume",
    ReferencePosterior("mesquite-logmesquite_logvolume", logmesquite_logvolume, _arguments),
)
