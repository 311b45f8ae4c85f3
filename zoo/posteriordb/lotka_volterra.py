r"""Lynx and hare by the pelts sold in a year: predator and prey, an ordinary differential equation.

.. math::

    \dot u = (\alpha - \beta v)\, u, \qquad \dot v = (-\gamma + \delta u)\, v, \qquad
    \log y_{tk} \sim \mathcal{N}(\log z_k(t), \sigma_k^2), \quad z = (u, v)

    \alpha, \gamma \sim \mathcal{N}^+(1, 0.5^2), \quad \beta, \delta \sim \mathcal{N}^+(0.05, 0.05^2), \quad
    \sigma_k \sim \operatorname{LogNormal}(-1, 1), \quad z_k(0) \sim \operatorname{LogNormal}(\log 10, 1)

Solved in :math:`\log z`, where it stays positive and is smoother, by the classical method of Runge and Kutta with a fixed
step, four a year; Stan's method chooses its steps, with tolerances of 1e-5 and 1e-3.

Source: https://github.com/stan-dev/posteriordb, model ``lotka_volterra``; Carpenter (2018), Predator-prey population
dynamics: the Lotka-Volterra model in Stan.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from zoo.posteriordb.posterior import ReferencePosterior, posteriors, reals

__all__ = ["lotka_volterra"]

_STEPS = 4  # between two observations: log z is then right to 2e-4 all over the posterior


def lotka_volterra(ts: Tensor, y: Tensor) -> None:
    """Observe both populations at their start and N - 1 times after it.

    :param ts: times, increasing from the start, ``(N,)``.
    :param y: prey and predators at these times, ``(N, 2)``.
    """
    zero = y.new_zeros(())
    theta = pyro.sample("theta", dist.ImproperUniform(constraints.positive, (), (4,)))
    prior = dist.Normal(y.new_tensor([1.0, 0.05, 1.0, 0.05]), y.new_tensor([0.5, 0.05, 0.5, 0.05]))
    pyro.factor("theta_prior", prior.log_prob(theta).sum(-1))
    start = pyro.sample("z_init", dist.LogNormal(zero + math.log(10.0), 1.0).expand([2]).to_event(1))
    sigma = pyro.sample("sigma", dist.LogNormal(zero - 1.0, 1.0).expand([2]).to_event(1))
    log_z = _solved(theta, start.log(), ts)
    # Populations may grow beyond all numbers from where a search starts, which is a density of 0 and no mistake.
    pyro.sample("y", dist.LogNormal(log_z, sigma, validate_args=False).to_event(2), obs=y)


def _solved(theta: Tensor, log_z: Tensor, ts: Tensor) -> Tensor:
    """Return the logarithms of both populations at times ``ts``, ``(N, 2)``, from those at the first, ``(2,)``."""
    alpha, beta, gamma, delta = theta.unbind(-1)
    constant, slope = torch.stack([alpha, -gamma]), torch.stack([-beta, delta])

    def change(state: Tensor) -> Tensor:
        return constant + slope * state.exp().flip(-1)

    found = [log_z]
    for step in ts.diff() / _STEPS:
        for _ in range(_STEPS):
            first = change(log_z)
            second = change(log_z + step / 2 * first)
            third = change(log_z + step / 2 * second)
            fourth = change(log_z + step * third)
            log_z = log_z + step / 6 * (first + 2 * (second + third) + fourth)
        found.append(log_z)
    return torch.stack(found)


def _arguments(data: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    ts, first, y = reals(data, "ts", "y_init", "y")
    return torch.cat([torch.zeros_like(ts[:1]), ts]), torch.cat([first.unsqueeze(0), y])


posteriors.add(
    "hudson_lynx_hare-lotka_volterra", ReferencePosterior("hudson_lynx_hare-lotka_volterra", lotka_volterra, _arguments)
)
