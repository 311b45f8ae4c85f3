"""What closed-form inference asks of a model, and the posterior it gives."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from pyro import poutine
from torch import Tensor

from guides.errors import OptionError
from guides.program.isolation import quiet, seeded
from guides.program.parameters import isolated_store
from guides.program.sites import is_observed, nodes
from guides.program.vectorise import over_draws

__all__ = ["ConjugatePosterior", "ConjugateStructure", "Natural", "rows_per_chunk"]

Natural = dict[str, Tensor]
_ELEMENTS_PER_CHUNK = 2**19


class ConjugateStructure(Protocol):
    r"""A model whose parameters are conjugate to the data and one discrete latent of each data point, with K values.

    .. math::
        p(\theta) \propto e^{\langle \chi_0, \eta(\theta) \rangle}, \qquad
        \log p(x_n, z_n \mid \theta) = \langle t(x_n, z_n), \eta(\theta) \rangle + \log h(x_n)

    Natural parameters are dicts of tensors whose first dimension R runs over independent posteriors. ``rows`` are the data
    as the model wants them, float64, with the data points N **last**; responsibilities have the shape ``(R, K, N)``.
    A model of this kind returns its structure from ``model.conjugate(x)``; see ``zoo.conjugate`` for building blocks.
    """

    prior: Natural

    def rows(self, x: Tensor) -> Tensor:
        """Return ``x`` as the other methods take it."""

    def statistics(self, rows: Tensor, responsibilities: Tensor) -> Natural:
        r"""Return :math:`\sum_n E[t(x_n, z_n)]`."""

    def log_normaliser(self, natural: Natural) -> Tensor:
        r"""Return :math:`A(\chi) = \log \int e^{\langle \chi, \eta(\theta) \rangle} d\theta`, ``(R,)``."""

    def log_base(self, rows: Tensor) -> Tensor:
        r"""Return :math:`\sum_n \log h(x_n)`, ``()``."""

    def expected_log_joint(self, rows: Tensor, natural: Natural) -> Tensor:
        r"""Return :math:`E_{q(\theta)} \log p(x_n, z_n = k \mid \theta)`, ``(R, K, N)``."""

    def log_predictive(self, rows: Tensor, natural: Natural) -> Tensor:
        r"""Return :math:`\log E_{q(\theta)} p(x_n \mid \theta)`, ``(R, N)``."""

    def sample(self, natural: Natural) -> dict[str, Tensor]:
        """Draw the latent sites of the Pyro model once for each of the R posteriors."""

    def describe(self, natural: Natural) -> dict[str, Tensor]:
        """Return the factors' usual parameters by name; ``"weights"`` are the expected ones, ``(R, K)``."""


@dataclass(frozen=True)
class ConjugatePosterior:
    r"""A mean-field posterior :math:`q(\theta) \prod_n q(z_n)` in closed form. Frozen, and the best of its restarts.

    :ivar model: the Pyro model.
    :ivar natural: natural parameters of :math:`q(\theta)` by name.
    :ivar responsibilities: :math:`q(z_n = k)`, shape ``(N, K)``.
    :ivar elbos: ELBO in nats after every iteration, shape ``(restarts, iterations + 1)``; NaN after a restart stopped. The
        first column is the start.
    :ivar best: which restart this is.
    :ivar iterations: iterations of each restart.
    :ivar stop_reasons: one sentence per restart.
    :ivar converged: whether this restart stopped by its tolerance.
    :ivar seconds: wall time of ``"setup"`` (initialisation included) and ``"train"``.
    :ivar seed: the seed.
    :ivar data: the training data ``x``.
    """

    model: Callable[..., Any]
    natural: Natural
    responsibilities: Tensor = field(repr=False)
    elbos: Tensor = field(repr=False)
    best: int
    iterations: tuple[int, ...]
    stop_reasons: tuple[str, ...]
    converged: bool
    seconds: dict[str, float]
    seed: int
    data: Tensor = field(repr=False)
    structure: ConjugateStructure = field(repr=False)

    @property
    def elbo(self) -> float:
        """The ELBO in nats, assignments included."""
        return float(self.elbos[self.best, self.iterations[self.best]])

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The usual parameters of every factor by name, with ``"weights"``, the expected weights ``(K,)``."""
        return {name: value[0] for name, value in self.structure.describe(self._one).items()}

    @property
    def labels(self) -> Tensor:
        """The most probable component of each data point, shape ``(N,)``."""
        return self.responsibilities.argmax(-1)

    def assign(self, x: Tensor) -> Tensor:
        """Return the responsibilities of new data points, shape ``(N, K)``."""
        rows, one = self.structure.rows(x), self._one
        pieces = rows.split(rows_per_chunk(rows, self.responsibilities.shape[1]), -1)
        log_joints = [self.structure.expected_log_joint(piece, one)[0] for piece in pieces]
        return torch.cat(log_joints, -1).softmax(0).mT

    def log_predictive(self, x: Tensor) -> Tensor:
        """Return the log predictive density of new data points in nats, shape ``(N,)``; exact under this posterior."""
        rows, one = self.structure.rows(x), self._one
        pieces = rows.split(rows_per_chunk(rows, self.responsibilities.shape[1]), -1)
        return torch.cat([self.structure.log_predictive(piece, one)[0] for piece in pieces])

    def sample(self, num_samples: int = 1000, seed: int | None = None) -> dict[str, Tensor]:
        """Return draws of the Pyro model's latent sites, shape ``(S, *site shape)`` each, as ``Predictive`` takes them.

        :param num_samples: S.
        :param seed: by default that of the fit.
        :raises OptionError: if ``num_samples`` is not positive.
        """
        if num_samples < 1:
            raise OptionError(f"num_samples must be at least 1, not {num_samples}")
        many = {name: value.expand(num_samples, *value.shape) for name, value in self.natural.items()}
        with seeded(self.seed if seed is None else seed):
            return self.structure.sample(many)

    def kl(self) -> float:
        r"""Return :math:`\mathrm{KL}(q(\theta) \,\|\, p(\theta))` in nats.

        By the gradient of the log-normaliser, which is the mean of the sufficient statistics.
        """
        with torch.enable_grad():
            natural = {name: value.detach().clone().requires_grad_() for name, value in self._one.items()}
            log_normaliser = self.structure.log_normaliser(natural).sum()
            means = torch.autograd.grad(log_normaliser, list(natural.values()))
        prior = self.structure.prior
        moved = sum(((self._one[name] - prior[name]) * mean).sum() for name, mean in zip(natural, means, strict=True))
        return float(moved - log_normaliser.detach() + self.structure.log_normaliser(prior).sum())

    def marginal_elbo(self, num_samples: int = 200, seed: int | None = None) -> tuple[float, float]:
        r"""Return the ELBO with the assignments summed out, and its Monte Carlo standard error, in nats.

        :math:`E_{q(\theta)} \log p(x \mid \theta) - \mathrm{KL}(q(\theta) \| p(\theta))`: what a guide over the continuous
        latents of the Pyro model optimises, and never below :attr:`elbo`.

        :param num_samples: draws of :math:`\theta`.
        :param seed: by default that of the fit.
        """
        draws = self.sample(num_samples, seed)

        def log_likelihood(index: Tensor) -> dict[str, Any]:
            model = poutine.condition(self.model, data={name: value[index] for name, value in draws.items()})
            trace = poutine.trace(model).get_trace(self.data.double())
            trace.compute_log_prob()
            found = [site["log_prob_sum"] for name, site in nodes(trace).items() if is_observed(site) and name not in draws]
            return {"log_likelihood": sum(found)}

        chunk = max(1, _ELEMENTS_PER_CHUNK // (self.data.numel() * self.responsibilities.shape[1]))
        with isolated_store(), quiet(), torch.no_grad():
            values = over_draws(log_likelihood, num_samples, chunk, self.data.device)["log_likelihood"]
        error = float(values.std()) / math.sqrt(num_samples) if num_samples > 1 else math.nan
        return float(values.mean()) - self.kl(), error

    @property
    def _one(self) -> Natural:
        return {name: value.unsqueeze(0) for name, value in self.natural.items()}


def rows_per_chunk(rows: Tensor, columns: int) -> int:
    """Return how many rows to handle at a time, so that what they need for ``columns`` components stays in cache."""
    features = max(1, rows.shape[:-1].numel())
    return max(256, _ELEMENTS_PER_CHUNK // (columns * features))
