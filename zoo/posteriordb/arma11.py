r"""An autoregressive moving average of one step back each, on simulated data.

.. math::

    y_t = \mu + \phi\, y_{t-1} + \theta\, e_{t-1} + e_t, \qquad e_t \sim \mathcal{N}(0, \sigma^2), \qquad
    y_1 = \mu + \phi \mu + e_1

    \mu \sim \mathcal{N}(0, 10^2), \quad \phi, \theta \sim \mathcal{N}(0, 2^2), \quad \sigma \sim
    \operatorname{HalfCauchy}(2.5)

The errors are a linear recurrence, :math:`e_t = -\theta\, e_{t-1} + (y_t - \mu - \phi\, y_{t-1})`.

Source: https://github.com/stan-dev/posteriordb, model ``arma11``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from zoo.posteriordb.posterior import ReferencePosterior, posteriors, reals
from zoo.posteriordb.recurrence import linear_recurrence

__all__ = ["arma11"]


def arma11(y: Tensor) -> None:
    """Observe a series.

    :param y: ``(T,)``.
    """
    zero = y.new_zeros(())
    mu = pyro.sample("mu", dist.Normal(zero, 10.0))
    phi = pyro.sample("phi", dist.Normal(zero, 2.0))
    theta = pyro.sample("theta", dist.Normal(zero, 2.0))
    sigma = pyro.sample("sigma", dist.HalfCauchy(zero + 2.5))
    one_before = torch.cat([mu.reshape(1), y[:-1]])
    errors = linear_recurrence(-theta, y - mu - phi * one_before)
    # What is observed is y, whose density is that of the errors: they differ by a map of determinant 1. Where theta is far
    # beyond 1 the errors overflow, which is a density of 0 and no mistake of who wrote the model.
    pyro.sample("y", dist.Normal(y - errors, sigma, validate_args=False).to_event(1), obs=y)


def _arguments(data: Mapping[str, Any]) -> tuple[Tensor, ...]:
    return reals(data, "y")


posteriors.add("arma-arma11", ReferencePosterior("arma-arma11", arma11, _arguments))
