"""What a guide may say of itself: the one protocol between guides and everybody who works with them.

Any callable that draws the latents of a model is a guide, and none of this is needed for that. What a guide does say, under
the names of :class:`Guide`, is understood everywhere: by objectives, the engine, draws, diagnostics and files. Families
inherit it; a guide from elsewhere only has to have the attribute. :func:`as_guide` reads both alike.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from pyro.infer.autoguide import AutoDelta, AutoGuideList
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import Normal

__all__ = [
    "Components",
    "Guide",
    "MixtureLayer",
    "MixtureLayers",
    "amortized_sites",
    "as_guide",
    "is_point_mass",
    "is_sampled",
    "marks_strata",
    "name_of",
    "parts",
]


@dataclass(frozen=True)
class Components:
    """What a trace of a mixture says: the mixture, and the component that was drawn from.

    :ivar density: the mixture, a :class:`~guides.distributions.mixtures.MixtureDensity`, over unconstrained latents.
    :ivar draw: those that were drawn, ``(D,)``, or ``(rows, D)`` for a mixture per row of the data.
    :ivar factors: returns, per site, the component's normal factor and its draw, where components have such; else nothing.
    :ivar sites: names of the latents, which the guide maps from the draw and whose densities are the Jacobians.
    :ivar latent_site: the auxiliary site of the draw, whose scale and mask the entropy has.
    :ivar row_plate: name of the plate of the rows, where there is a mixture for each of them.
    """

    density: Any
    draw: Tensor
    factors: Callable[[], dict[str, tuple[Normal, Tensor]]]
    sites: tuple[str, ...]
    latent_site: str
    row_plate: str | None = None


@dataclass(frozen=True)
class MixtureLayer:
    r"""What a trace of the guide says about one layer. With :math:`r_k` the probability that component k was drawn with:

    :ivar code: name of the site of the codes.
    :ivar sticks: name of the site of the fractions; ``None`` for one component.
    :ivar log_drawn: :math:`\log (\pi_k / r_k)` of the drawn component and the drawn weights, shape ``(rows,)``.
    :ivar log_mean: :math:`\log (\mathbb{E}_q \pi_k / r_k)`, the same with the weights' mean.
    """

    code: str
    sticks: str | None
    log_drawn: Tensor
    log_mean: Tensor


@dataclass(frozen=True)
class MixtureLayers:
    """What a trace of layers of mixtures with random weights says.

    :ivar layers: bottom first.
    :ivar row_plate: name of the plate of the rows.
    """

    layers: tuple[MixtureLayer, ...]
    row_plate: str


class Guide:
    """Everything that a guide may say, with what is assumed of one that does not say it.

    :ivar amortized: names of the local latents that the guide computes from the rows it is called with.
    :ivar is_point_mass: the guide has no density (MAP, ensembles of points), so importance weights mean nothing.
    :ivar is_sampled: the guide stands for the draws of a sampler, which are draws of the posterior itself.
    :ivar allows_no_latents: the guide means something for a model that has parameters and no latent site.
    :ivar may_stand_still: the guide means something at the values that it starts from, without any step.
    :ivar trains_model: the optimiser may change the model's own parameters; ``False`` if the guide chooses them afterwards.
    :ivar linearised: predictions are those of the model linearised around the guide's mean.
    :ivar num_strata: components, or combinations of them, that a step draws one by one instead of at random. A guide that
        says so marks the sites that choose by ``infer={"stratum": ...}``, see :class:`~guides.program.strata.Stratum`.
    :ivar constructor_options: the options that the guide was made with, so that a saved posterior can make it again.
    """

    amortized: Any = frozenset()
    is_point_mass: bool = False
    is_sampled: bool = False
    allows_no_latents: bool = False
    may_stand_still: bool = False
    trains_model: bool = True
    linearised: bool = False
    num_strata: int = 1
    constructor_options: Mapping[str, Any] = {}

    def around_model(self, guide_trace: Trace) -> AbstractContextManager[Any]:
        """Return the context in which the model's arithmetic is carried out on this draw (local reparameterisation)."""
        return nullcontext()

    def log_density(self, guide_trace: Trace) -> Tensor:
        """Return log q of a trace in nats, for a guide whose sites do not say it."""
        return torch.as_tensor(guide_trace.log_prob_sum())

    def unconstrained_factors(self, guide_trace: Trace) -> dict[str, tuple[Normal, Tensor]]:
        """Return the independent normal factors of the unconstrained latents and their draws, by site; none by default."""
        return {}

    def mixture_components(self, guide_trace: Trace) -> Components | None:
        """Return what a trace says about the mixture it was drawn from; ``None`` from a guide that is no mixture."""
        return None

    def mixture_layers(self, guide_trace: Trace) -> MixtureLayers | None:
        """Return what a trace says about layers of mixtures with random weights; ``None`` from other guides."""
        return None

    def log_stratum_weight(self, guide_trace: Trace) -> Tensor | None:
        r"""Return :math:`\log (K \pi_k)` of the stratum that a trace belongs to, ``()`` or ``(rows,)``.

        ``None`` from a guide that does not weigh its strata: mixtures among its parts do so, or they weigh the same.
        """
        return None

    def present_components(self, *args: Any, **kwargs: Any) -> Any:
        """Return the mixtures of all rows, each component computed for the rows alone that have it.

        :returns: what :meth:`holding` takes, with ``log_weights`` and ``rows(index)``; ``None`` from a guide whose rows all
            have the same components.
        """
        return None

    def holding(self, mixture: Any) -> AbstractContextManager[Any]:
        """Return the context in which the guide draws from a mixture that was computed before."""
        return nullcontext()

    def finished_guide(self) -> Any:
        """Return the kind of guide that takes this one's place after the optimisation; ``None`` if it is the answer."""
        return None

    def unrefined(self) -> AbstractContextManager[Any]:
        """Return the context in which the guide leaves out what it optimises for each row by itself."""
        return nullcontext()


_SAYABLE = frozenset(name for name in vars(Guide) if not name.startswith("__"))


class _Elsewhere(Guide):
    """A guide that does not inherit the protocol: what it has of it, and defaults for the rest."""

    def __init__(self, guide: Any) -> None:
        self._guide = guide

    def __getattribute__(self, name: str) -> Any:
        if name in _SAYABLE:
            guide = object.__getattribute__(self, "_guide")
            if hasattr(guide, name):
                return getattr(guide, name)
        return object.__getattribute__(self, name)


def as_guide(guide: Any) -> Guide:
    """Return a guide as one that answers everything in :class:`Guide`."""
    return guide if isinstance(guide, Guide) else _Elsewhere(guide)


def name_of(guide: Any) -> str:
    """Return what a guide is called where it is not of the registry: its function's name, or its class's."""
    return str(getattr(guide, "__name__", type(guide).__name__))


def parts(guide: Any) -> list[Any]:
    """Return the guides that a list of guides, or of lists, is made of; a guide by itself if it is none."""
    return [leaf for part in guide for leaf in parts(part)] if isinstance(guide, AutoGuideList) else [guide]


def is_point_mass(guide: Any) -> bool:
    """Tell whether a guide, or a part of it, has no density."""
    return any(as_guide(part).is_point_mass or isinstance(part, AutoDelta) for part in parts(guide))


def is_sampled(guide: Any) -> bool:
    """Tell whether a guide stands for the draws of a sampler."""
    return as_guide(guide).is_sampled


def marks_strata(guide: Any) -> bool:
    """Tell whether a guide says itself what its strata are; those of a list or of a function are the choices in it."""
    return hasattr(guide, "num_strata") and not isinstance(guide, AutoGuideList)


def amortized_sites(guide: Any) -> frozenset[str]:
    """Return the names of the latent sites that a guide computes from the rows it is given: its attribute ``amortized``.

    Python lets nobody set an attribute of a bound method, so a method may have it from its function
    (``VAE.guide.amortized = ...``) or leave it to the object that it is a method of; a partial, to what it calls.
    """
    while isinstance(guide, functools.partial) and not hasattr(guide, "amortized"):
        guide = guide.func
    named = getattr(guide, "amortized", None)
    if named is None:
        of_owner = getattr(getattr(guide, "__self__", None), "amortized", None)
        named = of_owner if isinstance(of_owner, str | frozenset | set | list | tuple) else ()
    return frozenset([named] if isinstance(named, str) else named)
