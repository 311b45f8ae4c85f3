r"""Log prices of 5,000 diamonds on 24 correlated columns: a regression with weak priors.

.. math:: y_n \sim \mathcal{N}(a + \tilde x_n^\top b,\ \sigma^2), \qquad b_k \sim \mathcal{N}(0, 1), \quad
          a \sim \operatorname{StudentT}_3(8, 10), \quad \sigma \sim \operatorname{HalfStudentT}_3(0, 10)

with :math:`\tilde x` the columns less their means.

Source: https://github.com/stan-dev/posteriordb, model ``diamonds`` (generated with brms).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro
import pyro.distributions as dist
from torch import Tensor

from zoo.posteriordb.posterior import ReferencePosterior, posteriors, reals

__all__ = ["diamonds"]


def diamonds(x: Tensor, y: Tensor | None = None) -> Tensor:
    """Draw or observe log prices.

    :param x: columns with mean 0, without one for the intercept, ``(N, 24)``.
    :param y: ``(N,)``.
    """
    zero = x.new_zeros(())
    b = pyro.sample("b", dist.Normal(zero, 1.0).expand([x.shape[-1]]).to_event(1))
    intercept = pyro.sample("Intercept", dist.StudentT(zero + 3, 8.0, 10.0))
    sigma = pyro.sample("sigma", dist.FoldedDistribution(dist.StudentT(zero + 3, 0.0, 10.0)))
    with pyro.plate("data", len(x)):
        return pyro.sample("Y", dist.Normal(intercept + x @ b, sigma), obs=y)


def _arguments(data: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    x, y = reals(data, "X", "Y")
    x = x[:, 1:].double()
    return (x - x.mean(0)).to(y), y


posteriors.add("diamonds-diamonds", ReferencePosterior("diamonds-diamonds", diamonds, _arguments))
