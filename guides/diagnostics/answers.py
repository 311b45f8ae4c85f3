"""How far off are the answers: means and standard deviations as a user reads them from the draws."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
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
    next_family,
)
from guides.diagnostics.importance import undefined_weights
from guides.fitted.resampled import MOST_DRAWS
from guides.psis import MOST_K, chain_shares, importance_ess, psis, tail_beyond, tail_length

__all__ = ["Answers", "SiteErrors", "answers"]

BIAS, RATIO = 0.1, 1.2
"""What is tolerated: a tenth of a posterior standard deviation in a mean, a fifth in a standard deviation."""

_MOST_ERRORS = (
    BIAS / 2,
    math.log(RATIO) / 2,
)  # of a corrected mean, in posterior sds, and of the logarithm of a corrected sd
_NOISE = 2.0  # times the error of as many exact draws: what few draws may have, if no more are asked for
_IMPOSSIBLE = 0.01  # share of the draws
_MOST_ELEMENTS = 200  # of one site
# The tail of few draws does not always go on as it begins: what rests on it is not said sooner.
_LEAST_DRAWS: dict[Level, int] = {"good": 0, "unreliable": 4000, "corrected": 16_000}
_CERTAIN = 2.0  # standard errors


@dataclass(frozen=True)
class SiteErrors:
    r"""Errors of the raw draws of one latent or deterministic site, each of shape ``(*site shape)``.

    :param bias: (raw mean - corrected mean) / corrected standard deviation.
    :param ratio: raw standard deviation / corrected standard deviation.
    :param bias_error: Monte Carlo standard error of the corrected mean, in corrected standard deviations.
    :param ratio_error: relative Monte Carlo standard error of the corrected standard deviation.
    :param k_mean: Pareto k-hat of :math:`w\,|z - \mu|`, the terms of the corrected mean.
    :param k_sd: Pareto k-hat of :math:`w\,(z - \mu)^2`, the terms of the corrected standard deviation.
    :param missing_mean: what the corrected mean is expected to lack for terms larger than any that these draws have shown,
        in corrected standard deviations; see :func:`guides.psis.tail_beyond`. Infinite from a k-hat of 1 on.
    :param missing_sd: the same of the corrected standard deviation, relative.
    """

    bias: Tensor
    ratio: Tensor
    bias_error: Tensor
    ratio_error: Tensor
    k_mean: Tensor
    k_sd: Tensor
    missing_mean: Tensor
    missing_sd: Tensor

    @property
    def worst_bias(self) -> float:
        """The largest absolute bias."""
        return _largest(self.bias.abs())

    @property
    def worst_ratio(self) -> float:
        """The ratio of standard deviations that is furthest from 1."""
        ratio = self.ratio.reshape(-1)
        ratio = ratio[ratio.isfinite() & (ratio > 0)]
        return float(ratio[ratio.log().abs().argmax()]) if len(ratio) else math.nan


@dataclass(frozen=True, kw_only=True)
class Answers(Finding):
    """What a user reads from raw draws and from corrected ones, and how far off that is.

    :param sites: site name -> :class:`SiteErrors`; of a site with many elements, 200 evenly spaced ones.
    :param worst: the site that decided.
    :param ess: importance effective sample size of all draws together.
    :param impossible: share of the draws at which the model has no density.
    :param num_samples: S, draws per chain behind every figure.
    :param settled: whether more draws would change the level only by an unlikely accident.
    :param infinite: by site, how many of its elements are not finite at some draw and so have no moments to judge.
    """

    title: ClassVar[str] = "answers"
    sites: Mapping[str, SiteErrors]
    worst: str
    ess: float
    impossible: float
    num_samples: int
    settled: bool
    infinite: Mapping[str, int] = field(default_factory=dict)

    def rows(self) -> list[tuple[str, str]]:
        """Return the worst errors of means and standard deviations, and what draws they come from."""
        name = max(self.sites, key=lambda n: self.sites[n].worst_bias)
        other = max(self.sites, key=lambda n: abs(math.log(self.sites[n].worst_ratio or math.nan)))
        head = (
            f"means off by up to {self.sites[name].worst_bias:.2f} sd ({name!r}), "
            f"sds {self.sites[other].worst_ratio:.2f} of the posterior's ({other!r})"
        )
        doubt = "" if self.level in ("good", "corrected") else ", as far as these draws can tell"
        rows = [(self.title, f"{head}{doubt}; {self.num_samples} draws per chain")]
        if self.infinite:
            found = ", ".join(f"{n!r} ({count} element{'s' * (count > 1)})" for n, count in self.infinite.items())
            rows.append(("", f"not judged, as not finite at some draws: {found}"))
        return rows


@diagnostics_registry.register("answers")
def answers(posterior: PosteriorLike, draws: DrawsLike) -> Finding:
    r"""Estimate the error of every mean and standard deviation that raw draws give, from importance weights.

    With :math:`\bar w` the smoothed, normalised weights, for every element :math:`z` of every latent and deterministic site:

    .. math:: \mu = \sum_s \bar w_s z_s, \quad \sigma^2 = \sum_s \bar w_s (z_s - \mu)^2, \qquad
              \text{bias} = (\bar z - \mu) / \sigma, \quad \text{ratio} = \mathrm{sd}(z) / \sigma

    *Good*: all biases are within 0.1 and all ratios within 1/1.2 and 1.2, and no more than 1 % of the draws are impossible
    under the model. *Corrected*: they are not, but :math:`\mu` and :math:`\sigma` can be relied on, so that draws
    resampled by their weights, ``posterior.sample(corrected=True)``, are within these limits. *Unreliable*: neither can be
    shown.

    They can be relied on where two things take at most half of what is tolerated (or, of few draws, twice the error of as
    many exact ones): their Monte Carlo errors, and what they are expected to lack for terms :math:`w |z - \mu|` and
    :math:`w (z - \mu)^2` larger than any that were drawn, by the generalised Pareto distributions fitted to the largest of
    them. The k-hat of the weights alone says less: it is large where a few weights are, though what they bear does not
    matter, and small where a heavy tail of :math:`z` makes a standard deviation wrong.

    Draws of several restarts count together, each restart in proportion to its effective sample size.

    **Blind spot.** Weights read where the guide put draws: a mode that it never visits is in neither the raw answers nor the
    corrected ones. Errors of predictions at new inputs are not looked at, unless the model has them as deterministic sites.

    References: Yao et al. (2018), *Yes, but did it work?*, https://proceedings.mlr.press/v80/yao18a.html; Vehtari et al.
    (2024), *Pareto smoothed importance sampling*, https://jmlr.org/papers/v25/19-556.html, where k-hat is also that of the
    terms of an expectation
    """
    undefined = undefined_weights(posterior, draws, Answers.title)
    if undefined is not None:
        return undefined
    raw = draws.log_p - draws.log_q
    smoothed, _ = psis(raw)
    share = chain_shares(smoothed)
    weights = (smoothed + share).reshape(-1)  # over all chains
    terms = (raw.double() - raw.double().logsumexp(-1, keepdim=True) + share).reshape(-1)
    values = {**draws.latents, **draws.deterministic}
    sites = {name: _errors(value, weights, terms) for name, value in values.items() if value.is_floating_point()}
    sites = {name: errors for name, errors in sites.items() if errors.bias.numel()}
    if not sites:
        return Undefined(
            label=Answers.title, level="unknown", text="not defined: there is no latent that varies and has moments"
        )
    total = float(importance_ess(weights))
    impossible = float(draws.log_p.isneginf().double().mean())
    found = _judged(posterior.family, sites, total, impossible, int(raw.shape[-1]))
    counts = {name: int((~value.isfinite()).flatten(0, 1).any(0).sum()) for name, value in values.items()}
    return replace(found, infinite={name: count for name, count in counts.items() if count})


def _errors(value: Tensor, weights: Tensor, terms: Tensor) -> SiteErrors:
    """Return the errors of one site.

    :param value: (C, S, *shape).
    :param weights: (C S), log of the smoothed weights, which sum to one.
    :param terms: (C S), log of the weights as they are.
    """
    flat = value.detach().double().reshape(len(weights), -1)
    flat = flat[:, :: max(1, math.ceil(flat.shape[1] / _MOST_ELEMENTS))]
    flat = flat[:, (flat.amax(0) > flat.amin(0)) & flat.isfinite().all(0)]  # what is constant has no error
    w = weights.exp()
    mean = w @ flat
    centred = flat - mean
    variance = w @ centred.square()
    sd = variance.sqrt()
    size = (centred / sd).abs()
    log_size = size.clamp(min=1e-150).log().T  # (E, C S)
    (k_mean, lacks_mean), (k_sd, lacks_sd) = (_tail(terms + power * log_size) for power in (1, 2))
    squares = w.square()
    return SiteErrors(
        bias=(flat.mean(0) - mean) / sd,
        ratio=((flat - flat.mean(0)).square().sum(0) / (len(flat) - 1)).sqrt() / sd,  # torch's std warns of no elements
        bias_error=(squares @ size.square()).sqrt(),
        ratio_error=(squares @ (size.square() - 1).square()).sqrt() / 2,
        k_mean=k_mean,
        k_sd=k_sd,
        missing_mean=lacks_mean * (w @ size),
        missing_sd=lacks_sd / 2,
    )


def _tail(terms: Tensor) -> tuple[Tensor, Tensor]:
    """Return k-hat and the share that is missing of sums of ``exp(terms)``, (E, C S)."""
    return tail_beyond(terms.topk(tail_length(terms.shape[-1]) + 1).values, terms.logsumexp(-1))


def _judged(family: str, sites: Mapping[str, SiteErrors], ess: float, impossible: float, num_samples: int) -> Answers:
    trusted = {name: _trust(errors, num_samples) for name, errors in sites.items()}
    off = {name: _off(errors) for name, errors in sites.items()}
    doubted = max(trusted, key=lambda n: trusted[n])
    worst = max(off, key=lambda n: off[n])
    level: Level = "good"
    if trusted[doubted] > 1:
        level, worst = "unreliable", doubted
    elif off[worst] > 1 or impossible > _IMPOSSIBLE:
        level = "corrected"
    text, advice = _words(level, worst, sites[worst], impossible, num_samples, family)
    return Answers(
        level=level,
        text=text,
        advice=advice,
        sites=sites,
        worst=worst,
        ess=ess,
        impossible=impossible,
        num_samples=num_samples,
        settled=_settled(level, sites, impossible, num_samples),
    )


def _trust(errors: SiteErrors, num_samples: int) -> float:
    """Return how much of what is allowed the worst of Monte Carlo errors and missing tails takes; above 1 it is too much."""
    few = _NOISE / num_samples**0.5
    return max(
        _largest(torch.maximum(noise, missing)) / max(most, few)
        for most, noise, missing in zip(
            _MOST_ERRORS, (errors.bias_error, errors.ratio_error), (errors.missing_mean, errors.missing_sd), strict=True
        )
    )


def _off(errors: SiteErrors) -> float:
    """Return the worst error of the raw draws as a multiple of what is tolerated."""
    return max(errors.worst_bias / BIAS, abs(math.log(errors.worst_ratio)) / math.log(RATIO))


def _settled(level: Level, sites: Mapping[str, SiteErrors], impossible: float, num_samples: int) -> bool:
    """Tell whether more draws would change the level only by an unlikely accident.

    What is unreliable is settled if not even the most draws could be trusted: errors and missing tails fall as
    :math:`S^{k - 1}`, and as :math:`S^{-1/2}` at best. Whatever else is said, if every figure that decides is at least two
    standard errors from where it would decide otherwise.
    """

    def all_of(name: str) -> Tensor:
        return torch.cat([getattr(errors, name) for errors in sites.values()])

    doubt = _CERTAIN / math.sqrt(tail_length(num_samples))  # of a k-hat of 0; it grows as 1 + k
    hopeless, trusted = False, True
    for most, k, noise, missing in (
        (_MOST_ERRORS[0], all_of("k_mean"), all_of("bias_error"), all_of("missing_mean")),
        (_MOST_ERRORS[1], all_of("k_sd"), all_of("ratio_error"), all_of("missing_sd")),
    ):
        lightest = k - doubt * (1 + k.clamp(min=0))
        gain = (MOST_DRAWS / num_samples) ** (lightest - 1).clamp(-0.5, 0.0)
        hopeless |= bool((torch.minimum(noise, missing) * gain > _CERTAIN * most).any())
        trusted &= bool((torch.maximum(noise, _CERTAIN * missing) <= most).all())
    if num_samples < _LEAST_DRAWS[level]:
        return False
    if level == "unreliable":
        return hopeless
    if not trusted:
        return False
    if impossible > 2 * _IMPOSSIBLE:
        return True
    bias, ratio = all_of("bias").abs(), all_of("ratio").log().abs()
    margins = torch.stack([(BIAS - bias) / all_of("bias_error"), (math.log(RATIO) - ratio) / all_of("ratio_error")])
    return bool((margins > _CERTAIN).all() if level == "good" else (margins < -_CERTAIN).any())


def _words(
    level: Level, worst: str, errors: SiteErrors, impossible: float, num_samples: int, family: str
) -> tuple[str, str]:
    raw = f"{errors.worst_bias:.2f} sd in a mean and a factor of {errors.worst_ratio:.2f} in a standard deviation"
    if level == "good":
        return f"raw draws are right to {raw} (worst site {worst!r}, {num_samples} draws), where the guide puts draws", ""
    if level == "corrected":
        found = f"raw draws are off by up to {raw} (site {worst!r}, {num_samples} draws)"
        if impossible > _IMPOSSIBLE:
            found += f", {impossible:.0%} of them are impossible under the model"
        return f"{found}; their importance weights repair that", "use corrected draws, as posterior.sample(corrected=True)"
    k = max(_largest(errors.k_mean), _largest(errors.k_sd))
    noise = max(_largest(errors.bias_error), _largest(errors.ratio_error))
    missing = max(_largest(errors.missing_mean), _largest(errors.missing_sd))
    why = (
        f"weights of a tail too heavy (k-hat {k:.2f}, limit {MOST_K})"
        if missing > noise
        else f"too few effective draws (error {noise:.2f} sd)"
    )
    return (
        f"neither raw draws of {worst!r} nor corrected ones can be shown to be right, for {why} at {num_samples} draws: the "
        "guide misses posterior mass",
        f"{next_family(family)}; or reparametrise the model (a non-centred hierarchy);"
        " if only predictions matter, judge those by held-out log-likelihood and calibration",
    )


def _largest(value: Tensor) -> float:
    finite = value[value.isfinite()]
    return float(finite.max()) if finite.numel() else math.inf
