"""Checks that a guide's map to each latent's support holds for the whole fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.infer.autoguide import AutoCallable, AutoDelta, AutoDiscreteParallel, AutoGuide, AutoGuideList
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch.distributions import transform_to

from guides.errors import UnsupportedModelError
from guides.program.data import Data
from guides.program.sites import is_latent, nodes
from guides.program.stating import as_written
from guides.program.supports import (
    Mapped,
    PlainSupports,
    is_discrete,
    same_support,
    stated_support,
    support_of,
    support_tensors,
)

__all__ = ["check_same_supports", "check_supports"]

_ELSE = (
    'Draw it in a fixed support and move it in the model, such as u = pyro.sample("u", dist.Uniform(0.0, 1.0)) and '
    "z = low + (high - low) * u, or z = low * u with u from dist.Pareto(1.0, alpha), or pass a guide of your own"
)
_RUNS = 3

Supports = Mapping[str, Any]


def check_supports(
    model: Callable[..., Any], prototype: Trace, guide: Callable[..., Any], data: Data, batch_size: int | None
) -> None:
    """Check that an autoguide can map every latent to its support, and that this support stays where it is.

    The map is made once, for the support that one run of the model shows. So the model is run again with other latents and,
    under minibatching, on other rows.

    :raises UnsupportedModelError: naming the latent, its support, and what moves it.
    """
    if isinstance(guide, AutoGuideList):
        for part in list[Any](guide):
            own = Trace()
            shown = poutine.block(poutine.trace(part.model).get_trace)(*data.args, **data.kwargs)
            for name, site in nodes(prototype).items():
                if name in shown or not is_latent(site):
                    own.add_node(name, **site)
            check_supports(model, own, part, data, batch_size)
    if not _maps_latents(guide):
        return
    latents = {n: s for n, s in nodes(prototype).items() if is_latent(s) and not is_discrete(s["fn"])}
    if isinstance(guide, AutoDelta):
        supports = {n: s["fn"].support for n, s in latents.items() if _is_reached(s)}
    else:
        supports = {n: support_of(s) for n, s in latents.items()}
    if not type(guide).__module__.startswith("guides."):
        _check_stated(latents, supports, guide)
    movable = {n: s for n, s in supports.items() if support_tensors(s) or (isinstance(s, Mapped) and not s.fixed)}
    if not movable:
        return
    with torch.random.fork_rng():  # guides start from the same numbers, checked or not
        _check_still(model, prototype, latents, movable, data, batch_size)


def _check_still(
    model: Callable[..., Any], prototype: Trace, latents: Supports, movable: Supports, data: Data, batch_size: int | None
) -> None:
    fixed = {n: s for n, s in nodes(prototype).items() if s["type"] == "sample" and site_is_subsample(s)}
    for again in _runs(model, fixed, data):
        _check_parameters(movable, again)
        for name in _moved(movable, again):
            causes = [n for n in latents if n != name and _moves(model, prototype, n, name, movable, data)]
            many = "s" * (len(causes) > 1)
            _refuse(name, movable[name], f"latent site{many}" if causes else "random numbers of the model", causes)
    if batch_size is not None:
        rows = data.rows_from(data.size - batch_size, batch_size)
        for again in _runs(model, {}, rows):
            held = {n: s for n, s in movable.items() if nodes(again)[n]["value"].shape == latents[n]["value"].shape}
            for name in _moved(held, again):
                _refuse(name, movable[name], "rows of a batch", [])


def check_same_supports(one: Trace, other: Trace, guide: Callable[..., Any]) -> None:
    """Check that latents have the same supports on two data sets that one guide is fitted to.

    :raises UnsupportedModelError: naming one that has not.
    """
    if not _maps_latents(guide):
        return
    latents = {n: s for n, s in nodes(one).items() if is_latent(s) and not is_discrete(s["fn"])}
    for name in _moved({n: s["fn"].support for n, s in latents.items() if stated_support(s["fn"]) is not None}, other):
        _refuse(name, latents[name]["fn"].support, "data set; fit each by itself", [])


def _maps_latents(guide: Callable[..., Any]) -> bool:
    return isinstance(guide, AutoGuide) and not isinstance(guide, AutoGuideList | AutoDiscreteParallel | AutoCallable)


def _is_reached(site: Any) -> bool:
    """Tell whether points can be kept in a site's support, which takes less than a bijection."""
    try:
        transform_to(site["fn"].support)
    except NotImplementedError:
        support_of(site)
        return False
    return True


def _check_stated(latents: Supports, supports: Supports, guide: Callable[..., Any]) -> None:
    """Refuse guides from elsewhere, which map to the support that a distribution states, where it has another."""
    for name, support in supports.items():
        stated = stated_support(as_written(latents[name]["fn"]))
        if not same_support(stated, support):
            raise UnsupportedModelError(
                f"latent site {name!r} has the support {support!r} but its distribution states {stated!r}, which "
                f"{type(guide).__name__} maps it to; use a guide of this library, such as 'mean_field' or 'full_rank'"
            )


def _runs(model: Callable[..., Any], fixed: Supports, data: Data) -> list[Trace]:
    """Return a run of the model with other latents; none if it fails at a few draws of them."""
    for _ in range(_RUNS):
        try:
            return [_run(model, fixed, data)]
        except (RuntimeError, ValueError):
            continue
    return []


def _run(model: Callable[..., Any], fixed: Supports, data: Data) -> Trace:
    """Run the model with some sites fixed, so that one can see which numbers depend on its parameters."""
    held = Trace()
    for name, site in fixed.items():
        held.add_node(name, **site)
    replayed = poutine.replay(poutine.block(model, hide_types=["param"]), trace=held)
    with torch.enable_grad(), PlainSupports():
        return poutine.trace(replayed).get_trace(*data.args, **data.kwargs)


def _moved(supports: Supports, again: Trace) -> list[str]:
    return [n for n, s in supports.items() if n in again and not same_support(s, nodes(again)[n]["fn"].support)]


def _moves(model: Callable[..., Any], prototype: Trace, cause: str, name: str, supports: Supports, data: Data) -> bool:
    fixed = {n: s for n, s in nodes(prototype).items() if s["type"] == "sample" and not s["is_observed"] and n != cause}
    return any(_moved({name: supports[name]}, run) for run in _runs(model, fixed, data))


def _check_parameters(supports: Supports, again: Trace) -> None:
    for name, support in supports.items():
        if name in again and any(t.requires_grad for t in _of(again, name)):
            _refuse(name, support, "parameters of the model", [])


def _of(trace: Trace, name: str) -> list[torch.Tensor]:
    return support_tensors(nodes(trace)[name]["fn"].support)


def _refuse(name: str, support: Any, what: str, causes: list[str]) -> None:
    names = " " + " and ".join(map(repr, causes)) if causes else ""
    raise UnsupportedModelError(
        f"the support of latent site {name!r} ({support!r} at first) depends on the {what}{names}; a guide maps a site to "
        f"one support for all of the fit and would draw impossible values. {_ELSE}"
    )
