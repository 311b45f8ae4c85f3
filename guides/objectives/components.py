"""What one draw of one component says about a mixture, for the objectives of mixtures."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import Independent, Normal

from guides.engine.traces import nodes
from guides.errors import OptionError
from guides.mixtures import MixtureDensity

__all__ = ["check_no_mixture", "component_terms", "is_mixture", "stratum_log_weight", "weighed"]


def is_mixture(guide: Any) -> bool:
    """Tell whether a guide is a mixture over global latents, such as :class:`guides.Mixture`."""
    return hasattr(guide, "component_factors")


def check_no_mixture(guide: Any, objective: str) -> None:
    """Refuse mixtures for an objective that gives all components the same weight.

    :raises OptionError: naming the objective to use instead.
    """
    if hasattr(guide, "log_stratum_weight"):
        raise OptionError(
            f"objective {objective!r} gives every component of a mixture the same weight; use 'siwae', or 'selbo'"
        )


def stratum_log_weight(guide: Any, guide_trace: Trace) -> Tensor:
    r"""Return :math:`\log (K \pi_k)` of the stratum that a draw belongs to, zero for guides whose strata weigh the same.

    Its shape is that of the guide's weights: ``()``, or ``(rows,)`` where each row of the data has weights of its own.
    """
    found = getattr(guide, "log_stratum_weight", None)
    return torch.zeros(()) if found is None else found(guide_trace)


def weighed(log_weight: Tensor, value: Tensor) -> Tensor:
    r"""Return a draw's value times the weight of its stratum, so that the mean over particles is :math:`\sum_k \pi_k v_k`.

    :param log_weight: of :func:`stratum_log_weight`; where it has underflown to zero, the value counts for nothing, even
        if it is not finite.
    """
    weight = log_weight.exp()
    return weight * torch.where(weight > 0, value, torch.zeros_like(value))


def component_terms(guide: Any, model_trace: Trace, guide_trace: Trace, kl: str) -> dict[str, Tensor]:
    r"""Return what one draw of one component says about a mixture over global latents, scalars in nats.

    :param kl: ``"closed_form"`` takes expectations under normal priors exactly where the component has independent normal
        factors.
    :returns: ``energy``, an estimate of :math:`\mathbb{E}_{q_k} \log p(x, z)` in the unconstrained space; ``entropy``, one
        of :math:`H[q_k]`; and ``excess``, :math:`\log q(z) - \log q_k(z)`.
    """
    density: MixtureDensity = guide.density(guide_trace)
    draw = guide.flat_draw(guide_trace)
    prior, posterior = nodes(model_trace), nodes(guide_trace)
    factors = guide.component_factors(guide_trace) if kl == "closed_form" else {}
    closed = {n: q for n, (q, _) in factors.items() if _is_normal(prior[n]["fn"])}
    model_trace.compute_log_prob(site_filter=lambda name, _: name not in closed)
    energy = [s["log_prob_sum"] for s in prior.values() if "log_prob_sum" in s]
    energy += [_expected_log_prior(q, prior[n]) for n, q in closed.items()]
    # The guide's sites are points with the Jacobian of their transforms for a density.
    sites = [posterior[n] for n, _ in guide.latent_sites()]
    jacobians = [scale_and_mask(s["fn"].log_prob(s["value"]), s["scale"], s["mask"]).sum() for s in sites]
    if factors:
        entropy = [q.entropy().sum() if n in closed else -q.log_prob(z).sum() for n, (q, z) in factors.items()]
    else:
        entropy = [-density.chosen.log_prob(draw)]
    return {
        "energy": torch.as_tensor(sum(energy) - sum(jacobians)),
        "entropy": torch.as_tensor(sum(entropy)),
        "excess": density.log_excess(draw),
    }


def _is_normal(fn: Any) -> bool:
    while isinstance(fn, Independent):
        fn = fn.base_dist
    return isinstance(fn, Normal)


def _expected_log_prior(q: Normal, site: dict[str, Any]) -> Tensor:
    """Return E_q[log p] in nats of one site with a normal prior, scaled and masked as the site is."""
    prior = site["fn"]
    event_dim = prior.event_dim
    while isinstance(prior, Independent):
        prior = prior.base_dist
    shape = site["value"].shape
    expected = prior.log_prob(q.loc.reshape(shape)) - 0.5 * (q.scale.reshape(shape) / prior.scale).square()
    expected = expected.sum(tuple(range(-event_dim, 0))) if event_dim else expected
    return scale_and_mask(expected, site["scale"], site["mask"]).sum()
