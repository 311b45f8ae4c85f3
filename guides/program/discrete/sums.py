"""Sums over discrete latents by Pyro's contraction: which terms they join, and what they leave."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from opt_einsum import shared_intermediates
from pyro.distributions import Unit
from pyro.ops import packed
from pyro.ops.contract import contract_tensor_tree
from pyro.ops.einsum.adjoint import require_backward
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.runtime import apply_stack
from torch import Tensor

from guides.errors import MinibatchScaleError, UnsupportedModelError
from guides.program.discrete.log_sampling import PlainSampleRing
from guides.program.discrete.log_space import PlainLogRing
from guides.program.discrete.terms import Marginal, Term, own_copy

__all__ = ["Part", "parts_of"]


@dataclass
class Part:
    """Terms that have to be summed together, and what is left of them.

    :ivar sums: symbols of the discrete latents.
    """

    terms: list[Term]
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

    def _tree(self, terms: Iterable[Term], inside: Mapping[str, Any]) -> tuple[OrderedDict[Any, Any], dict[str, Any]]:
        kept, tree = {}, OrderedDict[Any, Any]()
        for term in terms:
            kept[term.name] = _scaled(term, inside.get(term.name, 1.0))
            tree.setdefault(term.ordinal, []).append(kept[term.name])
        return tree, kept

    def _contract(self, terms: list[Term], inside: Mapping[str, Any]) -> list[Left]:
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
            found.append(Left({t.name for t in some}, ordinal, frames, some[0].symbols, density))
        return found


@dataclass
class Left:
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

    def summed_to(self, other: Left) -> Tensor:
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


def parts_of(terms: list[Term]) -> list[Part]:
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
    return [Part(some, some_sums) for some, some_sums in _connected(terms, sums)]


def _connected(terms: list[Term], sums: set[str]) -> list[tuple[list[Term], set[str]]]:
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


def _symbol(term: Term, frame: CondIndepStackFrame) -> str | None:
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


def _subsampling(term: Term) -> float:
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


def _scaled(term: Term, scale: Any) -> Any:
    density = term.density
    if isinstance(scale, Tensor) and scale.dim():
        density, scale = packed.broadcast_all(density, packed.pack(own_copy(scale), term.symbols))
        found: Any = density * scale
    else:
        found = density * scale if isinstance(scale, Tensor) or scale != 1.0 else own_copy(density)
    found._pyro_dims = density._pyro_dims
    return found


def _seen_mask(seen: list[Term], left: Left) -> Any:
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


def _chosen(term: Term, sample: Any) -> Tensor:
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
