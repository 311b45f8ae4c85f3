r"""Test scores of children by their mothers' schooling and IQ, with an interaction.

.. math:: y_n \sim \mathcal{N}(\beta_1 + \beta_2\, h_n + \beta_3\, q_n + \beta_4\, h_n q_n,\ \sigma^2), \qquad
          \sigma \sim \operatorname{HalfCauchy}(2.5)

with a flat prior on :math:`\beta`. Columns are neither centred nor scaled, so that coefficients are strongly correlated.

Source: https://github.com/stan-dev/posteriordb, model ``kidscore_interaction``; Gelman and Hill (2007).
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

__all__ = ["kidscore_interaction"]


def kidscore_interaction(mom_hs: Tensor, mom_iq: Tensor, kid_score: Tensor | None = None) -> Tensor:
    """Draw or observe the scores of N children.

    :param mom_hs: whether the mother finished high school, 0 or 1, ``(N,)``.
    :param mom_iq: the mother's IQ, ``(N,)``.
    :param kid_score: ``(N,)``.
    """
    beta = pyro.sample("beta", dist.ImproperUniform(constraints.real_vector, (), (4,)))
    sigma = pyro.sample("sigma", dist.HalfCauchy(mom_iq.new_tensor(2.5)))
    x = torch.stack([torch.ones_like(mom_iq), mom_hs, mom_iq, mom_hs * mom_iq], -1)
    with pyro.plate("data", len(x)):
        return pyro.sample("kid_score", dist.Normal(x @ beta, sigma), obs=kid_score)


def _arguments(data: Mapping[str, Any]) -> tuple[Tensor, ...]:
    return reals(data, "mom_hs", "mom_iq", "kid_score")


posteriors.add(
    "kidiq-kidscore_interaction",
    ReferencePosterior("kidiq-kidscore_interaction", kidscore_interaction, _arguments),
)
