r"""Log earnings by height and sex, with an interaction.

.. math:: \log e_n \sim \mathcal{N}(\beta_1 + \beta_2\, h_n + \beta_3\, m_n + \beta_4\, h_n m_n,\ \sigma^2)

with flat priors on :math:`\beta` and on :math:`\sigma > 0`. Columns are neither centred nor scaled, so that coefficients are
strongly correlated.

Source: https://github.com/stan-dev/posteriordb, model ``logearn_interaction``; Gelman and Hill (2007).
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

__all__ = ["logearn_interaction"]


def logearn_interaction(height: Tensor, male: Tensor, log_earn: Tensor | None = None) -> Tensor:
    """Draw or observe the log earnings of N people.

    :param height: in inches, ``(N,)``.
    :param male: 0 or 1, ``(N,)``.
    :param log_earn: ``(N,)``.
    """
    beta = pyro.sample("beta", dist.ImproperUniform(constraints.real_vector, (), (4,)))
    sigma = pyro.sample("sigma", dist.ImproperUniform(constraints.positive, (), ()))
    x = torch.stack([torch.ones_like(height), height, male, height * male], -1)
    with pyro.plate("data", len(x)):
        return pyro.sample("log_earn", dist.Normal(x @ beta, sigma), obs=log_earn)


def _arguments(data: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    height, male, earn = reals(data, "height", "male", "earn")
    return height, male, earn.log()


posteriors.add(
    "earnings-logearn_interaction",
    ReferencePosterior("earnings-logearn_interaction", logearn_interaction, _arguments),
)
