r"""A Gaussian process on eleven points: length scale, size and noise.

.. math:: y \sim \mathcal{N}\big(0,\ K + \sigma I\big), \qquad
          K_{ij} = \alpha^2 \exp\Big(-\frac{(x_i - x_j)^2}{2 \rho^2}\Big)

    \rho \sim \operatorname{Gamma}(25, 4), \quad \alpha \sim \operatorname{HalfNormal}(2), \quad
    \sigma \sim \operatorname{HalfNormal}(1)

As there, :math:`\sigma` is added to the variances, not its square.

Source: https://github.com/stan-dev/posteriordb, model ``gp_regr``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from zoo.posteriordb.posterior import ReferencePosterior, posteriors, reals

__all__ = ["gp_regr"]


def gp_regr(x: Tensor, y: Tensor | None = None) -> Tensor:
    """Draw or observe the process at N points, with noise.

    :param x: ``(N,)``.
    :param y: ``(N,)``.
    """
    zero = x.new_zeros(())
    rho = pyro.sample("rho", dist.Gamma(zero + 25, 4.0))
    alpha = pyro.sample("alpha", dist.HalfNormal(zero + 2))
    sigma = pyro.sample("sigma", dist.HalfNormal(zero + 1))
    square = (x.unsqueeze(-1) - x).square()
    noise = sigma * torch.eye(len(x), dtype=x.dtype, device=x.device)
    covariance = alpha.square() * torch.exp(-square / (2 * rho.square())) + noise
    return pyro.sample("y", dist.MultivariateNormal(torch.zeros_like(x), covariance), obs=y)


def _arguments(data: Mapping[str, Any]) -> tuple[Tensor, ...]:
    return reals(data, "x", "y")


posteriors.add("gp_pois_regr-gp_regr", ReferencePosterior("gp_pois_regr-gp_regr", gp_regr, _arguments))
