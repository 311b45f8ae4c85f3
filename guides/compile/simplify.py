"""Take out of a traced graph what it does for nothing.

Handlers, broadcasting and automatic differentiation leave much behind: views to the shape that a tensor has, factors of one,
first powers, sums over one element, chains of views that end where they began, constants made anew at every step. What is
left out changes no number.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

__all__ = ["simplified", "with_constants_computed"]

aten = torch.ops.aten

_COPIES = (aten.detach.default, aten.alias.default)
# These keep all elements and their order, so that between two of them shapes alone tell whether anything happened.
_RESHAPES = (
    aten.view.default,
    aten._unsafe_view.default,
    aten.unsqueeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.squeeze.default,
)
_NEUTRAL = {
    aten.mul.Tensor: 1,
    aten.mul.Scalar: 1,
    aten.div.Tensor: 1,
    aten.div.Scalar: 1,
    aten.pow.Tensor_Scalar: 1,
    aten.add.Tensor: 0,
    aten.add.Scalar: 0,
    aten.sub.Tensor: 0,
    aten.sub.Scalar: 0,
}
_REDUCTIONS = (aten.sum.dim_IntList, aten.mean.dim)
# What these return does not depend on the numbers that they are given.
_LIKE = (
    aten.new_full.default,
    aten.new_ones.default,
    aten.new_zeros.default,
    aten.full_like.default,
    aten.ones_like.default,
    aten.zeros_like.default,
)
_LARGEST_CONSTANT = 1 << 18  # bytes; a larger one is read from memory no faster than it is made


def simplified(graph: GraphModule) -> GraphModule:
    """Return the graph without operations that do nothing, that nobody needs, or that repeat another one."""
    nodes = graph.graph.nodes
    for node in nodes:
        if _fills(node) and not node.users and len(node.args[0].users) == 1:
            graph.graph.erase_node(node)
    if not any(_writes(node) for node in nodes):
        first: dict[Any, Node] = {}
        for node in nodes:
            same = _same_as(graph, node)
            if same is None and node.op == "call_function" and _repeatable(node):
                original = first.setdefault((node.target, repr(node.args), repr(node.kwargs)), node)
                same = None if original is node else original
            if same is not None and _layout(same) == _layout(node):  # a later view may need the layout
                node.replace_all_uses_with(same)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def with_constants_computed(graph: GraphModule) -> GraphModule:
    """Return a copy of the graph in which whatever does not depend on the inputs' values has been computed.

    For replaying: a compiler folds constants itself, and better if it sees how they are made.
    """
    folded = GraphModule(graph, copy.deepcopy(graph.graph))
    if any(_writes(node) for node in folded.graph.nodes):
        return folded
    known: dict[Node, Tensor] = {}
    for node in folded.graph.nodes:
        value = _constant(folded, node, known)
        if value is not None and value.untyped_storage().nbytes() <= _LARGEST_CONSTANT:
            known[node] = value
    for number, (node, value) in enumerate(known.items()):
        if node.op != "get_attr" and any(user not in known for user in node.users):
            name = f"_constant_{number}"
            folded.register_buffer(name, value, persistent=False)
            with folded.graph.inserting_before(node):
                node.replace_all_uses_with(folded.graph.get_attr(name))
    folded.graph.eliminate_dead_code()
    folded.recompile()
    return folded


def _same_as(graph: GraphModule, node: Node) -> Node | None:
    """Return an earlier node that always has this node's value, or one of fewer operations made for it, if there is any."""
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], Node):
        return None
    of = node.args[0]
    if node.target in _COPIES:
        return of
    if _kind(node) is None or _kind(of) is None:
        return None
    if node.target in _RESHAPES or (node.target is aten.expand.default and _kind(node) == _kind(of)):
        return _where_reshaping_began(node)
    if node.target in _NEUTRAL and len(node.args) == 2 and not node.kwargs:
        number = node.args[1]
        neutral = isinstance(number, int | float) and number == _NEUTRAL[node.target]
        return of if neutral and _kind(node) == _kind(of) else None
    if node.target is aten.neg.default and of.target is aten.neg.default:
        return of.args[0]  # type: ignore[return-value]
    if node.target in _REDUCTIONS and not node.kwargs and _kind(node)[1] == _kind(of)[1]:
        return _squeeze(graph, node, of)
    return None


def _where_reshaping_began(node: Node) -> Node | None:
    """Return the node of the same shape from which only reshaping has led to this one."""
    start = node
    while True:
        start = start.args[0]  # type: ignore[assignment]
        if _kind(start) is None:
            return None
        if _kind(start) == _kind(node):
            return start
        if start.target not in _RESHAPES:
            return None


def _squeeze(graph: GraphModule, node: Node, of: Node) -> Node | None:
    """Return a view instead of a reduction over dimensions of size one."""
    before = _value(of).shape
    dims = node.args[1]
    if not dims or any(before[d] != 1 for d in dims):  # type: ignore[union-attr]
        return None
    shape = list(_value(node).shape)
    if _value(of).numel() == 0 or not _value(of).is_contiguous():
        return None
    with graph.graph.inserting_before(node):
        view = graph.graph.call_function(aten.view.default, (of, shape))
    view.meta["val"] = _value(node)
    return _where_reshaping_began(view) or view


def _value(node: Node) -> Any:
    return node.meta.get("val")


def _kind(node: Node) -> Any:
    """Return shape and type of a node's tensor, ``None`` if it is not a tensor."""
    value = _value(node)
    return (tuple(value.shape), value.dtype) if isinstance(value, Tensor) else None


def _layout(node: Node) -> Any:
    """Return the strides of a node's tensor in the dimensions in which it has more than one element."""
    value = _value(node)
    if not isinstance(value, Tensor):
        return None
    return [stride for size, stride in zip(value.shape, value.stride()) if size > 1]


def _constant(graph: GraphModule, node: Node, known: dict[Node, Tensor]) -> Tensor | None:
    """Return the value of a node that does not depend on those of the inputs, ``None`` for another."""
    if node.op == "get_attr":
        value = getattr(graph, str(node.target), None)
        return value if isinstance(value, Tensor) else None
    if node.op != "call_function" or _kind(node) is None or not _repeatable(node):
        return None
    values: dict[Any, Tensor] = {of: known[of] for of in node.all_input_nodes if of in known}
    if node.target in _LIKE:
        like = _value(node.args[0])  # type: ignore[arg-type]
        values[node.args[0]] = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=like.device)
    if len(values) < len(node.all_input_nodes):
        return None
    args, kwargs = torch.fx.map_arg((node.args, node.kwargs), values.__getitem__)
    try:
        found = node.target(*args, **kwargs)  # type: ignore[operator]
    except RuntimeError:
        return None
    return found if isinstance(found, Tensor) else None


def _fills(node: Node) -> bool:
    """Tell whether a node fills memory fresh from ``empty``, which is how some constants are made."""
    of = node.args[0] if node.args else None
    return node.target is aten.fill_.Scalar and isinstance(of, Node) and "empty" in str(of.target)


def _writes(node: Node) -> bool:
    """Tell whether a node changes a tensor that others may see."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable and not _fills(node)


def _repeatable(node: Node) -> bool:
    """Tell whether the same arguments give the same result, in memory that nobody writes to."""
    tags = getattr(node.target, "tags", ())
    return not (torch.Tag.nondeterministic_seeded in tags or "empty" in str(node.target) or "_." in str(node.target))
