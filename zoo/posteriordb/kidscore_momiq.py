r"""Test scores of children by their mothers' IQ: a line.

.. math:: y_n \sim \mathcal{N}(\beta_1 + \beta_2\, q_n,\ \sigma^2), \qquad \sigma \sim \operatorname{HalfCauchy}(2.5)

with a flat prior on :math:`\beta`.

Source: https://github.com/stan-dev/posteriordb, model ``kidscore_momiq``; Gelman and Hill (2007).
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

__all__ = ["kidscore_momiq"]


def kidscore_momiq(mom_iq: Tensor, kid_score: Tensor | None = None) -> Tensor:
    """Draw or observe the scores of N children.

    :param mom_iq: the mother's IQ, ``(N,)``.
    :param kid_score: ``(N,)``.
    """
    beta = pyro.sample("beta", dist.ImproperUniform(constraints.real_vector, (), (2,)))
    sigma = pyro.sample("sigma", dist.HalfCauchy(mom_iq.new_tensor(2.5)))
    x = torch.stack([torch.ones_like(mom_iq), mom_iq], -1)
    with pyro.plate("data", len(x)):
        return pyro.sample("kid_score", dist.Normal(x @ beta, sigma), obs=kid_score)


def _arguments(data: Mapping[str, Any]) -> tuple[Tensor, ...]:
    return reals(data, "mom_iq", "kid_score")


posteriors.add("kidiq-kidscore_momiq", ReferencePosterior("kidiq-kidscore_momiq", kidscore_momiq, _arguments))
