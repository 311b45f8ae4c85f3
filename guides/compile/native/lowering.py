"""From the graph of a step to kernels."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from guides.compile.native.context import Context, Result
from guides.compile.native.expressions import Buffer, Const, Read, Unsupported, Value, calls, checked, row_major
from guides.compile.native.kernels import Schedule
from guides.compile.native.nodes import arguments, name_of, writes
from guides.compile.native.ops.factorisations import FACTORISATIONS
from guides.compile.native.ops.indexing import INDEXING
from guides.compile.native.ops.placing import MEMORY
from guides.compile.native.ops.pointwise import COMPOSED, POINTWISE, pointwise
from guides.compile.native.ops.products import PRODUCTS
from guides.compile.native.ops.reductions import REDUCTIONS
from guides.compile.native.ops.views import VIEWS

__all__ = ["Lowered", "lower"]

_OPERATIONS = {**VIEWS, **MEMORY, **INDEXING, **COMPOSED, **REDUCTIONS, **PRODUCTS, **FACTORISATIONS}
_LARGEST_TREE = 40


@dataclass
class Lowered:
    """The kernels of a graph.

    :ivar constants: buffers of constants, and their values.
    :ivar inputs: a buffer for every placeholder.
    :ivar outputs: where the results lie, row-major, in buffers of their own.
    """

    schedule: Schedule
    constants: list[tuple[Buffer, Tensor]]
    inputs: list[Buffer] = field(default_factory=list)
    outputs: list[Buffer] = field(default_factory=list)


def lower(graph: GraphModule) -> Lowered:
    """Return the kernels of a graph of tensor operations.

    :raises Unsupported: if there is one that has none.
    """
    return _Lowering(graph).run()


class _Lowering:
    def __init__(self, graph: GraphModule) -> None:
        self._graph = graph
        self._context = Context()
        self._results = self._context.results
        self._schedule = self._context.schedule
        self._made = Lowered(self._schedule, self._context.constants)
        self._readers: dict[Node, int] = {}

    def run(self) -> Lowered:
        nodes = list(self._graph.graph.nodes)
        for node in reversed(nodes):
            self._readers[node] = sum(self._readers[u] if _is_view(u) else 1 for u in node.users)
            if node.target is torch.ops.aten.cat.default:
                self._context.homes.find(node)
        for node in nodes:
            self._results[node] = self._lower(node)
        return self._made

    def _lower(self, node: Node) -> Result:
        if node.op == "placeholder":
            value = node.meta["val"]
            buffer = Buffer(f"in{len(self._made.inputs)}", checked(value.dtype), value.numel())
            self._made.inputs.append(buffer)
            return Value.of(buffer, tuple(value.shape))
        if node.op == "get_attr":
            return self._context.constant(operator.attrgetter(str(node.target))(self._graph))
        if node.op == "output":
            for result in self._context.get(node.args[0]):
                self._made.outputs.append(_buffer(self._schedule.store(result)))
            return None
        if node.target is operator.getitem:
            return self._results[node.args[0]][node.args[1]]  # type: ignore[index]
        if writes(node):
            self._check_writable(node)
        elif any(isinstance(n, Node) and self._results[n] is None for n in node.args):
            raise Unsupported(f"{node.target} of memory that was not written to")
        if isinstance(node.meta.get("val"), Tensor):
            folded = self._folded(node)
            if folded is not None:
                return folded
        result = self._expressed(node)
        if isinstance(result, Value):
            result = self._kept(node, result)
        return self._written(node, result) if writes(node) else result

    def _expressed(self, node: Node) -> Result:
        """Return what the function for an operation makes of it."""
        name, args = name_of(node), arguments(node)
        overload = f"{name.removesuffix('_')}.{node.target._overloadname}"  # type: ignore[union-attr]
        if overload in POINTWISE:
            return pointwise(self._context, node, overload, args)
        if name not in _OPERATIONS:
            raise Unsupported(str(node.target))
        return _OPERATIONS[name](self._context, node, *self._context.get(args))

    def _aliases(self, node: Node) -> Iterator[Node]:
        """Yield an operation and those before now that return its memory or parts of it, each after what it is made of."""
        yield node
        for user in node.users:
            if user in self._results and user.args[0] is node and (writes(user) or _is_view(user)):
                yield from self._aliases(user)

    def _check_writable(self, node: Node) -> None:
        """Check that an operation writes to memory of the graph: to a part, or to all of what has no parts elsewhere."""
        origin, is_part = _origin(node)
        if origin.op != "call_function" or isinstance(self._results[origin], list):
            raise Unsupported(f"{node.target} of memory that others may see")
        if not is_part and any(_is_view(alias) for alias in self._aliases(origin)):
            raise Unsupported(f"{node.target} of memory of which there are views")

    def _written(self, node: Node, result: Value) -> Value:
        """Give everything that shares the memory to which an operation writes its new value, and return the node's.

        Others may still have to read the old one, so that a part is written to a copy.
        """
        origin, is_part = _origin(node)
        if not is_part:
            for alias in self._aliases(origin):
                self._results[alias] = result
            return result
        whole = self._schedule.store(self._results[origin])
        for alias in self._aliases(origin):
            if alias is origin:
                self._results[alias] = whole
            elif writes(alias):
                self._results[alias] = self._results[alias.args[0]]  # type: ignore[index]
            elif alias.target is operator.getitem:
                self._results[alias] = self._results[alias.args[0]][alias.args[1]]  # type: ignore[index]
            else:
                self._results[alias] = self._expressed(alias)
            if isinstance(self._results[alias], Value) and not _lies_in(self._results[alias], whole):
                raise Unsupported(f"{node.target} of a part that is no view here")
        place = self._results[node.args[0]]  # type: ignore[index]
        return self._schedule.store(result, place)

    def _kept(self, node: Node, result: Value) -> Value:
        """Store what several operations read or what has become long; leave other expressions to those who read them."""
        if tuple(result.shape) != tuple(node.meta["val"].shape):
            raise Unsupported(f"{node.target} of these arguments")
        result = self._context.cast(result, node.meta["val"].dtype)
        count = calls(result.tree)
        if _is_view(node):
            return result
        if (self._readers[node] > 1 and count) or count > _LARGEST_TREE:
            return self._schedule.store(result)
        return result

    def _folded(self, node: Node) -> Value | None:
        """Return the result of an operation whose arguments are known now."""
        like = name_of(node).startswith(("new_", "empty")) or name_of(node).endswith("_like")
        if name_of(node).startswith(("empty", "new_empty")) or _is_view(node):
            return None
        values = {}
        for n in node.all_input_nodes:
            found = self._results[n]
            if like and n is node.args[0]:
                meta = n.meta["val"]
                values[n] = torch.zeros((), dtype=meta.dtype).expand(meta.shape)
            elif isinstance(found, Value) and isinstance(found.tree, Const):
                values[n] = torch.full((), found.tree.value, dtype=found.dtype).expand(found.shape)
            else:
                return None
        if writes(node) or getattr(node.target, "_schema", None) is None:
            return None
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise Unsupported(f"{node.target}, which draws random numbers")
        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), values.__getitem__)
        with torch.no_grad():
            found = node.target(*args, **kwargs)  # type: ignore[operator]
        return self._context.constant(found) if isinstance(found, Tensor) else None


def _buffer(value: Value) -> Buffer:
    assert isinstance(value.tree, Read) and value.tree.offset == 0 and value.tree.strides == row_major(value.shape)
    return value.tree.buffer


def _is_view(node: Node) -> bool:
    return node.target is operator.getitem or name_of(node) in VIEWS


def _origin(node: Node) -> tuple[Node, bool]:
    """Return the operation that made the memory which an operation changes, and whether it only changes a part of it."""
    is_part = False
    while writes(node) or _is_view(node):
        is_part = is_part or _is_view(node)
        node = node.args[0]  # type: ignore[assignment]
    return node, is_part


def _lies_in(value: Value, whole: Value) -> bool:
    return value.is_stored and value.tree.buffer is whole.tree.buffer  # type: ignore[union-attr]
