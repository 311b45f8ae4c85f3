"""The model as the engine runs it: with the handlers around it that make its sites mean one thing everywhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import NanMaskedNormal, Normal, TorchDistribution
from pyro.distributions.torch_distribution import MaskedDistribution
from pyro.poutine.messenger import Messenger
from pyro.poutine.reparam_messenger import ReparamMessenger
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import Independent, biject_to, constraints

from guides.program.conditions import Put, conditions_marked, held_sites
from guides.program.plates import SizePlates
from guides.program.sites import CONDITIONED, REPLACED, Computed, contribution, density_sites, is_latent, nodes, role
from guides.program.subsampling import in_model
from guides.program.supports import PlainSupports, plain_support

__all__ = ["FillMissing", "PreparedModel", "bears_gaps", "prepare"]

_NO_SHAPE = torch.Size()


class PreparedModel:
    """A model inside the handlers that the engine needs around it; it is called as the model is.

    :ivar model: the model as it was given.
    :ivar conditioned: latents that ``pyro.condition`` holds fixed.
    :ivar idle: latents with elements that the model masks out and that nothing depends on; see :class:`_FillIdle`.
    """

    def __init__(self, model: Callable[..., Any], conditioned: frozenset[str], idle: frozenset[str]) -> None:
        self.model, self.conditioned, self.idle = model, conditioned, idle

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model."""
        with in_model(), SizePlates(), _Mark(self.conditioned), _FillIdle(self.idle), FillMissing(), Computed():
            return self.model(*args, **kwargs)


def prepare(model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> PreparedModel:
    """Find out, by running a model a few times, what its sites are, and return it prepared for the engine."""
    prepared = PreparedModel(model, frozenset(), frozenset())

    def run(around: Messenger | None = None) -> Trace:
        with PlainSupports():  # flat priors have no sampler
            return poutine.trace(prepared if around is None else around(prepared)).get_trace(*args, **kwargs)

    with conditions_marked():
        trace = run()
    conditioned = held_sites(trace, run)
    latents = {
        n: s for n, s in nodes(trace).items() if is_latent(s) and not getattr(s["fn"], "has_enumerate_support", False)
    }
    masked = {n for n, s in latents.items() if isinstance(s["mask"], Tensor | bool)}
    idle = _idle(masked, trace, run) if masked else frozenset()
    return PreparedModel(model, conditioned, idle)


def bears_gaps(model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Tell whether missing values among the arguments leave a model's log joint and its gradient finite."""
    trace = poutine.trace(model).get_trace(*args, **kwargs)
    leaves = {n: s["value"] for n, s in nodes(trace).items() if is_latent(s) and s["value"].is_floating_point()}
    leaves = {n: value.detach().clone().requires_grad_() for n, value in leaves.items()}
    with torch.enable_grad():
        trace = poutine.trace(Put(leaves)(model)).get_trace(*args, **kwargs)
        total = sum((contribution(s).sum() for s in density_sites(trace).values()), start=torch.zeros(()))
        if not bool(torch.isfinite(total)):
            return False
        store = [p for p in pyro.get_param_store()._params.values() if p.requires_grad]
        wanted = [*leaves.values(), *store]
        found = torch.autograd.grad(total, wanted, allow_unused=True) if total.requires_grad and wanted else ()
    return all(g is None or bool(torch.isfinite(g).all()) for g in found)


class _Mark(Messenger):
    """Mark the latents that ``pyro.condition`` holds fixed, and sites that a reparametrisation has put a point in place of.

    Most of Pyro's reparametrisations mask that point out, which tells it from an observed ``Delta``; Haar wavelets, cosines
    and other maps of unit Jacobian do not.
    """

    def __init__(self, names: frozenset[str]) -> None:
        super().__init__()
        self._names = names

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self._names:
            msg["infer"] = {**msg["infer"], CONDITIONED: True}
        if msg["is_observed"] and role(msg) == "factor" and any(_replaces(m, msg["name"]) for m in _PYRO_STACK):
            msg["infer"] = {**msg["infer"], "_deterministic": True, REPLACED: True}


def _replaces(handler: Messenger, name: str) -> bool:
    return isinstance(handler, ReparamMessenger) and isinstance(handler.config, dict) and name in handler.config


def _idle(names: set[str], trace: Trace, run: Callable[[Messenger], Trace]) -> frozenset[str]:
    """Return the latents with masked-out elements that the log joint does not depend on.

    Elements that are masked out and matter all the same have a flat prior, which is another thing.
    """
    sites = nodes(trace)
    leaves = {n: sites[n]["value"].detach().clone().requires_grad_() for n in names if sites[n]["value"].is_floating_point()}
    others = {n: s["value"] for n, s in sites.items() if is_latent(s) and n not in leaves}
    if not leaves:
        return frozenset()
    with torch.enable_grad():
        again = run(Put({**others, **leaves}))
        total = sum((contribution(s).sum() for s in density_sites(again).values()), start=torch.zeros(()))
        if not total.requires_grad:
            return frozenset(leaves)
        gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    found = set()
    for (name, leaf), gradient in zip(leaves.items(), gradients):
        site = sites[name]
        out = ~_over_events(torch.as_tensor(site["mask"]), site["fn"])
        still = torch.ones_like(leaf, dtype=torch.bool) if gradient is None else gradient == 0
        if bool(out.any()) and bool(still[out.expand_as(leaf)].all()):
            found.add(name)
    return frozenset(found)


class _FillIdle(Messenger):
    """Give elements of latents that are masked out, and that nothing depends on, a density of their own.

    ``obs_mask`` draws unknown values where the values are known, too, and a padded panel has cells without a meaning. Such
    elements have neither prior nor likelihood, so a guide could spread them without end. A standard normal in the
    unconstrained space, independent of everything, leaves the distribution of all else as it is.
    """

    def __init__(self, names: frozenset[str]) -> None:
        super().__init__()
        self._names = names

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self._names and not msg["is_observed"] and msg["mask"] is not None:
            msg["fn"] = _Filled(msg["fn"], torch.as_tensor(msg["mask"]))
            msg["mask"] = None


class _Filled(TorchDistribution):
    """A distribution where a mask is true, and a standard normal in the unconstrained space elsewhere."""

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 - torch's own declaration

    def __init__(self, inner: Any, mask: Tensor) -> None:
        self.inner, self.mask_ = inner, mask
        self.has_rsample = bool(inner.has_rsample)
        super().__init__(inner.batch_shape, inner.event_shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """The support of the inner distribution."""
        return self.inner.support

    def expand(self, batch_shape: Any, _instance: Any = None) -> _Filled:
        """Return the same distribution in a larger batch."""
        return _Filled(self.inner.expand(batch_shape), self.mask_.expand(batch_shape))

    def sample(self, sample_shape: Any = _NO_SHAPE) -> Tensor:
        """Draw from the inner distribution."""
        drawn: Tensor = self.inner.sample(sample_shape)
        return drawn

    def rsample(self, sample_shape: Any = _NO_SHAPE) -> Tensor:
        """Draw from the inner distribution."""
        drawn: Tensor = self.inner.rsample(sample_shape)
        return drawn

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density in nats."""
        to, dims = biject_to(plain_support(self.inner)), value.dim() - self.inner.event_dim
        free = to.inv(value)
        normal = Normal(torch.zeros_like(free), 1.0).log_prob(free)
        filled = _summed(normal, dims) - _summed(to.log_abs_det_jacobian(free, value), dims)
        return torch.where(self.mask_, self.inner.log_prob(value), filled)


def _summed(value: Tensor, dims: int) -> Tensor:
    return value.flatten(dims).sum(-1) if value.dim() > dims else value


class FillMissing(Messenger):
    """Put something harmless in place of NaN among observations that are masked out.

    A masked term counts nothing, but the gradient of a NaN that counts nothing is still NaN.
    """

    def _pyro_sample(self, msg: Any) -> None:
        value = msg["value"]
        if not msg["is_observed"] or not isinstance(value, Tensor) or not value.is_floating_point():
            return
        if type(msg["fn"]) is NanMaskedNormal:  # the same, in operations that can be vectorised
            msg["fn"] = Normal(msg["fn"].loc, msg["fn"].scale)
            there = ~torch.isnan(value)
            msg["mask"] = there if msg["mask"] is None else there & msg["mask"]
        if role(msg) != "observed":
            return
        seen = _seen(msg["fn"], msg["mask"])
        if seen is not None:
            msg["value"] = torch.where(~seen & torch.isnan(value), _harmless(msg["fn"], value), value)


def _seen(fn: Any, mask: Any) -> Tensor | None:
    """Return which elements of a site's value no mask takes out, neither ``poutine.mask`` nor ``dist.mask``.

    It broadcasts against the value; ``None`` if there is no mask.
    """
    found = _over_events(mask, fn) if isinstance(mask, Tensor) else None
    while isinstance(fn, Independent | MaskedDistribution):
        inner = fn._mask if isinstance(fn, MaskedDistribution) else None
        if isinstance(inner, Tensor):
            inner = _over_events(inner, fn)
            found = inner if found is None else found & inner
        fn = fn.base_dist
    return found


def _over_events(mask: Tensor, fn: Any) -> Tensor:
    """Return a mask of a distribution's batch in a shape that broadcasts against its values."""
    return mask.reshape((*mask.shape, *(1,) * fn.event_dim))


def _harmless(fn: Any, value: Tensor) -> Tensor:
    """Return values inside a distribution's support, of a value's shape."""
    if fn.support.is_discrete:
        return torch.zeros_like(value)
    to = biject_to(plain_support(fn))
    inside: Tensor = to(value.new_zeros(to.inverse_shape(value.shape)))
    return inside
