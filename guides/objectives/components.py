"""What one draw of one component says about a mixture, for the objectives of mixtures."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import Independent, Normal

from guides.errors import OptionError
from guides.program.guide import Components, as_guide
from guides.program.rows import log_density
from guides.program.sites import density_sites, is_latent, nodes
from guides.program.subsampling import rows_seen

__all__ = [
    "as_scaled",
    "check_no_mixture",
    "check_warmup",
    "component_terms",
    "of_site",
    "weighed",
]


def check_no_mixture(guide: Any, guide_trace: Trace, objective: str) -> None:
    """Refuse mixtures for an objective that gives all components the same weight.

    :raises OptionError: naming the objective to use instead.
    """
    asked = as_guide(guide)
    if asked.mixture_components(guide_trace) is not None or asked.mixture_layers(guide_trace) is not None:
        raise OptionError(
            f"objective {objective!r} gives every component of a mixture the same weight; use 'siwae', or 'selbo'"
        )


def check_warmup(warmup: int) -> None:
    """Check the number of steps in which components are fitted by themselves.

    :raises OptionError: if it is negative.
    """
    if not warmup >= 0:
        raise OptionError(f"warmup must be a number of steps, 0 or more, not {warmup!r}")


def weighed(log_weight: Tensor, value: Tensor) -> Tensor:
    r"""Return a draw's value times the weight of its stratum, so that the mean over particles is :math:`\sum_k \pi_k v_k`.

    :param log_weight: of :func:`stratum_log_weight`; where it has underflown to zero, the value counts for nothing, even
        if it is not finite.
    """
    weight = log_weight.exp()
    return weight * torch.where(weight > 0, value, torch.zeros_like(value))


def component_terms(mixture: Components, model_trace: Trace, guide_trace: Trace, kl: str) -> dict[str, Tensor]:
    r"""Return what one draw of one component says about a mixture, in nats.

    For a mixture over global latents the terms are scalars. For one per row of the data they are ``(rows,)``; terms of the
    model outside the plate of the rows are shared out among them.

    :param kl: ``"closed_form"`` takes expectations under normal priors exactly where the component has independent normal
        factors.
    :returns: ``energy``, an estimate of :math:`\mathbb{E}_{q_k} \log p(x, z)` in the unconstrained space; of it
        ``log_likelihood``, that of the observed sites; ``entropy``, an estimate of :math:`H[q_k]`; and ``excess``,
        :math:`\log q(z) - \log q_k(z)`. All have the scales of a minibatch.
    """
    draw, plate = mixture.draw, mixture.row_plate
    like = draw.new_zeros(draw.shape[:-1])
    prior, posterior = density_sites(model_trace), nodes(guide_trace)
    factors = mixture.factors() if kl == "closed_form" else {}
    closed = {n: q for n, (q, _) in factors.items() if n in prior and _is_normal(prior[n]["fn"])}
    seen = [of_site(s, plate, like) for s in prior.values() if not is_latent(s)]
    latent = [of_site(s, plate, like) for n, s in prior.items() if is_latent(s) and n not in closed]
    latent += [_summed(_expected_log_prior(q, posterior[n], prior[n]), plate) for n, q in closed.items()]
    # The guide's sites are points with the Jacobian of their transforms for a density.
    jacobians = [of_site(posterior[n], plate, like) for n in mixture.sites]
    if factors:
        entropy = [_summed(q.entropy() if n in closed else -q.log_prob(z), plate) for n, (q, z) in factors.items()]
    else:
        entropy = [-mixture.density.chosen.log_prob(draw)]
    log_likelihood = sum(seen, start=like)
    return {
        "energy": log_likelihood + sum(latent) - sum(jacobians),
        "log_likelihood": log_likelihood,
        "entropy": as_scaled(mixture, guide_trace, sum(entropy, start=like)),
        "excess": as_scaled(mixture, guide_trace, mixture.density.log_excess(draw)),
    }


def as_scaled(mixture: Components, guide_trace: Trace, values: Tensor) -> Tensor:
    """Return numbers per row of a mixture, or the one of a global mixture, with the scale of its latents."""
    site = nodes(guide_trace)[mixture.latent_site]
    scaled: Tensor = scale_and_mask(values, site["scale"], site["mask"])
    return scaled


def of_site(site: Any, plate: str | None, like: Tensor) -> Tensor:
    """Return a site's log density with scale and mask: per row, or its even share of one that has no rows."""
    if plate is None or any(f.name == plate for f in site["cond_indep_stack"]):
        return log_density(site, plate, scaled=True)
    return (log_density(site, None, scaled=True) / max(1, like.numel())).expand_as(like)


def _summed(values: Tensor, plate: str | None) -> Tensor:
    if plate is None:
        return values.sum()
    return values.flatten(1).sum(-1) if values.dim() > 1 else values


def _is_normal(fn: Any) -> bool:
    while isinstance(fn, Independent):
        fn = fn.base_dist
    return isinstance(fn, Normal)


def _expected_log_prior(q: Normal, posterior: Any, site: Any) -> Tensor:
    """Return E_q[log p] in nats of one site with a normal prior per element of its plates, scaled and masked as it is."""
    prior = site["fn"]
    loc, scale = (rows_seen(v.reshape(posterior["value"].shape), site) for v in (q.loc, q.scale))
    event_dim = prior.event_dim
    while isinstance(prior, Independent):
        prior = prior.base_dist
    expected = prior.log_prob(loc) - 0.5 * (scale / prior.scale).square()
    expected = expected.sum(tuple(range(-event_dim, 0))) if event_dim else expected
    found: Tensor = scale_and_mask(expected, site["scale"], site["mask"])
    return found
