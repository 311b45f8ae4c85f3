"""The variational Renyi bound."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from guides.errors import OptionError
from guides.objectives.base import Objective
from guides.objectives.components import check_no_mixture
from guides.objectives.iwae import log_weights
from guides.program.joint import joint_traces
from guides.program.objective import Estimate
from guides.registries import objectives

__all__ = ["Renyi"]


@objectives.register("renyi")
class Renyi(Objective):
    r"""Variational Renyi bound, estimated from K draws.

    .. math::
        \mathcal{L}_{\alpha, K} = \mathbb{E}_{z_1 \dots z_K \sim q}\Big[\frac{1}{1 - \alpha}
        \log \frac1K \sum_{k=1}^K w_k^{1 - \alpha}\Big], \qquad w_k = \frac{p(x, z_k)}{q(z_k)}

    :math:`\alpha = 1` is the ELBO (its limit), :math:`\alpha = 0` the importance-weighted bound :class:`guides.IWAE`. For
    :math:`\alpha \ge 0` it is a lower bound of the log evidence and falls with :math:`\alpha`: large values seek a mode,
    small ones cover the mass. For negative :math:`\alpha` it is an *upper* bound in the limit of many draws,
    which few draws fall short of. Weights are taken row by row as in :class:`guides.IWAE`, with the same remarks on
    minibatches.

    :param num_particles: K, draws per step.
    :param alpha: any finite number.
    :raises OptionError: if ``alpha`` is not finite.

    References: Li & Turner (2016), *Renyi divergence variational inference*.

    Example::

        >>> import pyro, pyro.distributions as dist, torch, guides
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> objective = guides.Renyi(num_particles=8, alpha=0.5)
        >>> posterior = guides.fit(model, "mean_field", torch.ones(3), objective=objective, steps=50)
        >>> posterior.objective
        'renyi'
    """

    bounds: ClassVar[str] = "log evidence, from below for alpha of at least 0"

    def __init__(self, num_particles: int = 5, alpha: float = 0.5) -> None:
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
            raise OptionError(f"alpha must be a finite number, not {alpha!r}")
        super().__init__(num_particles)
        self.alpha = alpha

    def particle(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> dict[str, Tensor]:
        """Return the log weights of one draw, ``(rows,)`` or ``(1,)``, and their scale."""
        model_trace, guide_trace = joint_traces(model, guide, args, kwargs, intercept=False)
        check_no_mixture(guide, guide_trace, "renyi")
        return log_weights(model_trace, guide_trace)

    def combine(self, particles: dict[str, Tensor], step: Tensor) -> Estimate:
        """Take the power mean of the weights, and sum over rows."""
        log_weight, order = particles["log_weight"], 1 - self.alpha
        if order == 0:
            rows = log_weight.mean(0)
        else:
            rows = (torch.logsumexp(order * log_weight, 0) - math.log(len(log_weight))) / order
        value = particles["scale"][0] * rows.sum()
        return Estimate(value.detach(), value)
