r"""Bayesian linear regression on simulated, correlated columns.

.. math:: y_n \sim \mathcal{N}(x_n^\top \beta,\ \sigma^2), \qquad \beta_d \sim \mathcal{N}(0, 10^2), \quad
          \sigma \sim \operatorname{HalfNormal}(10)

Source: https://github.com/stan-dev/posteriordb, model ``blr``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro
import pyro.distributions as dist
from torch import Tensor

from zoo.posteriordb.posterior import ReferencePosterior, posteriors, reals

__all__ = ["blr"]


def blr(x: Tensor, y: Tensor | None = None) -> Tensor:
    """Draw or observe N targets.

    :param x: ``(N, D)``.
    :param y: ``(N,)``.
    """
    zero = x.new_zeros(())
    beta = pyro.sample("beta", dist.Normal(zero, 10.0).expand([x.shape[-1]]).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfNormal(zero + 10))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(x @ beta, sigma), obs=y)


def _arguments(data: Mapping[str, Any]) -> tuple[Tensor, ...]:
    return reals(data, "X", "y")


posteriors.add("sblrc-blr", ReferencePosterior("sblrc-blr", blr, _arguments))
