"""The result of a fit: parameters, history, and draws."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from guides.engine.checks import is_latent, is_observed
from guides.engine.data import Data
from guides.engine.noise import NoiseTape
from guides.engine.parameters import isolated_store
from guides.engine.program import Program, quiet, seeded
from guides.engine.vectorise import over_draws
from guides.errors import DataError, OptionError
from guides.likelihoods import coordinates
from guides.prior import unobserved

if TYPE_CHECKING:
    from guides.diagnostics import Diagnosis

__all__ = ["Draws", "Posterior", "Site"]

_FORMAT = 1
_ELEMENTS_PER_CHUNK = 2**25


@dataclass(frozen=True)
class Site:
    """What is known of one site of the model.

    :ivar kind: ``"latent"``, ``"observed"`` or ``"deterministic"``.
    :ivar dims: a name per dimension of the value: the plate's for plate dimensions, ``<site>_dim_<i>`` for others.
    :ivar shape: shape of the value on the training data.
    :ivar support: constraint on the value, or ``None`` for deterministic sites.
    """

    name: str
    kind: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    support: Any


@dataclass(frozen=True)
class Draws:
    """Draws from a posterior with their densities; the first dimension C of every tensor runs over replicates, the second S
    over draws.

    :ivar latents: by site, shape ``(C, S, *site shape)``.
    :ivar log_p: log joint density of latents and data in nats, shape ``(C, S)``.
    :ivar log_q: log density of the guide in nats, shape ``(C, S)``.
    :ivar log_likelihood: by observed site, in nats per data point, shape ``(C, S, *batch shape)``.
    :ivar deterministic: by deterministic site, shape ``(C, S, *site shape)``.
    :ivar predictive: by observed site, fresh draws given the latents, shape ``(C, S, *site shape)``; empty unless asked for.
    """

    latents: dict[str, Tensor]
    log_p: Tensor
    log_q: Tensor
    log_likelihood: dict[str, Tensor]
    deterministic: dict[str, Tensor]
    predictive: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Posterior:
    """An approximate posterior fitted to data. Frozen: methods return new objects and leave all global state alone.

    With ``replicates=R`` it holds R independent fits; results then have a leading dimension R.

    :ivar model: the Pyro model.
    :ivar guide: the guide, as an object that stock Pyro can use.
    :ivar family: registry name of the guide, or its class or function name.
    :ivar options: the options that the family was made with.
    :ivar losses: minus the objective in nats at every step, shape ``(R, steps)``; NaN after a replicate stopped.
    :ivar objective: registry name of the objective.
    :ivar steps: steps run, the most of any replicate.
    :ivar seed: the seed of the first replicate.
    :ivar stop_reasons: one sentence per replicate.
    :ivar seconds: wall time of ``"setup"``, ``"train"`` and ``"finish"``.
    :ivar info: what the family has to say about its fit, one dict per replicate; see the family's page.
    :ivar data: positional arguments of the training data.
    :ivar validation: log predictive density per validation point and epoch in nats, shape ``(R, epochs)``.
    """

    model: Callable[..., Any]
    guide: Callable[..., Any]
    family: str
    options: dict[str, Any]
    losses: Tensor
    objective: str
    steps: int
    seed: int
    stop_reasons: tuple[str, ...]
    seconds: dict[str, float]
    info: tuple[dict[str, Any], ...]
    validation: Tensor
    program: Program = field(repr=False)
    flat: Tensor = field(repr=False)
    training: Data = field(repr=False)

    @property
    def replicates(self) -> int:
        """Number of independent fits R."""
        return self.flat.shape[0]

    @property
    def data(self) -> tuple[Any, ...]:
        """Positional arguments of the training data."""
        return self.training.args

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.flat.device

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Parameters of model and guide by name, as both see them; leading dimension R if R > 1."""
        flat = self.flat if self.replicates > 1 else self.flat[0]
        return {k: v.detach() for k, v in self.program.parameters.constrained(flat).items()}

    @property
    def sites(self) -> dict[str, Site]:
        """The latent, observed and deterministic sites of the model."""
        return {name: _site(name, node) for name, node in _nodes(self.program.prototype) if _kind(node) is not None}

    def replicate(self, index: int) -> Posterior:
        """Return one of the R fits as a posterior of its own.

        :raises IndexError: if there is no such replicate.
        """
        if not 0 <= index < self.replicates:
            raise IndexError(f"replicate {index} of {self.replicates}; use 0 to {self.replicates - 1}")
        row = slice(index, index + 1)
        return replace(
            self,
            flat=self.flat[row],
            losses=self.losses[row],
            validation=self.validation[row],
            stop_reasons=self.stop_reasons[row],
            info=self.info[row],
            seed=self.seed + index,
        )

    def draws(
        self,
        num_samples: int = 1000,
        *data: Any,
        seed: int | None = None,
        predictive: bool = False,
        model_kwargs: dict[str, Any] | None = None,
    ) -> Draws:
        """Draw from the posterior and evaluate model and guide at the draws.

        :param num_samples: draws S per replicate.
        :param data: arguments to evaluate the model on; the training data by default.
        :param seed: the same seed gives the same draws; by default the seed of the fit.
        :param predictive: also draw the observed sites afresh.
        """
        return self._draws(num_samples, self._arguments(data, model_kwargs), seed, predictive=predictive, score=True)

    def sample(self, num_samples: int = 1000, seed: int | None = None) -> dict[str, Tensor]:
        """Return draws of the latent sites, shape ``(S, *site shape)`` each, or ``(R, S, ...)``."""
        return self._squeeze(self._draws(num_samples, self.training, seed, predictive=False, score=False).latents)

    def predict(
        self, *data: Any, num_samples: int = 1000, seed: int | None = None, model_kwargs: dict[str, Any] | None = None
    ) -> dict[str, Tensor]:
        """Return draws of every observed and deterministic site for new inputs, shape ``(S, ...)``, or ``(R, S, ...)``.

        Observations among ``data`` are ignored, so they may be left out if the model has a default for them. Latents with one
        value per data point are drawn from the prior if the number of data points differs from the training data's.
        """
        new = self._arguments(data, model_kwargs)
        draws = self._draws(num_samples, new, seed, predictive=True, score=False)
        return self._squeeze({**draws.deterministic, **draws.predictive})

    def log_likelihood(
        self, *data: Any, num_samples: int = 1000, seed: int | None = None, model_kwargs: dict[str, Any] | None = None
    ) -> dict[str, Tensor]:
        """Return the pointwise log-likelihood of ``data`` under each draw in nats, by observed site, ``(S, N)`` or ``(R, S, N)``.

        :raises DataError: if no site is observed, as when the targets were left out.
        """
        draws = self._draws(num_samples, self._arguments(data, model_kwargs), seed, predictive=False, score=True)
        if not draws.log_likelihood:
            raise DataError("no site of the model is observed on these data; pass the observations too")
        return self._squeeze(draws.log_likelihood)

    def log_prob(self, latents: dict[str, Tensor]) -> Tensor:
        """Return log q in nats at given values of all latent sites, shape ``()`` or ``(R,)``.

        :param latents: one value per latent site, of the site's shape, in its support.
        :raises DataError: if a site is missing or has another shape.
        """
        for name in self.program.latents:
            want = self.sites[name].shape
            if name not in latents:
                raise DataError(f"log_prob needs a value for latent site {name!r}; sites: {', '.join(self.program.latents)}")
            if tuple(latents[name].shape) != want:
                raise DataError(f"latent site {name!r} has shape {want}, the value has {tuple(latents[name].shape)}")
        values: dict[str, Any] = {name: latents[name] for name in self.program.latents}
        if hasattr(self.guide, "flatten"):
            values = {self.guide.latent_site: self.guide.flatten(latents)}
        guide = poutine.condition(self.guide, data=values)
        results = []
        with isolated_store(), quiet(), torch.no_grad():
            for flat in self.flat:
                run = lambda: poutine.trace(guide).get_trace(*self.training.args, **self.training.kwargs)  # noqa: E731
                results.append(self.program.parameters.call(flat, run).log_prob_sum())
        stacked = torch.stack(results)
        return stacked if self.replicates > 1 else stacked[0]

    def diagnose(self, **options: Any) -> Diagnosis:
        """Say whether the fit can be trusted; see :func:`guides.diagnose`."""
        from guides.diagnostics import diagnose

        return diagnose(self, **options)

    def to_arviz(self, **options: Any) -> Any:
        """Return ``InferenceData`` (ArviZ 0.x) or ``DataTree`` (ArviZ 1.x); see :func:`guides.to_arviz`."""
        from guides.arviz_io import to_arviz

        return to_arviz(self, **options)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything but the code of model and guide to ``path``, under a temporary name first.

        :raises OptionError: if an option or an argument of the model is neither a tensor nor a plain Python value.
        """
        content = {
            "format": _FORMAT,
            "family": self.family,
            "options": self.options,
            "objective": self.objective,
            "steps": self.steps,
            "seed": self.seed,
            "stop_reasons": self.stop_reasons,
            "seconds": self.seconds,
            "info": self.info,
            "losses": self.losses,
            "validation": self.validation,
            "flat": self.flat.cpu(),
            "names": self.program.parameters.names,
            "args": tuple(a.cpu() if isinstance(a, Tensor) else a for a in self.training.args),
            "kwargs": self.training.kwargs,
        }
        path = Path(path)
        temporary = path.with_name(path.name + ".tmp")
        torch.save(content, temporary)
        try:
            torch.load(temporary, weights_only=True)
        except Exception as error:
            temporary.unlink()
            raise OptionError(
                f"this posterior cannot be saved without pickle: {error}. Options and model arguments must be tensors or plain values"
            ) from error
        os.replace(temporary, path)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], model: Callable[..., Any], guide: Callable[..., Any] | None = None
    ) -> Posterior:
        """Read a posterior that :meth:`save` wrote.

        :param model: the model it was fitted to.
        :param guide: the guide, if it was not one of the registry.
        :raises DataError: if the file is not one of ours or does not fit ``model``.
        """
        from guides.fitting import restore

        try:
            content = torch.load(path, weights_only=True)
        except FileNotFoundError:
            raise
        except Exception as error:
            raise DataError(f"{path} is not a saved posterior, or is damaged: {error}") from error
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise DataError(f"{path} is not a posterior saved by this version (format {_FORMAT})")
        return restore(content, model, guide)

    def _arguments(self, data: tuple[Any, ...], model_kwargs: dict[str, Any] | None) -> Data:
        if not data and model_kwargs is None:
            return self.training
        return Data.of(data, self.training.kwargs if model_kwargs is None else model_kwargs, self.device)

    def _squeeze(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        return values if self.replicates > 1 else {k: v[0] for k, v in values.items()}

    def _draws(self, num_samples: int, data: Data, seed: int | None, *, predictive: bool, score: bool) -> Draws:
        if num_samples < 1:
            raise OptionError(f"num_samples must be at least 1, not {num_samples}")
        local = {n for n, s in self.sites.items() if s.kind == "latent" and set(s.dims) & self.program.plates}
        fresh = local if data.size != self.training.size else set()
        program = self.program

        def one(flat: Tensor) -> dict[str, Any]:
            with NoiseTape():
                guide_trace = poutine.trace(self.guide).get_trace(*data.args, **data.kwargs)
                kept = _without(guide_trace, fresh)
                out: dict[str, Any] = {"latents": {n: _value(guide_trace, n) for n in program.latents if n not in fresh}}
                if score:
                    model_trace = poutine.trace(poutine.replay(self.model, trace=kept)).get_trace(*data.args, **data.kwargs)
                    density = getattr(self.guide, "log_density", lambda trace: trace.log_prob_sum())
                    out["log_p"] = torch.as_tensor(model_trace.log_prob_sum())
                    out["log_q"] = torch.as_tensor(density(guide_trace))
                    observed = [(n, s) for n, s in _nodes(model_trace) if is_observed(s)]
                    out["log_likelihood"] = {n: s["fn"].log_prob(s["value"]) for n, s in observed}
                    out["deterministic"] = _deterministic(model_trace)
                if getattr(self.guide, "linearised", False) and not fresh:
                    out.update(self._linearised(guide_trace, data, predictive=predictive, score=score))
                elif predictive:
                    model = unobserved(poutine.replay(self.model, trace=kept))
                    trace = poutine.trace(model).get_trace(*data.args, **data.kwargs)
                    names = [n for n, s in _nodes(trace) if is_latent(s) and n not in program.latents and not _is_fixed(s)]
                    out["predictive"] = {n: _value(trace, n) for n in names}
                    out["deterministic"] = {n: _value(trace, n) for n, s in _nodes(trace) if _is_fixed(s)}
            return out

        rows = max(data.size, 1)
        chunk = max(1, min(num_samples, _ELEMENTS_PER_CHUNK // (100 * rows + program.parameters.size)))
        chains = []
        with isolated_store(), quiet(), torch.no_grad():
            for r, flat in enumerate(self.flat):
                with seeded((self.seed if seed is None else seed) + 7919 * r):
                    call = lambda _: program.parameters.call(flat, lambda: one(flat))  # noqa: B023, E731
                    chains.append(over_draws(call, num_samples, chunk, flat.device))
        merged = {key: _stack_chains([c[key] for c in chains]) for key in chains[0]}
        empty = self.flat.new_full((self.replicates, num_samples), float("nan"))
        return Draws(
            latents=merged["latents"],
            log_p=merged.get("log_p", empty),
            log_q=merged.get("log_q", empty),
            log_likelihood=merged.get("log_likelihood", {}),
            deterministic=merged.get("deterministic", {}),
            predictive=merged.get("predictive", {}),
        )

    def _linearised(self, guide_trace: Trace, data: Data, *, predictive: bool, score: bool) -> dict[str, Any]:
        """Evaluate observed and deterministic sites by the model linearised around the guide's mean; see :class:`guides.Laplace`."""
        guide: Any = self.guide
        observed = [n for n, s in self.sites.items() if s.kind == "observed"]

        def trace_at(latent: Tensor) -> Trace:
            values = poutine.trace(poutine.condition(guide, data={guide.latent_site: latent})).get_trace(
                *data.args, **data.kwargs
            )
            return poutine.trace(poutine.replay(self.model, trace=values)).get_trace(*data.args, **data.kwargs)

        def outputs(latent: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
            trace = trace_at(latent)
            nodes = dict(_nodes(trace))
            return {n: coordinates(n, nodes[n]["fn"]).value for n in observed}, _deterministic(trace)

        mean, draw = guide.loc, guide.flat_draw(guide_trace)
        values, slopes = torch.func.jvp(outputs, (mean,), (draw - mean,))
        at_mean = dict(_nodes(trace_at(mean)))
        fns = {n: coordinates(n, at_mean[n]["fn"]).rebuild(values[0][n] + slopes[0][n].to(values[0][n])) for n in observed}
        out: dict[str, Any] = {"deterministic": {n: values[1][n] + slopes[1][n].to(values[1][n]) for n in values[1]}}
        if predictive:
            out["predictive"] = {n: fn.sample() for n, fn in fns.items()}
        if score:
            seen = {n: at_mean[n]["value"] for n in observed if is_observed(at_mean[n])}
            out["log_likelihood"] = {n: fns[n].log_prob(y) for n, y in seen.items()}
        return out


def _stack_chains(parts: list[Any]) -> Any:
    if isinstance(parts[0], dict):
        return {k: torch.stack([p[k] for p in parts]) for k in parts[0]}
    return torch.stack(parts)


def _nodes(trace: Trace) -> list[tuple[str, Any]]:
    return list(trace.nodes.items())


def _value(trace: Trace, name: str) -> Any:
    return trace.nodes[name]["value"]


def _is_fixed(site: Any) -> bool:
    return site["type"] == "sample" and bool(site["infer"].get("_deterministic"))


def _deterministic(trace: Trace) -> dict[str, Any]:
    return {n: _value(trace, n) for n, s in _nodes(trace) if _is_fixed(s)}


def _without(trace: Trace, names: set[str]) -> Trace:
    """Return the trace without some latents, and then without the sizes of its plates either."""
    if not names:
        return trace
    kept = trace.copy()
    for name, site in _nodes(trace):
        if name in names or (site["type"] == "sample" and site_is_subsample(site)):
            kept.remove_node(name)
    return kept


def _kind(site: Any) -> str | None:
    if _is_fixed(site):
        return "deterministic"
    if is_observed(site):
        return "observed"
    return "latent" if is_latent(site) else None


def _site(name: str, node: Any) -> Site:
    kind = _kind(node)
    assert kind is not None
    shape = tuple(node["value"].shape)
    # pyro.deterministic calls the whole value one event, whatever plates it stands in.
    event_dim = 0 if kind == "deterministic" else node["fn"].event_dim
    dims = [f"{name}_dim_{i}" for i in range(len(shape))]
    for frame in node["cond_indep_stack"]:
        position = len(shape) - event_dim + frame.dim if frame.dim is not None else -1
        if 0 <= position < len(shape) and shape[position] == frame.size:
            dims[position] = frame.name
    support = None if kind == "deterministic" else node["fn"].support
    return Site(name, kind, tuple(dims), shape, support)


def write_back(program: Program, flat: Tensor) -> None:
    """Give the modules of model and guide the values of ``flat``, so that they work in stock Pyro."""
    values = program.parameters.split(flat.detach())
    guide = program.guide
    if isinstance(guide, pyro.nn.PyroModule):
        prefix = f"{guide._pyro_name}." if guide._pyro_name else ""
        for name, parameter in guide.named_parameters():
            key = prefix + name.removesuffix("_unconstrained")
            if key in values:
                parameter.data = values[key].clone()
    for name, path in program.parameters.module_paths.items():
        program.parameters.caller.get_parameter(path).data = values[name].clone()
