"""Run a pure function of tensors through a graph traced from it, checked against the function itself.

Pyro spends its time in Python. A graph of the tensor operations that one call performs repeats them without the handlers,
traces and distributions that produced them. Tracing is honest only if a second call would perform the same operations, so
the graph's first replay is compared with the function on other numbers, and a function whose Python looks at tensor values
is run as it is.
"""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from guides.errors import EagerFallbackWarning

__all__ = ["CompiledLoop", "Traced", "has_compiler"]

Inputs = tuple[Tensor, ...]
Function = Callable[..., Inputs]


class Traced:
    """A function of tensors that repeats its first call's operations for inputs of the same shapes.

    :param function: pure, from tensors to a tuple of tensors.
    :param what: names the function in warnings.
    :param enabled: ``False`` runs the function as it is, always.
    """

    def __init__(self, function: Function, what: str, enabled: bool = True) -> None:
        self._function = function
        self._what = what
        self.enabled = enabled
        self._graphs: dict[Any, Function] = {}
        self._checked: set[Any] = set()

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return what the function returns."""
        if not self.enabled:
            return self._function(*inputs)
        key = tuple((i.shape, i.dtype) for i in inputs)
        if key not in self._graphs:
            return self._trace(key, inputs)
        if key not in self._checked:
            return self._check(key, inputs)
        return self._graphs[key](*inputs)

    def graph(self, *inputs: Tensor) -> Function | None:
        """Return the checked graph for inputs of these shapes, or ``None``."""
        key = tuple((i.shape, i.dtype) for i in inputs)
        return self._graphs[key] if self.enabled and key in self._checked else None

    def _trace(self, key: Any, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        state = torch.get_rng_state()
        result = self._function(*inputs)
        after = torch.get_rng_state()
        if not self.enabled:  # the function found out that it cannot be traced
            return result
        try:
            torch.set_rng_state(state)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._graphs[key] = make_fx(self._function)(*(i.detach() for i in inputs))
        except Exception as error:  # whatever tracing cannot follow, the function itself just did
            self._fall_back(f"it cannot be traced ({type(error).__name__}: {str(error).strip().splitlines()[0]})")
        finally:
            torch.set_rng_state(after)
        return result

    def _check(self, key: Any, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        state = torch.get_rng_state()
        replayed = self._graphs[key](*inputs)
        torch.set_rng_state(state)
        result = self._function(*inputs)
        if not all(_close(a, b) for a, b in zip(replayed, result)):
            self._fall_back("its operations depend on the values of parameters or data (a Python branch on a tensor?)")
        self._checked.add(key)
        return result

    def _fall_back(self, reason: str) -> None:
        self.enabled = False
        warnings.warn(f"{self._what} runs without acceleration: {reason}", EagerFallbackWarning, stacklevel=4)


def _close(a: Tensor, b: Tensor) -> bool:
    if not a.is_floating_point():
        return torch.equal(a, b)
    size = b[torch.isfinite(b)].abs().max() if torch.isfinite(b).any() else torch.ones(())
    return torch.allclose(a, b, rtol=1e-3, atol=float(1e-4 * size), equal_nan=True)


def has_compiler() -> bool:
    """Tell whether a C++ compiler is there for ``torch.compile`` to use."""
    return any(shutil.which(name) for name in ("g++", "clang++", "c++"))


class CompiledLoop:
    """``steps`` repetitions of a graph, compiled into one call that never returns to Python.

    :param graph: from (state..., shared tensors..., this step's tensors...) to (new state..., losses ``(R,)``).
    :param carried: how many of its inputs are state.
    :param shared: how many are the same at every step.
    :ivar checked: the loop was seen to do what the graph does.
    """

    def __init__(self, graph: Function, carried: int, shared: int, steps: int) -> None:
        from torch._higher_order_ops.while_loop import while_loop

        def run(*inputs: Tensor) -> tuple[Tensor, ...]:
            state, fixed, varying = inputs[:carried], inputs[carried : carried + shared], inputs[carried + shared :]
            losses = torch.zeros(state[0].shape[0], steps, dtype=state[0].dtype, device=state[0].device)

            def more(i: Tensor, *_: Tensor) -> Tensor:
                return i < steps

            def body(i: Tensor, losses: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
                k = i.reshape(1)
                now = [v.index_select(1, k).squeeze(1) for v in varying]
                *new, loss = graph(*state, *fixed, *now)
                return (i + 1, losses.index_copy(1, k, loss.unsqueeze(1)), *new)

            _, losses, *state_out = while_loop(more, body, (torch.tensor(0), losses, *state))
            return (*state_out, losses)

        self.checked = False
        self._run = torch.compile(run, options={"cpp_wrapper": True})

    def __call__(self, state: Inputs, shared: Inputs, varying: Inputs) -> tuple[Inputs, Tensor]:
        """Return the state after all steps, and losses ``(R, steps)``.

        :param varying: the tensors of all steps, shape ``(R, steps, ...)`` each.
        """
        with torch.no_grad():
            *new, losses = self._run(*(s.clone() for s in state), *shared, *varying)
        return tuple(new), losses

    def check(self, state: Inputs, shared: Inputs, varying: Inputs, expected: Inputs) -> bool:
        """Compile, run, and tell whether the outcome is the expected one; warn if it is not."""
        log = logging.getLogger("torch._inductor")
        level = log.level
        log.setLevel(logging.ERROR)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                new, losses = self(state, shared, varying)
        except Exception as error:  # compilers fail in many ways, and none of them may end a fit
            reason = f"compiling it failed ({type(error).__name__}: {str(error).strip().splitlines()[0]})"
        else:
            self.checked = all(_close(a, b) for a, b in zip((*new, losses), expected))
            reason = "the compiled loop gives other numbers"
        finally:
            log.setLevel(level)
        if not self.checked:
            warnings.warn(f"the model runs traced, not compiled: {reason}", EagerFallbackWarning, stacklevel=5)
        return self.checked
