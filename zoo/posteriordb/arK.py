r"""An autoregression of five steps back, on simulated data.

.. math:: y_t \sim \mathcal{N}\Big(\alpha + \sum_{k=1}^K \beta_k y_{t-k},\ \sigma^2\Big), \qquad t = K + 1, \dots, T,
          \qquad \alpha, \beta_k \sim \mathcal{N}(0, 10^2), \quad \sigma \sim \operatorname{HalfCauchy}(2.5)

Source: https://github.com/stan-dev/posteriordb, model ``arK``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro
import pyro.distributions as dist
from torch import Tensor

from zoo.posteriordb.posterior import ReferencePosterior, posteriors, reals

__all__ = ["arK"]


def arK(past: Tensor, y: Tensor | None = None) -> Tensor:
    """Draw or observe the series after its first K values.

    :param past: the K values before each of ``y``, the latest first, ``(T - K, K)``.
    :param y: ``(T - K,)``.
    """
    zero = past.new_zeros(())
    alpha = pyro.sample("alpha", dist.Normal(zero, 10.0))
    beta = pyro.sample("beta", dist.Normal(zero, 10.0).expand([past.shape[-1]]).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfCauchy(zero + 2.5))
    with pyro.plate("time", len(past)):
        return pyro.sample("y", dist.Normal(alpha + past @ beta, sigma), obs=y)


def _arguments(data: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    (y,), lags = reals(data, "y"), int(data["K"])
    return y.unfold(0, lags, 1)[:-1].flip(-1), y[lags:]


posteriors.add("arK-arK", ReferencePosterior("arK-arK", arK, _arguments))
