"""What an objective is: a function of traces that names its value apart from its surrogate."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from pyro.infer.elbo import ELBO as PyroELBO
from pyro.infer.util import torch_item
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from guides.errors import DiscreteLatentError, OptionError
from guides.program.discrete.guide_sums import GuideSums
from guides.program.joint import joint_traces
from guides.program.objective import Estimate
from guides.program.sites import is_latent, nodes
from guides.program.strata import Stratum, unweighed
from guides.program.supports import is_discrete

__all__ = ["Objective"]


class Objective(PyroELBO):
    """An objective to *maximise*, usable in ``guides.fit`` and in stock :class:`pyro.infer.SVI`.

    A subclass says what one particle contributes (:meth:`particle`) and how particles combine (:meth:`combine`).
    As everywhere in Pyro, the *loss* that SVI sees is minus the objective. Steps are counted from 1: by the engine in
    ``guides.fit``, by the calls of :meth:`loss_and_grads` in stock SVI.

    :param num_particles: Monte Carlo draws per step (per stratum, for stratified guides).
    """

    bounds: ClassVar[str]
    """What the value bounds, in words."""

    reparameterised_only: ClassVar[bool] = True
    """The gradient is right only if every draw of the guide can be reparameterised."""

    weighs_choices: ClassVar[bool] = False
    """The value and its gradient are right for guides that hold mixtures among other parts."""

    warmup: int = 0
    """Steps in which every component of a mixture is fitted by itself."""

    def __init__(self, num_particles: int = 1) -> None:
        super().__init__(num_particles=num_particles)
        self._steps = 0

    @abstractmethod
    def particle(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> dict[str, Tensor]:
        """Return what one draw of the guide contributes: tensors of any shapes, which do not depend on the draw."""

    @abstractmethod
    def combine(self, particles: dict[str, Tensor], step: Tensor) -> Estimate:
        """Turn the particles' contributions into an estimate.

        :param particles: stacked, shape ``(num_particles * num_strata, ...)`` each.
        :param step: scalar, the number of the optimisation step, from 1; infinity where nothing is being optimised.
        """

    def summing(self, sums: GuideSums) -> Objective:
        """Return the objective for a guide that marks discrete draws of its own, to have them summed out.

        :raises OptionError: if the objective takes one draw of them.
        """
        if not self.reparameterised_only:
            return self
        raise OptionError(
            f"the guide marks {', '.join(map(repr, sorted(sums.sites)))} to be summed out, which {type(self).__name__} does "
            "not; use objective='elbo', which does, or objective='score_function', which draws"
        )

    def estimate(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        step: float = math.inf,
    ) -> Estimate:
        """Return one estimate, drawing particles one after the other (the engine draws them all at once).

        :param step: the number of the optimisation step, from 1; schedules are at their end without it.
        """
        draws: list[dict[str, Tensor]] = []
        strata = 1  # known when the guide has run once
        while len(draws) < self.num_particles * strata:
            with Stratum(torch.tensor(len(draws) % strata), guide) as stratum:
                draws.append(self.particle(model, guide, args, kwargs))
            strata = stratum.count
            if stratum.weighed and not self.weighs_choices:
                raise OptionError(unweighed(stratum.weighed, self))
        particles = {name: torch.stack([d[name] for d in draws]) for name in draws[0]}
        device = next(iter(particles.values())).device
        return self.combine(particles, torch.tensor(float(step), device=device))

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Trace, Trace]:
        return joint_traces(model, guide, args, kwargs)

    def _check_draws(self, model: Any, guide: Any, args: Any, kwargs: Any) -> None:
        with torch.no_grad(), torch.random.fork_rng():
            model_trace, guide_trace = joint_traces(model, guide, args, kwargs)
        for name, site in nodes(guide_trace).items():
            if name in model_trace and is_latent(model_trace.nodes[name]) and is_discrete(site["fn"]):
                raise DiscreteLatentError(
                    f"the guide draws latent site {name!r}, which is discrete, and {type(self).__name__} differentiates "
                    "draws; use guides.ScoreFunction() or pyro.infer.TraceGraph_ELBO, or mark the site for "
                    "pyro.infer.TraceEnum_ELBO"
                )

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Return minus the surrogate, to differentiate (stock SVI's convention)."""
        return -self.estimate(model, guide, args, kwargs).surrogate

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Return minus the value in nats, without gradients."""
        with torch.no_grad():
            return -torch_item(self.estimate(model, guide, args, kwargs).value)

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Accumulate gradients of minus the surrogate and return minus the value in nats; counts as one step.

        :raises DiscreteLatentError: at the first step, for a discrete latent, of whose draws the gradient knows nothing.
        """
        if not self._steps and self.reparameterised_only:
            self._check_draws(model, guide, args, kwargs)
        self._steps += 1
        estimate = self.estimate(model, guide, args, kwargs, self._steps)
        if estimate.surrogate.requires_grad:
            (-estimate.surrogate).backward()
        return -torch_item(estimate.value)
