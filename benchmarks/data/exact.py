"""Distributions with exact draws and known constants: a funnel, a banana, wells, mixtures of normals, Student tails."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

__all__ = ["TARGETS", "ManyWells", "MixtureOfNormals", "Target", "banana", "funnel", "student_tails"]

DRAWS = 20_000
WELLS = 4
COMPONENTS, SPREAD = 8, 0.5
_GRID = torch.linspace(-4.0, 4.0, 20_001, dtype=torch.float64)


@dataclass(frozen=True)
class Target:
    """A normalised distribution as a model without data, and how to draw from it.

    :param model: makes the Pyro model.
    :param sample: draws: ``sample(count, generator)`` by site, float64, ``(count, *shape)``.
    :param mode: number of the mode that each draw belongs to, where there are several.
    :param modes: how many; 1 where there is one.
    :param alike: whether all modes have the same mass.
    :param summary: in a few words.
    """

    model: Callable[[], Callable[[], None]]
    sample: Callable[[int, torch.Generator], dict[str, Tensor]]
    summary: str
    mode: Callable[[Mapping[str, Tensor]], Tensor] | None = None
    modes: int = 1
    alike: bool = True

    def draws(self, count: int = DRAWS, seed: int = 0) -> dict[str, Tensor]:
        """Return exact draws by site."""
        return self.sample(count, torch.Generator().manual_seed(seed))


def _normals(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def funnel() -> None:
    r"""Neal's funnel in ten dimensions: :math:`v \sim N(0, 3^2)`, :math:`x_i \sim N(0, e^v)`."""
    v = pyro.sample("v", dist.Normal(torch.zeros(()), 3.0))
    pyro.sample("x", dist.Normal(torch.zeros(9), (v / 2).exp()).to_event(1))


def _sample_funnel(count: int, generator: torch.Generator) -> dict[str, Tensor]:
    v = 3 * _normals(count, generator=generator)
    return {"v": v, "x": (v / 2).exp().unsqueeze(-1) * _normals(count, 9, generator=generator)}


def banana() -> None:
    r"""A bent normal: :math:`a \sim N(0, 10^2)`, :math:`b \sim N(0.03 (a^2 - 100), 1)`."""
    a = pyro.sample("a", dist.Normal(torch.zeros(()), 10.0))
    pyro.sample("b", dist.Normal(0.03 * (a.square() - 100), 1.0))


def _sample_banana(count: int, generator: torch.Generator) -> dict[str, Tensor]:
    a = 10 * _normals(count, generator=generator)
    return {"a": a, "b": 0.03 * (a.square() - 100) + _normals(count, generator=generator)}


def _well(z: Tensor) -> Tensor:
    """Return the log density, up to a constant, of one double well."""
    return -(z**4) + 6 * z.square() + 0.5 * z


@lru_cache(maxsize=1)
def _well_table() -> tuple[Tensor, float]:
    """Return the distribution function of one well on the grid, and the logarithm of its constant."""
    log = _well(_GRID)
    step = float(_GRID[1] - _GRID[0])
    cumulative = log.softmax(0).cumsum(0)
    return cumulative, float(log.logsumexp(0)) + math.log(step)


class ManyWells(nn.Module):
    """Four double wells, one in each dimension, the right one deeper: sixteen modes of unequal mass."""

    def __init__(self) -> None:
        super().__init__()
        self.constant = _well_table()[1]

    def forward(self) -> None:
        """Run the model; the latent is ``"z"``, shape ``(4,)``."""
        start = dist.Normal(torch.zeros(WELLS), 2.0).to_event(1)
        z = pyro.sample("z", start)
        pyro.factor("density", (_well(z) - self.constant).sum(-1) - start.log_prob(z))


def _sample_wells(count: int, generator: torch.Generator) -> dict[str, Tensor]:
    uniform = torch.rand(count, WELLS, generator=generator, dtype=torch.float64)
    place = torch.searchsorted(_well_table()[0], uniform).clamp(max=len(_GRID) - 1)
    jitter = torch.rand(count, WELLS, generator=generator, dtype=torch.float64) - 0.5
    return {"z": _GRID[place] + jitter * (_GRID[1] - _GRID[0])}


def _sign_pattern(draws: Mapping[str, Tensor]) -> Tensor:
    return ((draws["z"] > 0).long() * 2 ** torch.arange(WELLS)).sum(-1)


def _centres(dims: int) -> Tensor:
    """Return where the components of a mixture are, ``(COMPONENTS, dims)``: the same at every call."""
    generator = torch.Generator().manual_seed(dims)
    return 8 * torch.rand(COMPONENTS, dims, generator=generator, dtype=torch.float64) - 4


class MixtureOfNormals(nn.Module):
    """Normals of standard deviation 0.5 with equal weights, their means drawn once between -4 and 4.

    :param dims: of the latent ``"z"``.
    """

    means: Tensor

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.register_buffer("means", _centres(dims).float())

    def forward(self) -> None:
        """Run the model."""
        parts = dist.Normal(self.means, SPREAD).to_event(1)
        pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(torch.ones(COMPONENTS)), parts))


def _sample_mixture(count: int, generator: torch.Generator, *, dims: int) -> dict[str, Tensor]:
    which = torch.randint(COMPONENTS, (count,), generator=generator)
    return {"z": _centres(dims)[which] + SPREAD * _normals(count, dims, generator=generator)}


def _nearest(draws: Mapping[str, Tensor], *, dims: int) -> Tensor:
    return torch.cdist(draws["z"].double(), _centres(dims)).argmin(-1)


def student_tails() -> None:
    """A Student distribution of five degrees of freedom in five dimensions, its columns correlated by one half."""
    pyro.sample("z", dist.MultivariateStudentT(torch.tensor(5.0), torch.zeros(5), _factor().float()))


def _factor() -> Tensor:
    return torch.linalg.cholesky(0.5 * torch.eye(5, dtype=torch.float64) + 0.5)


def _sample_student(count: int, generator: torch.Generator) -> dict[str, Tensor]:
    chi = _normals(count, 5, generator=generator).square().sum(-1, keepdim=True)
    return {"z": (5 / chi).sqrt() * _normals(count, 5, generator=generator) @ _factor().T}


def _mixture(dims: int) -> Target:
    return Target(
        partial(MixtureOfNormals, dims),
        partial(_sample_mixture, dims=dims),
        f"{COMPONENTS} normals of equal weight in {dims} dimensions",
        partial(_nearest, dims=dims),
        COMPONENTS,
    )


TARGETS: Mapping[str, Target] = {
    "funnel": Target(lambda: funnel, _sample_funnel, "Neal's funnel in 10 dimensions"),
    "banana": Target(lambda: banana, _sample_banana, "a bent normal in the plane"),
    "many_wells": Target(
        ManyWells, _sample_wells, "a double well in each of 4 dimensions: 16 modes", _sign_pattern, 2**WELLS, alike=False
    ),
    "normals_2d": _mixture(2),
    "normals_10d": _mixture(10),
    "normals_50d": _mixture(50),
    "student_tails": Target(
        lambda: student_tails, _sample_student, "Student's distribution of 5 degrees of freedom in 5 dimensions"
    ),
}
"""Every target by name."""
