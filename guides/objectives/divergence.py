"""The divergence of a guide from the prior at one draw, site by site, in closed form where that is right."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import Delta
from pyro.distributions.util import scale_and_mask
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal
from torch.distributions.kl import kl_divergence

from guides.errors import OptionError
from guides.program.rows import log_density, same_scale
from guides.program.sites import contribution, density_sites, is_latent
from guides.program.subsampling import rows_seen

__all__ = ["Factors", "check_kl", "divergences", "log_likelihood", "site_kl"]

Factors = dict[str, tuple[Normal, Tensor]]
"""Per site, the guide's normal factor over its unconstrained value, and the draw of it."""


def check_kl(kl: str) -> None:
    """Check how an objective is asked to take divergences.

    :raises OptionError: for another word.
    """
    if kl not in ("closed_form", "monte_carlo"):
        raise OptionError(f"kl must be 'closed_form' or 'monte_carlo', not {kl!r}")


def log_likelihood(model_trace: Trace) -> Tensor:
    """Return the log density of all sites that are no latents (observed, conditioned, factors), with scales and masks."""
    found = [contribution(s).sum() for s in density_sites(model_trace).values() if not is_latent(s)]
    return sum(found, start=torch.zeros(()))


def divergences(
    model_trace: Trace, guide_trace: Trace, factors: Factors, closed_form: bool, per_dimension: bool = False
) -> tuple[list[Tensor], list[Tensor]]:
    r"""Return the parts of an estimate of :math:`\mathrm{KL}(q(z) \,\|\, p(z))` in nats, and the size of each.

    :param factors: independent factors of the guide, one per site, if it has them.
    :param closed_form: take the divergence of a site in closed form where torch has one and the draws that it depends on do
        not depend on the site's own.
    :param per_dimension: return one part per dimension for sites in closed form, and the sizes. Otherwise there is one part
        per site. A guide that draws several sites jointly gives one part for them together.
    :returns: parts, scalars or ``(dimensions,)``, summed over the plates of each site with scales and masks; and, with
        ``per_dimension``, how many dimensions times scaled data points each number is a sum over.
    """
    prior = {n: s for n, s in density_sites(model_trace).items() if is_latent(s)}
    posterior = density_sites(guide_trace)
    parts, sizes, rest = [], [], []
    for name, site in prior.items():
        found = None
        if closed_form and name in factors:
            if _is_normal(site["fn"]):
                found = _of_factor(factors[name][0], posterior[name], site, per_dimension)
        elif closed_form and not factors and name in posterior and _draws_before(name, prior, posterior):
            kl = _pair_kl(posterior[name], site)
            found = None if kl is None else _summed(kl, _inner(site), site, per_dimension)
        if found is None:
            rest.append(name)
        else:
            parts.append(found)
            sizes += [_size(site) / found.numel()] if per_dimension else []
    log_p = {n: log_density(prior[n], None, scaled=True) for n in rest}
    if factors:
        # A model that subsamples in a sequential plate does not have all sites at every step.
        log_q = {n: _log_q(*factors[n], posterior[n]) for n in (*rest, *(n for n in factors if n not in prior))}
    else:
        taken = set(prior) - set(rest)
        log_q = {n: log_density(s, None, scaled=True) for n, s in posterior.items() if n not in taken}
    if set(log_q) == set(log_p):
        parts += [log_q[n] - log_p[n] for n in rest]
        sizes += [_size(prior[n]) for n in rest] if per_dimension else []
    else:
        parts.append(sum(log_q.values(), start=torch.zeros(())) - sum(log_p.values()))
        sizes += [torch.as_tensor(sum(_size(prior[n]) for n in rest))] if per_dimension else []
    return parts or [torch.zeros(())], sizes or [torch.zeros(())] * per_dimension


def site_kl(posterior: Any, site: Any) -> Tensor | None:
    """Return KL(guide's site || model's site) in nats for every element of their plates, scaled and masked as they are, or
    ``None`` where torch has no closed form.
    """
    kl = _pair_kl(posterior, site)
    if kl is None:
        return None
    inner = _inner(site)
    found: Tensor = scale_and_mask(kl.sum(tuple(range(-inner, 0))) if inner else kl, site["scale"], site["mask"])
    return found


def _of_factor(q: Normal, posterior: Any, prior: Any, per_dimension: bool) -> Tensor:
    r"""Return the divergence in nats of a normal factor from a normal prior.

    .. math:: -s_q H[q] - s_p \mathbb{E}_q \log p

    where :math:`s` are the scales and masks of the guide's site and the model's, which differ where a handler in the model
    tempers or masks a prior: it does not reach the guide.
    """
    q = _shaped(q, posterior["value"].shape)
    loc, scale = (rows_seen(v, prior) for v in (q.loc, q.scale))
    seen = Normal(loc, scale, validate_args=False)
    kl, inner = _kl(seen, prior), _inner(prior)
    assert kl is not None
    alike = posterior["mask"] is prior["mask"] and same_scale([posterior, prior]) and seen.loc.shape == q.loc.shape
    if alike:
        return _summed(kl, inner, prior, per_dimension)
    of_guide = _summed(q.entropy(), inner, posterior, per_dimension)
    return _summed(kl + seen.entropy(), inner, prior, per_dimension) - of_guide


def _inner(site: Any) -> int:
    """Return how many dimensions of an event are independent."""
    return int(site["fn"].event_dim - len(_base(site["fn"]).event_shape))


def _base(fn: Any) -> Any:
    while isinstance(fn, Independent):
        fn = fn.base_dist
    return fn


def _is_normal(fn: Any) -> bool:
    return isinstance(_base(fn), Normal)


def _shaped(q: Normal, shape: torch.Size) -> Normal:
    return Normal(q.loc.reshape(shape), q.scale.reshape(shape), validate_args=False)


def _draws_before(name: str, prior: dict[str, Any], posterior: dict[str, Any]) -> bool:
    """Tell whether all latents that the prior of a site may depend on were drawn before it in the guide.

    If the guide drew one after the site, from the site, then the site is not distributed as its own factor given that draw,
    and the divergence of the two factors is not the one wanted.
    """
    wanted = set(list(prior)[: list(prior).index(name)])
    return wanted <= set(list(posterior)[: list(posterior).index(name)])


def _pair_kl(posterior: Any, site: Any) -> Tensor | None:
    q, p = posterior["fn"], site["fn"]
    if isinstance(_base(q), Delta) or q.event_dim != p.event_dim:
        return None
    if posterior["mask"] is not site["mask"] or not same_scale([posterior, site]):
        return None
    return _kl(_base(q), site)


def _kl(q: Distribution, site: Any) -> Tensor | None:
    """Return KL(q || prior) per element of the innermost distribution, or ``None`` where torch has no closed form."""
    p = _base(site["fn"])
    if len(q.event_shape) != len(p.event_shape):
        return None
    try:
        return kl_divergence(q, p)
    except NotImplementedError:
        return None


def _summed(kl: Tensor, inner: int, site: Any, per_dimension: bool) -> Tensor:
    """Sum a divergence over the plates and its last ``inner`` dimensions, with a site's scale and mask."""
    if not per_dimension:
        kl = kl.sum(tuple(range(-inner, 0))) if inner else kl
        return scale_and_mask(kl, site["scale"], site["mask"]).sum()
    kl = kl.flatten(-inner).movedim(-1, 0) if inner else kl.unsqueeze(0)
    return scale_and_mask(kl, site["scale"], site["mask"]).reshape(len(kl), -1).sum(-1)


def _size(site: Any) -> Tensor:
    """Return the number of dimensions of a site's value, each plate's element counted with scale and mask."""
    value, event_dim = site["value"], site["fn"].event_dim
    batch = value.shape[: value.dim() - event_dim]
    ones = torch.ones(batch, dtype=value.dtype, device=value.device)
    counted = scale_and_mask(ones, site["scale"], site["mask"]).sum()
    return counted * value.shape[value.dim() - event_dim :].numel()


def _log_q(q: Normal, draw: Tensor, site: Any) -> Tensor:
    """Return log q of one constrained site in nats: normal density of the unconstrained draw, and the Jacobian."""
    jacobian = site["fn"].log_prob(site["value"])
    log_prob = q.log_prob(draw)
    extra = log_prob.dim() - jacobian.dim()
    log_prob = log_prob.sum(tuple(range(-extra, 0))) if extra else log_prob
    return scale_and_mask(log_prob + jacobian, site["scale"], site["mask"]).sum()
