"""What ``pyro.condition`` holds: data, or a latent at a value of the user's choice.

Pyro leaves no trace of who gave a site its value, and means one thing by both. But data are points of an elpd and are drawn
anew by predictions, and a latent that is held is neither. What decides is what the value can say. A conditioned site is held

* if data that are given by ``obs=``, or a ``pyro.factor``, depend on it; or
* if its own density depends on no latent and no parameter, so that it says nothing about them.

Otherwise it is data. The start of a series has such a density too; it is data if the series that it starts is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from pyro.poutine.condition_messenger import ConditionMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import biject_to

from guides.program.sites import is_latent, is_observed, nodes, role
from guides.program.supports import plain_support

__all__ = ["Put", "conditions_marked", "held_sites", "was_conditioned"]

_GIVEN = "_given"
_TRIES = 10
_LEAST_SERIES = 3

Runner = Callable[..., Trace]


@contextmanager
def conditions_marked() -> Iterator[None]:
    """Let ``pyro.condition`` leave a mark on the sites that it gives a value to.

    Only the handler itself knows them: others around it may rename them (``pyro.contrib.autoname``, ``poutine.do``).
    """
    plain = ConditionMessenger._pyro_sample

    def marking(self: ConditionMessenger, msg: Any) -> None:
        plain(self, msg)
        if msg["is_observed"] and msg["name"] in self.data:
            msg["infer"] = {**msg["infer"], _GIVEN: True}

    ConditionMessenger._pyro_sample = marking  # type: ignore[method-assign]
    try:
        yield
    finally:
        ConditionMessenger._pyro_sample = plain  # type: ignore[method-assign]


def was_conditioned(site: Any) -> bool:
    """Tell whether ``pyro.condition`` gave a site of a trace made under :func:`conditions_marked` its value."""
    return bool(site["type"] == "sample" and site["infer"].get(_GIVEN))


class Put(Messenger):
    """Give sites other values, whatever a handler inside has given them."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self._values:
            msg["value"], msg["done"] = self._values[msg["name"]], True


def held_sites(trace: Trace, run: Runner) -> frozenset[str]:
    """Return the names of the latents that ``pyro.condition`` holds at a value.

    :param trace: of the model, made under :func:`conditions_marked`.
    :param run: runs the model inside a handler, and returns its trace.
    """
    given = {n for n, s in nodes(trace).items() if was_conditioned(s) and role(s) in ("observed", "deterministic")}
    if not given:
        return frozenset()
    sites = {n: s for n, s in nodes(trace).items() if role(s) in ("latent", "observed", "factor", "deterministic")}
    informed = _informed(given, sites, run)
    held: set[str] = set()
    for name in given:
        below = _changed({name: _other(sites[name])}, sites, run)
        needed = any(n not in given and role(sites[n]) in ("observed", "factor") for n in below)
        idle = name not in informed and not _starts_series(name, given & informed, below, sites)
        if needed or idle:
            held.add(name)
    replaced = tuple(f"{n}_" for n in held if role(sites[n]) == "deterministic")  # by a reparametrisation
    auxiliaries = {n for n, s in sites.items() if n.startswith(replaced) and is_observed(s)}
    return frozenset(held | auxiliaries)


def _informed(given: set[str], sites: Mapping[str, Any], run: Runner) -> set[str]:
    """Return those of some conditioned sites whose density depends on a latent or a parameter.

    It may do so at some values only, as the density after a series that begins with zero, so others are tried too.
    """
    latents = {n: s for n, s in sites.items() if is_latent(s)}
    found: set[str] = set()
    for attempt in range(_TRIES):
        values = _values(sites) | ({n: _other(sites[n]) for n in given} if attempt else {})
        with torch.enable_grad():
            one = nodes(run(Put(values)))
            told = {n for n in given if n in one and role(sites[n]) == "observed"}
            found |= {n for n in told if one[n]["fn"].log_prob(sites[n]["value"]).requires_grad}
        if latents:
            other = nodes(run(Put(values | {n: _other(s) for n, s in latents.items()})))
            found |= {n for n in told if n in other and _differ(one[n]["fn"], other[n]["fn"], sites[n]["value"])}
        if found >= told or (attempt and not latents):
            break
    return found


def _starts_series(name: str, data: set[str], below: set[str], sites: Mapping[str, Any]) -> bool:
    """Tell whether a site is the start of a series ``x_0, x_1, x_2, ...`` of one kind, all the rest of which is data."""
    kind = type(sites[name]["fn"])
    rest = [n for n in data if _series(n) == _series(name) and isinstance(sites[n]["fn"], kind)]
    following = [n for n in rest if n in below]
    return len(rest) + 1 >= _LEAST_SERIES and bool(following)


def _series(name: str) -> str:
    """Return what the names ``x_0``, ``x_1``, ... of a series have in common; a name without a number has it alone."""
    return re.sub(r"\d+", "#", name)


def _other(site: Any) -> Tensor:
    """Return another value that a site could have."""
    fn, value = site["fn"], site["value"]
    if role(site) == "deterministic":  # of a reparametrisation: a point mass, which draws nothing else
        return 1.01 * value + 0.01
    drawn: Tensor = value
    try:
        for _ in range(_TRIES):
            drawn = fn.sample()
            if not torch.equal(drawn.expand_as(value) if drawn.dim() < value.dim() else drawn, value):
                break
    except NotImplementedError:  # it has no sampler
        to = biject_to(plain_support(fn))
        drawn = to(to.inv(value) + 0.1)
    return drawn


def _values(sites: Mapping[str, Any]) -> dict[str, Tensor]:
    return {n: s["value"] for n, s in sites.items() if role(s) in ("latent", "observed")}


def _changed(new: Mapping[str, Tensor], sites: Mapping[str, Any], run: Runner) -> set[str]:
    """Return the sites whose distributions, or whose values if they are deterministic, change with the values of others."""
    found = nodes(run(Put({**_values(sites), **new})))
    changed = set()
    for name, site in sites.items():
        if name in new or name not in found:
            continue
        if role(site) == "deterministic":
            before, after = site["value"], found[name]["value"]
            if before.shape != after.shape or not torch.equal(before, after):
                changed.add(name)
        elif _differ(site["fn"], found[name]["fn"], site["value"]):
            changed.add(name)
    return changed


def _differ(one: Any, other: Any, value: Any) -> bool:
    """Tell whether two distributions give a value different densities."""
    before, after = (torch.nan_to_num(fn.log_prob(value)) for fn in (one, other))
    return before.shape != after.shape or not torch.equal(before, after)
