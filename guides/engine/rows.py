"""Log importance weights of one draw, row by row of the data where model and guide treat the rows independently."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from guides.engine.traces import nodes

__all__ = ["Rows", "common_scale", "log_densities", "row_log_weights", "shared_rows"]

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
    model_sites, guide_sites = _densities(model_trace), _densities(guide_trace)
    sites = [*model_sites.values(), *guide_sites.values()]
    rows, scale = shared_rows(sites), common_scale(sites)
    log_p = sum(log_densities(model_sites.values(), rows, scale is None), start=torch.zeros(()))
    log_q = sum(log_densities(guide_sites.values(), rows, scale is None), start=torch.zeros(()))
    return torch.atleast_1d(log_p - log_q), 1.0 if scale is None else scale


class Rows:
    """The plate that all sites of a model and guide share.

    :ivar name: the plate's name.
    :ivar size: the number of rows.
    """

    def __init__(self, name: str, size: int) -> None:
        self.name = name
        self.size = size

    def sum_to_rows(self, log_prob: Tensor, site: Any) -> Tensor:
        """Return a site's log density summed over everything but the rows, shape ``(rows,)``."""
        dim = next(f.dim for f in site["cond_indep_stack"] if f.name == self.name)
        missing = -dim - log_prob.dim()
        log_prob = log_prob.reshape((1,) * missing + log_prob.shape)
        return log_prob.movedim(dim, 0).flatten(1).sum(-1) if log_prob.dim() > 1 else log_prob


def shared_rows(sites: Iterable[Any]) -> Rows | None:
    """Return the outermost plate that all ``sites`` stand in, or ``None``."""
    shared: dict[str, Any] | None = None
    for site in sites:
        frames = {f.name: f for f in site["cond_indep_stack"] if f.vectorized}
        if shared is None:
            shared = frames
        shared = {n: f for n, f in shared.items() if n in frames and frames[n].size == f.size}
    if not shared:
        return None
    frame = min(shared.values(), key=lambda f: f.dim)
    return Rows(frame.name, frame.size)


def common_scale(sites: Iterable[Any]) -> Scale | None:
    """Return the scale that all ``sites`` have, or ``None`` if they differ."""
    scales = [s["scale"] for s in sites]
    first = scales[0]
    same = all(s is first or (isinstance(s, float | int) and isinstance(first, float | int) and s == first) for s in scales)
    return first if same else None


def log_densities(sites: Iterable[Any], rows: Rows | None, scaled: bool) -> list[Tensor]:
    """Return the log density of each site in nats, per row or as a scalar, masked and, if asked to, scaled."""
    found = []
    for site in sites:
        log_prob = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
        log_prob = scale_and_mask(log_prob, site["scale"] if scaled else 1.0, site["mask"])
        found.append(log_prob.sum() if rows is None else rows.sum_to_rows(log_prob, site))
    return found


def _densities(trace: Trace) -> dict[str, Any]:
    """Return the sites that have a density: not ``pyro.deterministic``, not a plate's choice of a subsample."""
    return {
        name: site
        for name, site in nodes(trace).items()
        if site["type"] == "sample" and not site_is_subsample(site) and not site["infer"].get("_deterministic")
    }
