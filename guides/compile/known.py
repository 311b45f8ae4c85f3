"""Numbers that are the same at every replay of a graph, so that Python may look at them while the graph is recorded.

Lengths of sequences decide how many steps a model takes. Python that looks at a tensor ends a recording, since the next call
might find another number there; not where the tensor follows from inputs that never change.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, get_proxy_mode, get_proxy_slot
from torch.overrides import TorchFunctionMode

__all__ = ["fixed_inputs", "is_known", "known_from_here"]

_MADE_HERE = "_known_while_traced"
_FIXED: ContextVar[frozenset[int]] = ContextVar("fixed", default=frozenset())
_LOOKS = (
    Tensor.item,
    Tensor.tolist,
    Tensor.numpy,
    Tensor.__bool__,
    Tensor.__float__,
    Tensor.__index__,
    Tensor.__int__,
    torch.is_nonzero,
)
_COUNTS = (torch.arange, torch.full, torch.narrow, torch.ones, torch.zeros, Tensor.expand, Tensor.narrow, Tensor.new_zeros)
_OF_A_TENSOR = (torch.narrow, Tensor.expand, Tensor.narrow, Tensor.new_zeros)
_INDEXES = (Tensor.__getitem__, Tensor.__setitem__)


@contextmanager
def fixed_inputs(positions: frozenset[int]) -> Iterator[None]:
    """Inside the block, let Python look at numbers that follow from the inputs at ``positions`` alone."""
    token = _FIXED.set(positions)
    try:
        with _Looking():
            yield
    finally:
        _FIXED.reset(token)


def known_from_here(tensor: Tensor) -> Tensor:
    """Return a tensor that was made of known numbers while nothing was recorded, with a mark that says so."""
    setattr(tensor, _MADE_HERE, True)
    return tensor


def is_known(tensor: Tensor) -> bool:
    """Tell whether, while a graph is recorded, a tensor's values are the same at every replay of it."""
    tensor = _inside(tensor)
    mode = get_proxy_mode()
    if mode is None or _functorch.is_functorch_wrapped_tensor(tensor):
        return False
    if hasattr(tensor, _MADE_HERE):
        return True
    slot = get_proxy_slot(tensor, mode.tracer, None)
    if slot is None:  # from outside, and a constant of the graph
        return True
    inputs = [node for node in mode.tracer.graph.nodes if node.op == "placeholder"]
    fixed = {inputs[i] for i in _FIXED.get() if i < len(inputs)}
    seen: set[Any] = set()
    behind = [slot.proxy.node]
    while behind:
        node = behind.pop()
        changes = node.op == "placeholder" and node not in fixed
        if changes or torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            return False
        if node not in seen:
            seen.add(node)
            behind.extend(node.all_input_nodes)
    return True


class _Looking(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if get_proxy_mode() is not None:
            if func in _LOOKS and is_known(args[0]):
                with disable_proxy_modes_tracing():
                    return func(_inside(args[0]), *args[1:], **(kwargs or {}))
            if func in _INDEXES:
                args = (args[0], _with_bounds(args[1]), *args[2:])
            elif func in _COUNTS:
                whole = args[:1] if func in _OF_A_TENSOR else ()  # the tensor itself, which may be a whole number, too
                args = (*whole, *(_number(a) for a in args[len(whole) :]))
        return func(*args, **(kwargs or {}))


def _number(value: Any) -> Any:
    """Return a known whole number as one of Python's; kernels that take a tensor for a number look at it by themselves."""
    if not isinstance(value, Tensor) or value.dim() or value.is_floating_point() or not is_known(value):
        return value
    with disable_proxy_modes_tracing():
        return _inside(value).item()


def _with_bounds(index: Any) -> Any:
    if isinstance(index, tuple):
        return tuple(_with_bounds(i) for i in index)
    return slice(*map(_number, (index.start, index.stop, index.step))) if isinstance(index, slice) else index


def _inside(tensor: Tensor) -> Tensor:
    while _functorch.is_gradtrackingtensor(tensor):
        tensor = _functorch.get_unwrapped(tensor)
    return tensor
