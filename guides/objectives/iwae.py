"""The importance-weighted bound."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from guides.errors import OptionError
from guides.objectives.base import Objective
from guides.objectives.components import check_no_mixture
from guides.program.joint import frozen_guide_trace, joint_traces
from guides.program.objective import Estimate
from guides.program.parameters import detached_parameters
from guides.program.rows import evaluate_densities, row_log_densities, row_log_weights
from guides.program.sites import nodes
from guides.registries import objectives

__all__ = ["IWAE", "log_weights"]


@objectives.register("iwae")
class IWAE(Objective):
    r"""Importance-weighted bound: the logarithm of a mean of K importance weights.

    .. math::
        \mathcal{L}_K = \mathbb{E}_{z_1 \dots z_K \sim q}\Big[\log \frac1K \sum_{k=1}^K w_k\Big]
        \le \mathcal{L}_{K+1} \le \log p(x), \qquad w_k = \frac{p(x, z_k)}{q(z_k)}

    :math:`\mathcal{L}_1` is the ELBO. Where all latents are local, every row of the data has weights of its own, and the
    bound is the sum of the rows' bounds, times the scale of a minibatch. Where some latent is shared by the rows, the only
    weight is the product over them; a minibatch then makes it an estimate of a weight, and the bound is lost. A guide that
    reparameterises the model's products (``estimator="local"``, dropout) draws its weights here as for any model.

    The more particles, the less signal the plain gradient has for the guide (its signal-to-noise ratio falls as
    :math:`K^{-1/2}`); the doubly reparameterised gradient does not suffer from that:

    .. math::
        \nabla_\phi \mathcal{L}_K = \mathbb{E}\Big[\sum_k \tilde w_k^2 \, \frac{\partial \log w_k}{\partial z_k}
        \frac{\partial z_k}{\partial \phi}\Big], \qquad \tilde w_k = \frac{w_k}{\sum_j w_j}

    The model's own parameters get :math:`\sum_k \tilde w_k \nabla_\theta \log p(x, z_k)` either way.

    :param num_particles: K, draws per step.
    :param gradient: ``"reparameterised"``, the plain gradient, or ``"dreg"``, doubly reparameterised, which runs model and
        guide twice per draw (and inverts inverse autoregressive flows, which is slow and cannot be traced).
    :raises OptionError: for any other ``gradient``.

    References: Burda, Grosse & Salakhutdinov (2016), *Importance weighted autoencoders*; Tucker et al. (2019), *Doubly
    reparameterized gradient estimators for Monte Carlo objectives*; Rainforth et al. (2018), *Tighter variational bounds are
    not necessarily better*.

    Example::

        >>> import pyro, pyro.distributions as dist, torch, guides
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     slope = pyro.param("slope", torch.tensor(0.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(slope * x, 1.0))
        >>> objective = guides.IWAE(num_particles=5, gradient="dreg")
        >>> posterior = guides.fit(model, guide, torch.randn(100), objective=objective, steps=200, lr=0.05)
        >>> 0.3 < float(posterior.parameters["slope"]) < 0.7
        True
    """

    bounds: ClassVar[str] = "log evidence, from below"

    def __init__(self, num_particles: int = 5, gradient: str = "reparameterised") -> None:
        if gradient not in ("reparameterised", "dreg"):
            raise OptionError(f"gradient must be 'reparameterised' or 'dreg', not {gradient!r}")
        super().__init__(num_particles)
        self.gradient = gradient

    def particle(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> dict[str, Tensor]:
        """Return the log weights of one draw, ``(rows,)`` or ``(1,)``, and their scale; for DReG, the log joint at the draw
        as a constant too.
        """
        if self.gradient == "reparameterised":
            model_trace, guide_trace = joint_traces(model, guide, args, kwargs, intercept=False)
            check_no_mixture(guide, guide_trace, "iwae")
            return log_weights(model_trace, guide_trace)
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        check_no_mixture(guide, guide_trace, "iwae")
        densities = frozen_guide_trace(guide, guide_trace, args, kwargs)
        with detached_parameters(model):
            of_draw = evaluate_densities(poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs))
        of_parameters = poutine.trace(poutine.replay(model, trace=_constant(guide_trace))).get_trace(*args, **kwargs)
        log_joint, _, _ = row_log_densities(of_parameters, guide_trace)
        return {"log_joint": log_joint, **log_weights(of_draw, densities)}

    def combine(self, particles: dict[str, Tensor], step: Tensor) -> Estimate:
        """Take the logarithm of the mean weight, and sum over rows."""
        log_weight, scale = particles["log_weight"], particles["scale"][0]
        value = scale * (torch.logsumexp(log_weight, 0) - math.log(len(log_weight))).sum()
        if self.gradient == "reparameterised":
            return Estimate(value.detach(), value)
        share = torch.softmax(log_weight.detach(), 0)
        surrogate = scale * (share * particles["log_joint"] + share.square() * log_weight).sum()
        return Estimate(value.detach(), surrogate)


def log_weights(model_trace: Trace, guide_trace: Trace) -> dict[str, Tensor]:
    """Return the log weights of one draw in nats, ``(rows,)`` or ``(1,)``, and their scale, as particles."""
    log_weight, scale = row_log_weights(model_trace, guide_trace)
    return {"log_weight": log_weight, "scale": torch.as_tensor(scale).to(log_weight)}


def _constant(trace: Trace) -> Trace:
    """Return a trace with the same draws, through which no gradient flows."""
    found = Trace()
    for name, site in nodes(trace).items():
        if site["type"] == "sample":
            found.add_node(name, **{**site, "value": site["value"].detach()})
    return found
