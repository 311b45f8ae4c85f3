"""Do a model, a guide and an objective go together? Everything that is refused before the first step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyro import poutine
from pyro.infer.autoguide import AutoCallable, AutoDiscreteParallel, AutoGuide, AutoGuideList
from pyro.poutine.trace_struct import Trace
from torch import nn

from guides.errors import UnsupportedModelError
from guides.program.buffers import evaluating
from guides.program.checks import (
    Following,
    check_guide,
    check_latents,
    check_some,
    follow_rows,
)
from guides.program.data import Data
from guides.program.discrete.enumeration import Enumerated, enumerated
from guides.program.discrete.guide_sums import GuideSums
from guides.program.guide import amortized_sites
from guides.program.isolation import quiet, seeded
from guides.program.left_out import check_observed
from guides.program.marks import is_marked
from guides.program.moving_supports import check_supports
from guides.program.objective import ObjectiveLike
from guides.program.parameters import isolated_store
from guides.program.prepare import PreparedModel, bears_gaps, prepare
from guides.program.running import run_model, told_in_words
from guides.program.sites import is_latent, nodes
from guides.program.strata import check_parts, choices
from guides.program.subsampling import OwnPlates, check_rows_have_latents, own_plates

__all__ = ["judged", "own_plates_of"]


def judged(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    objective: ObjectiveLike,
    some: Data,
    batch_size: int | None,
    rows: int,
    own: OwnPlates,
    modules: list[nn.Module],
) -> tuple[PreparedModel | Enumerated, ObjectiveLike, Following, Trace]:
    """Return model and objective as they are run, which plates follow the rows, and a trace; what cannot be is refused.

    :param some: the data that show what the model does; ``rows``: how many there are in all.
    """
    prepared = _prepared(model, some)
    _check_gaps(prepared, some)
    follows, prototype = follow_rows(prepared, some, batch_size, rows)
    run: PreparedModel | Enumerated = prepared
    if any(is_marked(s) for s in nodes(prototype).values()):
        check_some(guide, [n for n, s in nodes(prototype).items() if is_latent(s) and not is_marked(s)])
        run = enumerated(prepared, guide, prototype, some.args, some.kwargs)
        follows, prototype = follow_rows(run.visible, some, batch_size, rows)
    check_observed(model, prototype, some)
    drawn = None if _draws_continuous(guide) else _guide_trace(guide, some)
    check_latents(prototype, guide, drawn, objective.reparameterised_only)
    check_supports(prepared, prototype, guide, some, batch_size)
    if batch_size is None and isinstance(guide, AutoGuide):
        kept = {n for n, s in nodes(prototype).items() if is_latent(s)} - amortized_sites(guide)
        check_rows_have_latents(prototype, kept, own)
    guide_trace = _guide_trace(guide, some) if drawn is None else drawn
    check_guide(prototype, guide_trace, guide, objective.reparameterised_only)
    check_parts(guide, guide_trace, objective)
    sums = GuideSums.of(prototype, guide_trace)
    if sums is not None:
        with evaluating(modules):
            run, objective = _with_sums(run, guide, objective, guide_trace, sums, some)
    if isinstance(run, Enumerated):
        with quiet(), evaluating(modules):
            run.check(some.args, some.kwargs, guide_trace, follows.rescaled if batch_size else frozenset())
    return run, objective, follows, prototype


def _draws_continuous(guide: Callable[..., Any]) -> bool:
    """Tell whether a guide is one that knows continuous latents only."""
    if isinstance(guide, AutoGuideList):
        return all(_draws_continuous(part) for part in guide)
    return isinstance(guide, AutoGuide) and not isinstance(guide, AutoDiscreteParallel | AutoCallable)


def _guide_trace(guide: Callable[..., Any], data: Data) -> Trace:
    with told_in_words(guide, data):
        return poutine.trace(guide).get_trace(*data.args, **data.kwargs)


def _with_sums(
    model: PreparedModel | Enumerated,
    guide: Callable[..., Any],
    objective: ObjectiveLike,
    guide_trace: Trace,
    sums: GuideSums,
    data: Data,
) -> tuple[PreparedModel | Enumerated, ObjectiveLike]:
    """Return model and objective for a guide that marks discrete draws of its own, having checked that they can be summed.

    :raises UnsupportedModelError: if they cannot.
    """
    if choices(guide, guide_trace):
        marked = ", ".join(map(repr, sorted(sums.sites)))
        raise UnsupportedModelError(
            f"the guide marks {marked} to be summed out and has a mixture among its parts, "
            "which do not go together; use another family in the place of the mixture"
        )
    with quiet(), told_in_words(guide, data):
        if isinstance(model, Enumerated):
            model = model.beside(sums.dimensions(guide, data.args, data.kwargs))
        sums.check(model, guide, data.args, data.kwargs)
    return model, objective.summing(sums)


def own_plates_of(model: Callable[..., Any], guide: Callable[..., Any], data: Data) -> OwnPlates:
    """Return the plates of which the model, or a guide written by hand, sees rows of its own choice."""

    def of_guide() -> Trace:
        return poutine.trace(guide).get_trace(*data.args, **data.kwargs)

    with isolated_store(), seeded(0):  # a parameter's first value is drawn by the fit itself
        return own_plates(lambda: run_model(model, data), None if isinstance(guide, AutoGuide) else of_guide)


def _check_gaps(model: PreparedModel, data: Data) -> None:
    """Check that the model knows what to do with missing values.

    :raises DataError: naming the argument, if it does not.
    """
    if data.gaps:
        with isolated_store(), seeded(0), quiet():
            fine = bears_gaps(model, data.args, data.kwargs)
        if not fine:
            data.without_gaps()


def _prepared(model: Callable[..., Any], data: Data) -> PreparedModel:
    with isolated_store(), seeded(0), quiet():
        return prepare(model, data.args, data.kwargs)
