"""Discrete latents summed out: a model whose marked sites are gone and whose densities are those of what is left.

:class:`Enumerated` runs the model with every value of a marked site at once (Pyro's ``EnumMessenger``), and contracts the
densities that depend on one (Pyro's plated sums and products) before anybody sees them. To handlers outside it is a model
with continuous latents and observations only: traced, replayed, scaled and differentiated as any other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.infer.autoguide import AutoGuide
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from guides.errors import DiscreteLatentError, UnsupportedModelError
from guides.program.discrete.sums import parts_of
from guides.program.discrete.terms import Marginal, Term, at_values, density_of, index_of, is_seen, name_dimensions
from guides.program.marks import Marks, is_marked
from guides.program.prepare import PreparedModel
from guides.program.supports import PlainSupports

__all__ = [
    "AllValues",
    "Enumerated",
    "add_values",
    "enumerated",
    "nesting",
    "summing_out",
    "with_values",
]

_NO_SHAPE = torch.Size()


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
        self.terms: list[Term] = []

    def _pyro_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        if not isinstance(fn, TorchDistributionMixin) or msg["infer"].get("_deterministic"):
            return
        term = Term(msg, fn, msg["scale"], msg["mask"], msg["cond_indep_stack"], bool(msg["is_observed"]))
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
        for part in parts_of(terms):
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
            for part in parts_of(terms):
                part.check(rescaled)
                part.emit()
        chosen = {t.symbol: index_of(t, plain[t.name]["value"]) for t in terms if t.enumerated}
        found = {t.name: at_values(t, chosen) for t in terms}
        found |= {n: density_of(s, s["fn"]) for n, s in _nodes(rest.trace).items() if n not in found and is_seen(s)}
        for name, density in found.items():
            wanted = density_of(plain[name], plain[name]["fn"]) if name in plain else density
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
        for part in parts_of(said):
            if not all(t.enumerated for t in part.terms):
                found |= part.draw()
        return found

    def _run(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, list[Term]]:
        with _Collect(self.nesting) as collect, AllValues(-1 - self.nesting):
            result = self.visible(*args, **kwargs)
        name_dimensions(collect.terms, self.nesting)
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
