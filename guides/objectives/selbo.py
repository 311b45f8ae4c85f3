"""The stratified evidence lower bound of a mixture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from guides.objectives.base import Objective
from guides.objectives.components import check_warmup, component_terms, weighed
from guides.objectives.divergence import check_kl
from guides.program.guide import as_guide
from guides.program.joint import joint_traces
from guides.program.objective import Estimate
from guides.program.rows import row_log_weights
from guides.program.strata import stratum_log_weight
from guides.registries import objectives

__all__ = ["SELBO"]


@objectives.register("selbo")
class SELBO(Objective):
    r"""Stratified evidence lower bound: the ELBO of a mixture, with a draw from every component, not from a random one.

    .. math::
        \mathcal{L}(q) = \sum_k \pi_k\, \mathbb{E}_{q_k}\Big[\log p(x, z) - \log \sum_j \pi_j\, q_j(z)\Big]

    An unbiased estimate with gradients for weights, means and scales alike, since nothing is chosen at random. For a guide
    that is no mixture it is the ELBO. Written as
    :math:`\mathbb{E}_{q_k}[\log p - \log q_k] - \mathbb{E}_{q_k}[\log \sum_j \pi_j q_j - \log q_k]`, the first part is
    taken in closed form where :class:`guides.ELBO` does so, and the second is nearly constant where components do not
    overlap.

    :param num_particles: draws of every component per step.
    :param kl: ``"closed_form"`` where possible (default), or ``"monte_carlo"`` everywhere.
    :param warmup: steps in which every component is fitted by itself, with equal weights: the objective is then
        :math:`\frac1K \sum_k \mathrm{ELBO}_k`, a lower bound too. Otherwise a component that is ahead by chance takes the
        weight, and with it the gradient, of the others before they have arrived anywhere.
    :raises OptionError: for any other ``kl``, or a negative ``warmup``.

    References: Morningstar et al. (2021), *Automatic differentiation variational inference with mixtures*; Nalisnick & Smyth
    (2017), *Stick-breaking variational autoencoders*.

    Example::

        >>> import pyro, pyro.distributions as dist, torch, guides
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(z**2, 0.5), obs=x)
        >>> objective = guides.SELBO(num_particles=4, warmup=200)
        >>> guides.fit(model, "mixture", torch.ones(9), objective=objective, steps=400).objective
        'selbo'
    """

    bounds: ClassVar[str] = "log evidence, from below"
    weighs_choices: ClassVar[bool] = True

    def __init__(self, num_particles: int = 1, kl: str = "closed_form", warmup: int = 0) -> None:
        check_kl(kl)
        check_warmup(warmup)
        super().__init__(num_particles)
        self.kl = kl
        self.warmup = warmup

    def particle(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> dict[str, Tensor]:
        """Return one component's bound by itself, what the mixture's density adds, and the component's weight."""
        return self.of_traces(guide, *joint_traces(model, guide, args, kwargs))

    def of_traces(self, guide: Callable[..., Any], model_trace: Trace, guide_trace: Trace) -> dict[str, Tensor]:
        """Return what :meth:`particle` does, of traces of model and guide."""
        log_weight = stratum_log_weight(guide, guide_trace)
        mixture = as_guide(guide).mixture_components(guide_trace)
        if mixture is None:
            rows, scale = row_log_weights(model_trace, guide_trace)
            return {"alone": scale * rows, "excess": torch.zeros_like(rows), "log_weight": log_weight.expand_as(rows)}
        terms = component_terms(mixture, model_trace, guide_trace, self.kl)
        return {"alone": terms["energy"] + terms["entropy"], "excess": terms["excess"], "log_weight": log_weight}

    def combine(self, particles: dict[str, Tensor], step: Tensor) -> Estimate:
        """Sum over components by weight; over components by themselves, equally, during warm-up."""
        alone = particles["alone"]
        value = weighed(particles["log_weight"], alone - particles["excess"]).mean(0).sum()
        if self.warmup:
            value = torch.where(step > self.warmup, value, alone.mean(0).sum())
        return Estimate(value.detach(), value)
