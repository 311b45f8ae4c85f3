"""What the lowering of one operation needs of the rest: results so far, expressions, constants and the schedule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.fx import Node

from guides.compile.native.expressions import Buffer, Call, Const, Tree, Value, checked
from guides.compile.native.kernels import Schedule
from guides.compile.native.placement import Homes

__all__ = ["Context", "Operations", "Result"]

Result: TypeAlias = Any
"""A :class:`Value`, a sequence of them, or ``None`` for memory that has not been written to."""

Operation: TypeAlias = Callable[..., Result]


class Operations(dict[str, Operation]):
    """Functions by the names of the operations that they lower.

    A function takes a :class:`Context`, the node, and all arguments of the operation with values for nodes.
    """

    def __call__(self, *names: str) -> Callable[[Operation], Operation]:
        """Return a decorator that enters a function under some names."""

        def enter(function: Operation) -> Operation:
            self.update(dict.fromkeys(names, function))
            return function

        return enter


class Context:
    """A graph that is being lowered.

    :ivar results: by node.
    :ivar constants: buffers of constants, and their values.
    """

    def __init__(self) -> None:
        self.schedule = Schedule()
        self.homes = Homes(self.schedule)
        self.results: dict[Node, Result] = {}
        self.constants: list[tuple[Buffer, Tensor]] = []
        self._known: dict[Any, Call] = {}

    def get(self, value: Any) -> Any:
        """Return an argument of a node with results for the nodes in it."""
        if isinstance(value, Node):
            return self.results[value]
        if isinstance(value, list | tuple):
            return [self.get(v) for v in value]
        return value

    def stored(self, value: Value) -> Value:
        """Return the tensor as reads of memory."""
        return value if value.is_stored else self.schedule.store(value)

    def constant(self, value: Tensor) -> Value:
        """Return a tensor whose numbers are known now."""
        if value.numel() and bool((value == value.flatten()[0]).all()):
            return Value(tuple(value.shape), Const(value.flatten()[0].item(), checked(value.dtype)))
        for buffer, known in self.constants:
            if known.dtype == value.dtype and known.shape == value.shape and torch.equal(known, value):
                return Value.of(buffer, tuple(value.shape))
        buffer = Buffer(f"c{len(self.constants)}", checked(value.dtype), value.numel())
        self.constants.append((buffer, value.detach().contiguous()))
        return Value.of(buffer, tuple(value.shape))

    def call(self, code: str, args: Sequence[Tree], dtype: torch.dtype) -> Call:
        """Return a C++ expression, the same object for the same expression."""
        key = (code, tuple(a if not isinstance(a, Call) else id(a) for a in args), dtype)
        if key not in self._known:
            self._known[key] = Call(code, tuple(args), checked(dtype))
        return self._known[key]

    def cast(self, value: Value, dtype: torch.dtype) -> Value:
        """Return a tensor converted to another type."""
        if value.dtype == dtype:
            return value
        if isinstance(value.tree, Const):
            return Value(value.shape, Const(torch.tensor(value.tree.value).to(dtype).item(), dtype))
        # Compilers make branches of a bool that is converted, which keeps them from vectorising.
        code = "({0} ? @(1) : @(0))" if value.dtype == torch.bool else "@({0})"
        return Value(value.shape, self.call(code, [value.tree], dtype))

    def apply(self, code: str, *args: Value | float, dtype: torch.dtype | None = None) -> Value:
        """Return an expression of tensors, broadcast to each other, and numbers of their type."""
        tensors = [a for a in args if isinstance(a, Value)]
        shape = tuple(torch.broadcast_shapes(*(a.shape for a in tensors)))
        result = dtype or tensors[0].dtype
        trees = [a.expand(shape).tree if isinstance(a, Value) else Const(a, tensors[0].dtype) for a in args]
        return Value(shape, self.call(code, trees, result))
