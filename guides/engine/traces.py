"""Reading Pyro's traces, whose own types promise less than a trace of a sample statement holds."""

from __future__ import annotations

from typing import Any

from pyro.poutine.trace_struct import Trace

__all__ = ["nodes"]


def nodes(trace: Trace | None) -> dict[str, Any]:
    """Return the sites of a trace by name, in order; an autoguide that was never called has none."""
    return {} if trace is None else dict[str, Any](trace.nodes)
