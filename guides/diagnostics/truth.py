"""Draws against draws of the truth: how far every mean and standard deviation is off."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from guides.diagnostics.answers import BIAS, RATIO
from guides.errors import DataError, OptionError
from guides.fitted.draws import Draws
from guides.fitted.fitted import FittedGuide

__all__ = ["Errors", "errors", "held_against", "together"]

_QUANTILES = 400


@dataclass(frozen=True)
class Errors:
    """Errors of draws, element by element of every site that a reference knows.

    :param names: the elements, ``"theta[3]"``, counted from 1 as Stan does.
    :param bias: (mean - true mean) / true standard deviation.
    :param ratio: standard deviation / true one.
    :param distance: 1-Wasserstein distance between the marginals, in true standard deviations.
    """

    names: tuple[str, ...]
    bias: Tensor
    ratio: Tensor
    distance: Tensor

    @property
    def right(self) -> bool:
        """Whether all are within what is tolerated."""
        return self.mean_error <= BIAS and self.sd_off <= RATIO

    @property
    def mean_error(self) -> float:
        """The largest error of a mean."""
        return _largest(self.bias.abs())

    @property
    def sd_off(self) -> float:
        """The largest factor between a standard deviation and the true one, 1 or more."""
        return float(torch.tensor(_largest(self.ratio.log().abs()), dtype=torch.float64).exp())

    @property
    def worst(self) -> str:
        """The element that is furthest off, by what is tolerated."""
        off = torch.maximum(self.bias.abs() / BIAS, self.ratio.log().abs() / math.log(RATIO))
        return self.names[int(torch.where(off.isnan(), math.inf, off).argmax())]


def errors(draws: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> Errors:
    """Return how far draws are from a reference.

    :param draws: by site, ``(S, *shape)``; sites that the reference does not know are passed over.
    :param reference: by site, ``(N, *shape)``.
    """
    names, parts = [], []
    levels = (torch.arange(_QUANTILES, dtype=torch.float64) + 0.5) / _QUANTILES
    for site, truth in reference.items():
        if site not in draws:
            continue
        names += _elements(site, truth.shape[1:])
        have, want = (value.double().cpu().reshape(len(value), -1) for value in (draws[site], truth))
        sd = want.std(0)
        apart = (torch.quantile(have, levels, dim=0) - torch.quantile(want, levels, dim=0)).abs().mean(0)
        parts.append(torch.stack([(have.mean(0) - want.mean(0)) / sd, have.std(0) / sd, apart / sd]))
    if not parts:
        raise DataError(f"the reference knows none of the sites {', '.join(draws)}; it has {', '.join(reference)}")
    return Errors(tuple(names), *torch.cat(parts, 1))


def together(draws: Draws) -> dict[str, Tensor]:
    """Return draws of all chains together, ``(C * S, *shape)``, by continuous latent or deterministic site."""
    every = {**draws.latents, **draws.deterministic}
    return {name: value.flatten(0, 1) for name, value in every.items() if value.is_floating_point()}


def held_against(
    posterior: FittedGuide,
    reference: Mapping[str, Tensor],
    num_samples: int,
    num_corrected: int,
    seed: int | None = None,
) -> tuple[Errors, Errors | None]:
    """Return the errors of a posterior's raw draws, and of draws that are corrected by their weights.

    :param num_samples: raw draws; ``num_corrected``: corrected ones.
    :returns: the latter ``None`` for point masses, samplers, and densities that are not finite, which have no weights.
    """
    raw = posterior.draws(num_samples, seed=seed, log_likelihood=False)
    found = errors(together(raw), reference)
    try:
        corrected = posterior.draws(num_corrected, seed=seed, log_likelihood=False, corrected=True)
    except OptionError:
        return found, None
    return found, errors(together(corrected), reference)


def _elements(site: str, shape: torch.Size) -> list[str]:
    if not shape:
        return [site]
    places = torch.cartesian_prod(*(torch.arange(1, size + 1) for size in shape)).reshape(-1, len(shape)).tolist()
    return [f"{site}[{','.join(map(str, place))}]" for place in places]


def _largest(value: Tensor) -> float:
    """Return the largest number, infinity if one is not a number: such an answer is as wrong as can be."""
    return math.inf if bool(value.isnan().any()) else float(value.max())
