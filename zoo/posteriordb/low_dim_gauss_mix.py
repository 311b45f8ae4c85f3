r"""A mixture of two normals in order, on simulated data.

.. math:: y_n \sim \theta\, \mathcal{N}(\mu_1, \sigma_1^2) + (1 - \theta)\, \mathcal{N}(\mu_2, \sigma_2^2), \qquad
          \mu_1 < \mu_2, \quad \mu_k \sim \mathcal{N}(0, 2^2), \quad \sigma_k \sim \operatorname{HalfNormal}(2), \quad
          \theta \sim \operatorname{Beta}(5, 5)

Source: https://github.com/stan-dev/posteriordb, model ``low_dim_gauss_mix``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from zoo.posteriordb.posterior import ReferencePosterior, posteriors, reals

__all__ = ["low_dim_gauss_mix"]


def low_dim_gauss_mix(y: Tensor) -> None:
    """Observe N numbers.

    :param y: ``(N,)``.
    """
    zero = y.new_zeros(())
    mu = pyro.sample("mu", dist.ImproperUniform(dist.constraints.ordered_vector, (), (2,)))
    pyro.factor("mu_prior", dist.Normal(zero, 2.0).log_prob(mu).sum(-1))
    sigma = pyro.sample("sigma", dist.HalfNormal(zero + 2).expand([2]).to_event(1))
    theta = pyro.sample("theta", dist.Beta(zero + 5, zero + 5))
    with pyro.plate("data", len(y)):
        weights = dist.Categorical(torch.stack([theta, 1 - theta]))
        pyro.sample("y", dist.MixtureSameFamily(weights, dist.Normal(mu, sigma)), obs=y)


def _arguments(data: Mapping[str, Any]) -> tuple[Tensor, ...]:
    return reals(data, "y")


posteriors.add(
    "low_dim_gauss_mix-low_dim_gauss_mix",
    ReferencePosterior("low_dim_gauss_mix-low_dim_gauss_mix", low_dim_gauss_mix, _arguments),
)
