r"""Conjugate building blocks of mixtures: exponential families in natural parameters, for coordinate ascent in closed form.

A prior over the parameters :math:`\theta` with natural parameters :math:`\chi_0` is conjugate to the complete data
:math:`(x, z)` if a posterior given responsibilities is the same family at :math:`\chi_0 + \sum_n E[t(x_n, z_n)]`. The blocks
here know their :math:`\chi_0`, statistics :math:`t`, log-normaliser :math:`A(\chi)` and expectations; natural parameters are
dicts of tensors with a leading dimension R (restarts), in float64. Responsibilities have the shape ``(R, K, N)``.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Components", "ConjugateMixture", "DirichletWeights", "Natural", "StickWeights", "Weights"]

Natural = dict[str, Tensor]


class Weights(Protocol):
    """The block of the mixture weights."""

    prior: Natural

    def statistics(self, counts: Tensor) -> Natural:
        """Return sufficient statistics of the expected counts ``(R, K)``."""

    def log_normaliser(self, natural: Natural) -> Tensor:
        r"""Return :math:`A(\chi)`, ``(R,)``."""

    def expected_log(self, natural: Natural) -> Tensor:
        r"""Return :math:`E[\log\pi_k]`, ``(R, K)``."""

    def expected(self, natural: Natural) -> Tensor:
        r"""Return :math:`E[\pi_k]`, ``(R, K)``."""

    def sample(self, natural: Natural) -> dict[str, Tensor]:
        """Draw the model's site."""


class Components(Protocol):
    """The block of the component parameters."""

    prior: Natural

    def rows(self, x: Tensor) -> Tensor:
        """Return data as the other methods take them, ``(D, N)``."""

    def statistics(self, rows: Tensor, responsibilities: Tensor) -> Natural:
        """Return sufficient statistics of rows weighted by responsibilities."""

    def log_normaliser(self, natural: Natural) -> Tensor:
        r"""Return :math:`A(\chi)`, ``(R,)``."""

    def log_base(self, rows: Tensor) -> Tensor:
        """Return the part of the log density that no parameter enters, summed over rows, ``()``."""

    def expected_log_density(self, rows: Tensor, natural: Natural) -> Tensor:
        r"""Return :math:`E[\log p(x_n \mid \theta_k)]` in nats, ``(R, K, N)``."""

    def log_predictive(self, rows: Tensor, natural: Natural) -> Tensor:
        r"""Return :math:`\log E[p(x_n \mid \theta_k)]` in nats, ``(R, K, N)``."""

    def sample(self, natural: Natural) -> dict[str, Tensor]:
        """Draw the model's sites."""

    def describe(self, natural: Natural) -> dict[str, Tensor]:
        """Return the usual parameters, in the coordinates of the data."""


class ConjugateMixture:
    """A mixture as two conjugate blocks; what ``guides.cavi`` asks of a model.

    :param weights: the block of the weights.
    :param components: the block of the component parameters.
    """

    def __init__(self, weights: Weights, components: Components) -> None:
        self.weights, self.components = weights, components
        self.prior: Natural = {**weights.prior, **components.prior}

    def rows(self, x: Tensor) -> Tensor:
        """Return data ``(N, D)`` as the other methods take them, rows last and in float64."""
        return self.components.rows(x)

    def statistics(self, rows: Tensor, responsibilities: Tensor) -> Natural:
        """Return the expected sufficient statistics of all rows, to be added to :attr:`prior`."""
        return {
            **self.weights.statistics(responsibilities.sum(-1)),
            **self.components.statistics(rows, responsibilities),
        }

    def log_normaliser(self, natural: Natural) -> Tensor:
        r"""Return :math:`A(\chi)`, ``(R,)``."""
        return self.weights.log_normaliser(natural) + self.components.log_normaliser(natural)

    def log_base(self, rows: Tensor) -> Tensor:
        """Return the part of the log density of all rows that no parameter enters, ``()``."""
        return self.components.log_base(rows)

    def expected_log_joint(self, rows: Tensor, natural: Natural) -> Tensor:
        r"""Return :math:`E_{q(\theta)}[\log p(x_n, z_n = k \mid \theta)]` in nats, ``(R, K, N)``."""
        return self.components.expected_log_density(rows, natural) + self.weights.expected_log(natural).unsqueeze(-1)

    def log_predictive(self, rows: Tensor, natural: Natural) -> Tensor:
        """Return the log density of new rows, averaged over the posterior, in nats, ``(R, N)``."""
        weights = self.weights.expected(natural).log().unsqueeze(-1)
        return (self.components.log_predictive(rows, natural) + weights).logsumexp(-2)

    def sample(self, natural: Natural) -> dict[str, Tensor]:
        """Draw every latent site of the model, one draw for each of the R posteriors."""
        return {**self.weights.sample(natural), **self.components.sample(natural)}

    def describe(self, natural: Natural) -> dict[str, Tensor]:
        """Return the usual parameters of every factor by name, with the mean ``"weights"``."""
        own = {name: natural[name] for name in self.weights.prior}
        return {"weights": self.weights.expected(natural), **own, **self.components.describe(natural)}


class DirichletWeights:
    r""":math:`\pi \sim \operatorname{Dirichlet}(\alpha)`; natural parameter ``"concentration"``, ``(R, K)``.

    :param concentration: prior :math:`\alpha`, ``(K,)``.
    """

    def __init__(self, concentration: Tensor) -> None:
        self.prior: Natural = {"concentration": concentration.unsqueeze(0)}

    def statistics(self, counts: Tensor) -> Natural:
        """The counts themselves."""
        return {"concentration": counts}

    def log_normaliser(self, natural: Natural) -> Tensor:
        """Sum of log gammas minus log gamma of the sum."""
        a = natural["concentration"]
        return torch.lgamma(a).sum(-1) - torch.lgamma(a.sum(-1))

    def expected_log(self, natural: Natural) -> Tensor:
        """Digammas."""
        a = natural["concentration"]
        return torch.digamma(a) - torch.digamma(a.sum(-1, keepdim=True))

    def expected(self, natural: Natural) -> Tensor:
        """Normalised concentrations."""
        a = natural["concentration"]
        return a / a.sum(-1, keepdim=True)

    def sample(self, natural: Natural) -> dict[str, Tensor]:
        """Draw ``"weights"``; a single component has none."""
        a = natural["concentration"]
        return {"weights": torch.distributions.Dirichlet(a).sample()} if a.shape[-1] > 1 else {}


class StickWeights:
    r"""Stick-breaking weights, :math:`v_k \sim \operatorname{Beta}(1, \alpha)`; natural parameter ``"sticks"``.

    It has the shape ``(R, K - 1, 2)``: the last component takes the remainder.

    :param concentration: :math:`\alpha`, a scalar tensor.
    :param num_components: K.
    """

    def __init__(self, concentration: Tensor, num_components: int) -> None:
        sticks = torch.stack([torch.ones_like(concentration), concentration])
        self.prior: Natural = {"sticks": sticks.expand(1, num_components - 1, 2)}

    def statistics(self, counts: Tensor) -> Natural:
        """Rows that stop at a stick, and rows that go on beyond it."""
        beyond = counts.flip(-1).cumsum(-1).flip(-1)[..., 1:]
        return {"sticks": torch.stack([counts[..., :-1], beyond], -1)}

    def log_normaliser(self, natural: Natural) -> Tensor:
        """Sum of log beta functions."""
        sticks = natural["sticks"]
        return (torch.lgamma(sticks).sum(-1) - torch.lgamma(sticks.sum(-1))).sum(-1)

    def expected_log(self, natural: Natural) -> Tensor:
        """Expected log of each stick plus those of what earlier sticks left."""
        sticks = natural["sticks"]
        logs = torch.digamma(sticks) - torch.digamma(sticks.sum(-1, keepdim=True))
        return _chain(logs[..., 0], logs[..., 1], torch.zeros_like(sticks[..., :1, 0]))

    def expected(self, natural: Natural) -> Tensor:
        """Products of means, since the sticks are independent."""
        means = natural["sticks"] / natural["sticks"].sum(-1, keepdim=True)
        logs = means.log()
        return _chain(logs[..., 0], logs[..., 1], torch.zeros_like(logs[..., :1, 0])).exp()

    def sample(self, natural: Natural) -> dict[str, Tensor]:
        """Draw ``"sticks"``."""
        a, b = natural["sticks"].unbind(-1)
        return {"sticks": torch.distributions.Beta(a, b).sample()}


def _chain(log_stick: Tensor, log_rest: Tensor, zero: Tensor) -> Tensor:
    """Log weights ``(..., K)`` of log sticks and log remainders ``(..., K - 1)``."""
    left = torch.cat([zero, log_rest.cumsum(-1)], -1)
    return left + torch.cat([log_stick, zero], -1)
