"""The evidence lower bound of a mixture with a closed-form bound in place of its entropy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from guides.distributions.mixtures import BOUNDS, MixtureDensity, entropy_bound, pairs_of, weight_entropy
from guides.errors import OptionError, check_known
from guides.objectives.base import Objective
from guides.objectives.components import as_scaled, check_warmup, component_terms, weighed
from guides.objectives.divergence import check_kl
from guides.objectives.layers import check_no_layers
from guides.program.guide import as_guide
from guides.program.joint import joint_traces
from guides.program.objective import Estimate
from guides.program.rows import row_log_weights
from guides.program.strata import stratum_log_weight
from guides.registries import objectives

__all__ = ["EntropyBoundELBO"]


@objectives.register("entropy_bound")
class EntropyBoundELBO(Objective):
    r"""Evidence lower bound of a mixture of normals whose entropy is bounded in closed form.

    .. math::
        \mathcal{L} = \sum_k \pi_k\, \mathbb{E}_{q_k}[\log p(x, z)]
        - \sum_k \pi_k \log \sum_j \pi_j\, \mathcal N(\mu_k; \mu_j, S_k + S_j)

    The entropy has no Monte Carlo noise; the price is a gap to the :class:`guides.SELBO`, at most
    :math:`\tfrac D2 (1 - \log 2)` nats for components that lie apart, a constant that no gradient sees. Pairs of components
    are compared in double precision. For a guide that is no mixture there is nothing to bound, and it is the ELBO.

    :param num_particles: draws of every component per step.
    :param bound: ``"jensen"``, the formula above, or ``"bhattacharyya"``, which is exact for one component and for those
        that lie apart; see :func:`guides.distributions.mixtures.entropy_bound`.
    :param penalty: :math:`\lambda`, a number or a function of the step (a scalar tensor, from 1) that returns one: the
        surrogate is the bound minus :math:`\lambda H[\pi]`, so that fewer components are used. The value leaves it out.
    :param kl: as for :class:`guides.SELBO`.
    :param warmup: as for :class:`guides.SELBO`: steps in which every component is fitted by itself, without penalty.
    :raises OptionError: for an unknown ``bound`` or ``kl``, a negative penalty or ``warmup``, or components that are not
        normal.

    References: Huber et al. (2008), *On entropy approximation for Gaussian mixture random vectors*; Gershman, Hoffman & Blei
    (2012), *Nonparametric variational inference*; Kolchinsky & Tracey (2017), *Estimating mixture entropy with pairwise
    distances*.

    Example::

        >>> import pyro, pyro.distributions as dist, torch, guides
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(z**2, 0.5), obs=x)
        >>> objective = guides.EntropyBoundELBO(penalty=lambda step: 0.1 * (step / 500).clamp(max=1))
        >>> guides.fit(model, "mixture", torch.ones(9), objective=objective, steps=100).objective
        'entropy_bound'
    """

    bounds: ClassVar[str] = "log evidence, from below"

    def __init__(
        self,
        num_particles: int = 1,
        bound: str = "jensen",
        penalty: float | Callable[[Tensor], Tensor] = 0.0,
        kl: str = "closed_form",
        warmup: int = 0,
    ) -> None:
        check_known("bound", bound, BOUNDS)
        check_kl(kl)
        if not callable(penalty) and not penalty >= 0:
            raise OptionError(f"penalty must be 0 or more, or a function of the step, not {penalty!r}")
        check_warmup(warmup)
        super().__init__(num_particles)
        self.bound = bound
        self.penalty = penalty
        self.kl = kl
        self.warmup = warmup

    def particle(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> dict[str, Tensor]:
        """Return one component's energy, bound by itself and weight, and the bound on the entropy, which all draws share."""
        model_trace, guide_trace = joint_traces(model, guide, args, kwargs)
        check_no_layers(guide, guide_trace, "entropy_bound")
        mixture = as_guide(guide).mixture_components(guide_trace)
        if mixture is None:
            rows, scale = row_log_weights(model_trace, guide_trace)
            nothing = torch.zeros_like(rows)
            alone = scale * rows
            return {"energy": alone, "alone": alone, "log_weight": nothing, "entropy": nothing, "weight_entropy": nothing}
        terms = component_terms(mixture, model_trace, guide_trace, self.kl)
        energy = terms["energy"]
        entropy = self.entropy(mixture.density).to(energy.dtype)
        return {
            "energy": energy,
            "alone": energy + terms["entropy"],
            "log_weight": stratum_log_weight(guide, guide_trace),
            "entropy": as_scaled(mixture, guide_trace, entropy),
            "weight_entropy": as_scaled(mixture, guide_trace, weight_entropy(mixture.density.log_weights)),
        }

    def entropy(self, mixture: MixtureDensity) -> Tensor:
        """Return the bound on the entropy of each mixture in nats, shape ``(...)`` of its batch."""
        return entropy_bound(mixture.log_weights, pairs_of(mixture.components), self.bound)

    def combine(self, particles: dict[str, Tensor], step: Tensor) -> Estimate:
        """Sum energies by weight and add the entropy; subtract the penalty from what is differentiated. During warm-up, sum
        components by themselves, equally."""
        # Entropies are weighed too: a row of a mixture that is done with its components is absent from the draws of others.
        bound = weighed(particles["log_weight"], particles["energy"] + particles["entropy"])
        value = bound.mean(0).sum()
        penalty = self.penalty(step) if callable(self.penalty) else self.penalty
        of_weights = weighed(particles["log_weight"], particles["weight_entropy"]).mean(0).sum()
        surrogate = value - penalty * of_weights
        if self.warmup:
            alone = particles["alone"].mean(0).sum()
            value, surrogate = (torch.where(step > self.warmup, each, alone) for each in (value, surrogate))
        return Estimate(value.detach(), surrogate)
