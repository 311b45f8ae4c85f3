"""The stratified importance-weighted bound of a mixture."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from guides.errors import UnsupportedModelError
from guides.objectives.base import Objective
from guides.program.joint import joint_traces
from guides.program.objective import Estimate
from guides.program.rows import row_log_weights
from guides.program.strata import stratum_log_weight
from guides.registries import objectives

__all__ = ["SIWAE"]


@objectives.register("siwae")
class SIWAE(Objective):
    r"""Stratified importance-weighted bound: T draws from every component of a mixture.

    .. math::
        \mathcal{L}_T = \mathbb{E}\Big[\log \frac1T \sum_{t=1}^T \sum_{k=1}^K \pi_k \frac{p(x, z_{kt})}{q(z_{kt})}\Big],
        \qquad z_{kt} \sim q_k, \quad q = \sum_j \pi_j q_j

    It never decreases in T, is the ELBO for T = 1 and K = 1, and the importance-weighted bound of T draws for K = 1. Where
    all latents belong to rows of the data, the logarithm is taken row by row. Where components do not
    overlap, :math:`\pi_k` cancels against the same factor in q: the bound says nothing about their weights, which need the
    :class:`guides.SELBO` to be learned.

    :param num_particles: T, draws of every component per step.

    References: Morningstar et al. (2021), *Automatic differentiation variational inference with mixtures*; Burda, Grosse &
    Salakhutdinov (2016), *Importance weighted autoencoders*.

    Example::

        >>> import pyro, pyro.distributions as dist, torch, guides
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(z**2, 0.5), obs=x)
        >>> posterior = guides.fit(model, "mixture", torch.ones(9), objective=guides.SIWAE(num_particles=2), steps=100)
        >>> len(posterior.info[0]["weights"])
        5
    """

    bounds: ClassVar[str] = "log evidence, from below"

    def particle(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> dict[str, Tensor]:
        """Return the log importance weight of one draw, per row where rows are independent, times its stratum's weight."""
        model_trace, guide_trace = joint_traces(model, guide, args, kwargs)
        rows, scale = row_log_weights(model_trace, guide_trace)
        log_weight = stratum_log_weight(guide, guide_trace)
        if log_weight.dim() and len(log_weight) != len(rows):
            raise UnsupportedModelError(
                "siwae needs every site in the plate of the rows, as each row has a mixture of its own; move the others "
                "there, or use objective='selbo'"
            )
        # A component whose weight has underflown adds nothing, even if its ratio is not finite.
        log_ratio = torch.where(log_weight.exp() > 0, log_weight + rows, torch.full_like(rows, -math.inf))
        return {"log_ratio": log_ratio, "scale": torch.as_tensor(scale, dtype=rows.dtype, device=rows.device)}

    def combine(self, particles: dict[str, Tensor], step: Tensor) -> Estimate:
        """Take the logarithm of the mean importance weight."""
        log_ratio = particles["log_ratio"]
        rows = torch.logsumexp(log_ratio, dim=0) - math.log(log_ratio.shape[0])
        value = particles["scale"][0] * rows.sum()
        return Estimate(value.detach(), value)
