"""Posteriors of known shape, with several modes: models, exact draws, evidence, and how much mass each mode has."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

import zoo

__all__ = [
    "PLANAR",
    "REFERENCES",
    "SHOWN",
    "PlanarDensity",
    "Reference",
    "TwoMeans",
    "bump",
    "bump_network",
    "energy_distance",
    "latents",
    "mode_masses",
    "plane",
    "ring",
    "two_means_data",
    "two_moons",
]

SHOWN = 48  # points of a picture's plane along each axis
_EXTENT = 4.5

PRIOR = 2.0
"""Standard deviation of the normal that starts are drawn from, where a density is all that is given."""

POINTS, DRAWS = 600, 4000
HALF_WIDTH = 5.0
WEIGHTS, SPREAD = (0.52, 0.48), 3.0
NETWORK_PRIOR, NOISE = (2.5, 1.5), 0.3
BUMP_DRAWS, BUMP_CHUNK = 2**20, 2**16


def two_moons(z: Tensor) -> Tensor:
    """Return the log density, up to a constant, of two crescents that face each other, at ``(..., 2)``."""
    shell = -0.5 * ((z.norm(dim=-1) - 2) / 0.4).square()
    sides = [-0.5 * ((z[..., 0] - side) / 0.6).square() for side in (2.0, -2.0)]
    return shell + torch.logsumexp(torch.stack(sides), dim=0)


def ring(z: Tensor) -> Tensor:
    """Return the log density, up to a constant, of a ring of radius 2, at ``(..., 2)``."""
    return -0.5 * ((z.norm(dim=-1) - 2) / 0.3).square()


PLANAR: Mapping[str, Callable[[Tensor], Tensor]] = {"two_moons": two_moons, "ring": ring}


class PlanarDensity(nn.Module):
    """A model whose posterior is a density over the plane: latent ``"z"``, shape ``(2,)``, and no data.

    :param name: one of ``PLANAR``.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self) -> Tensor:
        """Run the model."""
        start = dist.Normal(torch.zeros(2), PRIOR).to_event(1)
        z = pyro.sample("z", start)
        pyro.factor("density", PLANAR[self.name](z) - start.log_prob(z))
        return z


class TwoMeans(nn.Module):
    r"""Two normals with known weights and unit variance, whose means are sought.

    .. math:: \mu_1, \mu_2 \sim \mathcal N(0, 3^2), \qquad y_n \sim 0.52\, \mathcal N(\mu_1, 1) + 0.48\, \mathcal N(\mu_2, 1)

    The posterior has a mode for either order of the means; since the weights differ, so do the masses of the modes.
    """

    def forward(self, y: Tensor) -> Tensor:
        """Run the model on observations ``(N,)``; the latent is ``"mu"``, shape ``(2,)``."""
        mu = pyro.sample("mu", dist.Normal(torch.zeros(2), SPREAD).to_event(1))
        with pyro.plate("data", len(y)):
            choice = dist.Categorical(torch.tensor(WEIGHTS, device=mu.device))
            pyro.sample("y", dist.MixtureSameFamily(choice, dist.Normal(mu, 1.0)), obs=y)
        return mu


def two_means_data() -> Tensor:
    """Return 30 observations, of which a few more come from the left."""
    generator = torch.Generator().manual_seed(3)
    side = torch.where(torch.rand(30, generator=generator) < WEIGHTS[0], -1.6, 1.6)
    return side + torch.randn(30, generator=generator)


def bump() -> tuple[Tensor, Tensor]:
    """Return 16 noisy points of a bump, inputs ``(16, 1)`` and targets ``(16,)``."""
    x = torch.linspace(-2.5, 2.5, 16)
    noise = torch.randn(16, generator=torch.Generator().manual_seed(5))
    return x.unsqueeze(-1), torch.tanh(2 * (x + 1)) - torch.tanh(2 * (x - 1)) - 1 + NOISE * noise


def bump_network() -> zoo.BayesianMLP:
    """Return a network with two hidden units: the sign of each and their order do not matter, so modes come in eights."""
    return zoo.BayesianMLP(1, hidden=(2,), activation="tanh", prior=NETWORK_PRIOR, noise=NOISE)


@dataclass(frozen=True)
class Reference:
    """What is known exactly.

    :param draws: of the posterior, shape ``(S, D)``, latents flattened in the model's order.
    :param log_evidence: log of the integral of the model's joint density, in nats.
    :param mode: from latents ``(..., D)`` to the number of the mode that they belong to.
    :param masses: posterior mass of each mode, shape ``(M,)``.
    """

    draws: Tensor
    log_evidence: float
    mode: Callable[[Tensor], Tensor]
    masses: Tensor


def _on_grid(log_density: Callable[[Tensor], Tensor], mode: Callable[[Tensor], Tensor], modes: int) -> Reference:
    """Return the reference of a density over the plane, from a fine grid."""
    width = 2 * HALF_WIDTH / POINTS
    axis = -HALF_WIDTH + width * (torch.arange(POINTS, dtype=torch.float64) + 0.5)
    centres = torch.cartesian_prod(axis, axis)
    logs = log_density(centres)
    weights = logs.softmax(0)
    generator = torch.Generator().manual_seed(0)
    index = torch.multinomial(weights, DRAWS, replacement=True, generator=generator)
    jitter = width * (torch.rand(DRAWS, 2, generator=generator, dtype=torch.float64) - 0.5)
    masses = torch.zeros(modes, dtype=torch.float64).index_add(0, mode(centres), weights)
    return Reference(centres[index] + jitter, float(logs.logsumexp(0)) + 2 * math.log(width), mode, masses)


def _side(z: Tensor) -> Tensor:
    return (z[..., 0] > 0).long()


def _quadrant(z: Tensor) -> Tensor:
    return (z[..., 0] > 0).long() + 2 * (z[..., 1] > 0).long()


def _order(mu: Tensor) -> Tensor:
    return (mu[..., 0] > mu[..., 1]).long()


def _signs(weights: Tensor) -> Tensor:
    """Return which of the two units has a positive weight on its way out."""
    return (weights[..., 4] > 0).long() + 2 * (weights[..., 5] > 0).long()


@lru_cache
def _two_moons() -> Reference:
    return _on_grid(two_moons, _side, 2)


@lru_cache
def _ring() -> Reference:
    return _on_grid(ring, _quadrant, 4)


@lru_cache
def _two_means() -> Reference:
    y = two_means_data().double()
    log_weights = torch.tensor(WEIGHTS, dtype=torch.float64).log()
    prior = dist.Normal(torch.zeros(2, dtype=torch.float64), SPREAD).to_event(1)

    def log_joint(mu: Tensor) -> Tensor:
        parts = [w + dist.Normal(mu[:, k : k + 1], 1.0).log_prob(y) for k, w in enumerate(log_weights)]
        return prior.log_prob(mu) + torch.logsumexp(torch.stack(parts), 0).sum(-1)

    return _on_grid(log_joint, _order, 2)


@lru_cache
def _bump() -> Reference:
    """Draw the hidden layer from its prior, weigh each draw by the evidence of the linear layer given it, draw that too.

    Given the hidden layer the model is linear and all is closed form (Bishop 2006, section 3.5). Signs are drawn last: each
    of the four patterns has exactly a quarter of the mass.
    """
    x, y = (part.double() for part in bump())
    generator = torch.Generator().manual_seed(0)
    inner, outer = NETWORK_PRIOR
    hidden = inner * torch.randn(BUMP_DRAWS, 4, generator=generator, dtype=torch.float64)
    logs = torch.cat([_linear_layer(part, x, y, outer)[0] for part in hidden.split(BUMP_CHUNK)])
    index = torch.multinomial(logs.softmax(0), DRAWS, replacement=True, generator=generator)
    _, mean, precision = _linear_layer(hidden[index], x, y, outer)
    e = torch.randn(DRAWS, 3, 1, generator=generator, dtype=torch.float64)
    linear = mean + torch.linalg.solve_triangular(torch.linalg.cholesky(precision).mT, e, upper=True).squeeze(-1)
    signs = torch.where(torch.rand(DRAWS, 2, generator=generator) < 0.5, -1.0, 1.0).double()
    draws = torch.cat([hidden[index] * signs.repeat(1, 2), linear[:, :2] * signs, linear[:, 2:]], dim=1)
    evidence = float(logs.logsumexp(0)) - math.log(BUMP_DRAWS)
    return Reference(draws, evidence, _signs, torch.full((4,), 0.25, dtype=torch.float64))


def _linear_layer(hidden: Tensor, x: Tensor, y: Tensor, prior: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return log evidence, mean and precision of the linear layer given weights and biases of the hidden one, ``(S, 4)``."""
    units = torch.tanh(x * hidden[:, None, :2] + hidden[:, None, 2:])
    features = torch.cat([units, torch.ones_like(units[..., :1])], dim=-1)
    precision = features.mT @ features / NOISE**2 + torch.eye(3, dtype=x.dtype) / prior**2
    projected = features.mT @ y / NOISE**2
    mean = torch.linalg.solve(precision, projected)
    constant = len(y) * math.log(2 * math.pi * NOISE**2) + 3 * math.log(prior**2) + float(y @ y) / NOISE**2
    return -0.5 * (constant + torch.logdet(precision) - (projected * mean).sum(-1)), mean, precision


REFERENCES: Mapping[str, Callable[[], Reference]] = {
    "two_moons": _two_moons,
    "ring": _ring,
    "two_means": _two_means,
    "bump": _bump,
}
"""The exact posterior of each model, made once per process."""


def latents(draws: Mapping[str, Tensor], leading: int = 1) -> Tensor:
    """Return draws by site as one tensor ``(..., D)``, in the order of the sites.

    :param leading: how many dimensions come before those of the sites.
    """
    return torch.cat([value.reshape(*value.shape[:leading], -1) for value in draws.values()], dim=-1)


def mode_masses(draws: Tensor, reference: Reference) -> Tensor:
    """Return the share of draws ``(S, D)`` in each mode, shape ``(M,)``."""
    counts = torch.bincount(reference.mode(draws), minlength=len(reference.masses))
    return counts.double() / len(draws)


def energy_distance(draws: Tensor, reference: Tensor, most: int = 2000) -> float:
    r"""Return :math:`2\,\mathbb E|X - Y| - \mathbb E|X - X'| - \mathbb E|Y - Y'|`, zero for equal distributions.

    In standard deviations of the reference's latents; not biased, so that it may fall below zero by chance.

    :param draws: shape ``(S, D)``; ``reference`` likewise.
    :param most: draws of each that are compared.
    """
    scale = reference.std(0)
    x, y = (part[:most].double() / scale for part in (draws, reference))
    own = [torch.cdist(part, part).sum() / (len(part) * (len(part) - 1)) for part in (x, y)]
    return float(2 * torch.cdist(x, y).mean() - own[0] - own[1])


def plane() -> Tensor:
    """Return the points that pictures of the plane are drawn from, shape ``(SHOWN**2, 2)``."""
    axis = torch.linspace(-_EXTENT, _EXTENT, SHOWN)
    return torch.cartesian_prod(axis, axis)
