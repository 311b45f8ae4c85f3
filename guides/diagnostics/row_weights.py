"""Pareto k-hat of each data point's importance weights, for guides that compute the latents of a row from the row."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, cast

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
)
from guides.evidence.importance_weights import rows_apart
from guides.evidence.marginal import LogMarginal, log_marginal
from guides.program.data import Data
from guides.program.guide import amortized_sites

__all__ = ["RowWeights", "row_weights", "some_rows"]

_MAX_ROWS = 100
_GOOD, _FEW, _MANY = 0.5, 0.05, 0.5  # k-hat of the median row; shares of rows above the limit

_ADVICE = (
    "see with guides.inference_gap whether the family or the encoder falls short: for the family try covariance='full', a "
    "flow, or more stochastic layers; for the encoder more training, a larger one, or 'semi_amortized'; for comparisons use "
    "log p(x) from guides.log_marginal rather than the ELBO"
)


@dataclass(frozen=True, kw_only=True)
class RowWeights(Finding):
    """k-hat of p(x_n, z_n) / q(z_n | x_n) for some rows; empty for guides without an encoder.

    :param k_hats: ``(rows,)``, those of the worst restart.
    :param median: the median of them.
    :param worst: the largest.
    :param share_above: share of the rows above ``threshold``.
    :param threshold: the largest k-hat that ``num_samples`` draws can cope with.
    :param num_samples: S, draws behind each k-hat.
    :param log_marginal: mean of log p(x_n) over the rows in nats, and its Monte Carlo standard error.
    """

    title: ClassVar[str] = "k-hat per data point"
    k_hats: Tensor
    median: float
    worst: float
    share_above: float
    threshold: float
    num_samples: int
    log_marginal: tuple[float, float]

    def rows(self) -> list[tuple[str, str]]:
        """Return median and worst k-hat, and how many rows are above the limit; nothing without an encoder."""
        if not len(self.k_hats):
            return []
        above = round(self.share_above * len(self.k_hats))
        figures = f"median {self.median:.2f}, worst {self.worst:.2f}"
        mean, error = self.log_marginal
        return [
            (self.title, f"{figures}  ({above} of {len(self.k_hats)} points above {self.threshold:.2f})"),
            ("log p(x) of these", f"{mean:.2f} ± {error:.2g} nats  (S = {self.num_samples})"),
        ]


@diagnostics_registry.register("row_weights")
def row_weights(posterior: PosteriorLike, draws: DrawsLike) -> Finding:
    r"""Judge an encoder by the tail of each data point's importance weights.

    .. math:: w_{ns} = p(x_n, z_{ns}) / q(z_{ns} \mid x_n), \qquad z_{ns} \sim q(z \mid x_n)

    Data points do not share these weights: a k-hat for all of them together would say no more than that there are many.
    At most 100 rows of the training data are looked at. The fit is good if the median k-hat is below 0.5 and at most 5 % of
    the rows are above the limit, usable if at most half of them are.

    **Blind spot.** As for k-hat of a whole posterior: a mode of p(z | x) that the encoder never visits is not seen. And a
    decoder that ignores the latents makes every encoder that returns the prior perfect; see ``latent_use``.

    :param posterior: the fit that is judged.
    :param draws: their number S is read.
    :returns: :class:`RowWeights`, or :class:`Undefined` where some latents are shared by the rows.

    References: Yao, Vehtari, Simpson, Gelman (2018), *Yes, but did it work?*,
    https://proceedings.mlr.press/v80/yao18a.html; Wu, Burda, Salakhutdinov, Grosse (2017), *On the quantitative analysis of
    decoder-based generative models*
    """
    num_samples = int(draws.log_p.shape[-1])
    if not amortized_sites(posterior.guide):
        return _finding("unknown", "the guide has no encoder", "", None)
    fitted = cast(Any, posterior)
    if not rows_apart(fitted.program) or is_point_mass(posterior):
        text = "not defined: some latents are shared by the data points, so their weights are not separate"
        return Undefined(label=RowWeights.title, level="unknown", text=text)
    rows = some_rows(fitted.training, _MAX_ROWS)
    found = [
        log_marginal(fitted.replicate(r), *rows.args, num_samples=num_samples, progress=False)
        for r in range(fitted.replicates)
    ]
    worst = max(found, key=lambda one: float(one.k_hat.nan_to_num(math.inf).median()))
    return _finding(*_verdict(worst), worst)


def some_rows(data: Data, most: int) -> Data:
    """Return at most ``most`` rows, chosen at random but always the same."""
    if data.size <= most:
        return data
    order = torch.randperm(data.size, generator=torch.Generator().manual_seed(0))[:most]
    return data.take(order.to(data.args[data.rows[0]].device))


def _finding(level: Level, text: str, advice: str, found: LogMarginal | None) -> RowWeights:
    k_hats = torch.empty(0) if found is None else found.k_hat
    return RowWeights(
        level=level,
        text=text,
        advice=advice,
        k_hats=k_hats,
        median=math.nan if found is None else float(k_hats.median()),
        worst=math.nan if found is None else float(k_hats.max()),
        share_above=math.nan if found is None else found.share_above_threshold,
        threshold=math.nan if found is None else found.k_threshold,
        num_samples=0 if found is None else found.num_samples,
        log_marginal=(math.nan, math.nan) if found is None else (found.mean, found.mean_standard_error),
    )


def _verdict(found: LogMarginal) -> tuple[Level, str, str]:
    share, median, count = found.share_above_threshold, float(found.k_hat.median()), len(found.k_hat)
    if found.values.isnan().any():
        bad = int(found.values.isnan().sum())
        text = f"importance weights of {bad} of {count} data points are not finite"
        return "unreliable", text, "look for a scale that underflows or a likelihood that overflows"
    figure = f"Pareto k-hat is above its limit of {found.k_threshold:.2f} for {100 * share:.0f} % of {count} data points"
    if share <= _FEW and median < _GOOD:
        return "good", f"{figure}: the encoder matches the posterior of the latents where it puts draws", ""
    if share <= _MANY:
        text = f"{figure}: near the posterior of the latents for most; averages over them need importance weights"
        return "usable", text, _ADVICE
    text = f"{figure}: the guide misses mass of the posterior of the latents, and the ELBO may be far below log p(x)"
    return "unreliable", text, _ADVICE
