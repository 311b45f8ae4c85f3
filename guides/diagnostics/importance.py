"""What importance weights make of the draws: how many are left, and where the moments go."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from guides.diagnostics.finding import (
    DrawsLike,
    Finding,
    PosteriorLike,
    Undefined,
    diagnostics_registry,
    is_point_mass,
)
from guides.program.guide import amortized_sites
from guides.psis import importance_ess, pareto_k_threshold, psis

__all__ = [
    "CorrectedMoments",
    "ImportanceESS",
    "SiteMoments",
    "corrected_moments",
    "importance_sample_size",
    "undefined_weights",
]


@dataclass(frozen=True, kw_only=True)
class ImportanceESS(Finding):
    """Effective sample size of the smoothed importance weights, per chain.

    :param ess: one per chain, between 1 and S; NaN where a weight is not finite.
    :param relative: smallest ``ess`` / S.
    :param num_samples: S.
    """

    title: ClassVar[str] = "importance ESS"
    ess: tuple[float, ...]
    relative: float
    num_samples: int

    def rows(self) -> list[tuple[str, str]]:
        """Return the effective sample sizes beside S."""
        values = " ".join(f"{value:.0f}" for value in self.ess)
        return [(self.title, f"{values}  of {self.num_samples} draws per chain")]


@diagnostics_registry.register("importance_ess")
def importance_sample_size(posterior: PosteriorLike, draws: DrawsLike) -> Finding:
    r"""Count how many exact posterior draws the weighted draws are worth.

    .. math:: 1 \Big/ \sum_s \bar w_s^2

    with :math:`\bar w` the Pareto-smoothed, normalised weights.

    **Blind spot.** The weights of mass that q never visits are not in the sum: with k-hat above its
    threshold, or a missed mode, the number is too optimistic.

    References: Vehtari et al. (2024), *Pareto smoothed importance sampling*,
    https://jmlr.org/papers/v25/19-556.html
    """
    undefined = undefined_weights(posterior, draws, ImportanceESS.title)
    if undefined is not None:
        return undefined
    smoothed, k_hat = psis(draws.log_p - draws.log_q)
    num_samples = smoothed.shape[-1]
    ess = importance_ess(smoothed)
    relative = float(ess.min()) / num_samples
    text = f"the draws of the worst chain are worth {ess.min():.0f} of {num_samples} exact ones"
    if float(k_hat.max()) > pareto_k_threshold(num_samples):
        text += " at most: k-hat is above its limit"
    return ImportanceESS(level="unknown", text=text, ess=tuple(ess.tolist()), relative=relative, num_samples=num_samples)


@dataclass(frozen=True)
class SiteMoments:
    """Moments of one latent or deterministic site, all (C, *site shape), in the site's own units.

    :param mean: mean of the guide's draws.
    :param sd: standard deviation of the guide's draws.
    :param psis_mean: mean under the smoothed importance weights.
    :param psis_sd: standard deviation under the smoothed importance weights.
    """

    mean: Tensor
    sd: Tensor
    psis_mean: Tensor
    psis_sd: Tensor

    @property
    def shift(self) -> float:
        """Largest absolute difference between the two means, in the guide's standard deviations."""
        return _largest((self.psis_mean - self.mean).abs() / self.sd)

    @property
    def sd_ratio(self) -> tuple[float, float]:
        """Smallest and largest ratio of the corrected to the raw standard deviation."""
        ratio = self.psis_sd / self.sd
        return -_largest(-ratio), _largest(ratio)


@dataclass(frozen=True, kw_only=True)
class CorrectedMoments(Finding):
    """Posterior means and standard deviations, raw and PSIS-corrected, per latent and deterministic site.

    :param sites: site name -> :class:`SiteMoments`.
    :param trustworthy: whether k-hat of every chain is below its threshold, so that the correction can be
        used.
    """

    title: ClassVar[str] = "PSIS moments"
    sites: Mapping[str, SiteMoments]
    trustworthy: bool

    def rows(self) -> list[tuple[str, str]]:
        """Return, for up to eight sites, how far the correction moves the mean and scales the sd."""
        if not self.trustworthy:
            return [(self.title, "not shown: k-hat is too high for a correction")]
        ranked = sorted(self.sites.items(), key=lambda item: -item[1].shift)
        rows = []
        for name, site in ranked[:8]:
            low, high = site.sd_ratio
            ratio = f"{low:.2f}" if math.isclose(low, high, abs_tol=5e-3) else f"{low:.2f}-{high:.2f}"
            rows.append((f"  {name}", f"mean moves by {site.shift:.2f} sd, sd times {ratio}"))
        note = "corrected against raw"
        if len(ranked) > 8:
            note += f"; the 8 largest of {len(ranked)} sites"
        return [(self.title, note), *rows]

    def to_dict(self) -> dict[str, Any]:
        """Return shift and sd ratio per site, and the moments themselves for sites of at most 64 values."""
        sites = {}
        for name, site in self.sites.items():
            sites[name] = {"shift_in_sd": site.shift, "sd_ratio": list(site.sd_ratio)}
            if site.mean.numel() <= 64:
                sites[name] |= {key: getattr(site, key).tolist() for key in ("mean", "sd", "psis_mean", "psis_sd")}
        return {"level": self.level, "text": self.text, "trustworthy": self.trustworthy, "sites": sites}


@diagnostics_registry.register("psis_moments")
def corrected_moments(posterior: PosteriorLike, draws: DrawsLike) -> Finding:
    r"""Put PSIS-corrected posterior moments beside the guide's own.

    .. math:: \hat\mu = \sum_s \bar w_s z_s, \qquad \hat\sigma^2 = \sum_s \bar w_s (z_s - \hat\mu)^2

    The correction is consistent for the exact posterior moments wherever k-hat is below its threshold;
    mean-field guides, for example, get their standard deviations widened to the posterior's.

    **Blind spot.** Draws can be reweighted but not moved: mass that q never visits stays missing.

    References: Yao et al. (2018), *Yes, but did it work?*, section 3,
    https://proceedings.mlr.press/v80/yao18a.html
    """
    undefined = undefined_weights(posterior, draws, CorrectedMoments.title)
    if undefined is not None:
        return undefined
    smoothed, k_hat = psis(draws.log_p - draws.log_q)
    # Labels have no moments. Functions of the latents have, but for those of rows that an encoder looks at one by one.
    values = draws.latents if amortized_sites(posterior.guide) else {**draws.latents, **draws.deterministic}
    sites = {n: _moments(v, smoothed) for n, v in values.items() if v.is_floating_point() and v.numel()}
    worst = max(sites, key=lambda name: sites[name].shift, default=None)
    trustworthy = bool((k_hat <= pareto_k_threshold(smoothed.shape[-1])).all())
    text = "there is no latent site"
    if worst is not None:
        text = f"importance weights move the mean of {worst!r} by up to {sites[worst].shift:.2f} standard deviations"
    return CorrectedMoments(level="unknown", text=text, sites=sites, trustworthy=trustworthy)


def _moments(value: Tensor, log_weights: Tensor) -> SiteMoments:
    flat = value.detach().double().flatten(2) if value.dim() > 2 else value.detach().double().unsqueeze(-1)
    shape = (value.shape[0], *value.shape[2:])
    weights = log_weights.exp().unsqueeze(-2)  # (C, 1, S)
    mean = (weights @ flat).squeeze(-2)
    sd = (weights @ (flat - mean.unsqueeze(1)).square()).squeeze(-2).sqrt()
    return SiteMoments(
        mean=flat.mean(1).reshape(shape).cpu(),
        sd=flat.std(1).reshape(shape).cpu(),
        psis_mean=mean.reshape(shape).cpu(),
        psis_sd=sd.reshape(shape).cpu(),
    )


def _largest(value: Tensor) -> float:
    finite = value[value.isfinite()]
    return float(finite.max()) if finite.numel() else math.nan


def undefined_weights(posterior: PosteriorLike, draws: DrawsLike, label: str) -> Undefined | None:
    """Return why there are no importance weights to judge by, under the title of a diagnostic; ``None`` where there are."""
    if is_point_mass(posterior):
        return Undefined(label=label, level="unknown", text="not defined for a point mass")
    if not torch.isfinite(draws.log_p - draws.log_q).all() and psis(draws.log_p - draws.log_q)[1].isnan().any():
        return Undefined(label=label, level="unknown", text="not defined: some importance weights are not finite")
    return None
