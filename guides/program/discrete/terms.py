"""Sites that discrete latents have a part in, with their densities over named dimensions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.distributions.util import scale_and_mask
from pyro.ops import packed
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.trace_struct import Trace
from torch import Tensor

__all__ = ["Marginal", "Term", "at_values", "density_of", "index_of", "is_seen", "name_dimensions", "own_copy"]

_NO_SHAPE = torch.Size()


class Marginal(TorchDistribution):
    """What is left of a site's distribution when the discrete latents that it depends on are summed out.

    Its density is known at one value only, the one that the site has; it draws as the site's own distribution does.

    :param fn: the site's distribution, with the values of the discrete latents among its batch dimensions.
    :param batch_shape: of the site itself.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 - torch's own declaration

    def __init__(self, fn: Any, batch_shape: torch.Size) -> None:
        self.fn, self.density = fn, torch.zeros(())
        self.has_rsample = bool(fn.has_rsample)
        super().__init__(batch_shape, fn.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        """The site's support."""
        return self.fn.support

    def sample(self, sample_shape: Any = _NO_SHAPE) -> Tensor:
        """Draw for every value of the discrete latents."""
        drawn: Tensor = self.fn.sample(sample_shape)
        return drawn

    def rsample(self, sample_shape: Any = _NO_SHAPE) -> Tensor:
        """Draw for every value of the discrete latents."""
        drawn: Tensor = self.fn.rsample(sample_shape)
        return drawn

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the density in nats at the value that the site has."""
        return self.density.expand(self.batch_shape)


@dataclass
class Term:
    """One site that is marked, or depends on one that is.

    :ivar site: Pyro's message of the site.
    :ivar fn: its distribution.
    :ivar scale: as the model's own handlers have it.
    :ivar observed: whether the model says so; a handler outside may hold a latent fixed.
    :ivar density: log density, packed, with its mask and without scale.
    """

    site: Any
    fn: Any
    scale: Any
    mask: Any
    frames: tuple[CondIndepStackFrame, ...]
    observed: bool
    density: Any = None
    symbols: dict[int, str] = field(default_factory=dict)
    ordinal: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """The site's name."""
        return str(self.site["name"])

    @property
    def enumerated(self) -> bool:
        """Whether the site is a discrete latent with all of its values at once."""
        return self.site["infer"].get("_enumerate_dim") is not None

    @property
    def symbol(self) -> str:
        """The name of the dimension that holds its values."""
        return str(self.site["infer"]["_enumerate_symbol"])

    @property
    def kept_latent(self) -> bool:
        """Whether the site is a latent that is not summed out."""
        return not self.enumerated and not self.observed


def name_dimensions(terms: list[Term], nesting: int) -> None:
    """Name the dimensions of the terms' densities: a symbol for each plate and each discrete latent."""
    trace = Trace()
    for term in terms:
        log_prob = term.fn.log_prob(term.site["value"], *term.site["args"], **term.site["kwargs"])
        term.frames = (*term.frames, *_undeclared(log_prob, term, nesting))
        infer = {k: v for k, v in term.site["infer"].items() if k != "_dim_to_symbol"}
        trace.add_node(term.name, **{**term.site, "infer": infer, "cond_indep_stack": term.frames, "value": log_prob})
    trace.symbolize_dims()
    for term in terms:
        node: Any = trace.nodes[term.name]
        term.symbols = node["infer"]["_dim_to_symbol"]
        term.site["infer"]["_enumerate_symbol"] = node["infer"].get("_enumerate_symbol")
        term.ordinal = frozenset(trace.plate_to_symbol[f.name] for f in term.frames if f.vectorized and f.size > 1)
        density = packed.pack(own_copy(node["value"]), term.symbols)
        # As in Pyro, the mask of a discrete latent itself says nothing: masked data are what leaves it at its prior.
        mask = None if term.enumerated or term.mask is None else term.mask
        mask = packed.pack(own_copy(mask), term.symbols) if isinstance(mask, Tensor) else mask
        term.density = packed.scale_and_mask(density, mask=mask)


def is_seen(site: Any) -> bool:
    """Tell whether a site has a density of its own that handlers outside see."""
    fn = site.get("fn")
    known = isinstance(fn, TorchDistributionMixin) and not isinstance(fn, Marginal)
    return site["type"] == "sample" and known and not site["infer"].get("_deterministic")


def density_of(site: Any, fn: Any) -> Tensor:
    """Return a site's log density in nats with its mask and without its scale."""
    found: Tensor = scale_and_mask(fn.log_prob(site["value"], *site["args"], **site["kwargs"]), mask=site["mask"])
    return found


def index_of(term: Term, value: Tensor) -> Any:
    """Return which of a discrete latent's values ``value`` is, packed."""
    event = term.fn.event_dim
    values = term.fn.enumerate_support(expand=False)
    values = values.reshape(values.shape[:1] + (1,) * (value.dim() - event) + values.shape[values.dim() - event :])
    same = values == value
    same = same.flatten(same.dim() - event).all(-1) if event else same
    return packed.pack(same.to(torch.uint8).argmax(0), term.symbols)


def at_values(term: Term, chosen: Mapping[str, Any]) -> Tensor:
    """Return a term's density at one value of each discrete latent."""
    value = term.density
    for symbol, index in chosen.items():
        if symbol in value._pyro_dims:
            value = packed.gather(value, _gathered(index), symbol)
    if term.enumerated and term.mask is not None:
        mask = packed.pack(own_copy(term.mask), term.symbols) if isinstance(term.mask, Tensor) else term.mask
        value = packed.scale_and_mask(value, mask=mask)
    return packed.unpack(value, {s: dim for dim, s in term.symbols.items()})


def _gathered(index: Any) -> Any:
    """Return an index that can be gathered along a dimension of its own, which it is broadcast over."""
    found: Any = index.view(index.shape)
    found._pyro_dims = index._pyro_dims
    return found


def own_copy(value: Tensor) -> Tensor:
    """Return the tensor as an object of its own, since packing leaves a mark on it."""
    return value.view(value.shape)


def _undeclared(log_prob: Tensor, term: Term, nesting: int) -> list[CondIndepStackFrame]:
    """Return a plate for every batch dimension without one; elements of a batch are independent, declared or not."""
    declared = {f.dim for f in term.frames if f.vectorized}
    sizes = {-i: log_prob.shape[-i] for i in range(1, 1 + min(nesting, log_prob.dim()))}
    return [
        CondIndepStackFrame(f"dimension {dim} of size {size}", dim, size, 0)
        for dim, size in sizes.items()
        if size > 1 and dim not in declared
    ]
