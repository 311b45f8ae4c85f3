"""What an objective is: a function of traces that names its value apart from its surrogate."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pyro import poutine
from pyro.distributions import Delta, MaskedDistribution
from pyro.infer.elbo import ELBO as PyroELBO
from pyro.infer.util import torch_item
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from guides.errors import DiscreteLatentError, OptionError, UnsupportedModelError
from guides.objectives.guide_sums import GuideSums
from guides.program.guide import marks_strata
from guides.program.parameters import detached_parameters
from guides.program.rows import evaluate_densities
from guides.program.sites import is_latent, nodes
from guides.program.supports import is_discrete

__all__ = ["OWN_MODULE", "Estimate", "Objective", "Stratum", "frozen_guide_trace", "joint_traces", "unweighed"]


OWN_MODULE = "guides.objective"
"""The name by which an objective registers a module that it trains along for itself; no part of the posterior."""


@dataclass(frozen=True)
class Estimate:
    """One stochastic estimate of an objective.

    :ivar value: scalar, in nats: what to report.
    :ivar surrogate: scalar: what to differentiate. Its gradient estimates that of the objective; its number means nothing.
    """

    value: Tensor
    surrogate: Tensor


class Stratum(Messenger):
    """Fix the stratum that a stratified guide would otherwise choose at random.

    A guide with several components marks the site that chooses one with ``infer={"stratum": True}``; drawing every
    component once instead of a random one removes that part of the gradient's variance. Where several sites choose, so that
    a stratum is a path, each says which digit of the stratum's number it is: ``{"stratum": (place, base)}`` stands for
    ``index // place % base``. ``{"stratum": "drawn"}`` marks one that is drawn at random even so.

    In a list of guides, or in a function that calls guides, nobody has said so: the choices become digits in the order in
    which they are met, and :attr:`count`, after a run, is the number of their combinations.

    :param index: scalar integer tensor, the stratum to use.
    :param guide: the guide as a whole, if it does not mark the sites itself.
    :ivar weighed: the choices met so whose components have weights of their own.
    """

    def __init__(self, index: Tensor, guide: Callable[..., Any] | None = None) -> None:
        super().__init__()
        self._index = index
        self._guide = guide
        self._marked = guide is None or marks_strata(guide)
        self._digits: dict[str, tuple[int, int]] = {}
        self.weighed: list[str] = []

    @property
    def count(self) -> int:
        """Number of strata of the guide, known after it has run once."""
        return int(getattr(self._guide, "num_strata", 1)) if self._marked else math.prod(b for _, b in self._digits.values())

    def _pyro_sample(self, msg: Any) -> None:
        digit = msg["infer"].get("stratum")
        if digit and not self._marked:
            digit = self._met(msg)
        if digit and digit != "drawn":
            msg["value"] = self._index if digit is True else self._index // digit[0] % digit[1]
            msg["done"] = True
            msg["mask"] = False  # a choice that is not made at random has no density

    def _met(self, msg: Any) -> tuple[int, int]:
        """Return the digit of a choice that a part of the guide makes, by name, as a guide may be run again."""
        name, choice, masked = msg["name"], msg["fn"], isinstance(msg["fn"], MaskedDistribution)
        while isinstance(choice, MaskedDistribution):
            choice = choice.base_dist
        if msg["infer"]["stratum"] is not True or choice.batch_shape:
            raise UnsupportedModelError(
                f"site {name!r} chooses a component for every row, in a mixture that is a part of a guide; fit it alone"
            )
        if name not in self._digits:
            self._digits[name] = self.count, choice.logits.shape[-1]
            self.weighed += [] if masked else [name]
        msg["infer"] = {**msg["infer"], "strata": self._digits[name][1]}
        return self._digits[name]


def joint_traces(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    intercept: bool = True,
) -> tuple[Trace, Trace]:
    """Run guide, then model on the guide's draws, and return the traces of both.

    A guide may change how the model's arithmetic is carried out on its draws (local reparameterisation does) by a method
    ``around_model(guide_trace)`` that returns a context manager.

    :param intercept: let the guide do so. Such arithmetic has the right mean of the log joint, but the log joint is then not
        that of any one draw, as importance weights have to be.
    """
    guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
    around: Callable[[Trace], AbstractContextManager[Any]] = getattr(guide, "around_model", lambda _: nullcontext())
    with around(guide_trace) if intercept else nullcontext():
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
    return model_trace, guide_trace


def frozen_guide_trace(
    guide: Callable[..., Any], guide_trace: Trace, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Trace:
    """Run the guide again on the draws of ``guide_trace``, with its parameters as constants.

    The log densities of the new trace depend on parameters through the draws alone.
    """
    drawn = Trace()
    for name, site in nodes(guide_trace).items():
        # Points, such as the parts of a flat vector, are left out: the guide makes them again from the draws.
        if site["type"] == "sample" and not isinstance(site["fn"], Delta):
            drawn.add_node(name, **site)
    with detached_parameters(guide):
        return evaluate_densities(poutine.trace(poutine.replay(guide, trace=drawn)).get_trace(*args, **kwargs))


def unweighed(sites: Iterable[str], objective: object) -> str:
    """Return the words in which an objective that gives all components of a part of a guide the same weight is refused."""
    return (
        f"the guide has a mixture among its parts ({', '.join(map(repr, sites))}), whose components only 'elbo', and "
        f"'selbo' without warmup, weigh; {type(objective).__name__} does not"
    )


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
