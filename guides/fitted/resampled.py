"""Draws from a guide, resampled by their importance weights so that they are draws from the posterior."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from guides.errors import OptionError
from guides.fitted.sites import Site
from guides.program.guide import amortized_sites, is_point_mass
from guides.psis import MIN_DRAWS, chain_shares, psis

__all__ = ["MOST_DRAWS", "affordable", "resampled"]

MOST_DRAWS = 64_000  # behind a correction, unless more are asked for
_POOL = 10  # draws to choose each from
_MOST_ELEMENTS = 2**25  # of all draws of all sites: 128 MiB in float32


def affordable(sites: Mapping[str, Site]) -> int:
    """Return how many draws a correction rests on: 64,000, or as many as hold 2^25 numbers, latent or observed."""
    kinds = ("latent", "deterministic", "observed")
    return min(MOST_DRAWS, _MOST_ELEMENTS // max(1, sum(math.prod(s.shape) for s in sites.values() if s.kind in kinds)))


def resampled(posterior: Any, num_samples: int, seed: int | None) -> tuple[dict[str, Tensor], Tensor]:
    r"""Return latents chosen with probabilities proportional to their Pareto-smoothed importance weights.

    From as many draws as :func:`affordable` says, which are those that ``diagnose`` rests its verdict on, or ten times as
    many as are asked for, by systematic sampling: a draw of weight :math:`\bar w` is taken
    :math:`\lfloor n \bar w \rfloor` or one time more, so that none is taken twice as long as :math:`n \max \bar w \le 1`.
    Draws of several restarts are pooled, each restart in proportion to its effective sample size.

    :param posterior: a ``guides.Posterior`` with R replicates.
    :returns: latents by site, ``(R, S, *site shape)``, and the guide's log densities there in nats, ``(R, S)``.
    :raises OptionError: where there are no weights: point masses, latents of rows that an encoder computes, or densities
        that are not finite.

    References: Skare, Bølviken, Holden (2003), *Improved sampling-importance resampling and reduced bias importance
    sampling*, https://doi.org/10.1111/1467-9469.00360; Kitagawa (1996), *Monte Carlo filter and smoother for non-Gaussian
    nonlinear state space models*, on systematic sampling.
    """
    family, chains = posterior.family, posterior.replicates
    if is_point_mass(posterior.guide):
        raise OptionError(
            f"corrected=True: {family!r} is made of point masses, whose draws have no weights to correct them by"
        )
    if amortized_sites(posterior.guide):
        raise OptionError(
            f"corrected=True: {family!r} computes latents from each row, and weights of all rows together say nothing; "
            "see guides.log_marginal for weights row by row"
        )
    elements = sum(math.prod(site.shape) for site in posterior.sites.values() if site.kind == "latent")
    most = max(num_samples, 2 * _MOST_ELEMENTS // max(1, elements * chains))
    pool = max(MIN_DRAWS, min(max(affordable(posterior.sites), _POOL * num_samples), most))
    draws = posterior.draws(pool, seed=seed, log_likelihood=False, corrected=False)
    smoothed, k_hat = psis(draws.log_p - draws.log_q)
    if k_hat.isnan().any():
        raise OptionError(f"corrected=True: importance weights of {family!r} are not finite; see posterior.diagnose()")
    weights = (smoothed + chain_shares(smoothed)).exp().reshape(-1)
    generator = torch.Generator().manual_seed((posterior.seed if seed is None else seed) + 2**35)
    chosen = _systematic(weights.cpu(), chains * num_samples, generator).to(weights.device)

    def taken(value: Tensor) -> Tensor:
        flat = value.reshape(len(weights), *value.shape[2:])
        return flat[chosen].reshape(chains, num_samples, *value.shape[2:])

    # Discrete latents that the model sums out are no part of the weights; they are drawn given the others.
    return {name: taken(draws.latents[name]) for name in posterior.program.latents}, taken(draws.log_q)


def _systematic(weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return ``count`` positions in random order, each as often as its weight says, up to less than one."""
    order = torch.randperm(len(weights), generator=generator)
    edges = weights[order].cumsum(0)
    start = torch.rand((), dtype=edges.dtype, generator=generator)
    places = (start + torch.arange(count, dtype=edges.dtype)) / count * edges[-1]
    found = order[torch.searchsorted(edges, places).clamp(max=len(weights) - 1)]
    return found[torch.randperm(count, generator=generator)]
