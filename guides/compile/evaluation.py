"""A graph of operations in another precision: what rounding alone can explain is then known."""

from __future__ import annotations

import copy
import operator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

__all__ = ["Reference", "in_precision"]

aten = torch.ops.aten

_PRECISIONS = (torch.float32, torch.float64)
# These only choose elements or move them. Data stay as they are there, so that of a large data set no more is converted than
# the rows that a step takes.
_MOVES = frozenset(
    [
        *("alias", "as_strided", "detach", "diagonal", "expand", "gather", "index", "index_select", "narrow", "permute"),
        *("reshape", "select", "slice", "split", "split_with_sizes", "squeeze", "t", "transpose", "unbind", "unsqueeze"),
        *("view", "_unsafe_view"),
    ]
)
_RESHAPES = (aten.view.default, aten._unsafe_view.default)


class Reference:
    """A graph, and what it is meant to give.

    :ivar graph: as it is.
    :ivar in_double: whether it computes in double precision by itself, in everything.
    :ivar longest: most elements that become one in an operation: how far rounding errors of sums may lead apart.
    """

    def __init__(self, graph: GraphModule) -> None:
        self.graph = graph
        values = [(node, node.meta.get("val")) for node in graph.graph.nodes]
        types = {v.dtype for node, v in values if node.op == "placeholder" and isinstance(v, Tensor)}
        self.in_double = torch.float64 in types and torch.float32 not in types
        self.longest = max((_summed(node) for node, value in values if isinstance(value, Tensor)), default=1)

    @cached_property
    def other(self) -> GraphModule:
        """The same operations in double precision, or, of a graph in double precision, in single precision."""
        return in_precision(self.graph, torch.float32 if self.in_double else torch.float64)


def in_precision(graph: GraphModule, wanted: torch.dtype) -> GraphModule:
    """Return a copy of a graph that computes in single or in double precision, whichever its inputs and constants have."""
    body = copy.deepcopy(graph.graph)
    narrow: set[Node] = set()
    converted: dict[Node, Node] = {}
    writes = any(_name(node).endswith("_") for node in body.nodes)

    def convert(value: Any) -> Any:
        if not isinstance(value, Node):
            return value
        if value not in narrow:
            return value
        if value not in converted:
            with body.inserting_after(value):
                converted[value] = body.call_function(aten._to_copy.default, (value,), {"dtype": wanted})
        return converted[value]

    def typed(value: Any) -> Any:
        return wanted if isinstance(value, torch.dtype) and value in _PRECISIONS else value

    for node in list(body.nodes):
        if node.op in ("placeholder", "get_attr"):
            value = node.meta.get("val") if node.op == "placeholder" else operator.attrgetter(str(node.target))(graph)
            if isinstance(value, Tensor) and value.dtype in _PRECISIONS:
                narrow.add(node)
        elif node.target is operator.getitem or _name(node) in _MOVES:
            if node.args[0] in narrow:
                narrow.add(node)
            if node.target in _RESHAPES and not writes:  # results may lie in memory otherwise than in the graph
                node.target = aten.reshape.default
        else:
            args, kwargs = torch.fx.map_arg((node.args, node.kwargs), convert)
            node.args = tuple(map(typed, args))
            node.kwargs = {name: typed(value) for name, value in kwargs.items()}
    return GraphModule(graph, body)


def _name(node: Node) -> str:
    schema = getattr(node.target, "_schema", None)
    return "" if schema is None else schema.name.split("::")[1]


def _summed(node: Node) -> int:
    """Return how many elements of the largest operand become one of the result, where an operation sums or multiplies."""
    sizes = [v.numel() for n in node.all_input_nodes if isinstance(v := n.meta.get("val"), Tensor)]
    if _name(node) in ("mm", "bmm", "addmm", "baddbmm"):
        first = node.all_input_nodes[-2].meta["val"]
        return int(first.shape[-1])
    if _name(node) not in ("sum", "mean", "dot", "mv", "logsumexp"):
        return 1
    return max(sizes, default=1) // max(1, node.meta["val"].numel())
