r"""An autoregressive moving average of one step back each, on simulated data.

.. math::

    y_t = \mu + \phi\, y_{t-1} + \theta\, e_{t-1} + e_t, \qquad e_t \sim \mathcal{N}(0, \sigma^2), \qquad
    y_1 = \mu + \phi \mu + e_1

    \mu \sim \mathcal{N}(0, 10^2), \quad \phi, \theta \sim \mathcal{N}(0, 2^2), \quad \sigma \sim
    \operatorname{HalfCauchy}(2.5)

The errors are linear in the data, :math:`(I + \theta S)\, e = y - \mu - \phi\, S y` with :math:`S` the shift by one step, so
that they come from one triangular system instead of a loop; its determinant is 1.

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
    shift = torch.ones_like(y[1:]).diag(-1)
    system = torch.eye(len(y), dtype=y.dtype, device=y.device) + theta * shift
    errors = torch.linalg.solve_triangular(
        system, (y - mu - phi * one_before).unsqueeze(-1), upper=False, unitriangular=True
    )
    # What is observed is y, whose density is that of the errors: they differ by a map of determinant 1. Where theta is far
    # beyond 1 the errors overflow, which is a density of 0 and no mistake of who wrote the model.
    means = y - errors.squeeze(-1)
    pyro.sample("y", dist.Normal(means, sigma, validate_args=False).to_event(1), obs=y)


def _arguments(data: Mapping[str, Any]) -> tuple[Tensor, ...]:
    return reals(data, "y")


posteriors.add("arma-arma11", ReferencePosterior("arma-arma11", arma11, _arguments))
