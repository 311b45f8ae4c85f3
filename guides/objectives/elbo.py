"""The evidence lower bound."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import Independent, Normal
from torch.distributions.kl import kl_divergence

from guides.engine.traces import nodes
from guides.errors import OptionError
from guides.objectives.base import Estimate, Objective, joint_traces
from guides.objectives.components import component_terms, is_mixture, stratum_log_weight, weighed
from guides.registries import objectives

__all__ = ["ELBO"]


@objectives.register("elbo")
class ELBO(Objective):
    r"""Evidence lower bound, with reparameterised gradients.

    .. math::
        \mathcal{L}(q) = \mathbb{E}_{q(z)}[\log p(x, z) - \log q(z)] = \log p(x) - \mathrm{KL}(q(z) \,\|\, p(z \mid x))

    Where guide and prior are both normal at a site, and the guide's sites are independent, the divergence
    :math:`\mathrm{KL}(q(z_s) \,\|\, p(z_s))` of that site is taken in closed form instead of from the draw.
    For a mixture it is the :class:`guides.SELBO`.
    For a guide that is a point mass the value is the log joint density at the point: maximising it gives the MAP.

    :param num_particles: draws of the guide per step.
    :param kl: ``"closed_form"`` where possible (default), or ``"monte_carlo"`` everywhere. Closed form lowers the variance
        away from the optimum; Monte Carlo has none at all *at* the optimum of a family that contains the posterior.
    :raises OptionError: for any other ``kl``.

    References: Jordan et al. (1999), *An introduction to variational methods*; Kingma & Welling (2014),
    *Auto-encoding variational Bayes*; Blundell et al. (2015), *Weight uncertainty in neural networks*.

    Example::

        >>> import pyro, pyro.distributions as dist, torch, guides
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> guide = guides.MeanField(model)
        >>> svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), loss=guides.ELBO())
        >>> svi.step(torch.ones(3)) > 0
        True
    """

    bounds: ClassVar[str] = "log evidence, from below"

    def __init__(self, num_particles: int = 1, kl: str = "closed_form") -> None:
        if kl not in ("closed_form", "monte_carlo"):
            raise OptionError(f"kl must be 'closed_form' or 'monte_carlo', not {kl!r}")
        super().__init__(num_particles)
        self.kl = kl

    def particle(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> dict[str, Tensor]:
        """Return ``{"elbo": ...}``: the log joint minus the log density of the guide at one draw."""
        model_trace, guide_trace = joint_traces(model, guide, args, kwargs)
        if is_mixture(guide):
            parts = component_terms(guide, model_trace, guide_trace, self.kl)
            total = parts["energy"] + parts["entropy"] - parts["excess"]
            return {"elbo": weighed(stratum_log_weight(guide, guide_trace), total)}
        factors: dict[str, tuple[Normal, Tensor]] = {}
        if self.kl == "closed_form" and hasattr(guide, "unconstrained_factors"):
            factors = guide.unconstrained_factors(guide_trace)
        prior, posterior = nodes(model_trace), nodes(guide_trace)
        closed = {n: q for n, (q, _) in factors.items() if _is_normal(prior[n]["fn"])}
        model_trace.compute_log_prob(site_filter=lambda name, _: name not in closed)
        terms = [s["log_prob_sum"] for s in prior.values() if "log_prob_sum" in s]
        if factors:
            terms += [-closed_form_kl(q, prior[n]) for n, q in closed.items()]
            terms += [-_log_q(q, draw, posterior[n]) for n, (q, draw) in factors.items() if n not in closed]
        else:
            terms.append(-torch.as_tensor(guide_trace.log_prob_sum()))
        return {"elbo": torch.as_tensor(sum(terms))}

    def combine(self, particles: dict[str, Tensor], step: Tensor) -> Estimate:
        """Average over particles."""
        value = particles["elbo"].mean()
        return Estimate(value.detach(), value)


def _is_normal(fn: Any) -> bool:
    while isinstance(fn, Independent):
        fn = fn.base_dist
    return isinstance(fn, Normal)


def closed_form_kl(q: Normal, site: dict[str, Any]) -> Tensor:
    """Return KL(q || prior) of one normal site in nats, scaled and masked as the site is."""
    prior = site["fn"]
    event_dim = prior.event_dim
    while isinstance(prior, Independent):
        prior = prior.base_dist
    kl = kl_divergence(Normal(q.loc.reshape(site["value"].shape), q.scale.reshape(site["value"].shape)), prior)
    kl = kl.sum(tuple(range(-event_dim, 0))) if event_dim else kl
    return scale_and_mask(kl, site["scale"], site["mask"]).sum()


def _log_q(q: Normal, draw: Tensor, site: dict[str, Any]) -> Tensor:
    """Return log q of one constrained site in nats: normal density of the unconstrained draw, and the Jacobian."""
    jacobian = site["fn"].log_prob(site["value"])
    log_prob = q.log_prob(draw)
    extra = log_prob.dim() - jacobian.dim()
    log_prob = log_prob.sum(tuple(range(-extra, 0))) if extra else log_prob
    return scale_and_mask(log_prob + jacobian, site["scale"], site["mask"]).sum()
