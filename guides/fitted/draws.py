"""Draws from a fitted guide, with everything that model and guide say about them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from guides.errors import FailedDrawsWarning, OptionError
from guides.families.laplace.fisher import over_data
from guides.families.laplace.likelihoods import coordinates
from guides.fitted.sites import sites
from guides.optimise.memory import CountElements
from guides.program.data import Data, stack
from guides.program.discrete.enumeration import add_values, with_values
from guides.program.factors import FactorsOrNaN
from guides.program.guide import as_guide
from guides.program.isolation import quiet, seeded
from guides.program.noise import NoiseTape
from guides.program.parameters import isolated_store
from guides.program.prior import unobserved
from guides.program.program import Program
from guides.program.sites import (
    counted,
    is_deterministic,
    is_latent,
    is_observed,
    is_replaced,
    log_prob,
    nodes,
    pointwise,
    role,
)
from guides.program.vectorise import Gathered, over_draws

__all__ = ["PARTS", "Draws", "draws_of_each", "take_draws"]

_ELEMENTS_PER_CHUNK = 2**25
_SEED_STRIDE = 7919
_MOST_ELEMENTS = 2**33

PARTS = frozenset({"latents", "log_p", "log_q", "log_likelihood", "deterministic", "predictive"})
"""What draws consist of: the fields of :class:`Draws`."""


@dataclass(frozen=True)
class Draws:
    """Draws from a posterior with their densities; the first dimension C of every tensor runs over replicates, the second S
    over draws.

    :ivar latents: by site, shape ``(C, S, *site shape)``.
    :ivar log_p: log joint density of latents and data in nats, shape ``(C, S)``.
    :ivar log_q: log density of the guide in nats, shape ``(C, S)``; NaN where latents of new rows come from the prior.
    :ivar log_likelihood: by observed site, in nats per data point, shape ``(C, S, *batch shape)``, as the model scales it;
        zero where the model masks a point out.
    :ivar counted: by observed site, which elements of the batch are data points, bool, shape ``(*batch shape)``.
    :ivar deterministic: by deterministic site, shape ``(C, S, *site shape)``: functions of the latents and the data or,
        where no densities are asked for, of what is predicted.
    :ivar predictive: by observed site, fresh draws given the latents, shape ``(C, S, *site shape)``; empty unless asked for.
    :ivar statistics: of a sampler's draws, by ArviZ's names, ``(C, S)`` each; empty for guides.
    """

    latents: dict[str, Tensor]
    log_p: Tensor
    log_q: Tensor
    log_likelihood: dict[str, Tensor]
    counted: dict[str, Tensor]
    deterministic: dict[str, Tensor]
    predictive: dict[str, Tensor] = field(default_factory=dict)
    statistics: dict[str, Tensor] = field(default_factory=dict)


def take_draws(
    program: Program,
    flat: Tensor,
    num_samples: int,
    data: Data,
    seed: int,
    *,
    same_rows: bool,
    predictive: bool,
    score: bool,
    keep: frozenset[str] = PARTS,
    training: Data | None = None,
    latents: Mapping[str, Tensor] | None = None,
) -> Draws:
    """Draw ``num_samples`` times from the guide at each row of parameters, shape ``(C, size)``.

    As many draws are evaluated at a time as make :data:`_ELEMENTS_PER_CHUNK` numbers on the way, and what is not kept is
    dropped with its chunk: predictions of a large network need the memory of a few of its weights, not of all draws'.

    :param same_rows: the data have the rows of the training data; otherwise latents that belong to rows are drawn from the
        prior, unless the guide computes them from the rows.
    :param predictive: draw the observed sites afresh.
    :param score: evaluate the densities of guide and model.
    :param training: the data that the model was fitted to, if ``data`` are others.
    :param keep: the fields of :class:`Draws` to fill; the others stay empty, or NaN.
    :param latents: values to take instead of the guide's draws, shape ``(C, S, *site shape)``; ``log_q`` is then NaN.
    """
    fresh = frozenset() if same_rows else program.local - program.amortized
    _check_size(program, len(flat) * num_samples, data, keep if predictive else keep - {"predictive"})
    gathered, failed = Gathered((len(flat), num_samples)), False
    with isolated_store(), quiet(), torch.no_grad():
        chunk = 1
        for r, parameters in enumerate(flat):
            chain = {} if latents is None else {name: value[r] for name, value in latents.items()}

            def one(k: Tensor, parameters: Tensor = parameters, chain: dict[str, Tensor] = chain) -> dict[str, Any]:
                held = {name: value[k] for name, value in chain.items()}
                run = lambda: _one_draw(program, data, training, fresh, held, predictive=predictive, score=score)  # noqa: E731
                found = program.call(parameters, run)
                return {part: values for part, values in found.items() if part in keep}

            if r == 0 and num_samples > 1:
                chunk = _draws_at_once(one, seed)
            take = partial(gathered.add, r)
            try:
                with seeded(seed + _SEED_STRIDE * r):
                    over_draws(one, num_samples, chunk, flat.device, take)
            except torch.linalg.LinAlgError:  # at some draws: the same ones again, and NaN there
                with seeded(seed + _SEED_STRIDE * r), FactorsOrNaN():
                    over_draws(one, num_samples, chunk, flat.device, take)
                failed = True
        points = _counted(program, flat[0], data, seed, fresh) if score and "log_likelihood" in keep else {}
    merged = gathered.values
    if failed:
        _report_failed(merged, len(flat) * num_samples)
    undefined = flat.new_full((len(flat), num_samples), float("nan"))
    return Draws(
        latents=merged.get("latents", {}),
        log_p=merged.get("log_p", undefined),
        log_q=merged.get("log_q", undefined),
        log_likelihood=merged.get("log_likelihood", {}),
        counted=points,
        deterministic=merged.get("deterministic", {}),
        predictive=merged.get("predictive", {}),
    )


def draws_of_each(
    program: Program, flat: Tensor, datasets: Sequence[Data], num_samples: int, seed: int
) -> dict[str, Tensor]:
    """Draw from many fits, each with data of its own, all of them vectorised.

    :param flat: parameters, one row for each data set, ``(R, size)``.
    :param datasets: R data sets of equal shapes.
    :param num_samples: draws S of each.
    :returns: latent and deterministic sites, ``(R, S, *site shape)``; NaN where a matrix could not be factored.
    """
    stacked = stack(datasets)

    def one(k: Tensor) -> dict[str, Any]:
        r = k // num_samples
        data = replace(datasets[0], args=tuple(a[r] if isinstance(a, Tensor) else a for a in stacked))
        run = lambda: _one_draw(program, data, None, frozenset(), {}, predictive=False, score=True)  # noqa: E731
        found = program.call(flat[r], run)
        return {**found["latents"], **found["deterministic"]}

    with isolated_store(), quiet(), torch.no_grad(), FactorsOrNaN():
        chunk = _draws_at_once(one, seed)
        with seeded(seed):
            found = over_draws(one, len(flat) * num_samples, chunk, flat.device)
    return {name: value.unflatten(0, (len(flat), num_samples)) for name, value in found.items()}


def _report_failed(parts: dict[str, Any], count: int) -> None:
    """Give the draws at which a matrix could not be factored the density that they have: none."""
    tensors = [v for part in parts.values() for v in (part.values() if isinstance(part, dict) else [part])]
    bad = torch.stack([t.isnan().reshape(*t.shape[:2], -1).any(-1) for t in tensors]).any(0)
    for density in (*parts.get("log_likelihood", {}).values(), *([parts["log_p"]] if "log_p" in parts else [])):
        density[density.isnan()] = -math.inf
    warnings.warn(
        f"at {int(bad.sum())} of {count} draws the model cannot be evaluated, as a matrix has no Cholesky factor or "
        "inverse: their density is zero and their predictions are NaN; add more to the matrix's diagonal, or compute in "
        "float64",
        FailedDrawsWarning,
        stacklevel=4,
    )


def _draws_at_once(one: Callable[[Tensor], Any], seed: int) -> int:
    """Return how many draws make so many numbers on the way that they fit into the memory for a chunk."""
    with seeded(seed), FactorsOrNaN(), CountElements() as made:
        one(torch.tensor(0))
    return max(1, _ELEMENTS_PER_CHUNK // max(1, made.elements))


def _counted(program: Program, flat: Tensor, data: Data, seed: int, fresh: frozenset[str]) -> dict[str, Tensor]:
    """Return by observed site which elements of its batch are data points, which does not differ between draws."""

    def run() -> Trace:
        guide_trace = poutine.trace(program.guide).get_trace(*data.args, **data.kwargs)
        held = _without(guide_trace, fresh | {n for n in program.amortized if n not in guide_trace})
        return poutine.trace(poutine.replay(program.model, trace=held)).get_trace(*data.args, **data.kwargs)

    with seeded(seed), NoiseTape():
        model_trace = program.call(flat, run)
    found = {}
    for name, site in nodes(model_trace).items():
        if is_observed(site):
            batch = log_prob(site).shape
            mask = counted(site)
            found[name] = torch.ones(batch, dtype=torch.bool) if mask is None else mask.cpu().expand(batch)
    return found


def _check_size(program: Program, draws: int, data: Data, keep: frozenset[str]) -> None:
    """Refuse draws that no memory could hold, before any work.

    :raises OptionError: naming the largest site and its size.
    """
    sizes = {}
    for name, site in sites(program).items():
        if site.kind == "conditioned":
            continue
        rows = data.size / max(program.size, 1) if set(site.dims) & program.follows.plates else 1.0
        whole = math.prod(site.shape) * rows
        if site.kind != "observed":
            kept = ("deterministic" if site.kind == "deterministic" else "latents") in keep
            sizes[name] = draws * whole * kept
        else:
            scores = whole / max(1, math.prod(site.shape[1:])) if "log_likelihood" in keep else 0.0
            sizes[name] = draws * (whole if "predictive" in keep else scores)
    if sum(sizes.values()) > _MOST_ELEMENTS:
        name = max(sizes, key=lambda n: sizes[n])
        raise OptionError(
            f"{draws} draws of site {name!r} for {data.size} rows are {sizes[name]:.2g} numbers "
            f"({4e-9 * sizes[name]:.0f} GB); ask for fewer draws (num_samples) or some of the rows at a time"
        )


def _one_draw(
    program: Program,
    data: Data,
    training: Data | None,
    fresh: frozenset[str],
    held: dict[str, Tensor],
    *,
    predictive: bool,
    score: bool,
) -> dict[str, Any]:
    guide: Any = program.guide
    with NoiseTape():
        guide_trace = _at(held, poutine.trace(guide).get_trace(*data.args, **data.kwargs))
        # A guide leaves out the latents of rows that it lacks the inputs for.
        fresh = fresh | {n for n in program.amortized if n not in guide_trace}
        known = _without(guide_trace, fresh)
        discrete = _discrete(program, data, training, known, guide_trace, held) if program.discrete else {}
        replayed = poutine.replay(program.model, trace=known)
        simulated = poutine.replay(program.visible, trace=with_values(known, discrete)) if discrete else replayed
        out: dict[str, Any] = {"latents": {n: _value(guide_trace, n) for n in program.latents if n not in fresh}}
        out["latents"] |= {n: v for n, v in discrete.items() if n not in fresh}
        if score:
            model_trace = poutine.trace(replayed).get_trace(*data.args, **data.kwargs)
            out["log_p"] = torch.as_tensor(model_trace.log_prob_sum())
            # Latents drawn from the prior instead have no density under the guide.
            out["log_q"] = torch.as_tensor(as_guide(guide).log_density(guide_trace)) * (math.nan if fresh or held else 1.0)
            out["log_likelihood"] = {n: pointwise(s) for n, s in nodes(model_trace).items() if is_observed(s)}
            values = model_trace if not discrete else poutine.trace(simulated).get_trace(*data.args, **data.kwargs)
            out["deterministic"] = _deterministic(values)
        if as_guide(guide).linearised and not fresh and not discrete and not held:
            out.update(_linearised(program, guide_trace, data, predictive=predictive, score=score))
        elif predictive:
            trace = poutine.trace(unobserved(simulated)).get_trace(*data.args, **data.kwargs)
            drawn = [n for n, s in nodes(trace).items() if is_latent(s) and n not in program.latents and n not in discrete]
            out["predictive"] = {n: _value(trace, n) for n in drawn}
            # Those of draws with densities are functions of the data, those of predictions of what is predicted.
            out.setdefault("deterministic", _deterministic(trace))
    return out


def _discrete(
    program: Program, data: Data, training: Data | None, known: Trace, guide_trace: Trace, held: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Draw the discrete latents that the model sums out, given the data and one draw of the others.

    Those of which these data say nothing have their distribution given the data that the model was fitted to, if they stand
    in no plate of the rows, and their prior otherwise. Latents that ``known`` is without are drawn from the prior, and added
    to it.
    """
    model: Any = program.model
    prior = poutine.trace(poutine.replay(program.visible, trace=known)).get_trace(*data.args, **data.kwargs)
    add_values(known, {n: _value(prior, n) for n in program.latents if n not in known and n in prior})
    names = [n for n, s in nodes(prior).items() if role(s) == "enumerated"]
    found: dict[str, Tensor] = model.draw(data.args, data.kwargs, known)
    shared = program.shared_discrete & set(names) - (set() if program.follows.plates else set(found))
    if training is not None and shared:
        guide = poutine.replay(program.guide, trace=_without(guide_trace, program.local))
        trained = _at(held, poutine.trace(guide).get_trace(*training.args, **training.kwargs))
        given = model.draw(training.args, training.kwargs, trained)
        found |= {n: given[n] for n in shared & set(given)}
    if set(names) <= set(found):
        return found
    forward = poutine.trace(poutine.replay(program.visible, trace=with_values(known, found)))
    rest = forward.get_trace(*data.args, **data.kwargs)
    return {n: _value(rest, n) for n in names}


def _linearised(program: Program, guide_trace: Trace, data: Data, *, predictive: bool, score: bool) -> dict[str, Any]:
    """Evaluate observed and deterministic sites by the model linearised around the guide's mean; see Laplace."""
    guide: Any = program.guide
    observed = [n for n, s in sites(program).items() if s.kind == "observed"]

    def trace_at(latent: Tensor, given: dict[str, Tensor]) -> Trace:
        conditioned = poutine.condition(guide, data={guide.latent_site: latent})
        values = poutine.trace(conditioned).get_trace(*data.args, **data.kwargs)
        model = poutine.condition(program.model, data=given)
        return poutine.trace(poutine.replay(model, trace=values)).get_trace(*data.args, **data.kwargs)

    # A copy: the tangent of a view is as large as the tensor that it views, here every parameter of every replicate.
    mean, draw = guide.loc.clone(), guide.flat_draw(guide_trace)
    at_mean = nodes(trace_at(mean, {}))
    # What the data leave out is drawn here, once: drawing has no derivative.
    given = {n: at_mean[n]["value"] for n in observed if not is_observed(at_mean[n])}

    def outputs(latent: Tensor) -> dict[str, Tensor]:
        trace = nodes(trace_at(latent, given))
        return {n: coordinates(n, over_data(trace[n])).value for n in observed}

    values, slopes = torch.func.jvp(outputs, (mean,), (draw - mean,))[:2]
    fns = {n: coordinates(n, over_data(at_mean[n])).rebuild(v + slopes[n].to(v)) for n, v in values.items()}
    out: dict[str, Any] = {"predictive": {n: fn.sample() for n, fn in fns.items()}} if predictive else {}
    # As elsewhere: functions of the data beside densities, of what is predicted beside predictions.
    seen = given if score else out.get("predictive", given)
    out["deterministic"] = {}
    if any(is_deterministic(s) for s in at_mean.values()):
        fixed, along = torch.func.jvp(lambda z: _deterministic(trace_at(z, seen)), (mean,), (draw - mean,))[:2]
        out["deterministic"] = {n: v + along[n].to(v) for n, v in fixed.items()}
    if any(is_replaced(s) for s in at_mean.values()):  # latents in another form: exact, as latents are
        at_draw = nodes(trace_at(draw, seen))
        out["deterministic"] |= {n: s["value"] for n, s in at_draw.items() if is_replaced(s)}
    if score:
        there = {n: at_mean[n] for n in observed if is_observed(at_mean[n])}
        out["log_likelihood"] = {n: pointwise({**s, "fn": fns[n], "unscaled_log_prob": None}) for n, s in there.items()}
    return out


def _at(held: dict[str, Tensor], trace: Trace) -> Trace:
    """Return a guide's trace with other values at some latents."""
    for name, value in held.items():
        trace.nodes[name]["value"] = value
    return trace


def _value(trace: Trace, name: str) -> Any:
    return trace.nodes[name]["value"]


def _deterministic(trace: Trace) -> dict[str, Any]:
    return {n: s["value"] for n, s in nodes(trace).items() if is_deterministic(s)}


def _without(trace: Trace, names: frozenset[str]) -> Trace:
    """Return the trace without some latents, and then without the sizes of its plates either."""
    if not names:
        return trace
    kept = trace.copy()
    for name, site in nodes(trace).items():
        if name in names or (site["type"] == "sample" and site_is_subsample(site)):
            kept.remove_node(name)
    return kept
