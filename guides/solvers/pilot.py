"""A pilot: where a posterior lies and how wide it is, for optimisers to start from and to measure their steps by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from guides.density.density import LogDensity, log_density
from guides.errors import OptionError
from guides.families.full_rank import FullRank
from guides.families.low_rank import LowRank
from guides.families.mean_field import MeanField
from guides.families.mixture import Mixture
from guides.fitted.fitted import FittedGuide
from guides.program.data import Data
from guides.program.program import Program
from guides.program.whitened import Space, WhitenedLayout
from guides.solvers.pathfinder.pathfinder import Pathfinder

__all__ = ["Pilot", "check_precondition", "obstacle", "pilot_of", "whitened"]

_DENSE = 100  # latents, up to which a full covariance is worth a product of matrices at every step
_MOST = 500  # latents of which a pilot has a covariance
_DRAWS = 4000  # of a posterior that is the pilot
_NORMALS = (MeanField, FullRank, LowRank)


@dataclass(frozen=True)
class Pilot:
    """A normal near the posterior, and points where the posterior has its mass.

    :ivar loc: ``(D,)``; ``root``: lower Cholesky factor of the covariance, ``(D, D)``.
    :ivar points: to start from, ``(P, D)``, and ``weights`` of them, ``(P,)``.
    :ivar gradients: evaluations of the log density's gradient that it took.
    """

    loc: Tensor
    root: Tensor
    points: Tensor
    weights: Tensor
    gradients: int

    @property
    def narrow(self) -> Tensor:
        """Standard deviation of every latent given all others, ``(D,)``: the scale that independent normals have."""
        return torch.cholesky_inverse(self.root).diagonal().rsqrt()

    def starts(self, count: int, seed: int) -> Tensor:
        """Return points to start from, ``(count, D)``: the heaviest, and then any by weight."""
        source = torch.Generator().manual_seed(seed % 2**63)
        drawn = torch.multinomial(self.weights, count, replacement=True, generator=source)
        return self.points[torch.cat([self.weights.argmax()[None], drawn[1:]])]


def check_precondition(value: Any) -> None:
    """Check what a user says of the space to optimise in.

    :raises OptionError: unless it is ``None``, ``"auto"``, ``"pathfinder"`` or a posterior.
    """
    known = value in (None, "auto", "pathfinder") if isinstance(value, str | None) else isinstance(value, FittedGuide)
    if not known:
        raise OptionError(
            f"precondition={value!r} is not known; use None, 'auto', 'pathfinder', or a posterior of this model"
        )


def obstacle(program: Program, given: Any, data: list[Data], device: torch.device) -> str | None:
    """Return why a fit cannot be preconditioned, in words; ``None`` if it can.

    :param given: the guide as the user gave it.
    :param data: of all fits that run at once.
    """
    guide = program.guide
    kind = guide._family if isinstance(guide, Mixture) else type(guide)
    if kind not in _NORMALS:
        return "it is for 'mean_field', 'full_rank', 'low_rank' and 'mixture' of these"
    if isinstance(given, torch.nn.Module):
        return "the guide is an object, which starts from the parameters that it has; name it instead"
    prefix = f"{guide._pyro_name}."  # type: ignore[attr-defined]
    trained = [name for name in program.parameters.names if not name.startswith(prefix)]
    if trained:
        return f"there are parameters beside the guide's ({trained[0]!r}), at whose values the posterior is not yet"
    if guide.latent_dim > _MOST:  # type: ignore[attr-defined]
        return f"the model has {guide.latent_dim:,} latent numbers, and a pilot up to {_MOST}"  # type: ignore[attr-defined]
    if device.type != "cpu":
        return "pilots run on the CPU; say device='cpu'"
    if any(each is not data[0] for each in data):
        return "the fits are of several data sets, each of which needs a pilot of its own"
    return None


def pilot_of(model: Callable[..., Any], data: Data, source: Any, seed: int) -> Pilot:
    """Return the pilot that Pathfinder finds, or that a posterior is.

    :param source: ``"auto"``, ``"pathfinder"`` or a posterior of the same latents.
    :raises NonFiniteLossError, UnsupportedModelError: as Pathfinder does.
    :raises DataError: if the posterior is of other latents.
    :raises OptionError: if its draws have no covariance.
    """
    density = log_density(model, *data.args, seed=seed, model_kwargs=data.kwargs)
    if isinstance(source, FittedGuide):
        return _of_posterior(density, source)
    found = Pathfinder().find(density, seed)
    best = found.normals[torch.tensor([found.best])]
    return Pilot(best.loc[0], best.tril()[0], found.normals.loc, found.log_weights.exp(), found.gradients)


def _of_posterior(density: LogDensity, posterior: FittedGuide) -> Pilot:
    first = posterior.replicate(0) if posterior.replicates > 1 else posterior
    z = density.from_sites(first.sample(_DRAWS))
    covariance = torch.atleast_2d(torch.cov(z.T))
    root, failed = torch.linalg.cholesky_ex(covariance)
    if failed:
        name = density.names[int(covariance.diagonal().argmin())]
        raise OptionError(
            f"precondition is a posterior of {posterior.family!r}, whose draws have no covariance (they hardly vary in "
            f"{name!r}, or in a direction with others), so that it is no space to optimise in; pass one with a width, or "
            "'pathfinder'"
        )
    return Pilot(z.mean(0), root, z.mean(0, keepdim=True), torch.ones(1, dtype=torch.float64), 0)


def whitened(program: Program, pilot: Pilot, seeds: list[int], starts: Tensor) -> tuple[Program, Tensor]:
    """Return the program as an optimiser sees it that works in the pilot's space, and where each replicate starts there.

    :param starts: flat parameters in the model's terms, ``(replicates, size)``, of what the pilot says nothing about.
    """
    guide: Any = program.guide
    layout = program.parameters
    names = {name.rpartition(".")[2]: name for name in layout.names}
    full = "scale_tril" in names and len(pilot.loc) <= _DENSE
    space = Space(pilot.loc, pilot.root if full else pilot.narrow, names)
    inside = WhitenedLayout.of(layout, space)
    several = isinstance(guide, Mixture)
    points = [pilot.starts(guide.num_strata if several else 1, seed) for seed in seeds]
    if not several:
        points = list(pilot.starts(len(seeds), seeds[0]))
    rows = []
    for start, loc in zip(starts, points):
        values = layout.constrained(start)
        known = {"loc": loc, **_shape(pilot, names, values)}
        values |= {names[n]: v.expand_as(values[names[n]]).to(start.dtype) for n, v in known.items()}
        rows.append(inside.flatten(values))
    flat = torch.stack(rows)
    return replace(program, parameters=replace(inside, initial=flat[0])), flat


def _shape(pilot: Pilot, names: dict[str, str], values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the scales at which a family is nearest to the pilot's covariance, by the last part of their names."""
    if "scale_tril" in names:
        scale = pilot.root.diagonal()
        return {"scale": scale, "scale_tril": pilot.root / scale[:, None]}
    narrow = pilot.narrow
    if "cov_factor" not in names:
        return {"scale": narrow}
    rank = values[names["cov_factor"]].shape[-1]
    whole = pilot.root / narrow[:, None]
    power, axes = torch.linalg.eigh(whole @ whole.T)  # ascending; principal components, as Tipping & Bishop (1999)
    left = power[:-rank].mean() if rank < len(power) else power[0]
    factor = axes[:, -rank:] * (power[-rank:] / left - 1.0).clamp(min=0.0).sqrt()
    return {"scale": narrow * left.sqrt(), "cov_factor": factor}
