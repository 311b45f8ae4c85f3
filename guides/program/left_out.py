"""Observations that were left out: ``obs=y`` where y is ``None`` makes a latent of what should be data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from guides.errors import DataError
from guides.program.data import Data
from guides.program.inputs import signature_of
from guides.program.parameters import isolated_store
from guides.program.sites import nodes
from guides.program.words import MODEL_ERRORS

__all__ = ["check_observed"]


class _StandIn(Tensor):
    """A tensor that stays recognisable through views and arithmetic."""


class _Observes(Messenger):
    """Note which sites observe a stand-in, and draw them instead."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] and isinstance(msg["value"], _StandIn) and not msg["infer"].get("_deterministic"):
            self.found.append(msg["name"])
            msg["is_observed"], msg["value"] = False, None


def check_observed(model: Callable[..., Any], prototype: Trace, data: Data) -> None:
    """Check that a model without observations was not meant to have some.

    A model in which nothing is observed is fitted to its prior, and that is fine, unless it has an argument that defaults to
    ``None`` and is ``None``: such an argument is how Pyro models take their observations or leave them out.

    :param prototype: a trace of the model on ``data``.
    :raises DataError: naming the argument and the sites that it would have observed.
    """
    if any(
        s["type"] == "sample" and s["is_observed"] and not s["infer"].get("_deterministic")
        for s in nodes(prototype).values()
    ):
        return
    for name, site in _sites_of_left_out(model, data).items():
        if site is None or site:
            latent = f"; {', '.join(map(repr, site))} would be fitted as a latent" if site else ""
            raise DataError(
                f"nothing is observed: the model's argument {name!r} was left out (it is None){latent}. Pass it, after the "
                f"other data. To approximate the prior on purpose, pass a model that has no such argument"
            )


def _sites_of_left_out(model: Callable[..., Any], data: Data) -> dict[str, list[str] | None]:
    """Return, for every argument that was left out, the sites that observe it; ``None`` where that cannot be seen."""
    signature = signature_of(model)
    if signature is None:
        return {}
    given = signature.bind(*data.args, **data.kwargs).arguments
    left_out = [n for n, p in signature.parameters.items() if p.default is None and given.get(n) is None]
    found: dict[str, list[str] | None] = {}
    for name in left_out:
        value = torch.ones((data.size,) if data.size else ()).as_subclass(_StandIn)
        arguments = signature.bind(*data.args, **data.kwargs)
        arguments.arguments[name] = value
        seen = _Observes()
        with isolated_store(), torch.random.fork_rng(), torch.no_grad():
            try:
                with seen:
                    poutine.trace(model).get_trace(*arguments.args, **arguments.kwargs)
                found[name] = seen.found
            except MODEL_ERRORS:
                found[name] = seen.found or None
    return found
