"""What the families of approximate posteriors share."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pyro.infer.autoguide import AutoGuide, init_to_feasible, init_to_median, init_to_sample
from pyro.infer.autoguide.guides import AutoContinuous
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import biject_to, constraints

from guides.engine.traces import nodes
from guides.errors import OptionError

if TYPE_CHECKING:
    from guides.engine.data import Data
    from guides.engine.program import Program

__all__ = ["Family", "Finished", "FitContext", "FlatFamily", "init_function", "is_unconstrained"]


@dataclass(frozen=True)
class FitContext:
    """One replicate's optimum, as handed to :meth:`Family.finish`."""

    program: Program
    flat: Tensor
    data: Data
    seed: int


@dataclass(frozen=True)
class Finished:
    """A posterior that a family made of an optimum.

    :ivar guide: the guide that represents it.
    :ivar parameters: constrained values by parameter name, of model and guide.
    :ivar info: what the user should know about how it was made.
    """

    guide: Family
    parameters: dict[str, Tensor]
    info: dict[str, Any]


def is_unconstrained(site: Any) -> bool:
    """Tell whether a site's support is all real numbers, so that its value is its unconstrained value."""
    support = site["fn"].support
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return support is constraints.real


def _init_to_spread(site: Any = None) -> Any:
    """Start unbounded sites at a draw from the prior and others, such as scales, at its median."""
    if site is None:
        return _init_to_spread
    return init_to_sample(site) if is_unconstrained(site) else init_to_median(site)


_INITIALISERS: dict[str, Callable[..., Any]] = {
    "feasible": init_to_feasible,
    "median": init_to_median,
    "sample": init_to_sample,
    "spread": _init_to_spread,
}


def init_function(init: str | Callable[..., Any]) -> Callable[..., Any]:
    """Return Pyro's initialisation strategy of that name, or ``init`` itself if it is callable.

    :raises OptionError: for an unknown name.
    """
    if callable(init):
        return init
    if init not in _INITIALISERS:
        raise OptionError(f"init={init!r} is not known; use {', '.join(map(repr, _INITIALISERS))} or a Pyro init function")
    return _INITIALISERS[init]


class Family(AutoGuide):
    """A family of approximate posteriors: a Pyro autoguide that ``guides.fit`` knows how to finish.

    :cvar is_point_mass: the guide has no density (MAP, ensembles of points), so importance weights mean nothing.
    :cvar allows_no_latents: the guide means something for a model that has parameters and no latent site.
    :cvar num_strata: components that a step draws one by one instead of at random.
    """

    is_point_mass: ClassVar[bool] = False
    allows_no_latents: ClassVar[bool] = False
    num_strata: int = 1

    def __new__(cls, *args: Any, **kwargs: Any) -> Family:
        """Remember the options that the guide is made with, so that a saved posterior can make it again."""
        guide = super().__new__(cls)
        given = inspect.signature(cls.__init__).bind_partial(guide, *args, **kwargs).arguments
        options = dict(list(given.items())[2:])  # without the guide and the model
        object.__setattr__(guide, "constructor_options", options)
        return guide

    def site_values(self, latents: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the values of this guide's own sites that stand for given values of the model's latents."""
        return latents

    def finish(self, context: FitContext) -> Finished:
        """Turn the optimum into the posterior, for families whose optimisation only finds a mode."""
        raise NotImplementedError

    def finished_guide(self) -> Family | None:
        """Return the kind of guide that :meth:`finish` returns, not set up; ``None`` if the optimum is the answer."""
        return None


class FlatFamily(Family, AutoContinuous):
    """A family with one distribution over the flat vector of all latents, mapped to each site's support.

    A subclass gives :meth:`~pyro.infer.autoguide.guides.AutoContinuous.get_posterior`.
    """

    def __init__(self, model: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        super().__init__(model, *args, **kwargs)
        self._plain_model = (model,)  # in a tuple, so that a module does not become a part of the guide

    @property
    def plain_model(self) -> Callable[..., Any]:
        """The model as it was given; :attr:`model` draws initial values for its latents at every run."""
        return self._plain_model[0]

    @property
    def latent_site(self) -> str:
        """The auxiliary site that holds the flat vector."""
        return f"_{self._pyro_name}_latent"

    def latent_sites(self) -> list[tuple[str, Any]]:
        """Return name and prototype of every latent site, in the flat vector's order."""
        return list(self.prototype_trace.iter_stochastic_nodes()) if self.prototype_trace is not None else []

    def latent_site_prototype(self, name: str) -> Any:
        """Return the prototype of one latent site."""
        return nodes(self.prototype_trace)[name]

    def flatten(self, latents: dict[str, Tensor], leading: int = 0) -> Tensor:
        """Return the flat unconstrained vector of latents by name, each with ``leading`` leading dimensions."""
        parts = []
        for name, site in self.latent_sites():
            value = biject_to(site["fn"].support).inv(latents[name])
            parts.append(value.reshape(*value.shape[:leading], -1))
        return torch.cat(parts, dim=-1)

    def site_values(self, latents: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the flat vector of all latents as the value of the auxiliary site."""
        return {self.latent_site: self.flatten(latents)}

    def slices(self) -> dict[str, slice]:
        """Return where each site lies in the flat vector."""
        found, position = {}, 0
        for name, _ in self.latent_sites():
            size = self._unconstrained_shapes[name].numel()
            found[name] = slice(position, position + size)
            position += size
        return found

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """Return every site's part of a flat vector ``(..., D)``, shape ``(..., *unconstrained shape)``.

        One split, whose gradient is put together in one piece; slices would each add theirs to a vector of zeros.
        """
        shapes = {name: self._unconstrained_shapes[name] for name, _ in self.latent_sites()}
        parts = flat.split([shape.numel() for shape in shapes.values()], dim=-1)
        return {name: part.reshape(flat.shape[:-1] + shape) for (name, shape), part in zip(shapes.items(), parts)}

    def _unpack_latent(self, latent: Tensor) -> Iterator[tuple[Any, Tensor]]:
        """Yield every site's prototype and unconstrained value; Pyro's own takes slices, see :meth:`split`."""
        batch = latent.shape[:-1]
        for name, value in self.split(latent).items():
            site = self.latent_site_prototype(name)
            shape = self._unconstrained_shapes[name]
            event_dim = site["fn"].event_dim + len(shape) - site["value"].dim()
            yield site, value.reshape(torch.broadcast_shapes(shape, batch + (1,) * event_dim))

    def unconstrained_shape(self, name: str) -> torch.Size:
        """Return the shape of one site's unconstrained value."""
        return self._unconstrained_shapes[name]

    def flat_draw(self, guide_trace: Trace) -> Tensor:
        """Return the flat vector that a trace of this guide drew."""
        draw: Tensor = nodes(guide_trace)[self.latent_site]["value"]
        return draw
