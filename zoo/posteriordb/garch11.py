r"""A series whose variance follows its past: generalised autoregressive conditional heteroscedasticity, on simulated data.

.. math:: y_t \sim \mathcal{N}(\mu, \sigma_t^2), \qquad
          \sigma_t^2 = \alpha_0 + \alpha_1 (y_{t-1} - \mu)^2 + \beta_1 \sigma_{t-1}^2

with flat priors on :math:`\mu`, :math:`\alpha_0 > 0`, :math:`0 < \alpha_1 < 1` and :math:`0 < \beta_1 < 1 - \alpha_1`. The
last bound moves, so the latent is :math:`u = \beta_1 / (1 - \alpha_1)`, with the density :math:`1 - \alpha_1` that makes
:math:`\beta_1` flat; it is what Stan's sampler moves in, too.

Source: https://github.com/stan-dev/posteriordb, model ``garch11``.
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
from zoo.posteriordb.recurrence import linear_recurrence

__all__ = ["garch11"]


def garch11(sigma1: Tensor, y: Tensor) -> None:
    """Observe a series.

    :param sigma1: standard deviation of its first value, ``()``.
    :param y: ``(T,)``.
    """
    zero = y.new_zeros(())
    mu = pyro.sample("mu", dist.ImproperUniform(constraints.real, (), ()))
    alpha0 = pyro.sample("alpha0", dist.ImproperUniform(constraints.positive, (), ()))
    alpha1 = pyro.sample("alpha1", dist.Uniform(zero, 1.0))
    share = pyro.sample("beta1_share", dist.Uniform(zero, 1.0))
    pyro.factor("beta1_is_flat", torch.log1p(-alpha1))
    beta1 = pyro.deterministic("beta1", (1 - alpha1) * share)
    shocks = alpha0 + alpha1 * (y[:-1] - mu).square()
    variance = linear_recurrence(beta1, torch.cat([sigma1.square().reshape(1), shocks]))
    pyro.sample("y", dist.Normal(mu, variance.sqrt()).to_event(1), obs=y)


def _arguments(data: Mapping[str, Any]) -> tuple[Tensor, ...]:
    return reals(data, "sigma1", "y")


def _latents(draws: Mapping[str, Tensor]) -> dict[str, Tensor]:
    share = draws["beta1"] / (1 - draws["alpha1"])
    return {"mu": draws["mu"], "alpha0": draws["alpha0"], "alpha1": draws["alpha1"], "beta1_share": share}


posteriors.add("garch-garch11", ReferencePosterior("garch-garch11", garch11, _arguments, _latents))
