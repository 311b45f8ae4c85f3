"""Log importance weights of one draw, row by row of the data where model and guide treat the rows independently."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from guides.program.sites import contribution, density_sites, log_prob

__all__ = [
    "evaluate_densities",
    "log_density",
    "outermost_plate",
    "row_log_densities",
    "row_log_weights",
    "same_scale",
]

Scale = Tensor | float


def row_log_weights(model_trace: Trace, guide_trace: Trace) -> tuple[Tensor, Scale]:
    r"""Return :math:`\log p(x_n, z_n) - \log q(z_n)` in nats of every row n, and the scale that the rows have in common.

    Rows are told apart where every latent is local: all sites of model and guide stand in one plate, which follows the data.
    Otherwise some latent is shared by the rows, and the only weight is that of all of them together.

    :param model_trace: the model replayed on the guide's draw.
    :param guide_trace: the guide's draw.
    :returns: weights of shape ``(rows,)``, or ``(1,)`` with the total; and the scale (rows in all over rows given, under
        minibatching) that the weights do *not* contain. Masked-out terms count as zero. If sites differ in scale, as a
        prior and a minibatched likelihood do, the scales are in the weights and the one returned is 1.
    """
    log_p, log_q, scale = row_log_densities(model_trace, guide_trace)
    return log_p - log_q, scale


def row_log_densities(model_trace: Trace, guide_trace: Trace) -> tuple[Tensor, Tensor, Scale]:
    """Return the two parts of :func:`row_log_weights`, log p and log q, and the scale."""
    model_sites, guide_sites = density_sites(model_trace), density_sites(guide_trace)
    sites = [*model_sites.values(), *guide_sites.values()]
    plate, same = outermost_plate(sites), same_scale(sites)

    def total(some: Iterable[Any]) -> Tensor:
        parts = [log_density(site, plate, scaled=not same) for site in some]
        return torch.atleast_1d(sum(parts[1:], start=parts[0]) if parts else torch.zeros(()))

    return total(model_sites.values()), total(guide_sites.values()), sites[0]["scale"] if same and sites else 1.0


def outermost_plate(sites: Iterable[Any]) -> str | None:
    """Return the name of the outermost plate that all ``sites`` stand in, or ``None``."""
    plates = [{f.name: f for f in site["cond_indep_stack"] if f.vectorized} for site in sites]
    shared = [f for n, f in plates[0].items() if all(n in p and p[n].size == f.size for p in plates)] if plates else []
    return min(shared, key=lambda f: f.dim).name if shared else None


def same_scale(sites: Iterable[Any]) -> bool:
    """Tell whether the log densities of all ``sites`` are scaled alike; tensors are alike if they are the same object."""
    scales = [site["scale"] for site in sites]
    return all(s is scales[0] or (not isinstance(s, Tensor) and s == scales[0]) for s in scales)


def evaluate_densities(trace: Trace) -> Trace:
    """Compute the log densities of a trace now, and return it: flows read their parameters only when that is done."""
    for site in density_sites(trace).values():
        site["unscaled_log_prob"] = log_prob(site)
    return trace


def log_density(site: Any, plate: str | None, scaled: bool) -> Tensor:
    """Return a site's log density in nats with its mask and, if ``scaled``, its scale.

    :param plate: a plate that the site stands in, for a sum per row of that plate, ``(rows,)``; or ``None`` for a scalar.
    """
    density = contribution(site, scaled)
    if plate is None:
        return density.sum()
    dim = next(f.dim for f in site["cond_indep_stack"] if f.name == plate)
    return density.movedim(dim, 0).flatten(1).sum(-1) if density.dim() > 1 else density
