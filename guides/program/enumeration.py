"""Discrete latents summed out: a model whose marked sites are gone and whose densities are those of what is left.

:class:`Enumerated` runs the model with every value of a marked site at once (Pyro's ``EnumMessenger``), and contracts the
densities that depend on one (Pyro's plated sums and products) before anybody sees them. To handlers outside it is a model
with continuous latents and observations only: traced, replayed, scaled and differentiated as any other.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from opt_einsum import shared_intermediates
from pyro import poutine
from pyro.distributions import TorchDistribution, Unit
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.distributions.util import scale_and_mask
from pyro.infer.autoguide import AutoGuide
from pyro.ops import packed
from pyro.ops.contract import contract_tensor_tree
from pyro.ops.einsum.adjoint import require_backward
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import apply_stack
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from guides.errors import DiscreteLatentError, MinibatchScaleError, UnsupportedModelError
from guides.program.log_sampling import PlainSampleRing
from guides.program.log_space import PlainLogRing
from guides.program.marks import Marks, is_marked
from guides.program.prepare import PreparedModel
from guides.program.supports import PlainSupports

__all__ = [
    "AllValues",
    "Enumerated",
    "Marginal",
    "add_values",
    "enumerated",
    "nesting",
    "summing_out",
    "with_values",
]

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
class _Term:
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
        return str(self.site["name"])

    @property
    def enumerated(self) -> bool:
        return self.site["infer"].get("_enumerate_dim") is not None

    @property
    def symbol(self) -> str:
        return str(self.site["infer"]["_enumerate_symbol"])

    @property
    def kept_latent(self) -> bool:
        return not self.enumerated and not self.observed


class AllValues(EnumMessenger):
    """Pyro's handler that gives every marked site all of its values at once, for tensors that vmap has batched, too."""

    def _pyro_post_sample(self, msg: Any) -> None:
        fn, value, name = msg["fn"], msg["value"], msg["name"]
        if value is None or not isinstance(fn, TorchDistributionMixin):
            return
        own = msg["infer"].get("_dim_to_id", {}) if msg["infer"].get("_enumerate_dim") is not None else {}
        dims = {**own, **self._param_dims.get(name, {})}
        batch = value.shape[: value.dim() - fn.event_dim]
        # A copy: a replayed site brings the dictionary of the guide's.
        msg["infer"] = {**msg["infer"], "_dim_to_id": dims}
        self._value_dims[name] = {d: i for d, i in dims.items() if len(batch) >= -d and batch[d] > 1}


class _Collect(Messenger):
    """Take the marked sites, and the observed ones that depend on them, out of what handlers outside see."""

    def __init__(self, nesting: int) -> None:
        super().__init__()
        self._nesting = nesting
        self.terms: list[_Term] = []

    def _pyro_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        if not isinstance(fn, TorchDistributionMixin) or msg["infer"].get("_deterministic"):
            return
        term = _Term(msg, fn, msg["scale"], msg["mask"], msg["cond_indep_stack"], bool(msg["is_observed"]))
        if term.enumerated:
            msg["stop"] = True
        elif not self._depends(fn, msg["value"] if msg["is_observed"] else None):
            return
        elif term.observed:
            msg["stop"] = True
        else:
            msg["fn"] = Marginal(fn, fn.batch_shape[len(fn.batch_shape) - self._nesting :])
        self.terms.append(term)

    def _depends(self, fn: Any, value: Any) -> bool:
        outer = tuple(fn.batch_shape[: max(0, len(fn.batch_shape) - self._nesting)])
        if value is not None and isinstance(value, Tensor):
            outer += tuple(value.shape[: max(0, value.dim() - fn.event_dim - self._nesting)])
        return any(size > 1 for size in outer)


class Enumerated:
    """A model whose marked discrete latents are summed out; it is called as the model is.

    :ivar drawn: sites that a guide draws, or that are data: these are never summed out.
    :ivar nesting: how many dimensions of a density plates and batches may take; the values of discrete latents are left of
        them.
    """

    def __init__(self, model: Callable[..., Any], drawn: frozenset[str], nesting: int) -> None:
        self._run_model, self.drawn, self.nesting = model, drawn, nesting

    @property
    def model(self) -> Callable[..., Any]:
        """The model as it was given."""
        return self._run_model.model if isinstance(self._run_model, PreparedModel) else self._run_model

    def visible(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model with its discrete latents drawn, as sites that handlers outside see."""
        with Marks(self.drawn):
            return self._run_model(*args, **kwargs)

    @classmethod
    def of(cls, model: Callable[..., Any], model_trace: Trace, guide_trace: Trace) -> Enumerated:
        """Return a model that sums out what is marked in ``model_trace`` and not drawn by the guide."""
        seen = {n for n, s in _nodes(model_trace).items() if s["type"] == "sample" and s["is_observed"]}
        drawn = {n for n, s in _nodes(guide_trace).items() if s["type"] == "sample"}
        return cls(model, frozenset(seen | drawn), nesting(model_trace, guide_trace))

    def beside(self, dimensions: int) -> Enumerated:
        """Return the same model for a guide whose draws have so many more dimensions on the left."""
        return Enumerated(self._run_model, self.drawn, self.nesting + dimensions)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model, and end with what the sums leave of it.

        :raises UnsupportedModelError: if a site depends on discrete latents in a way that cannot be summed.
        """
        result, terms = self._run(args, kwargs)
        for part in _parts(terms):
            part.emit()
        return result

    def check(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], known: Trace, rescaled: frozenset[str]) -> None:
        """Check that the discrete latents can be summed out, at the values of ``known``.

        The densities of all sites are compared with those of a run in which every discrete latent has one value: a model
        that sums or reshapes over the dimension that holds the values gives others.

        :param rescaled: plates that see some of the data's rows, which stand for all of them.
        :raises UnsupportedModelError: if they cannot.
        :raises MinibatchScaleError: if a sum needs all rows.
        """
        with poutine.block(), poutine.replay(trace=known):
            plain = _nodes(poutine.trace(self.visible).get_trace(*args, **kwargs))
            with poutine.trace() as rest:
                _, terms = self._run(args, kwargs)
            for part in _parts(terms):
                part.check(rescaled)
                part.emit()
        chosen = {t.symbol: _index(t, plain[t.name]["value"]) for t in terms if t.enumerated}
        found = {t.name: _at(t, chosen) for t in terms}
        found |= {n: _density(s, s["fn"]) for n, s in _nodes(rest.trace).items() if n not in found and _is_seen(s)}
        for name, density in found.items():
            wanted = _density(plain[name], plain[name]["fn"]) if name in plain else density
            if density.numel() > wanted.numel() or not torch.allclose(
                density.expand(wanted.shape), wanted, rtol=1e-3, atol=1e-3, equal_nan=True
            ):
                names = ", ".join(repr(t.name) for t in terms if t.enumerated)
                raise UnsupportedModelError(
                    f"the density of site {name!r} with all values of the discrete latents at once ({names}) is not that "
                    "with one of their values. The values stand in a dimension of their own, left of all plates, and the "
                    "model has to leave it alone: index by them (means[k]) or broadcast, reduce over the last dimensions "
                    "alone, and let nothing outside a plate depend on what is inside it"
                )

    def draw(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], known: Trace) -> dict[str, Tensor]:
        """Draw the discrete latents from their distribution given the data and the values in ``known``.

        Sites that are neither data nor in ``known`` say nothing about the discrete latents; discrete latents of which
        nothing says anything are left out, as a run of the model draws them.
        """
        with poutine.block(), poutine.replay(trace=known):
            _, terms = self._run(args, kwargs)
        said = [t for t in terms if t.enumerated or t.observed or t.name in known]
        found: dict[str, Tensor] = {}
        for part in _parts(said):
            if not all(t.enumerated for t in part.terms):
                found |= part.draw()
        return found

    def _run(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, list[_Term]]:
        with _Collect(self.nesting) as collect, AllValues(-1 - self.nesting):
            result = self.visible(*args, **kwargs)
        _pack(collect.terms, self.nesting)
        return result, collect.terms


def enumerated(
    model: Callable[..., Any], guide: Callable[..., Any], prototype: Trace, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Enumerated:
    """Return a model with marked sites as one in which those that the guide does not draw are summed out.

    :raises DiscreteLatentError: if the guide is an autoguide that has been given the discrete sites as well.
    """
    try:
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
    except (NotImplementedError, ValueError) as error:
        if not isinstance(guide, AutoGuide) or type(error) not in (NotImplementedError, ValueError):
            raise
        names = [n for n, s in _nodes(prototype).items() if is_marked(s)]
        listed = ", ".join(map(repr, names))
        raise DiscreteLatentError(
            f"guide {type(guide).__name__!r} cannot be set up on a model with the discrete latents {listed}, which are to "
            f"be summed out: {str(error).splitlines()[0]}. Give it the model without them, {type(guide).__name__}"
            f"(pyro.poutine.block(model, hide={names[:3]!r})), or use a guide of this library, which leaves them out itself"
        ) from error
    return Enumerated.of(model, prototype, guide_trace)


def summing_out(model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Callable[..., Any]:
    """Return a model with its marked sites summed out; the model itself if it marks none."""
    with poutine.block(), PlainSupports():  # flat priors have no sampler
        trace = poutine.trace(model).get_trace(*args, **kwargs)
    return Enumerated.of(model, trace, Trace()) if any(is_marked(s) for s in _nodes(trace).values()) else model


def nesting(model_trace: Trace, guide_trace: Trace) -> int:
    """Return how many dimensions of a density plates and batches take in two runs without all values at once."""
    sites = [s for t in (model_trace, guide_trace) for s in _nodes(t).values() if s["type"] == "sample"]
    widths = [len(getattr(s["fn"], "batch_shape", ())) for s in sites]
    depths = [-f.dim for s in sites for f in s["cond_indep_stack"] if f.vectorized]
    return max(0, *widths, *depths, 0)


def with_values(trace: Trace, values: Mapping[str, Tensor]) -> Trace:
    """Return a trace to replay with other sites' values in it too."""
    found = trace.copy()
    add_values(found, values)
    return found


def add_values(trace: Trace, values: Mapping[str, Tensor]) -> None:
    """Put the values of latent sites into a trace to replay."""
    for name, value in values.items():
        trace.add_node(name, name=name, type="sample", is_observed=False, value=value, infer={})


def _nodes(trace: Trace) -> dict[str, Any]:
    return dict[str, Any](trace.nodes)


def _pack(terms: list[_Term], nesting: int) -> None:
    """Name the dimensions of the terms' densities: a symbol for each plate and each discrete latent."""
    trace = Trace()
    for term in terms:
        log_prob = term.fn.log_prob(term.site["value"], *term.site["args"], **term.site["kwargs"])
        term.frames = (*term.frames, *_undeclared(log_prob, term, nesting))
        infer = {k: v for k, v in term.site["infer"].items() if k != "_dim_to_symbol"}
        trace.add_node(term.name, **{**term.site, "infer": infer, "cond_indep_stack": term.frames, "value": log_prob})
    trace.symbolize_dims()
    for term in terms:
        node = _nodes(trace)[term.name]
        term.symbols = node["infer"]["_dim_to_symbol"]
        term.site["infer"]["_enumerate_symbol"] = node["infer"].get("_enumerate_symbol")
        term.ordinal = frozenset(trace.plate_to_symbol[f.name] for f in term.frames if f.vectorized and f.size > 1)
        density = packed.pack(_own(node["value"]), term.symbols)
        # As in Pyro, the mask of a discrete latent itself says nothing: masked data are what leaves it at its prior.
        mask = None if term.enumerated or term.mask is None else term.mask
        mask = packed.pack(_own(mask), term.symbols) if isinstance(mask, Tensor) else mask
        term.density = packed.scale_and_mask(density, mask=mask)


def _is_seen(site: Any) -> bool:
    fn = site.get("fn")
    known = isinstance(fn, TorchDistributionMixin) and not isinstance(fn, Marginal)
    return site["type"] == "sample" and known and not site["infer"].get("_deterministic")


def _density(site: Any, fn: Any) -> Tensor:
    found: Tensor = scale_and_mask(fn.log_prob(site["value"], *site["args"], **site["kwargs"]), mask=site["mask"])
    return found


def _index(term: _Term, value: Tensor) -> Any:
    """Return which of a discrete latent's values ``value`` is, packed."""
    event = term.fn.event_dim
    values = term.fn.enumerate_support(expand=False)
    values = values.reshape(values.shape[:1] + (1,) * (value.dim() - event) + values.shape[values.dim() - event :])
    same = values == value
    same = same.flatten(same.dim() - event).all(-1) if event else same
    return packed.pack(same.to(torch.uint8).argmax(0), term.symbols)


def _at(term: _Term, chosen: Mapping[str, Any]) -> Tensor:
    """Return a term's density at one value of each discrete latent."""
    value = term.density
    for symbol, index in chosen.items():
        if symbol in value._pyro_dims:
            value = packed.gather(value, _gathered(index), symbol)
    if term.enumerated and term.mask is not None:
        mask = packed.pack(_own(term.mask), term.symbols) if isinstance(term.mask, Tensor) else term.mask
        value = packed.scale_and_mask(value, mask=mask)
    return packed.unpack(value, {s: dim for dim, s in term.symbols.items()})


def _gathered(index: Any) -> Any:
    """Return an index that can be gathered along a dimension of its own, which it is broadcast over."""
    found: Any = index.view(index.shape)
    found._pyro_dims = index._pyro_dims
    return found


def _own(value: Tensor) -> Tensor:
    """Return the tensor as an object of its own, since packing leaves a mark on it."""
    return value.view(value.shape)


def _undeclared(log_prob: Tensor, term: _Term, nesting: int) -> list[CondIndepStackFrame]:
    """Return a plate for every batch dimension without one; elements of a batch are independent, declared or not."""
    declared = {f.dim for f in term.frames if f.vectorized}
    sizes = {-i: log_prob.shape[-i] for i in range(1, 1 + min(nesting, log_prob.dim()))}
    return [
        CondIndepStackFrame(f"dimension {dim} of size {size}", dim, size, 0)
        for dim, size in sizes.items()
        if size > 1 and dim not in declared
    ]


@dataclass
class _Part:
    """Terms that have to be summed together, and what is left of them.

    :ivar sums: symbols of the discrete latents.
    """

    terms: list[_Term]
    sums: set[str]

    def emit(self) -> None:
        """Let handlers outside see the density: of latents at the latents, of data at the first observed site."""
        latent = [t for t in self.terms if t.kept_latent]
        seen = [t for t in self.terms if t.observed]
        scale, inside = self._scales()
        prior = self._contract([t for t in self.terms if not t.observed], inside) if latent else []
        for left in prior:
            homes = (t for t in latent if t.ordinal == left.ordinal and t.name in left.names and _same(t.scale, scale))
            home = next(homes, None)
            if home is not None:
                home.site["fn"].density = left.density
            else:
                _send(f"{latent[0].name}.marginal", Unit(left.density), left.density, left.frames, scale, None)
        if not seen:
            return
        (joint,) = self._contract(self.terms, inside)
        density = joint.density
        for left in prior:
            density = density - left.summed_to(joint)
        fn = Marginal(seen[0].fn, density.shape)
        fn.density = density
        _send(seen[0].name, fn, seen[0].site["value"], joint.frames, scale, _seen_mask(seen, joint))

    def draw(self) -> dict[str, Tensor]:
        """Draw the discrete latents."""
        _, inside = self._scales()
        tree, kept = self._tree(self.terms, inside)
        queries = {t.name: (t, kept[t.name]) for t in self.terms if t.enumerated}
        for _, query in queries.values():
            require_backward(query)
        sizes = {d: s for x in kept.values() for d, s in zip(x._pyro_dims, x.shape)}
        with shared_intermediates() as cache:
            left = contract_tensor_tree(tree, self.sums, ring=PlainSampleRing(cache=cache, dim_to_size=sizes))
        for group in left.values():
            for result in group:
                if hasattr(result, "_pyro_backward"):
                    result._pyro_backward()
        return {
            name: _chosen(term, getattr(query, "_pyro_backward_result", None)) for name, (term, query) in queries.items()
        }

    def check(self, rescaled: frozenset[str]) -> None:
        """Check that all terms stand in the plates of which a step sees some rows, or none does."""
        plates = [{f.name for f in t.frames if f.vectorized} & rescaled for t in self.terms]
        if any(p != plates[0] for p in plates):
            _refuse_parts([t.name for t in self.terms if t.enumerated])

    def _scales(self) -> tuple[Any, dict[str, Any]]:
        """Return the scale of the sum, and of terms inside it.

        Sites that are all scaled alike, as a subsample is, have a sum that is scaled; otherwise a scale tempers its own
        site, apart from what plates that see some of their rows multiply by, which must be the same for all.

        :raises MinibatchScaleError: if it is not.
        """
        first = self.terms[0]
        if all(_same(t.scale, first.scale) for t in self.terms):
            return first.scale, {}
        parts = {t.name: _subsampling(t) for t in self.terms}
        if len(set(parts.values())) > 1:
            _refuse_parts([t.name for t in self.terms if t.enumerated])
        common = parts[first.name]
        return common, {t.name: t.scale / common for t in self.terms}

    def _tree(self, terms: Iterable[_Term], inside: Mapping[str, Any]) -> tuple[OrderedDict[Any, Any], dict[str, Any]]:
        kept, tree = {}, OrderedDict[Any, Any]()
        for term in terms:
            kept[term.name] = _scaled(term, inside.get(term.name, 1.0))
            tree.setdefault(term.ordinal, []).append(kept[term.name])
        return tree, kept

    def _contract(self, terms: list[_Term], inside: Mapping[str, Any]) -> list[_Left]:
        found = []
        for some, sums in _connected(terms, self.sums):
            tree, _ = self._tree(some, inside)
            with shared_intermediates() as cache:
                try:
                    (left,) = contract_tensor_tree(tree, sums, ring=PlainLogRing(cache=cache)).items()
                except NotImplementedError as error:
                    names = ", ".join(repr(t.name) for t in some)
                    raise UnsupportedModelError(
                        f"the discrete latents among {names} cannot be summed out, since plates that are not nested share "
                        f"them: {error}"
                    ) from error
            ordinal, (density,) = left
            frames = tuple(f for f in some[0].frames if not f.vectorized or _symbol(some[0], f) in ordinal)
            found.append(_Left({t.name for t in some}, ordinal, frames, some[0].symbols, density))
        return found


@dataclass
class _Left:
    """What a sum leaves: a packed density over the plates ``ordinal``."""

    names: set[str]
    ordinal: frozenset[str]
    frames: tuple[CondIndepStackFrame, ...]
    symbols: dict[int, str]
    packed: Any

    @property
    def density(self) -> Tensor:
        """The density, shape of its plates."""
        return self._unpacked(self.packed, self.frames)

    def summed_to(self, other: _Left) -> Tensor:
        """Return the density summed over the plates that ``other`` has not."""
        value = self.packed
        for dim in [d for d in value._pyro_dims if d not in other.ordinal]:
            dims = value._pyro_dims
            value = value.sum(dims.index(dim))
            value._pyro_dims = dims.replace(dim, "")
        return self._unpacked(value, other.frames)

    def _unpacked(self, value: Any, frames: tuple[CondIndepStackFrame, ...]) -> Tensor:
        dims = {symbol: dim for dim, symbol in self.symbols.items()}
        return packed.unpack(value, dims).expand(_shape(frames))


def _parts(terms: list[_Term]) -> list[_Part]:
    """Return the terms that have to be summed together.

    :raises UnsupportedModelError: if a site outside a plate depends on a discrete latent inside it.
    """
    plates = set().union(*(t.ordinal for t in terms)) if terms else set()
    sums = set().union(*(set(t.density._pyro_dims) for t in terms)) - plates if terms else set()
    owners = {t.symbol: t for t in terms if t.enumerated}
    for term in terms:
        for symbol in set(term.density._pyro_dims) & sums:
            missing = owners[symbol].ordinal - term.ordinal
            if missing:
                names = ", ".join(repr(f.name) for f in owners[symbol].frames if _symbol(owners[symbol], f) in missing)
                raise UnsupportedModelError(
                    f"site {term.name!r} depends on the discrete latent {owners[symbol].name!r} and is not in its plate "
                    f"{names}, so that it depends on all of the latent's values together, whose combinations cannot be "
                    f"summed; put {term.name!r} into the plate, or use a sequential one (for i in pyro.plate(...))"
                )
    return [_Part(some, some_sums) for some, some_sums in _connected(terms, sums)]


def _connected(terms: list[_Term], sums: set[str]) -> list[tuple[list[_Term], set[str]]]:
    """Return the terms that share discrete latents, directly or through others, in order, with these latents' symbols."""
    groups: list[tuple[set[int], set[str]]] = []
    for i, term in enumerate(terms):
        members, symbols = {i}, set(term.density._pyro_dims) & sums
        apart = []
        for group in groups:
            if group[1] & symbols:
                members, symbols = members | group[0], symbols | group[1]
            else:
                apart.append(group)
        groups = [*apart, (members, symbols)]
    return sorted((([terms[i] for i in sorted(m)], s) for m, s in groups), key=lambda g: terms.index(g[0][0]))


def _symbol(term: _Term, frame: CondIndepStackFrame) -> str | None:
    return term.symbols.get(frame.dim) if frame.dim is not None else None


def _shape(frames: Iterable[CondIndepStackFrame]) -> tuple[int, ...]:
    sizes = {f.dim: f.size for f in frames if f.dim is not None}
    return tuple(sizes.get(dim, 1) for dim in range(min(sizes, default=0), 0))


def _same(one: Any, other: Any) -> bool:
    """Tell whether two scales are the same."""
    if one is other or not (isinstance(one, Tensor) or isinstance(other, Tensor)):
        return bool(one is other or one == other)
    if not (isinstance(one, Tensor) and isinstance(other, Tensor)):
        return False
    return one.shape == other.shape and bool(torch.equal(one, other))


def _subsampling(term: _Term) -> float:
    """Return what a term is multiplied by since its plates see some of their rows."""
    factor = 1.0
    for frame in term.frames:
        factor *= (frame.full_size or frame.size) / frame.size
    return factor


def _refuse_parts(names: list[str]) -> None:
    raise MinibatchScaleError(
        f"the discrete latents {', '.join(map(repr, names))} are summed out, and rows of the data share them, so that the "
        "sum needs all rows, of which a step sees some; fit with batch_size=None (and no subsample_size), or put them into "
        "the plate of the rows"
    )


def _scaled(term: _Term, scale: Any) -> Any:
    density = term.density
    if isinstance(scale, Tensor) and scale.dim():
        density, scale = packed.broadcast_all(density, packed.pack(_own(scale), term.symbols))
        found: Any = density * scale
    else:
        found = density * scale if isinstance(scale, Tensor) or scale != 1.0 else _own(density)
    found._pyro_dims = density._pyro_dims
    return found


def _seen_mask(seen: list[_Term], left: _Left) -> Any:
    """Return which elements of what is left have data, or ``None`` if all have."""
    if any(t.mask is None or t.mask is True for t in seen):
        return None
    shape = _shape(left.frames)
    total = torch.zeros(shape, dtype=torch.bool, device=left.packed.device)
    for term in seen:
        mask = torch.as_tensor(term.mask, device=total.device)
        kept = {f.dim for f in left.frames}
        for dim in range(-mask.dim(), 0):
            if dim not in kept:
                mask = mask.any(dim, keepdim=True)
        total = total | mask.reshape(mask.shape[max(0, mask.dim() - len(shape)) :])
    return total


def _chosen(term: _Term, sample: Any) -> Tensor:
    """Return the value of a discrete latent, given the index that was drawn for it."""
    values = term.fn.enumerate_support(expand=False)
    values = values.reshape(values.shape[:1] + values.shape[values.dim() - term.fn.event_dim :])
    shape = _shape(term.frames)
    symbol = term.symbol
    if sample is None or symbol not in sample._pyro_sample_dims:
        return values[0].expand((*shape, *values.shape[1:]))
    index: Any = sample[sample._pyro_sample_dims.index(symbol)]
    index._pyro_dims = sample._pyro_dims[1:]
    index = packed.unpack(index, {s: dim for dim, s in term.symbols.items()}).expand(shape)
    return values.index_select(0, index.reshape(-1)).reshape((*shape, *values.shape[1:]))


def _send(name: str, fn: Any, value: Any, frames: tuple[CondIndepStackFrame, ...], scale: Any, mask: Any) -> None:
    """Make an observed site in the plates ``frames``, which are no longer open."""
    declared = tuple(f for f in frames if not f.name.startswith("dimension "))
    message: Any = {
        "type": "sample",
        "name": name,
        "fn": fn,
        "is_observed": True,
        "args": (),
        "kwargs": {},
        "value": value,
        "infer": {},
        "scale": scale,
        "mask": mask,
        "cond_indep_stack": declared,
        "done": False,
        "stop": False,
        "continuation": None,
    }
    apply_stack(message)
