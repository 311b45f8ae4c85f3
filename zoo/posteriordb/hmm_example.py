r"""A hidden Markov chain of two states with a normal output each.

.. math:: y_t \sim \mathcal{N}(\mu_{s_t}, 1), \qquad P(s_t = j \mid s_{t-1} = i) = \theta_{ij}, \qquad
          \mu_1 \sim \mathcal{N}(3, 1), \quad \mu_2 \sim \mathcal{N}(10, 1), \quad 0 < \mu_1 < \mu_2

with flat priors on both rows of :math:`\theta`; the first state is either, with equal weight. States are summed out: the
forward algorithm is a product of matrices, one for each step, and is taken in pairs, so that it is :math:`\log_2 T`
operations instead of T. (Pyro's ``DiscreteHMM`` moves once before the first output, which is another density.)

Source: https://github.com/stan-dev/posteriordb, model ``hmm_example``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from zoo.posteriordb.posterior import ReferencePosterior, posteriors, reals

__all__ = ["hmm_example"]


def hmm_example(y: Tensor) -> None:
    """Observe a series.

    :param y: ``(T,)``.
    """
    theta1 = pyro.sample("theta1", dist.Dirichlet(y.new_ones(2)))
    theta2 = pyro.sample("theta2", dist.Dirichlet(y.new_ones(2)))
    mu = pyro.sample("mu", dist.ImproperUniform(dist.constraints.positive_ordered_vector, (), (2,)))
    pyro.factor("mu_prior", dist.Normal(y.new_tensor([3.0, 10.0]), 1.0).log_prob(mu).sum(-1))
    outputs = dist.Normal(mu, 1.0).log_prob(y.unsqueeze(-1))
    steps = torch.stack([theta1, theta2]).log() + outputs[1:].unsqueeze(-2)
    pyro.factor("y", (outputs[0].unsqueeze(-1) + _product(steps)).logsumexp((-2, -1)))


def _product(matrices: Tensor) -> Tensor:
    """Return the logarithm of the product of matrices whose logarithms are given, ``(N, K, K)``, in their order."""
    while len(matrices) > 1:
        even = len(matrices) // 2 * 2
        pairs = (matrices[:even:2].unsqueeze(-1) + matrices[1:even:2].unsqueeze(-3)).logsumexp(-2)
        matrices = torch.cat([pairs, matrices[even:]])
    return matrices[0]


def _arguments(data: Mapping[str, Any]) -> tuple[Tensor, ...]:
    return reals(data, "y")


posteriors.add("hmm_example-hmm_example", ReferencePosterior("hmm_example-hmm_example", hmm_example, _arguments))
