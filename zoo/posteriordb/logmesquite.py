r"""The weight of mesquite bushes by what is measured of them in the field, all in logarithms.

.. math:: \log w_n \sim \mathcal{N}(\beta_1 + \textstyle\sum_k \beta_{k+1} \log x_{nk} + \beta_7\, g_n,\ \sigma^2)

with flat priors on :math:`\beta` and on :math:`\sigma > 0`.

Source: https://github.com/stan-dev/posteriordb, model ``logmesquite``; Gelman and Hill (2007).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from zoo.posteriordb.posterior import ReferencePosterior, posteriors, reals

__all__ = ["logmesquite"]

_MEASURED = ("diam1", "diam2", "canopy_height", "total_height", "density")


def logmesquite(x: Tensor, log_weight: Tensor | None = None) -> Tensor:
    """Draw or observe the log weights of N bushes.

    :param x: two diameters, heights of canopy and bush, stems per plant, all in logarithms, and the group, ``(N, 6)``.
    :param log_weight: ``(N,)``.
    """
    beta = pyro.sample("beta", dist.ImproperUniform(constraints.real_vector, (), (7,)))
    sigma = pyro.sample("sigma", dist.ImproperUniform(constraints.positive, (), ()))
    with pyro.plate("data", len(x)):
        return pyro.sample("log_weight", dist.Normal(beta[0] + x @ beta[1:], sigma), obs=log_weight)


def _arguments(data: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    *measured, group, weight = reals(data, *_MEASURED, "group", "weight")
    return torch.stack([*(column.log() for column in measured), group], -1), weight.log()


posteriors.add("mesquite-logmesquite", ReferencePosterior("mesquite-logmesquite", logmesquite, _arguments))
