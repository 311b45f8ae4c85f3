"""What the families of approximate posteriors share."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.util import sum_rightmost
from pyro.infer.autoguide import AutoGuide, init_to_feasible, init_to_median, init_to_sample
from pyro.infer.autoguide.guides import AutoContinuous
from pyro.ops.tensor_utils import periodic_repeat
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import Normal

from guides.errors import OptionError
from guides.program.data import Data
from guides.program.guide import Guide
from guides.program.marks import continuous_part
from guides.program.plates import FillPlates, SizePlates, WithoutLoops
from guides.program.program import Program
from guides.program.sites import Computed, nodes
from guides.program.supports import PlainSupports, is_unconstrained, unconstraining

__all__ = [
    "START",
    "Family",
    "Finished",
    "FitContext",
    "FlatFamily",
    "check_scale",
    "init_function",
    "starts_where_told",
]


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


def _init_to_spread(site: Any = None) -> Any:
    """Start unbounded sites at a draw from the prior and others, such as scales, at its median."""
    if site is None:
        return _init_to_spread
    return init_to_sample(site) if is_unconstrained(site) else init_to_median(site)


START = "start"
"""Key in a site's ``infer``: the value to start at, as the weights of a trained network in ``zoo.bayesianize``."""


@dataclass(frozen=True)
class _WhereTold:
    """A strategy for the sites that do not say where to start; not a closure, as guides that hold it are pickled."""

    strategy: Callable[..., Any]

    def __call__(self, site: Any = None) -> Any:
        if site is None:
            return self
        start: Tensor | None = site["infer"].get(START)
        return self.strategy(site) if start is None else start.detach().clone()


_INITIALISERS: dict[str, Callable[..., Any]] = {
    "feasible": _WhereTold(init_to_feasible),
    "median": _WhereTold(init_to_median),
    "sample": init_to_sample,
    "spread": _init_to_spread,
}


def starts_where_told(init: str | Callable[..., Any]) -> bool:
    """Tell whether a strategy starts sites at the value in their ``infer``; those that draw at random do not."""
    return init in ("feasible", "median")


def init_function(init_loc_fn: str | Callable[..., Any]) -> Callable[..., Any]:
    """Return Pyro's initialisation strategy of that name, or ``init_loc_fn`` itself if it is callable.

    :raises OptionError: for an unknown name.
    """
    if callable(init_loc_fn):
        return init_loc_fn
    if init_loc_fn not in _INITIALISERS:
        known = ", ".join(map(repr, _INITIALISERS))
        raise OptionError(f"init_loc_fn={init_loc_fn!r} is not known; use {known} or a Pyro init function")
    return _INITIALISERS[init_loc_fn]


def check_scale(init_scale: Any) -> float:
    """Return an initial standard deviation as a float.

    :raises OptionError: if it is not a positive number.
    """
    if not isinstance(init_scale, int | float) or not init_scale > 0:
        raise OptionError(f"init_scale must be positive, not {init_scale!r}")
    return float(init_scale)


_QUANTILE_DRAWS = 1000


class Family(Guide, AutoGuide):
    """A family of approximate posteriors: a Pyro autoguide that ``guides.fit`` knows how to finish.

    What it may say of itself, such as that it has no density, is in :class:`guides.program.guide.Guide`.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Family:
        """Remember the options that the guide is made with, so that a saved posterior can make it again."""
        guide = super().__new__(cls)
        signature = inspect.signature(cls.__init__)
        given = signature.bind_partial(guide, *args, **kwargs).arguments
        options = dict(list(given.items())[2:])  # without the guide and the model
        for name in [n for n in options if signature.parameters[n].kind is inspect.Parameter.VAR_KEYWORD]:
            options |= options.pop(name)
        object.__setattr__(guide, "constructor_options", options)
        return guide

    def __init__(self, model: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        super().__init__(WithoutLoops()(SizePlates()(PlainSupports()(Computed()(continuous_part(model))))), *args, **kwargs)

    def site_values(self, latents: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the values of this guide's own sites that stand for given values of the model's latents."""
        return latents

    def begin(self, context: FitContext) -> int | None:
        """Look at the start before the first step; return how many steps are enough, for callers that name no number."""
        return None

    def finish(self, context: FitContext) -> Finished:
        """Turn the optimum into the posterior, for families whose optimisation only finds a mode."""
        raise NotImplementedError

    def finished_guide(self) -> Family | None:
        """Return the kind of guide that :meth:`finish` returns, not set up; ``None`` if the optimum is the answer."""
        return None

    @torch.no_grad()
    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Return the median of every latent, element by element, shape of the site.

        :param args: arguments of the model, which guides with an encoder need.
        """
        return {name: values[0] for name, values in self.quantiles([0.5], *args, **kwargs).items()}

    @torch.no_grad()
    def quantiles(self, quantiles: Sequence[float] | Tensor, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Return quantiles of every latent, element by element, shape ``(Q, *site shape)``: those of 1000 draws.

        :param quantiles: probabilities, Q of them.
        :param args: arguments of the model, which guides with an encoder need.
        """
        draws = [self(*args, **kwargs) for _ in range(_QUANTILE_DRAWS)]
        found = {}
        for name, value in draws[0].items():
            stacked = torch.stack([draw[name] for draw in draws])
            found[name] = torch.quantile(stacked, torch.as_tensor(quantiles, dtype=value.dtype, device=value.device), dim=0)
        return found


class FlatFamily(Family, AutoContinuous):
    """A family with one distribution over the flat vector of all latents, mapped to each site's support.

    A subclass gives :meth:`~pyro.infer.autoguide.guides.AutoContinuous.get_posterior`.
    """

    def __init__(
        self, model: Callable[..., Any], *args: Any, create_plates: Callable[..., Any] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(model, *args, **kwargs)
        self._model = (FillPlates()(self.model),)  # outside of what gives latents their initial values
        self.create_plates = create_plates
        self._unconstrained_shapes: dict[str, torch.Size] = {}
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
            value = unconstraining(site).inv(latents[name])
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
            event_dim = self._event_dim(site)
            yield site, value.reshape(torch.broadcast_shapes(shape, batch + (1,) * event_dim))

    def _event_dim(self, site: Any) -> int:
        """Return how many dimensions of a site's unconstrained value are no plates."""
        found: int = site["fn"].event_dim + len(self._unconstrained_shapes[site["name"]]) - site["value"].dim()
        return found

    @property
    def latent_dim(self) -> int:
        """The length of the flat vector."""
        return sum(shape.numel() for shape in self._unconstrained_shapes.values())

    @latent_dim.setter
    def latent_dim(self, size: int) -> None:
        # Pyro sets it when it has read the sites' shapes, before it makes parameters of that length. Of a plate that the
        # model subsamples it has seen some rows; the guide has them all.
        for name, site in self.latent_sites():
            shape = list(self._unconstrained_shapes[name])
            for dim, full_size in self._subsampled(site):
                shape[dim] = full_size
            self._unconstrained_shapes[name] = torch.Size(shape)

    def _subsampled(self, site: Any) -> list[tuple[int, int]]:
        """Return the dimensions of a site's unconstrained value of which the model sees some rows, and their sizes."""
        return [
            (frame.dim - self._event_dim(site), frame.full_size)
            for frame in site["cond_indep_stack"]
            if frame.full_size is not None and frame.full_size != frame.size
        ]

    def _init_loc(self) -> Tensor:
        """Return the flat vector to start from."""
        return self._flat_start({name: site["value"].detach() for name, site in self.latent_sites()})

    def _flat_start(self, values: dict[str, Tensor]) -> Tensor:
        """Return the flat vector of values of the model's latents; rows that it does not see start as those it does."""
        parts = []
        for name, site in self.latent_sites():
            value = unconstraining(site).inv(values[name])
            for dim, full_size in self._subsampled(site):
                value = periodic_repeat(value, full_size, dim)
            parts.append(value.reshape(-1))
        return torch.cat(parts)

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draw every latent; of plates that are subsampled, the rows that the plate has."""
        if self.prototype_trace is None and self.create_plates is not None:
            AutoGuide._setup_prototype(self, *args, **kwargs)  # to see whether there are latents besides the plates
        if self.prototype_trace is None or (self.latent_sites() and not self._unconstrained_shapes):
            self._setup_prototype(*args, **kwargs)
        if not self.latent_sites():
            self._create_plates(*args, **kwargs)
            return {}
        latent = self.sample_latent(*args, **kwargs)
        plates = self._create_plates(*args, **kwargs)
        result = {}
        for site, value in self._unpack_latent(latent):
            name = site["name"]
            with ExitStack() as stack:
                for frame in self._cond_indep_stacks[name]:
                    stack.enter_context(plates[frame.name])
                rows = pyro.subsample(value, event_dim=self._event_dim(site))
                result[name] = pyro.sample(name, _point(site, rows))
        return result

    def flat_quantiles(self, quantiles: Tensor) -> Tensor:
        """Return quantiles of every element of the flat vector, shape ``(Q, D)``; those of a normal, by default.

        :param quantiles: probabilities, shape ``(Q,)``.
        """
        loc, scale = self._loc_scale()
        return Normal(loc, scale, validate_args=False).icdf(quantiles.to(loc).unsqueeze(-1))

    @torch.no_grad()
    def quantiles(self, quantiles: Sequence[float] | Tensor, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Return quantiles of every latent, element by element, shape ``(Q, *site shape)``.

        Those of the unconstrained value, mapped to the site's support, as in Pyro's autoguides: exact where each element of
        the value is a monotone function of one element of the unconstrained value, as it is but for simplices and matrices.

        :param quantiles: probabilities, Q of them.
        """
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        found: dict[str, list[Tensor]] = {}
        for flat in self.flat_quantiles(torch.as_tensor(quantiles, dtype=torch.get_default_dtype())):
            for site, value in self._unpack_latent(flat.detach()):
                found.setdefault(site["name"], []).append(unconstraining(site)(value))
        return {name: torch.stack(values) for name, values in found.items()}

    def unconstrained_shape(self, name: str) -> torch.Size:
        """Return the shape of one site's unconstrained value."""
        return self._unconstrained_shapes[name]

    def flat_draw(self, guide_trace: Trace) -> Tensor:
        """Return the flat vector that a trace of this guide drew."""
        draw: Tensor = nodes(guide_trace)[self.latent_site]["value"]
        return draw


def _point(site: Any, value: Tensor) -> Any:
    """Return a point mass at a site's value whose density is the Jacobian of the transform to its support."""
    transform, event_dim = unconstraining(site), site["fn"].event_dim
    point = transform(value)
    if poutine.get_mask() is False:
        return dist.Delta(point, event_dim=event_dim)
    jacobian = transform.inv.log_abs_det_jacobian(point, value)
    jacobian = sum_rightmost(jacobian, jacobian.dim() - point.dim() + event_dim)
    return dist.Delta(point, log_density=jacobian, event_dim=event_dim)
