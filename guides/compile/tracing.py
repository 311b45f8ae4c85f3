"""Run a pure function of tensors through a graph traced from it, checked against the function itself.

Pyro spends its time in Python. A graph of the tensor operations that one call performs repeats them without the handlers,
traces and distributions that produced them. Tracing is honest only if a second call would perform the same operations, so
the graph's first replay is compared with the function on other numbers, and a function whose Python looks at tensor values
is run as it is.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from guides.compile.failures import at_site
from guides.compile.fallback import warn_slower
from guides.compile.known import fixed_inputs
from guides.compile.simplify import simplified, with_constants_computed

__all__ = ["Traced", "close", "recorded", "said"]

Inputs = tuple[Tensor, ...]
Function = Callable[..., Inputs]


class Traced:
    """A function of tensors that repeats its first call's operations for inputs of the same shapes.

    :param function: pure, from tensors to a tuple of tensors.
    :param what: names the function in warnings.
    :param enabled: ``False`` runs the function as it is, always.
    :param fixed: positions of inputs that have the same values at every call. Where the function's Python looks at them (at
        the lengths of sequences, say), the graph is recorded for these values.
    """

    def __init__(self, function: Function, what: str, enabled: bool = True, fixed: frozenset[int] = frozenset()) -> None:
        self._function = function
        self._what = what
        self.enabled = enabled
        self._fixed = fixed
        self._graphs: dict[Any, GraphModule] = {}
        self._replays: dict[Any, GraphModule] = {}
        self._checked: set[Any] = set()

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return what the function returns."""
        if not self.enabled:
            return self._function(*inputs)
        key = _shapes(inputs)
        if key not in self._graphs:
            return self._trace(key, inputs)
        if key not in self._checked:
            return self._check(key, inputs)
        return self._replays[key](*inputs)

    def graph(self, *inputs: Tensor) -> GraphModule | None:
        """Return the checked graph for inputs of these shapes, or ``None``."""
        key = _shapes(inputs)
        return self._graphs[key] if self.enabled and key in self._checked else None

    def _trace(self, key: Any, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        state = torch.get_rng_state()
        result = self._function(*inputs)
        after = torch.get_rng_state()
        if not self.enabled:  # the function found out that it cannot be traced
            return result
        try:
            torch.set_rng_state(state)
            graph = simplified(recorded(self._function, [i.detach() for i in inputs], self._fixed))
            self._graphs[key], self._replays[key] = graph, with_constants_computed(graph)
        except Exception as error:  # whatever tracing cannot follow, the function itself just did
            self._fall_back(f"it cannot be traced ({said(error)})")
        finally:
            torch.set_rng_state(after)
        return result

    def check(self, *inputs: Tensor) -> bool:
        """Tell whether the function still does what its graph does, on these inputs; warn and stop using it if not."""
        key = _shapes(inputs)
        if self.enabled and key in self._checked:
            self._check(key, inputs)
        return self.enabled

    def _check(self, key: Any, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        state = torch.get_rng_state()
        replayed = self._replays[key](*inputs)
        torch.set_rng_state(state)
        result = self._function(*inputs)
        if not all(close(a, b) for a, b in zip(replayed, result)):
            late = " since an earlier check; fit again with compile='eager'" if key in self._checked else ""
            self._fall_back(
                f"its operations depend on the values of parameters or data (a Python branch on a tensor?){late}"
            )
        self._checked.add(key)
        return result

    def _fall_back(self, reason: str) -> None:
        self.enabled = False
        warn_slower(f"{self._what} runs without acceleration: {reason}")


def recorded(function: Callable[..., Any], inputs: Sequence[Tensor], fixed: frozenset[int] = frozenset()) -> GraphModule:
    """Return the tensor operations of a call as a graph, without a word.

    :param fixed: positions of inputs at whose values the function may look.
    """
    # What notes the shapes of results; torch makes one anew for each operation where there is none.
    mode = FakeTensorMode(allow_fallback_kernels=True)
    with warnings.catch_warnings(), fixed_inputs(fixed), tracing(TracingContext(mode)):
        warnings.simplefilter("ignore")
        return make_fx(function)(*inputs)


def _shapes(inputs: Sequence[Tensor]) -> Any:
    return tuple((i.shape, i.dtype) for i in inputs)


def said(error: Exception) -> str:
    """Return the kind of an error, the site of the model that it came from, and the first line of its message."""
    reason = str(error).split("Trace Shapes:")[0].strip() or "no reason given"  # Pyro appends a table
    return f"{type(error).__name__}{at_site(error)}: {reason.splitlines()[0]}"


def close(a: Tensor, b: Tensor) -> bool:
    """Tell whether two results of the same operations are equal up to rounding."""
    if not a.is_floating_point():
        return torch.equal(a, b)
    size = b[torch.isfinite(b)].abs().max() if torch.isfinite(b).any() else torch.ones(())
    return torch.allclose(a, b, rtol=1e-3, atol=float(1e-4 * size), equal_nan=True)
