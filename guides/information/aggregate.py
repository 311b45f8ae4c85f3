"""The aggregated posterior: the mixture of the guide's distributions of all rows, evaluated at draws of some of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import Independent, LowRankMultivariateNormal, MultivariateNormal, Normal

from guides.program.data import Data
from guides.program.rows import log_density, outermost_plate
from guides.program.sites import nodes

__all__ = ["Aggregate", "aggregate", "row_densities", "unit_densities"]

_ROWS_AT_ONCE = 512
_ELEMENTS_AT_ONCE = 2**21  # 8 MB in single precision; the log density of a normal makes a handful of copies

Guide = Callable[..., Any]


@dataclass(frozen=True)
class Aggregate:
    """Log densities of I draws under the distributions of all *other* rows, summed over those rows; nats.

    :ivar joint: ``(I,)``, of whole codes.
    :ivar units: ``(I, units)``, of each coordinate alone; ``None`` if the guide's marginals are not known.
    """

    joint: Tensor
    units: Tensor | None


def aggregate(guide: Guide, data: Data, sites: Sequence[str], values: dict[str, Tensor], rows: Tensor) -> Aggregate:
    r"""Return :math:`\log \sum_{m \ne n_i} q(z_i \mid x_m)` for every draw i, a block of rows and draws at a time.

    With one site the guide's distributions are computed once per row and evaluated at all draws. With several, whose
    distributions depend on each other's values, the guide is run on every pair of draw and row.

    :param guide: a guide that computes ``sites`` from the rows it is given.
    :param data: all N rows.
    :param sites: names of the latent sites, all of them local.
    :param values: by site, draws ``(I, *shape of one row)``.
    :param rows: ``(I,)``, the row that each draw belongs to.
    """
    device = rows.device
    width = sum(value[0].numel() for value in values.values())
    if len(sites) > 1:
        width += sum(data.args[i][0].numel() for i in data.rows)
    joint: list[Tensor] = []
    units: list[Tensor] = []
    for first in range(0, data.size, _ROWS_AT_ONCE):
        index = torch.arange(first, min(first + _ROWS_AT_ONCE, data.size), device=device)
        part = data.take(index)
        fn = _site(guide, part, sites[0])["fn"] if len(sites) == 1 else None
        blocks = torch.arange(len(rows), device=device).split(max(1, _ELEMENTS_AT_ONCE // (width * len(index))))
        sums: list[tuple[Tensor, Tensor | None]] = []
        for block in blocks:
            chosen = {name: value[block] for name, value in values.items()}
            if fn is None:
                density, each = _at_pairs(guide, part, sites, chosen), None
            else:
                density, each = _at_all(fn, chosen[sites[0]], len(index))
            own = rows[block].unsqueeze(1) == index
            sums.append((_log_sum(density, own), None if each is None else _log_sum(each, own.unsqueeze(-1))))
        joint.append(torch.cat([s for s, _ in sums]))
        units += [torch.cat([s for _, s in sums if s is not None])] if sums[0][1] is not None else []
    return Aggregate(torch.stack(joint).logsumexp(0), torch.stack(units).logsumexp(0) if units else None)


def row_densities(trace: Trace, names: Sequence[str]) -> Tensor:
    """Return the log density of some sites of a trace together, in nats per row, float64."""
    chosen = [nodes(trace)[name] for name in names]
    plate = outermost_plate(chosen)
    return torch.stack([log_density(site, plate, scaled=False).double() for site in chosen]).sum(0)


def unit_densities(fn: Any, value: Tensor) -> Tensor | None:
    """Return the log density of every coordinate alone, in the shape of ``value``; ``None`` where that is not known."""
    if isinstance(fn, MultivariateNormal | LowRankMultivariateNormal):
        return Normal(fn.mean, fn.variance.sqrt(), validate_args=False).log_prob(value)
    while isinstance(fn, Independent):
        fn = fn.base_dist
    return None if fn.event_shape else fn.log_prob(value)


def _site(guide: Guide, part: Data, name: str) -> Any:
    return nodes(poutine.trace(guide).get_trace(*part.args, **part.kwargs))[name]


def _at_all(fn: Any, value: Tensor, size: int) -> tuple[Tensor, Tensor | None]:
    """Return log densities of all draws under all rows' distributions: ``(I, M)``, and ``(I, M, units)`` if known."""
    value = value.unsqueeze(1).expand(-1, size, *value.shape[1:])
    each = unit_densities(fn, value)
    if each is not None:
        each = each.flatten(2) if each.dim() > 2 else each.unsqueeze(-1)
        if not isinstance(fn, MultivariateNormal | LowRankMultivariateNormal):
            return each.sum(-1), each
    return fn.log_prob(value).reshape(*value.shape[:2], -1).sum(-1), each


def _at_pairs(guide: Guide, part: Data, sites: Sequence[str], values: dict[str, Tensor]) -> Tensor:
    """Return log densities of all draws under all rows' distributions, ``(I, M)``, by running the guide on all pairs."""
    count = len(values[sites[0]])
    pairs = part.take(torch.arange(part.size, device=values[sites[0]].device).repeat(count))
    given = {name: value.repeat_interleave(part.size, 0) for name, value in values.items()}
    trace = poutine.trace(poutine.condition(guide, data=given)).get_trace(*pairs.args, **pairs.kwargs)
    return row_densities(trace, sites).reshape(count, part.size)


def _log_sum(density: Tensor, own: Tensor) -> Tensor:
    """Return the log of the sum over rows, the draw's own row left out, float64."""
    return density.double().masked_fill(own, -math.inf).logsumexp(1)
