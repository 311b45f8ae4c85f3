"""Expected log predictive density by leave-one-out with Pareto-smoothed importance sampling."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

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
from guides.psis import CONSTANT, pareto_k_threshold, psis

__all__ = ["Elpd", "ElpdLOO", "elpd_loo"]

_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Elpd:
    """Leave-one-out predictive density of one observed site, in nats, summed over its N observations.

    :param elpd: sum of the pointwise values, the guide's draws taken as they are.
    :param se: standard error of the sum over observations.
    :param p_loo: effective number of parameters.
    :param bad_k: number of observations whose Pareto k is above the threshold.
    :param num_points: N.
    :param pareto_k: (N,) Pareto k per observation.
    :param corrected: the same sum with draws also reweighted from q to the posterior; NaN if a weight is not finite.
    :param corrected_bad_k: bad k's of the corrected weights.
    """

    elpd: float
    se: float
    p_loo: float
    bad_k: int
    num_points: int
    pareto_k: Tensor
    corrected: float
    corrected_bad_k: int


@dataclass(frozen=True, kw_only=True)
class ElpdLOO(Finding):
    """PSIS-LOO of every observed site.

    :param sites: observed site name -> :class:`Elpd`.
    :param threshold: the k above which one observation counts as bad.
    """

    title: ClassVar[str] = "elpd (PSIS-LOO)"
    sites: Mapping[str, Elpd]
    threshold: float

    def rows(self) -> list[tuple[str, str]]:
        """Return one row per observed site."""
        rows = []
        for name, site in self.sites.items():
            label = self.title if len(self.sites) == 1 else f"{self.title} {name}"
            rows.append((label, f"{site.elpd:.1f} ± {site.se:.1f} nats  ({self._count(site.bad_k, site)})"))
            if not math.isnan(site.corrected) and site.corrected_bad_k <= site.bad_k:
                count = self._count(site.corrected_bad_k, site)
                rows.append(("", f"{site.corrected:.1f} with draws weighted to the posterior  ({count})"))
        return rows

    def _count(self, bad: int, site: Elpd) -> str:
        return f"{bad} of {site.num_points} points with k > {self.threshold:.2f}"


@diagnostics_registry.register("elpd_loo")
def elpd_loo(posterior: PosteriorLike, draws: DrawsLike) -> Finding:
    r"""Estimate how well each observation is predicted by a posterior that did not see it.

    .. math:: \sum_n \log p(y_n \mid y_{-n}) \approx
              \sum_n \log \frac{\sum_s w_{ns}\, p(y_n \mid z_s)}{\sum_s w_{ns}}, \qquad w_{ns} \propto 1 /
              p(y_n \mid z_s)

    ``elpd`` is what ``arviz.loo`` gives of the guide's draws taken as posterior draws, the number to compare between
    fits.
    ``corrected`` multiplies the weights by p(x, z) / q(z) before smoothing (Magnusson et al. 2019); it estimates what the
    exact posterior would score, and where its own k's allow it is the one to believe: draws from a guide whose tails are
    heavier than the posterior's make single 1 / p(y | z) explode, and those weights calm them.

    **Blind spot.** Both condition on the draws of q, so a missed mode is missed here too; and ``elpd`` of an
    over-confident guide is optimistic, because its weights cannot widen it.

    References: Vehtari, Gelman, Gabry (2017), *Practical Bayesian model evaluation using leave-one-out
    cross-validation and WAIC*, https://doi.org/10.1007/s11222-016-9696-4; Magnusson, Andersen, Jonasson,
    Vehtari (2019), *Bayesian leave-one-out cross-validation for large data*,
    https://proceedings.mlr.press/v97/magnusson19a.html
    """
    if is_point_mass(posterior):
        return Undefined(
            label=ElpdLOO.title,
            level="unknown",
            text="not defined for a point mass: nothing can be left out of it; score held-out data instead",
        )
    pointwise = _points(posterior, draws)
    if not pointwise:
        reason = "the model has no observed site"
        if draws.log_likelihood:
            names = ", ".join(repr(name) for name in draws.log_likelihood)
            reason = f"the log-likelihood of {names} is one number for all data, so no point can be left out"
        return Undefined(
            label=ElpdLOO.title,
            level="unknown",
            text=f"not defined: {reason}",
            advice="" if not draws.log_likelihood else "put the observations into a pyro.plate",
        )
    threshold = pareto_k_threshold(draws.log_p.numel())
    log_weights = (draws.log_p - draws.log_q).detach().double()
    sites = {}
    for name, value in pointwise.items():
        if not torch.isfinite(value).all():
            return Undefined(
                label=ElpdLOO.title,
                level="unknown",
                text=f"not defined: the log-likelihood of {name!r} is not finite for some draws and points",
            )
        sites[name] = _loo(value, log_weights, threshold)
    bad = sum(site.bad_k for site in sites.values())
    points = sum(site.num_points for site in sites.values())
    text = f"leave-one-out: {sum(site.elpd for site in sites.values()):.1f} nats over {points} points"
    if bad:
        text += f", but {bad} of them are too influential for it (k > {threshold:.2f})"
    return ElpdLOO(level="unknown", text=text, sites=sites, threshold=threshold)


def _points(posterior: PosteriorLike, draws: DrawsLike) -> dict[str, Tensor]:
    """Return by observed site the log-likelihood of its data points, ``(C, S, N)``, without those that the model masks out.

    Sites of one number each, as in a sequential plate, are points of one entry.
    """
    found, single = {}, {}
    shapes = {name: site.shape for name, site in getattr(posterior, "sites", {}).items()}
    for name, value in draws.log_likelihood.items():
        there = draws.counted[name].flatten()
        if value.dim() > 2 and bool(there.any()):
            found[name] = value.detach().double().flatten(2)[..., there]
        elif shapes.get(name) == () and bool(there.all()):
            single[name] = value.detach().double().unsqueeze(-1)
    if len(single) > 1:
        names = list(single)
        found[f"{names[0]} to {names[-1]}"] = torch.cat(list(single.values()), dim=-1)
    return found


def _loo(log_likelihood: Tensor, log_weights: Tensor, threshold: float) -> Elpd:
    """Return PSIS-LOO of one site, from log-likelihoods ``(C, S, N)`` and log weights of the draws ``(C, S)``."""
    values = log_likelihood.flatten(0, 1).T  # (N, C S)
    weights = log_weights.flatten() if bool(torch.isfinite(log_weights).all()) else None
    elpd, lppd, pareto_k, corrected, corrected_k = map(
        torch.cat, zip(*(_points_loo(rows.contiguous(), weights) for rows in values.split(_ROWS_AT_ONCE)))
    )
    return Elpd(
        elpd=float(elpd.sum()),
        se=math.sqrt(len(elpd) * float(elpd.var(correction=0))),
        p_loo=float((lppd - elpd).sum()),
        bad_k=int((pareto_k > threshold).sum()),
        num_points=len(elpd),
        pareto_k=pareto_k.cpu(),
        corrected=float(corrected.sum()),
        corrected_bad_k=int((corrected_k > threshold).sum()),
    )


def _points_loo(values: Tensor, log_weights: Tensor | None) -> tuple[Tensor, ...]:
    """Return per point: elpd, log predictive density, Pareto k, and elpd and k with draws weighted to the posterior."""
    smoothed, k = psis(-values, tolerance=0.0)
    elpd = (smoothed + values).logsumexp(-1)
    lppd = values.logsumexp(-1) - math.log(values.shape[-1])
    k = torch.where(values.amax(-1) - values.amin(-1) < CONSTANT, 0.0, k)  # equal weights have no tail
    if log_weights is None:
        return elpd, lppd, k, torch.full_like(elpd, math.nan), torch.zeros_like(k)
    smoothed, corrected_k = psis(log_weights - values)
    return elpd, lppd, k, (smoothed + values).logsumexp(-1), corrected_k
