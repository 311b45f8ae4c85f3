"""What one draw of one component says about a mixture, for the objectives of mixtures."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import Independent, Normal

from guides.distributions.mixtures import MixtureDensity, chosen
from guides.errors import OptionError, UnsupportedModelError
from guides.objectives.base import unweighed
from guides.program.guide import marks_strata, parts
from guides.program.rows import log_density
from guides.program.sites import density_sites, is_latent, nodes
from guides.program.subsampling import rows_seen

__all__ = [
    "as_scaled",
    "check_no_mixture",
    "check_parts",
    "check_warmup",
    "choices",
    "component_terms",
    "has_layers",
    "is_mixture",
    "of_site",
    "stratum_log_weight",
    "weighed",
]


def is_mixture(guide: Any) -> bool:
    """Tell whether a guide is a mixture, of all latents (:class:`guides.Mixture`) or of each row's."""
    return hasattr(guide, "component_factors")


def has_layers(guide: Any) -> bool:
    """Tell whether a guide is made of layers of mixtures with random weights (:class:`guides.DeepMixtureAmortized`)."""
    return hasattr(guide, "mixture_layers")


def check_no_mixture(guide: Any, objective: str) -> None:
    """Refuse mixtures for an objective that gives all components the same weight.

    :raises OptionError: naming the objective to use instead.
    """
    if is_mixture(guide) or has_layers(guide):
        raise OptionError(
            f"objective {objective!r} gives every component of a mixture the same weight; use 'siwae', or 'selbo'"
        )


def check_warmup(warmup: int) -> None:
    """Check the number of steps in which components are fitted by themselves.

    :raises OptionError: if it is negative.
    """
    if not warmup >= 0:
        raise OptionError(f"warmup must be a number of steps, 0 or more, not {warmup!r}")


def stratum_log_weight(guide: Any, guide_trace: Trace) -> Tensor:
    r"""Return :math:`\log (K \pi_k)` of the stratum that a draw belongs to, zero for guides whose strata weigh the same.

    Its shape is that of the guide's weights: ``()``, or ``(rows,)`` where each row of the data has weights of its own.
    Mixtures among the parts of a list of guides, or called in a function, each add theirs. A choice made at random, as
    outside :class:`~guides.objectives.base.Stratum`, adds zero, with the gradient of its log weight: that of the
    score-function kind.
    """
    found = getattr(guide, "log_stratum_weight", None)
    if found is not None:
        of_guide: Tensor = found(guide_trace)
        return of_guide
    total = torch.zeros(())
    for site in choices(guide, guide_trace).values():
        log_weight = chosen(site["fn"].logits, site["value"])
        strata = site["infer"].get("strata")
        total = total + (log_weight - log_weight.detach() if strata is None else log_weight + math.log(strata))
    return total


def choices(guide: Any, guide_trace: Trace) -> dict[str, Any]:
    """Return the sites where mixtures that are parts of a guide, and not the guide itself, chose a component."""
    if marks_strata(guide):
        return {}
    return {
        n: s
        for n, s in nodes(guide_trace).items()
        if s["type"] == "sample" and s["infer"].get("stratum") and hasattr(s["fn"], "logits")
    }


def check_parts(guide: Any, guide_trace: Trace, objective: Any) -> None:
    """Check that the parts of a guide go together, and with the objective.

    :raises UnsupportedModelError: for a part that is finished after its optimisation, or mixtures of each row as a part.
    :raises OptionError: for an objective that would not weigh the components of a part.
    """
    for part in parts(guide) if len(parts(guide)) > 1 else []:
        if getattr(part, "finished_guide", lambda: None)() is not None:
            raise UnsupportedModelError(
                f"{type(part).__name__} is a point until it is finished after its optimisation, which nobody does for a "
                "part of a list of guides; use another family for its sites, or fit it alone"
            )
    inside = choices(guide, guide_trace)
    for name, site in inside.items():
        if site["value"].dim() or site["infer"]["stratum"] is not True:
            raise UnsupportedModelError(
                f"site {name!r} chooses a component for every row, in a mixture that is a part of a guide; fit it alone"
            )
    if inside and not (objective.weighs_choices and not getattr(objective, "warmup", 0)):
        raise OptionError(unweighed(inside, objective))


def weighed(log_weight: Tensor, value: Tensor) -> Tensor:
    r"""Return a draw's value times the weight of its stratum, so that the mean over particles is :math:`\sum_k \pi_k v_k`.

    :param log_weight: of :func:`stratum_log_weight`; where it has underflown to zero, the value counts for nothing, even
        if it is not finite.
    """
    weight = log_weight.exp()
    return weight * torch.where(weight > 0, value, torch.zeros_like(value))


def component_terms(guide: Any, model_trace: Trace, guide_trace: Trace, kl: str) -> dict[str, Tensor]:
    r"""Return what one draw of one component says about a mixture, in nats.

    For a mixture over global latents the terms are scalars. For one per row of the data, whose guide names the plate of the
    rows by ``row_plate``, they are ``(rows,)``; terms of the model outside that plate are shared out among the rows.

    :param kl: ``"closed_form"`` takes expectations under normal priors exactly where the component has independent normal
        factors.
    :returns: ``energy``, an estimate of :math:`\mathbb{E}_{q_k} \log p(x, z)` in the unconstrained space; of it
        ``log_likelihood``, that of the observed sites; ``entropy``, an estimate of :math:`H[q_k]`; and ``excess``,
        :math:`\log q(z) - \log q_k(z)`. All have the scales of a minibatch.
    """
    density: MixtureDensity = guide.density(guide_trace)
    draw = guide.flat_draw(guide_trace)
    plate = getattr(guide, "row_plate", None)
    like = draw.new_zeros(draw.shape[:-1])
    prior, posterior = density_sites(model_trace), nodes(guide_trace)
    factors = guide.component_factors(guide_trace) if kl == "closed_form" else {}
    closed = {n: q for n, (q, _) in factors.items() if n in prior and _is_normal(prior[n]["fn"])}
    seen = [of_site(s, plate, like) for s in prior.values() if not is_latent(s)]
    latent = [of_site(s, plate, like) for n, s in prior.items() if is_latent(s) and n not in closed]
    latent += [_summed(_expected_log_prior(q, posterior[n], prior[n]), plate) for n, q in closed.items()]
    # The guide's sites are points with the Jacobian of their transforms for a density.
    jacobians = [of_site(posterior[n], plate, like) for n, _ in guide.latent_sites()]
    if factors:
        entropy = [_summed(q.entropy() if n in closed else -q.log_prob(z), plate) for n, (q, z) in factors.items()]
    else:
        entropy = [-density.chosen.log_prob(draw)]
    log_likelihood = sum(seen, start=like)
    return {
        "energy": log_likelihood + sum(latent) - sum(jacobians),
        "log_likelihood": log_likelihood,
        "entropy": as_scaled(guide, guide_trace, sum(entropy, start=like)),
        "excess": as_scaled(guide, guide_trace, density.log_excess(draw)),
    }


def as_scaled(guide: Any, guide_trace: Trace, values: Tensor) -> Tensor:
    """Return numbers per row of a mixture, or the one of a global mixture, with the scale of its latents."""
    site = nodes(guide_trace)[guide.latent_site]
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
