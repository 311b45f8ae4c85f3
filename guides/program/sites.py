"""What a site of a trace is, and what it contributes: the one place that loss, scores, draws and diagnostics ask.

A Pyro trace says of a site little more than ``is_observed``, and some sites are observed in name only: a reparametrised site
is a point mass at a function of its auxiliaries, ``pyro.factor`` observes nothing, ``pyro.condition`` can fix a latent.
:func:`role` tells them apart.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pyro.distributions import Delta, Unit
from pyro.distributions.torch_distribution import MaskedDistribution
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Independent

from guides.program.marks import is_summed_out

__all__ = [
    "CONDITIONED",
    "REPLACED",
    "Computed",
    "Role",
    "contribution",
    "counted",
    "density_sites",
    "is_deterministic",
    "is_latent",
    "is_observed",
    "is_point",
    "is_replaced",
    "log_prob",
    "nodes",
    "pointwise",
    "role",
]

Role = Literal["latent", "enumerated", "observed", "conditioned", "deterministic", "factor", "subsample", "parameter"]

CONDITIONED = "_conditioned"
"""Key in a site's ``infer``: a latent that ``pyro.condition`` holds fixed, see :mod:`guides.program.prepare`."""

REPLACED = "_replaced"
"""Key in a site's ``infer``: a reparametrisation has put a point mass in its place, and did not mask it out."""


def nodes(trace: Trace | None) -> dict[str, Any]:
    """Return the sites of a trace by name, in order; an autoguide that was never called has none."""
    return {} if trace is None else dict[str, Any](trace.nodes)


def role(site: Any) -> Role:
    """Return what a site of a trace is.

    * ``"latent"``: drawn, and to be inferred;
    * ``"enumerated"``: a discrete latent that is summed out;
    * ``"observed"``: data;
    * ``"conditioned"``: a latent held at a value by ``pyro.condition``: it has a density, and is no data point;
    * ``"deterministic"``: a function of other sites without a density: ``pyro.deterministic``, or the original site of a
      reparametrisation;
    * ``"factor"``: a density without data: ``pyro.factor``, an observed point mass;
    * ``"subsample"``: a plate's choice of rows;
    * ``"parameter"``: anything else in a trace.
    """
    if site["type"] != "sample":
        return "parameter"
    if site_is_subsample(site):
        return "subsample"
    if site["infer"].get("_deterministic"):
        return "deterministic"
    if not site["is_observed"]:
        return "enumerated" if is_summed_out(site) else "latent"
    base, masked_out = _unwrapped(site["fn"])
    if isinstance(base, Delta):
        return "deterministic" if masked_out else "factor"
    if isinstance(base, Unit):
        return "factor"
    return "conditioned" if site["infer"].get(CONDITIONED) else "observed"


class Computed(Messenger):
    """Keep ``poutine.uncondition`` from drawing what is computed: deterministic sites, and terms of ``pyro.factor``.

    Pyro calls them observed, and draws them anew from point masses, which is a latent for everybody who looks at the trace
    (and inside a plate, of another shape).
    """

    def _pyro_sample(self, msg: Any) -> None:
        if msg["infer"].get("was_observed") and not msg["is_observed"]:
            as_observed = {**msg, "is_observed": True}
            if role(as_observed) in ("deterministic", "factor"):
                msg["is_observed"], msg["value"] = True, msg["infer"]["obs"]


def is_latent(site: Any) -> bool:
    """Tell whether a site is a latent variable."""
    return role(site) == "latent"


def is_observed(site: Any) -> bool:
    """Tell whether a site holds data."""
    return role(site) == "observed"


def is_deterministic(site: Any) -> bool:
    """Tell whether a site is a function of others without a density of its own."""
    return role(site) == "deterministic"


def is_replaced(site: Any) -> bool:
    """Tell whether a site is the original of a reparametrised one: a function of its auxiliaries."""
    return is_deterministic(site) and bool(site["infer"].get(REPLACED, not site["infer"].get("_deterministic")))


def is_point(fn: Any) -> bool:
    """Tell whether a distribution is a point mass."""
    return isinstance(_unwrapped(fn)[0], Delta)


def density_sites(trace: Trace) -> dict[str, Any]:
    """Return the sites that have a density: latent, observed and conditioned ones, and factors."""
    return {
        name: site for name, site in nodes(trace).items() if role(site) in ("latent", "observed", "conditioned", "factor")
    }


def log_prob(site: Any) -> Tensor:
    """Return a site's log density in nats without its scale and mask, shape of its batch."""
    known: Tensor | None = site.get("unscaled_log_prob")  # where Pyro keeps it, too
    return site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"]) if known is None else known


def contribution(site: Any, scaled: bool = True) -> Tensor:
    """Return what a site adds to the log joint density in nats, shape of its batch: with its mask and its scale.

    :param scaled: leave the scale out if ``False``, for a caller that knows it to be common to all.
    """
    found: Tensor = scale_and_mask(log_prob(site), site["scale"] if scaled else 1.0, site["mask"])
    return found


def pointwise(site: Any) -> Tensor:
    """Return the log density of an observed site's data points in nats, shape of its batch, zero where it is masked.

    A scale of the model's own counts, such as weights of rows. That of a subsampled plate does not: it makes a part stand
    for all, and one point contributes its own density.
    """
    scale = site["scale"]
    for frame in site["cond_indep_stack"]:
        if frame.full_size is not None and frame.full_size != frame.size:
            scale = scale * (frame.size / frame.full_size)
    found: Tensor = scale_and_mask(log_prob(site), scale, site["mask"])
    return found


def counted(site: Any) -> Tensor | None:
    """Return which elements of an observed site's batch are observations, bool, or ``None`` if all of them are.

    What ``poutine.mask``, ``obs_mask`` or ``dist.mask`` takes out, and what a distribution that allows missing values finds
    missing, is no observation.
    """
    fn, found = site["fn"], _as_mask(site["mask"])
    batch = torch.Size(fn.batch_shape)
    while isinstance(fn, Independent | MaskedDistribution):
        if isinstance(fn, MaskedDistribution):
            found = _both(found, _as_mask(fn._mask), len(batch))
        fn = fn.base_dist
    if type(fn).__name__.startswith("NanMasked"):
        there = ~torch.isnan(site["value"])
        inner = there.dim() - len(batch)
        found = _both(found, there.flatten(-inner).any(-1) if inner else there, len(batch))
    return found


def _both(one: Tensor | None, other: Tensor | None, dims: int) -> Tensor | None:
    """Return where two masks both hold; of one that has events in it, whether any of an event is there."""
    if other is not None and other.dim() > dims:
        other = other.flatten(dims).any(-1)
    if one is None or other is None:
        return other if one is None else one
    return one & other


def _as_mask(mask: Any) -> Tensor | None:
    if mask is None or mask is True:
        return None
    return torch.as_tensor(mask)


def _unwrapped(fn: Any) -> tuple[Any, bool]:
    """Return the innermost distribution of ``fn``, and whether a mask takes all of it out."""
    masked_out = False
    while isinstance(fn, Independent | MaskedDistribution):
        masked_out = masked_out or (isinstance(fn, MaskedDistribution) and fn._mask is False)
        fn = fn.base_dist
    return fn, masked_out
