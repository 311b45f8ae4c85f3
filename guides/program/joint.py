"""Guide and model run together: the model on the guide's draws."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from pyro import poutine
from pyro.distributions import Delta
from pyro.poutine.trace_struct import Trace

from guides.program.guide import as_guide
from guides.program.parameters import detached_parameters
from guides.program.rows import evaluate_densities
from guides.program.sites import nodes

__all__ = ["frozen_guide_trace", "joint_traces"]


def joint_traces(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    intercept: bool = True,
) -> tuple[Trace, Trace]:
    """Run guide, then model on the guide's draws, and return the traces of both.

    A guide may change how the model's arithmetic is carried out on its draws (local reparameterisation does) by a method
    ``around_model(guide_trace)`` that returns a context manager.

    :param intercept: let the guide do so. Such arithmetic has the right mean of the log joint, but the log joint is then not
        that of any one draw, as importance weights have to be.
    """
    guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
    with as_guide(guide).around_model(guide_trace) if intercept else nullcontext():
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
    return model_trace, guide_trace


def frozen_guide_trace(
    guide: Callable[..., Any], guide_trace: Trace, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Trace:
    """Run the guide again on the draws of ``guide_trace``, with its parameters as constants.

    The log densities of the new trace depend on parameters through the draws alone.
    """
    drawn = Trace()
    for name, site in nodes(guide_trace).items():
        # Points, such as the parts of a flat vector, are left out: the guide makes them again from the draws.
        if site["type"] == "sample" and not isinstance(site["fn"], Delta):
            drawn.add_node(name, **site)
    with detached_parameters(guide):
        return evaluate_densities(poutine.trace(poutine.replay(guide, trace=drawn)).get_trace(*args, **kwargs))
