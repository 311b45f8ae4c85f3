"""The evidence lower bound."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any, ClassVar

import torch
from torch import Tensor

from guides.errors import OptionError
from guides.objectives.base import Objective
from guides.objectives.components import component_terms, weighed
from guides.objectives.divergence import check_kl, divergences, log_likelihood
from guides.objectives.layers import layer_terms
from guides.objectives.schedules import Schedule, check_weight, weight_at
from guides.program.discrete.guide_sums import GuideSums
from guides.program.guide import as_guide
from guides.program.joint import frozen_guide_trace, joint_traces
from guides.program.objective import Estimate
from guides.program.strata import choices, stratum_log_weight
from guides.registries import objectives

__all__ = ["ELBO"]


@objectives.register("elbo")
class ELBO(Objective):
    r"""Evidence lower bound, with reparameterised gradients.

    .. math::
        \mathcal{L}(q) = \mathbb{E}_{q(z)}[\log p(x, z) - \log q(z)] = \log p(x) - \mathrm{KL}(q(z) \,\|\, p(z \mid x))
        = \mathbb{E}_{q(z)}[\log p(x \mid z)] - \mathrm{KL}(q(z) \,\|\, p(z))

    The divergence of a site's guide from its prior is taken in closed form, instead of from the draw, where torch has one:
    for guides with independent normal factors and normal priors, and for guides that draw the site itself, such as an
    encoder, provided that the draws which the prior depends on do not come after the site in the guide.
    For a mixture it is the :class:`guides.SELBO`, for layers of them the :class:`guides.DLGMMELBO` with drawn weights.
    Discrete latents that a guide draws itself are summed out where the guide marks them, by
    ``infer={"enumerate": "parallel"}`` or ``config_enumerate``: every term is then its mean over their values, as with
    Pyro's ``TraceEnum_ELBO``.
    For a guide that is a point mass the value is the log joint density at the point: maximising it gives the MAP.

    **Value and surrogate.** The value is always an estimate of the bound above. Weights and free bits change only the
    surrogate, so what is optimised, never what is reported:

    .. math::
        \mathbb{E}_{q(z)}[\log p(x \mid z)] - \beta_t \sum_j \max(\lambda n_j, \mathrm{KL}_j)

    where :math:`\mathrm{KL}_j` is the divergence of part j of the latents, summed over the :math:`n_j` data points (each as
    often as minibatches scale it). Part j is one dimension of a site whose divergence is in closed form. Otherwise it is a
    whole site, or all sites that the guide draws jointly, :math:`n_j` counts its dimensions too, and the divergence is the
    Monte Carlo estimate, averaged over particles and data points. So below :math:`\lambda` nats per dimension, averaged over
    the minibatch, a divergence costs nothing more.

    :param num_particles: draws of the guide per step.
    :param kl: ``"closed_form"`` where possible (default), or ``"monte_carlo"`` everywhere. Closed form lowers the variance
        away from the optimum; Monte Carlo has none at all *at* the optimum of a family that contains the posterior.
    :param estimator: ``"pathwise"``, or ``"stl"`` (sticking the landing), which leaves out of the gradient the part that
        passes through the parameters of :math:`\log q` and not through the draw. That part is zero on average, and without
        it the gradient has no variance at the optimum of a family that contains the posterior. It implies Monte Carlo
        divergences and runs the guide twice per step; an inverse autoregressive flow has to be inverted for it, which is
        slow and cannot be traced.
    :param kl_weight: :math:`\beta_t`, a number, or a function of the number of the step such as :class:`guides.KLAnnealing`.
    :param free_bits: :math:`\lambda` in nats per latent dimension.
    :raises OptionError: for another ``kl`` or ``estimator``, or a weight or ``free_bits`` that is negative or not finite.

    References: Jordan et al. (1999), *An introduction to variational methods*; Kingma & Welling (2014),
    *Auto-encoding variational Bayes*; Blundell et al. (2015), *Weight uncertainty in neural networks*; Roeder, Wu &
    Duvenaud (2017), *Sticking the landing*; Bowman et al. (2016), *Generating sentences from a continuous space*; Kingma
    et al. (2016), *Improving variational inference with inverse autoregressive flow* (free bits); Higgins et al. (2017),
    *beta-VAE*.

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
        >>> posterior = guides.fit(model, "full_rank", torch.ones(3), objective=guides.ELBO(estimator="stl"), steps=50)
    """

    bounds: ClassVar[str] = "log evidence, from below"
    weighs_choices: ClassVar[bool] = True

    def __init__(
        self,
        num_particles: int = 1,
        kl: str = "closed_form",
        estimator: str = "pathwise",
        kl_weight: float | Schedule = 1.0,
        free_bits: float = 0.0,
    ) -> None:
        check_kl(kl)
        if estimator not in ("pathwise", "stl"):
            raise OptionError(f"estimator must be 'pathwise' or 'stl', not {estimator!r}")
        if not callable(kl_weight):
            check_weight("kl_weight", kl_weight)
        check_weight("free_bits", free_bits)
        super().__init__(num_particles)
        self.kl = "monte_carlo" if estimator == "stl" else kl
        self.estimator = estimator
        self.kl_weight = kl_weight
        self.free_bits = free_bits
        self.guide_sums: GuideSums | None = None

    def summing(self, sums: GuideSums) -> ELBO:
        """Return the objective for a guide that marks discrete draws.

        :raises OptionError: if its options leave no room for that.
        """
        if self.estimator != "pathwise" or self.free_bits:
            raise OptionError(
                f"the guide marks {', '.join(map(repr, sorted(sums.sites)))} to be summed out, which estimator='stl' and "
                "free_bits do not know; leave them out"
            )
        found = copy(self)
        found.guide_sums = sums
        return found

    def particle(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> dict[str, Tensor]:
        """Return the log-likelihood at one draw, the parts of the divergence, and how many dimensions each part has."""
        if self.guide_sums is not None:
            likelihood, kl = self.guide_sums.mean(*self.guide_sums.traces(model, guide, args, kwargs))
            return {"log_likelihood": likelihood, "kl": torch.stack(kl)}
        model_trace, guide_trace = joint_traces(model, guide, args, kwargs)
        densities = guide_trace if self.estimator == "pathwise" else frozen_guide_trace(guide, guide_trace, args, kwargs)
        asked = as_guide(guide)
        factors = asked.unconstrained_factors(guide_trace) if self.kl == "closed_form" else {}
        likelihood = log_likelihood(model_trace)
        mixture, layers = asked.mixture_components(densities), asked.mixture_layers(guide_trace)
        closed_form, sized = self.kl == "closed_form" and mixture is None and layers is None, self.free_bits > 0
        kl, sizes = divergences(model_trace, densities, factors, closed_form, per_dimension=sized)
        if mixture is not None:
            terms = component_terms(mixture, model_trace, densities, self.kl)
            total = terms["energy"] + terms["entropy"] - terms["excess"]
            log_weight, likelihood = stratum_log_weight(guide, guide_trace), terms["log_likelihood"]
            kl = [weighed(log_weight, likelihood - total).sum()]
            likelihood = weighed(log_weight, likelihood).sum()
        elif choices(guide, guide_trace):
            log_weight = stratum_log_weight(guide, guide_trace)
            kl, likelihood = [weighed(log_weight, k) for k in kl], weighed(log_weight, likelihood)
        elif layers is not None:
            terms = layer_terms(layers, model_trace, densities, self.kl, "drawn")
            kl, likelihood = [terms["kl"].sum()], terms["log_likelihood"].sum()
        found = {"log_likelihood": likelihood, "kl": torch.cat([k.reshape(-1) for k in kl])}
        if sizes:
            found["size"] = torch.cat([s.expand(k.shape).reshape(-1) for k, s in zip(kl, sizes)])
        return found

    def combine(self, particles: dict[str, Tensor], step: Tensor) -> Estimate:
        """Average over particles; weigh and bound the divergence in the surrogate."""
        likelihood, kl = particles["log_likelihood"].mean(), particles["kl"].mean(0)
        value = likelihood - kl.sum()
        bounded = kl if self.free_bits == 0 else torch.maximum(kl, self.free_bits * particles["size"][0])
        surrogate = likelihood - weight_at(self.kl_weight, step) * bounded.sum()
        return Estimate(value.detach(), surrogate)
