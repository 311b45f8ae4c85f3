"""Checks made before any work: what would otherwise fail late, or silently give a wrong answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from pyro.poutine.trace_struct import Trace
from torch.distributions import Independent

from guides.errors import (
    DataError,
    DiscreteLatentError,
    GuideMismatchError,
    MinibatchScaleError,
    OptionError,
    UnsupportedModelError,
)
from guides.program.data import Data
from guides.program.guide import amortized_sites, as_guide, name_of
from guides.program.marks import is_marked
from guides.program.running import run_model
from guides.program.sites import is_latent, is_observed, is_point, nodes, role
from guides.program.stating import as_written
from guides.program.supports import is_discrete

__all__ = [
    "Following",
    "check_batch_size",
    "check_guide",
    "check_latents",
    "check_local",
    "check_model",
    "check_some",
    "check_values",
    "follow_rows",
]

_ROWS_PER_CHECK = 1024


def check_model(model: Any, example: str) -> None:
    """Check that what should be a model can be one.

    :param example: a call that is right.
    :raises OptionError: saying what was passed instead.
    """
    if isinstance(model, type):
        raise OptionError(f"the model is the class {model.__name__}; pass an instance, {model.__name__}(...)")
    if isinstance(model, str) or not callable(model):
        found = repr(model) if isinstance(model, str) else f"a {type(model).__name__}"
        raise OptionError(f"the model is {found}; pass a Pyro model first, then the guide, then the data: {example}")


def check_batch_size(batch_size: int | None, data: Data) -> int | None:
    """Return ``batch_size``, or ``None`` if one batch holds all the data.

    :raises OptionError: if it is not positive, larger than the data, or there are no rows to take batches of.
    """
    if batch_size is None:
        return None
    if data.size == 0:
        raise OptionError("batch_size was given but no positional tensor argument has rows to take batches of")
    if not 1 <= batch_size <= data.size:
        raise OptionError(
            f"batch_size={batch_size} but there are {data.size} data points; use 1 to {data.size}, or None for all of them"
        )
    return None if batch_size == data.size else batch_size


def check_values(model: Callable[..., Any], data: Data, batch_size: int | None) -> None:
    """Run the model on all rows, some at a time, so that a value outside a support is found wherever it stands.

    :raises DataError: if the model cannot be run on some of the rows.
    """
    rows = data.size if batch_size is None else batch_size * max(1, _ROWS_PER_CHECK // batch_size)
    with torch.no_grad():
        for start in range(0, data.size, rows):
            run_model(model, data.rows_from(min(start, max(0, data.size - rows)), rows))


@dataclass(frozen=True)
class Following:
    """What of a model follows the rows of its data.

    :ivar plates: names of the plates whose size does.
    :ivar rescaled: those of them that know only the rows they are given; the engine rescales them to all rows.
    :ivar local: latent sites with one value per row.
    """

    plates: frozenset[str] = frozenset()
    rescaled: frozenset[str] = frozenset()
    local: frozenset[str] = frozenset()


def follow_rows(model: Callable[..., Any], data: Data, batch_size: int | None, size: int) -> tuple[Following, Trace]:
    """Return what follows the rows of the data, and a trace of the model on all of ``data``.

    The model is run on all rows and on fewer; plates whose size changes follow the rows. Under minibatching every observed
    site whose shape changes must either stand in such a plate (the engine rescales it) or be rescaled by the model.

    :param data: some more rows than a batch has; if ``batch_size`` is ``None``, all of them.
    :param size: the number of rows that there are.
    :raises MinibatchScaleError: if an observed site would count a batch as if it were all the data.
    :raises DataError: if the model cannot be run on the data.
    """
    full = run_model(model, data)
    fewer = batch_size if batch_size is not None else data.size - 1
    if data.size < 2 or fewer < 1:
        return Following(), full
    try:
        part = run_model(model, data.head(fewer))
    except DataError:
        if batch_size is None:  # a model bound to all of its rows is fine as long as it gets them
            return Following(), full
        raise
    sizes = {f.name: f.size for s in nodes(full).values() if s["type"] == "sample" for f in s["cond_indep_stack"]}
    following = {
        f.name: f.full_size is None or f.full_size == f.size
        for s in nodes(part).values()
        if s["type"] == "sample"
        for f in s["cond_indep_stack"]
        if f.size != sizes.get(f.name, f.size)
    }
    rescaled = frozenset(name for name, knows_only_rows in following.items() if knows_only_rows)
    if batch_size is not None:
        _check_scale(full, part, rescaled, size, batch_size)
        _check_factors(model, full, rescaled, data, batch_size, size)
    local = frozenset(
        name
        for name, site in nodes(part).items()
        if is_latent(site) and name in full and site["value"].shape != nodes(full)[name]["value"].shape
    )
    return Following(frozenset(following), rescaled, local), full


def _check_scale(full: Trace, part: Trace, plates: frozenset[str], size: int, batch_size: int) -> None:
    wanted = size / batch_size
    whole = nodes(full)
    for name, site in nodes(part).items():
        if not is_observed(site) or name not in whole or site["value"].shape == whole[name]["value"].shape:
            continue
        if any(f.name in plates for f in site["cond_indep_stack"]):
            continue
        scale = float(torch.as_tensor(site["scale"], dtype=torch.float64).mean())
        if abs(scale - wanted) > 1e-3 * wanted:
            raise MinibatchScaleError(
                f"observed site {name!r} gets {batch_size} of {size} data points per step, but its log-likelihood is scaled "
                f"by {scale:g} instead of {wanted:g}, so that prior and data would not be weighed right. Put the site in "
                'pyro.plate("data", len(x)), which guides.fit rescales, or in a plate of the full size with a subsample'
            )


def _check_factors(
    model: Callable[..., Any], full: Trace, plates: frozenset[str], data: Data, batch_size: int, size: int
) -> None:
    """Refuse ``pyro.factor`` terms that depend on the rows given and are not rescaled; their shape tells nothing."""
    factors = {n: s for n, s in nodes(full).items() if role(s) == "factor"}
    loose = {n for n, s in factors.items() if not any(f.name in plates for f in s["cond_indep_stack"])}
    if not loose:
        return
    latents = {n: s["value"] for n, s in nodes(full).items() if is_latent(s)}
    shared = {n: v for n, v in latents.items() if not any(f.name in plates for f in nodes(full)[n]["cond_indep_stack"])}
    part = nodes(run_model(poutine.condition(model, data=shared), data.head(batch_size)))
    wanted = size / batch_size
    for name in loose & set(part):
        before, after = factors[name]["log_prob"].sum(), part[name]["log_prob"].sum()
        if abs(float(part[name]["scale"]) - wanted) > 1e-3 * wanted and not torch.allclose(before, after, rtol=1e-4):
            raise MinibatchScaleError(
                f"pyro.factor {name!r} depends on the data points of a batch, but is not scaled from {batch_size} to all "
                f'{size}. Put it, with one value per data point, in pyro.plate("data", len(x)), or use pyro.sample'
            )


def check_local(rows: Following, prototype: Trace, guide: Callable[..., Any], size: int) -> None:
    """Check that a guide can follow the latents of rows through minibatches.

    :raises MinibatchScaleError: naming a latent that it keeps one value per data point for.
    """
    for name in sorted(rows.local - amortized_sites(guide)):
        site = nodes(prototype)[name]
        shape = list(site["value"].shape)
        for frame in site["cond_indep_stack"]:
            if frame.name in rows.plates:
                shape[len(shape) - site["fn"].event_dim + frame.dim] = size
        raise MinibatchScaleError(
            f"latent site {name!r} has one value per data point (shape {tuple(shape)}), which a guide without an encoder "
            "cannot follow through minibatches; fit with batch_size=None, use the guide 'amortized', or, if your guide "
            f"computes the site from the rows it is given, {_how_named(guide, name)}"
        )


def _how_named(guide: Callable[..., Any], site: str) -> str:
    """Say where a guide is told that it computes ``site`` from the rows; Python sets no attribute of a bound method."""
    said = f"amortized = frozenset({{{site!r}}})"
    if isinstance(guide, MethodType):
        where = f"{type(guide.__self__).__name__}.{guide.__name__}"
        return f"name it in an attribute of the method, below the class: {where}.{said}"
    return f"name it in an attribute {said} of the guide"


def check_some(guide: Callable[..., Any], latents: Sequence[str]) -> None:
    """Check that there is something for an autoguide to do; a guide written by hand may draw nothing.

    :raises GuideMismatchError: if there is no latent site that is not summed out.
    """
    if not latents and isinstance(guide, AutoGuide) and not as_guide(guide).allows_no_latents:
        raise GuideMismatchError(
            "the model has no latent sample site that is not summed out, so there is no posterior to approximate; is every "
            "site observed? The parameters of a model without latents are fitted by maximum likelihood with the guide 'map'"
        )


def check_latents(
    prototype: Trace, guide: Callable[..., Any], drawn: Trace | None = None, reparameterised_only: bool = True
) -> None:
    """Check that the model has latent sites, all of them continuous unless guide and objective can do with others.

    :param drawn: a run of the guide, if it is one that can draw discrete sites.
    :param reparameterised_only: the objective's gradient needs draws that can be reparameterised.
    :raises DiscreteLatentError: naming a discrete site.
    :raises GuideMismatchError: if there is no latent site at all and the guide does not allow that.
    :raises UnsupportedModelError: naming a site that is a point mass.
    """
    latents = [(n, s) for n, s in nodes(prototype).items() if is_latent(s)]
    check_some(guide, [n for n, _ in latents])
    for name, site in latents:
        if isinstance(guide, AutoGuide) and is_point(as_written(site["fn"])):
            raise UnsupportedModelError(
                f"latent site {name!r} is a point mass (Delta), so there is nothing to infer; if it is a function of other "
                f"sites, write pyro.deterministic({name!r}, value), or pyro.param for a number to be learned"
            )
    if drawn is not None and not reparameterised_only:
        return
    of_guide = nodes(drawn)
    for name, site in latents:
        if not is_discrete(site["fn"]) or (name in of_guide and is_marked(of_guide[name])):
            continue
        found = f"latent site {name!r} is discrete ({_told_fn(site['fn'])}), and "
        if name in of_guide:
            way_out = _way_out(name, of_guide[name]["fn"])
            raise DiscreteLatentError(f"{found}{_name(guide)} draws it, from which the objective cannot learn; {way_out}")
        needs = "the objective" if drawn is not None else _name(guide)
        raise DiscreteLatentError(f"{found}{needs} needs continuous latents; {_way_out(name, site['fn'], in_model=True)}")


def _told_fn(fn: Any) -> str:
    """Return the name of a distribution, as it is written."""
    if isinstance(fn, Independent):
        return f"{_told_fn(fn.base_dist)}.to_event({fn.reinterpreted_batch_ndims})"
    return type(fn).__name__


def _way_out(name: str, fn: Any, in_model: bool = False) -> str:
    draw = "objective='score_function'" if not in_model else "write a guide that draws it and use objective='score_function'"
    if _has_values(fn):
        where = "the model" if in_model else "the guide"
        return (
            f'mark it to have the engine marginalise it, pyro.sample({name!r}, ..., infer={{"enumerate": "parallel"}}) or '
            f"@pyro.infer.config_enumerate over {where}, or {draw}"
        )
    inner = fn
    while isinstance(inner, Independent):
        inner = inner.base_dist
    if inner is not fn and _has_values(inner):
        return (
            ".to_event hides its values from the engine, which could marginalise it otherwise: write it without .to_event, "
            f'in a pyro.plate, and mark it by infer={{"enumerate": "parallel"}}; or {draw}'
        )
    return f"its values cannot be listed, to sum over them, so marginalise it in the model, or {draw}"


def _has_values(fn: Any) -> bool:
    return bool(getattr(fn, "has_enumerate_support", False))


def check_guide(
    model_trace: Trace, guide_trace: Trace, guide: Callable[..., Any], reparameterised_only: bool = True
) -> None:
    """Check that guide and model have the same latent sites and that the guide's can be reparameterised or summed out.

    :param reparameterised_only: the objective's gradient needs the latter.
    :raises GuideMismatchError: naming the sites that are missing or invented, or that cannot be reparameterised.
    """
    in_model, in_guide = nodes(model_trace), nodes(guide_trace)
    wanted = {n for n, s in in_model.items() if is_latent(s)}
    found = {n: s for n, s in in_guide.items() if is_latent(s) and not s["infer"].get("is_auxiliary")}
    missing, invented = sorted(wanted - set(found)), sorted(set(found) - wanted)
    if missing:
        raise GuideMismatchError(
            f"{_name(guide)} does not sample latent site{'s' * (len(missing) > 1)} {', '.join(map(repr, missing))} of the "
            f"model; it samples {', '.join(map(repr, sorted(found))) or 'nothing'}. Add a pyro.sample statement for each"
        )
    if data := [n for n in invented if n in in_model and role(in_model[n]) in ("observed", "conditioned")]:
        raise GuideMismatchError(
            f"{_name(guide)} samples {', '.join(map(repr, data))}, which is observed in the model: a guide draws what is "
            "not known. For a distribution of the data themselves, put its parameters into the model, as latents "
            "(pyro.sample) or as numbers (pyro.param, and guides.fit(model, 'map', ...) for their maximum likelihood)"
        )
    if invented:
        has = ", ".join(map(repr, sorted(wanted))) or "none"
        raise GuideMismatchError(
            f"{_name(guide)} samples {', '.join(map(repr, invented))}, which the model does not have as latent; the model "
            f"has {has}. Rename the site, or mark it infer={{'is_auxiliary': True}}"
        )
    for name, site in in_guide.items():
        if not is_latent(site) or site["infer"].get("stratum"):
            continue
        if reparameterised_only and not getattr(site["fn"], "has_rsample", False) and not is_marked(site):
            raise GuideMismatchError(
                f"{_name(guide)} draws site {name!r} from {type(site['fn']).__name__}, which cannot be reparameterised; "
                "its gradient would be wrong. Use a distribution with rsample, or objective='score_function'"
            )
    for name in wanted & set(found):
        have, want = tuple(found[name]["value"].shape), tuple(in_model[name]["value"].shape)
        if have != want:
            raise GuideMismatchError(
                f"{_name(guide)} draws site {name!r} with shape {have}, the model with {want}; was the guide set up on "
                "other data?"
            )


def _name(guide: Callable[..., Any]) -> str:
    return f"guide {name_of(guide)!r}"
