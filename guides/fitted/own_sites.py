"""What the sites of a guide are where the model's latents are given: for the guide's density at values of the latents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from pyro.infer.autoguide import AutoContinuous, AutoGuide, AutoGuideList, AutoNormal
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import biject_to

from guides.errors import UnsupportedModelError
from guides.families.base import Family
from guides.program.parameters import reachable_modules
from guides.program.sites import nodes

__all__ = ["trace_at"]


def trace_at(guide: Callable[..., Any], latents: dict[str, Tensor], args: Any, kwargs: dict[str, Any]) -> Trace:
    """Return a trace of a guide that made given values of the model's latents.

    Automatic guides draw sites of their own and make the latents from them; so do the parts of a list of guides, and those
    that a function calls. All are given the values that stand for the latents.

    :raises UnsupportedModelError: naming a site of the guide's own whose value at these latents nobody knows.
    """
    values = _own_values(guide, latents)
    trace = poutine.trace(poutine.condition(guide, data=values)).get_trace(*args, **kwargs)
    if not isinstance(guide, Family):
        for name, site in nodes(trace).items():
            drawn = site["type"] == "sample" and not site["is_observed"] and site["infer"].get("is_auxiliary")
            if drawn and not site["infer"].get("stratum"):
                raise UnsupportedModelError(
                    f"the guide draws a site of its own, {name!r}, whose value at given latents is not known, so its "
                    "density there is not either; use a family of guides, or Pyro's AutoNormal or one of its flat autoguides"
                )
    return trace


def _own_values(guide: Any, latents: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the values of a guide's sites, those of the model's latents where the guide draws them themselves."""
    if isinstance(guide, Family):
        return guide.site_values(latents)
    if isinstance(guide, AutoGuideList):
        return {name: value for part in guide for name, value in _own_values(part, latents).items()}
    if isinstance(guide, AutoGuide):
        return _of_autoguide(guide, {name: latents[name] for name in _latents_of(guide) if name in latents})
    values = dict(latents)
    called = [m for m in reachable_modules(guide) if isinstance(m, AutoGuide) and _latents_of(m)]
    inner = {id(m) for c in called for m in c.modules() if m is not c}
    for part in called:
        if id(part) not in inner:
            for name in _latents_of(part):
                values.pop(name, None)
            values |= _own_values(part, latents)
    return values


def _latents_of(guide: AutoGuide) -> list[str]:
    """Return the names of the latents that an automatic guide draws, none before its first call."""
    return [] if guide.prototype_trace is None else [name for name, _ in guide.prototype_trace.iter_stochastic_nodes()]


def _of_autoguide(guide: AutoGuide, latents: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the values of the sites of one of Pyro's automatic guides."""
    if not isinstance(guide, AutoNormal | AutoContinuous):
        return latents  # the sites are the latents, or what is not known, which the trace shows
    free = {name: biject_to(nodes(guide.prototype_trace)[name]["fn"].support).inv(value) for name, value in latents.items()}
    if isinstance(guide, AutoNormal):
        return {f"{name}_unconstrained": value for name, value in free.items()}
    return {f"_{guide._pyro_name}_latent": torch.cat([value.reshape(-1) for value in free.values()])}
