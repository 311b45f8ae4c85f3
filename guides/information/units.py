"""How much the mean of each latent unit moves from row to row."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from guides.program.data import Data
from guides.program.sites import nodes

__all__ = ["UnitVariance", "unit_variances"]

_ROWS_AT_ONCE = 512
_DRAWS_OF_MEANS = 16


class UnitVariance(NamedTuple):
    """Variance over rows of E[z_d | x] for every unit d of a site, and its standard error; both ``(units,)``, float64."""

    value: Tensor
    standard_error: Tensor


def unit_variances(guide: Callable[..., Any], data: Data, sites: Sequence[str]) -> dict[str, UnitVariance]:
    """Return the variance over rows of each unit's mean, free of the noise of means that are averages of draws.

    :param guide: a guide that computes ``sites`` from the rows it is given.
    :param data: at least two rows.
    :param sites: names of its latent sites.
    """
    found: dict[str, list[Tensor]] = {name: [] for name in sites}
    noise: dict[str, list[Tensor]] = {name: [] for name in sites}
    for index in torch.arange(data.size, device=data.args[data.rows[0]].device).split(_ROWS_AT_ONCE):
        part = data.take(index)
        traces = [poutine.trace(guide).get_trace(*part.args, **part.kwargs)]
        if len(sites) > 1 or _mean(traces[0], sites[0]) is None:
            traces += [poutine.trace(guide).get_trace(*part.args, **part.kwargs) for _ in range(_DRAWS_OF_MEANS - 1)]
        for name in sites:
            means = [_mean(trace, name) for trace in traces]
            drawn = torch.stack([nodes(t)[name]["value"] if m is None else m for t, m in zip(traces, means)])
            drawn = drawn.reshape(len(traces), part.size, -1).double()
            found[name].append(drawn.mean(0))
            noise[name].append(drawn.var(0) / len(traces) if len(traces) > 1 else torch.zeros_like(drawn[0]))
    variances = {}
    for name in sites:
        means_of_rows, noise_of_rows = torch.cat(found[name]), torch.cat(noise[name])
        count = len(means_of_rows)
        squares = (means_of_rows - means_of_rows.mean(0)).square() * (count / (count - 1)) - noise_of_rows
        variances[name] = UnitVariance(squares.mean(0), squares.std(0) / math.sqrt(count))
    return variances


def _mean(trace: Trace, name: str) -> Tensor | None:
    """Return the mean of a site's distribution, or ``None`` where it has no closed form."""
    site = nodes(trace)[name]
    try:
        return site["fn"].mean.expand_as(site["value"])
    except NotImplementedError:
        return None
