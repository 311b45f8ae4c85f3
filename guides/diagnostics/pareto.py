"""Pareto k-hat of the importance weights: is the guide close enough to the posterior?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from guides.diagnostics.finding import (
    DrawsLike,
    Finding,
    Level,
    PosteriorLike,
    Undefined,
    diagnostics_registry,
    is_point_mass,
    next_family,
)
from guides.psis import float_tolerance, pareto_k_threshold, psis, tail_length

__all__ = ["ParetoK", "pareto_k"]

_GOOD = 0.5


@dataclass(frozen=True, kw_only=True)
class ParetoK(Finding):
    """Pareto k-hat of p / q, per chain.

    :param k_hat: the worst (largest) over chains; NaN where a weight is not finite.
    :param k_hats: one per chain.
    :param standard_error: of the estimate ``k_hat`` of the tail's shape, (1 + k) / sqrt(M) with M draws in the tail.
    :param threshold: the largest k-hat that ``num_samples`` draws can cope with.
    :param num_samples: S, draws per chain behind each k-hat.
    :param non_finite: number of log weights that are NaN or +inf, over all chains.
    :param log_weights: (C, S) raw log p - log q, nats.
    """

    title: ClassVar[str] = "Pareto k-hat"
    k_hat: float
    k_hats: tuple[float, ...]
    standard_error: float
    threshold: float
    num_samples: int
    non_finite: int
    log_weights: Tensor

    def rows(self) -> list[tuple[str, str]]:
        """Return k-hat with the limit and the number of draws behind it."""
        head = f"{self.k_hat:.2f} ± {self.standard_error:.2f}  (limit {self.threshold:.2f} at S = {self.num_samples} draws)"
        if len(self.k_hats) > 1:
            head += "  per chain " + " ".join(f"{k:.2f}" for k in self.k_hats)
        return [(self.title, head)]


@diagnostics_registry.register("pareto_k")
def pareto_k(posterior: PosteriorLike, draws: DrawsLike) -> Finding:
    r"""Judge the guide by the tail of its importance weights.

    .. math:: w_s = p(x, z_s) / q(z_s), \quad z_s \sim q, \qquad
              w \mid w > \text{cut-off} \;\approx\; \text{GPD}(\hat k, \hat\sigma)

    Moments of w of order below 1 / k are finite. Below 0.5 the guide is near the posterior; up to :math:`\min(1 -
    1/\log_{10} S, 0.7)` PSIS weights correct it; above, its weights say nothing reliable about functions as wild as
    themselves. Which means and standard deviations that touches is asked in ``answers``, and the verdict is taken there.

    **Blind spots.** k-hat reads weights only where q put draws: *it cannot see a mode that q never visits*,
    and a guide on one of two far modes gets a perfect score (restarts and R-hat, or another family, are the
    check). It also measures the optimisation: Yao et al. found 0.61 for a guide optimised to tolerance 1e-5
    and 4.4 for the same guide at 1e-2, so train to convergence before blaming the family. And it judges the
    *joint* posterior: in high dimensions it is above 0.7 for guides whose marginals or predictions are still
    fine.

    :param posterior: the fit that is judged.
    :param draws: ``log_p`` and ``log_q`` of C chains of S draws each.
    :returns: :class:`ParetoK`, or :class:`Undefined` for a guide of point masses, which has no density.
        Ensembles of them count as usable at best, a single one as unreliable: it has no uncertainty.

    References: Yao, Vehtari, Simpson, Gelman (2018), *Yes, but did it work?*,
    https://proceedings.mlr.press/v80/yao18a.html; Vehtari et al. (2024), *Pareto smoothed importance
    sampling*, https://jmlr.org/papers/v25/19-556.html
    """
    if is_point_mass(posterior):
        return _no_density(posterior.family, draws)
    log_weights = draws.log_p - draws.log_q
    num_samples = log_weights.shape[-1]
    threshold = pareto_k_threshold(num_samples)
    bad = log_weights.isnan() | log_weights.isposinf()
    _, k_per_chain = psis(log_weights, float_tolerance(draws.log_p, draws.log_q))
    k_hats = tuple(k_per_chain.tolist())
    k_hat = max(k_hats) if not k_per_chain.isnan().any() else float("nan")
    level, text, advice = _verdict(k_hat, threshold, num_samples, posterior.family)
    if k_per_chain.isnan().any():
        text, advice = _not_finite(draws, bad)
    return ParetoK(
        level=level,
        text=text,
        advice=advice,
        k_hat=k_hat,
        k_hats=k_hats,
        standard_error=(1 + k_hat) / math.sqrt(tail_length(num_samples)),
        threshold=threshold,
        num_samples=num_samples,
        non_finite=int(bad.sum()),
        log_weights=log_weights.detach().cpu(),
    )


def _no_density(family: str, draws: DrawsLike) -> Undefined:
    if any(bool((value != value[:, :1]).any()) for value in draws.latents.values()):
        return Undefined(
            label=ParetoK.title,
            level="usable",
            text=f"Pareto k-hat is not defined: {family!r} is made of point masses, which have no density",
            advice="judge it by held-out log-likelihood and calibration",
        )
    return Undefined(
        label=ParetoK.title,
        level="unreliable",
        text=f"Pareto k-hat is not defined: {family!r} is a point mass, which has no density and no uncertainty",
        advice="use it as a point estimate; for uncertainty fit 'laplace' or 'mean_field'",
    )


def _verdict(k_hat: float, threshold: float, num_samples: int, family: str) -> tuple[Level, str, str]:
    figure = f"Pareto k-hat is {k_hat:.2f} ({num_samples} draws, limit {threshold:.2f})"
    if k_hat < min(_GOOD, threshold):
        return "good", f"{figure}: where the guide puts draws, it matches the posterior", ""
    if k_hat <= threshold:
        return (
            "corrected",
            f"{figure}: the guide is near the posterior; its moments need importance weights",
            "use the PSIS-corrected moments rather than the raw ones",
        )
    figures_differ = ""
    if k_hat - threshold < (1 + k_hat) / math.sqrt(tail_length(num_samples)):
        figures_differ = ", though within its standard error of the limit: more draws would tell"
    return (
        "unreliable",
        f"{figure}: the guide misses posterior mass, and importance weights cannot repair it{figures_differ}",
        f"{next_family(family)}; or reparametrise the model (a non-centred hierarchy);"
        " if only predictions matter, judge those by held-out log-likelihood and calibration",
    )


def _not_finite(draws: DrawsLike, bad: Tensor) -> tuple[str, str]:
    if not bad.any():
        return (
            "no draw of at least one chain has positive density under the model",
            "check that the guide's support lies inside the model's",
        )
    blame = [
        f"{name} of {int((~torch.isfinite(value)).sum())}"
        for name, value in (("log p", draws.log_p), ("log q", draws.log_q))
        if not torch.isfinite(value).all()
    ]
    return (
        f"{int(bad.sum())} of {bad.numel()} importance weights are not finite (not finite: {', '.join(blame)} draws)",
        "look at the draws with a log density that is not finite: a scale that underflows, or a likelihood that overflows",
    )
