"""From the graph of a step to kernels."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from guides.engine.native.pointwise import POINTWISE
from guides.engine.native.schedule import Schedule
from guides.engine.native.values import Buffer, Call, Const, Gather, Read, Tree, Unsupported, Value, calls, row_major

__all__ = ["Lowered", "lower"]

Result = Any
"""A :class:`Value`, a sequence of them, or ``None`` for memory that has not been written to."""

_LARGEST_TREE = 40
_LONGEST_PANEL = 8192
_LONGEST_CUMSUM = 64

_VIEWS = frozenset(
    {
        *("view", "_unsafe_view", "reshape", "expand", "permute", "t", "transpose", "unsqueeze", "squeeze", "select"),
        *("slice", "split_with_sizes", "split", "unbind", "alias", "detach", "diagonal", "flip", "lift_fresh_copy"),
    }
)
_TYPES = frozenset({torch.float32, torch.float64, torch.int64, torch.int32, torch.bool})


class Lowered:
    """The kernels of a graph.

    :ivar inputs: a buffer for every placeholder.
    :ivar constants: buffers of constants, and their values.
    :ivar outputs: where the results lie, row-major, in buffers of their own.
    """

    def __init__(self) -> None:
        self.schedule = Schedule()
        self.inputs: list[Buffer] = []
        self.constants: list[tuple[Buffer, Tensor]] = []
        self.outputs: list[Buffer] = []


def lower(graph: GraphModule) -> Lowered:
    """Return the kernels of a graph of tensor operations.

    :raises Unsupported: if there is one that has none.
    """
    return _Lowering(graph).run()


class _Lowering:
    def __init__(self, graph: GraphModule) -> None:
        self._graph = graph
        self._made = Lowered()
        self._schedule = self._made.schedule
        self._results: dict[Node, Result] = {}
        self._known: dict[Any, Call] = {}
        self._readers: dict[Node, int] = {}
        self._aliases: dict[Node, list[Node]] = {}
        self._homes: dict[Node, tuple[Node, int]] = {}
        self._wholes: dict[Node, Value] = {}

    def run(self) -> Lowered:
        nodes = list(self._graph.graph.nodes)
        for node in reversed(nodes):
            self._readers[node] = sum(self._readers[u] if _is_view(u) else 1 for u in node.users)
            if node.target is torch.ops.aten.cat.default:
                self._find_homes(node)
        for node in nodes:
            self._results[node] = self._lower(node)
        return self._made

    def _find_homes(self, cat: Node) -> None:
        """Note which products of matrices are only made to be put together with others, so that they go there at once."""
        for number, piece in enumerate(cat.args[0]):  # type: ignore[arg-type]
            while isinstance(piece, Node) and len(piece.users) == 1:
                if piece.target in (torch.ops.aten.mm.default, torch.ops.aten.bmm.default):
                    self._homes[piece] = (cat, number)
                    break
                if _name(piece) == "t" and _name(piece.args[0]) == "t" and len(piece.args[0].users) == 1:  # type: ignore
                    piece = piece.args[0].args[0]  # type: ignore[union-attr]
                elif _name(piece) in ("view", "_unsafe_view", "squeeze", "unsqueeze"):
                    piece = piece.args[0]
                else:
                    break

    def _whole(self, cat: Node) -> Value:
        """Return the memory of tensors that are put together."""
        if cat not in self._wholes:
            shape, dtype = tuple(cat.meta["val"].shape), _checked(cat.meta["val"].dtype)
            self._wholes[cat] = Value.of(self._schedule.new(dtype, math.prod(shape)), shape)
        return self._wholes[cat]

    def _places(self, cat: Node) -> list[Value]:
        """Return where the tensors lie that are put together."""
        pieces, dim = _arguments(cat)
        shape, start, places = tuple(cat.meta["val"].shape), 0, []
        dim %= len(shape)
        for piece in pieces:
            size = piece.meta["val"].shape[dim] if piece.meta["val"].dim() == len(shape) else 0
            places.append(self._whole(cat).slice(dim, start, start + size))
            start += size
        return places

    def _lower(self, node: Node) -> Result:
        if node.op == "placeholder":
            value = node.meta["val"]
            buffer = Buffer(f"in{len(self._made.inputs)}", _checked(value.dtype), value.numel(), fixed=True)
            self._made.inputs.append(buffer)
            return Value.of(buffer, tuple(value.shape))
        if node.op == "get_attr":
            return self._constant(operator.attrgetter(str(node.target))(self._graph))
        if node.op == "output":
            for result in self._get(node.args[0]):
                self._made.outputs.append(_buffer(self._schedule.store(result)))
            return None
        if node.target is operator.getitem:
            return self._results[node.args[0]][node.args[1]]  # type: ignore[index]
        name = _name(node)
        if _writes(node):
            self._check_alone(node)
        elif any(isinstance(n, Node) and self._results[n] is None for n in node.args):
            raise Unsupported(f"{node.target} of memory that was not written to")
        if isinstance(node.meta.get("val"), Tensor):
            folded = self._folded(node)
            if folded is not None:
                return folded
        args = _arguments(node)
        overload = f"{name.removesuffix('_')}.{node.target._overloadname}"  # type: ignore[union-attr]
        if overload in POINTWISE:
            result = self._pointwise(node, overload, args)
        else:
            method = getattr(self, f"_op_{name}", None)
            if method is None:
                raise Unsupported(str(node.target))
            result = method(node, *args)
        if isinstance(result, Value):
            result = self._kept(node, result)
        if _writes(node):
            for alias in self._aliases[_memory(node)]:
                self._results[alias] = result
        return result

    def _check_alone(self, node: Node) -> None:
        """Check that the memory to be written to is known by no other names than those of earlier such operations."""
        origin = _memory(node)
        aliases = self._aliases.setdefault(origin, [origin])
        if origin.op != "call_function" or _is_view(origin):
            raise Unsupported(f"{node.target} of memory that others may see")
        for alias in aliases:
            if any(_is_view(user) and user in self._results for user in alias.users):
                raise Unsupported(f"{node.target} of memory of which there are views")
        aliases.append(node)

    def _kept(self, node: Node, result: Value) -> Value:
        """Store what several operations read or what has become long; leave other expressions to those who read them."""
        if tuple(result.shape) != tuple(node.meta["val"].shape):
            raise Unsupported(f"{node.target} of these arguments")
        if result.dtype != node.meta["val"].dtype:
            result = self._cast(result, node.meta["val"].dtype)
        count = calls(result.tree)
        if _is_view(node):
            return result
        if (self._readers[node] > 1 and count) or count > _LARGEST_TREE:
            return self._schedule.store(result)
        return result

    def _get(self, value: Any) -> Any:
        if isinstance(value, Node):
            return self._results[value]
        if isinstance(value, list | tuple):
            return [self._get(v) for v in value]
        return value

    def _stored(self, value: Value) -> Value:
        """Return the tensor as reads of memory."""
        return value if value.is_stored else self._schedule.store(value)

    def _constant(self, value: Tensor) -> Value:
        if value.numel() and bool((value == value.flatten()[0]).all()):
            return Value(tuple(value.shape), Const(value.flatten()[0].item(), _checked(value.dtype)))
        for buffer, known in self._made.constants:
            if known.dtype == value.dtype and known.shape == value.shape and torch.equal(known, value):
                return Value.of(buffer, tuple(value.shape))
        buffer = Buffer(f"c{len(self._made.constants)}", _checked(value.dtype), value.numel(), fixed=True)
        self._made.constants.append((buffer, value.detach().contiguous()))
        return Value.of(buffer, tuple(value.shape))

    def _folded(self, node: Node) -> Value | None:
        """Return the result of an operation whose arguments are known now."""
        like = _name(node).startswith(("new_", "empty")) or _name(node).endswith("_like")
        if _name(node).startswith(("empty", "new_empty")):
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
        if _writes(node) or getattr(node.target, "_schema", None) is None:
            return None
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise Unsupported(f"{node.target}, which draws random numbers")
        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), values.__getitem__)
        with torch.no_grad():
            found = node.target(*args, **kwargs)  # type: ignore[operator]
        return self._constant(found) if isinstance(found, Tensor) else None

    def _call(self, code: str, args: Sequence[Tree], dtype: torch.dtype) -> Call:
        key = (code, tuple(a if not isinstance(a, Call) else id(a) for a in args), dtype)
        if key not in self._known:
            self._known[key] = Call(code, tuple(args), _checked(dtype))
        return self._known[key]

    def _cast(self, value: Value, dtype: torch.dtype) -> Value:
        if value.dtype == dtype:
            return value
        if isinstance(value.tree, Const):
            return Value(value.shape, Const(torch.tensor(value.tree.value).to(dtype).item(), dtype))
        # Compilers make branches of a bool that is converted, which keeps them from vectorising.
        code = "({0} ? @(1) : @(0))" if value.dtype == torch.bool else "@({0})"
        return Value(value.shape, self._call(code, [value.tree], dtype))

    def _apply(self, code: str, *args: Value | float, dtype: torch.dtype | None = None) -> Value:
        """Return an expression of tensors, broadcast to each other, and numbers of their type."""
        tensors = [a for a in args if isinstance(a, Value)]
        shape = tuple(torch.broadcast_shapes(*(a.shape for a in tensors)))
        result = dtype or tensors[0].dtype
        trees = [a.expand(shape).tree if isinstance(a, Value) else Const(a, tensors[0].dtype) for a in args]
        return Value(shape, self._call(code, trees, result))

    def _pointwise(self, node: Node, overload: str, args: list[Any]) -> Value:
        meta = node.meta["val"]
        dtype, shape = meta.dtype, tuple(meta.shape)
        if overload.startswith("bitwise") and dtype != torch.bool:
            raise Unsupported(f"{node.target} of numbers")
        if overload in ("pow.Tensor_Tensor", "pow.Tensor_Scalar", "pow.Scalar") and not dtype.is_floating_point:
            raise Unsupported(f"{node.target} of integers")
        operation = POINTWISE[overload]
        used = [n for n in range(len(args)) if f"{{{n}}}" in operation.code]
        found = {n: self._get(args[n]) for n in used}
        promoted = dtype
        if "p" in operation.types:
            metas = [args[n].meta["val"] if isinstance(args[n], Node) else args[n] for n in used]
            promoted = metas[0].dtype if len(metas) == 1 else torch.result_type(*metas)
        trees: list[Tree] = []
        for n in range(len(args)):
            if n not in found:
                trees.append(Const(0, dtype))
                continue
            wanted = {"r": dtype, "p": promoted, "b": torch.bool}[operation.types[n]]
            value = found[n]
            if isinstance(value, Value):
                trees.append(self._cast(value.expand(shape), wanted).tree)
            elif isinstance(value, bool | int | float):
                trees.append(Const(value, wanted))
            else:
                raise Unsupported(f"{node.target} of {type(value).__name__}")
        if operation.code in ("{0}", "{1}"):
            return Value(shape, trees[used[0]])
        return Value(shape, self._call(operation.code, trees, dtype))

    # Views.

    def _view(self, value: Value, shape: Sequence[int]) -> Value:
        wanted = tuple(shape)
        if value.shape == wanted:
            return value
        found = value.reshape(wanted)
        if found is None:
            found = self._schedule.store(value).reshape(wanted)
        assert found is not None
        return found

    def _op_view(self, node: Node, x: Node, *_: Any) -> Value:
        return self._view(self._get(x), node.meta["val"].shape)

    _op__unsafe_view = _op_reshape = _op_squeeze = _op_unsqueeze = _op_view

    def _op_alias(self, node: Node, x: Node, *_: Any) -> Value:
        return self._get(x)

    _op_detach = _op_lift_fresh_copy = _op_alias

    def _op_expand(self, node: Node, x: Node, *_: Any) -> Value:
        return self._get(x).expand(tuple(node.meta["val"].shape))

    def _op_permute(self, node: Node, x: Node, dims: Sequence[int]) -> Value:
        value = self._get(x)
        return value.permute([d % len(value.shape) for d in dims])

    def _op_t(self, node: Node, x: Node) -> Value:
        value = self._get(x)
        return value.permute(list(reversed(range(len(value.shape)))))

    def _op_transpose(self, node: Node, x: Node, first: int, second: int) -> Value:
        value = self._get(x)
        dims = list(range(len(value.shape)))
        dims[first], dims[second] = dims[second], dims[first]
        return value.permute(dims)

    def _op_select(self, node: Node, x: Node, dim: int, index: int) -> Value:
        value = self._get(x)
        dim %= len(value.shape)
        return value.select(dim, index % value.shape[dim])

    def _op_slice(self, node: Node, x: Node, dim: int = 0, start: Any = None, stop: Any = None, step: int = 1) -> Value:
        value = self._get(x)
        dim %= len(value.shape)
        return value.slice(dim, *slice(start, stop, step).indices(value.shape[dim]))

    def _op_split_with_sizes(self, node: Node, x: Node, sizes: Sequence[int], dim: int = 0) -> list[Value]:
        value, start, pieces = self._get(x), 0, []
        for size in sizes:
            pieces.append(value.slice(dim % len(value.shape), start, start + size))
            start += size
        return pieces

    def _op_split(self, node: Node, x: Node, size: int, dim: int = 0) -> list[Value]:
        sizes = [v.shape[dim] for v in node.meta["val"]]
        return self._op_split_with_sizes(node, x, sizes, dim)

    def _op_unbind(self, node: Node, x: Node, dim: int = 0) -> list[Value]:
        value = self._get(x)
        dim %= len(value.shape)
        return [value.select(dim, i) for i in range(value.shape[dim])]

    def _op_diagonal(self, node: Node, x: Node, offset: int = 0, first: int = 0, second: int = 1) -> Value:
        value = self._get(x)
        first, second = first % len(value.shape), second % len(value.shape)
        if offset > 0:
            value = value.slice(second, offset, value.shape[second])
        elif offset < 0:
            value = value.slice(first, -offset, value.shape[first])
        return value.diagonal(first, second)

    def _op_flip(self, node: Node, x: Node, dims: Sequence[int]) -> Value:
        value = self._get(x)
        for d in dims:
            value = value.flip(d % len(value.shape))
        return value

    # Memory.

    def _op_empty(self, node: Node, *_: Any) -> None:
        return None

    _op_new_empty = _op_empty_like = _op_new_empty_strided = _op_empty_strided = _op_empty

    def _op_cat(self, node: Node, pieces: Sequence[Node], dim: int = 0) -> Value:
        whole = self._whole(node)
        for piece, place in zip(pieces, self._places(node)):
            value = self._get(piece)
            if place.size and not (value.is_stored and value.tree.buffer is whole.tree.buffer):  # type: ignore[union-attr]
                self._schedule.store(self._cast(value, whole.dtype), place)
        return whole

    def _op_stack(self, node: Node, pieces: Sequence[Node], dim: int = 0) -> Value:
        shape = tuple(node.meta["val"].shape)
        dim %= len(shape)
        whole = Value.of(self._schedule.new(node.meta["val"].dtype, math.prod(shape)), shape)
        for i, piece in enumerate(pieces):
            self._schedule.store(self._cast(self._get(piece), whole.dtype), whole.select(dim, i))
        return whole

    def _filled(self, node: Node, number: float, place: Callable[[Value], Value], value: Value) -> Value:
        """Return new memory of one number in which a tensor lies at some place."""
        shape, dtype = tuple(node.meta["val"].shape), node.meta["val"].dtype
        whole = Value.of(self._schedule.new(dtype, math.prod(shape)), shape)
        if place(whole).size < whole.size:
            self._schedule.store(Value(shape, Const(number, dtype)), whole)
        self._schedule.store(value, place(whole))
        return whole

    def _op_select_backward(self, node: Node, grad: Node, sizes: Sequence[int], dim: int, index: int) -> Value:
        dim %= len(sizes)
        if sizes[dim] == 1:
            return self._view(self._get(grad), sizes)
        return self._filled(node, 0.0, lambda w: w.select(dim, index % sizes[dim]), self._get(grad))

    def _op_slice_backward(
        self, node: Node, grad: Node, sizes: Sequence[int], dim: int, start: int, stop: int, step: int
    ) -> Value:
        dim %= len(sizes)
        where = slice(start, stop, step).indices(sizes[dim])
        return self._filled(node, 0.0, lambda w: w.slice(dim, *where), self._get(grad))

    def _op_diagonal_backward(
        self, node: Node, grad: Node, sizes: Sequence[int], offset: int, first: int, second: int
    ) -> Value:
        if offset:
            raise Unsupported("diagonal_backward with an offset")
        dims = first % len(sizes), second % len(sizes)
        return self._filled(node, 0.0, lambda w: w.diagonal(*dims), self._get(grad))

    def _op_constant_pad_nd(self, node: Node, x: Node, padding: Sequence[int], number: float = 0) -> Value:
        value = self._get(x)
        if any(p < 0 for p in padding):
            raise Unsupported("constant_pad_nd that cuts")

        def place(whole: Value) -> Value:
            for i in range(len(padding) // 2):
                dim = len(value.shape) - 1 - i
                whole = whole.slice(dim, padding[2 * i], padding[2 * i] + value.shape[dim])
            return whole

        return self._filled(node, number, place, value)

    def _op_diag_embed(self, node: Node, x: Node, offset: int = 0, first: int = -2, second: int = -1) -> Value:
        rank = len(node.meta["val"].shape)
        if offset or (first % rank, second % rank) != (rank - 2, rank - 1):
            raise Unsupported("diag_embed elsewhere than on the main diagonal of the last dimensions")
        return self._filled(node, 0.0, lambda w: w.diagonal(rank - 2, rank - 1), self._get(x))

    def _op_tril(self, node: Node, x: Node, diagonal: int = 0) -> Value:
        return self._masked(x, torch.ones(node.meta["val"].shape, dtype=torch.bool).tril(diagonal))

    def _op_triu(self, node: Node, x: Node, diagonal: int = 0) -> Value:
        return self._masked(x, torch.ones(node.meta["val"].shape, dtype=torch.bool).triu(diagonal))

    def _masked(self, x: Node, mask: Tensor) -> Value:
        value = self._get(x)
        return self._apply("({1} ? {0} : 0)", value, self._constant(mask), dtype=value.dtype)

    # Memory that other memory leads to.

    def _followed(self, value: Value, indices: Sequence[Value | None]) -> Value:
        """Return the elements of stored memory at ``indices``, one for each dimension, ``None`` for all of it."""
        assert isinstance(value.tree, Read)
        given = [d for d, index in enumerate(indices) if index is not None]
        found = [index for index in indices if index is not None]
        if any(index.dtype != torch.int64 for index in found) or given != list(range(given[0], given[-1] + 1)):
            raise Unsupported("an index that is a mask, or indices of dimensions that are apart")
        middle = tuple(torch.broadcast_shapes(*(index.shape for index in found)))
        before, after = value.shape[: given[0]], value.shape[given[-1] + 1 :]
        shape, strides = (*before, *middle, *after), value.tree.strides
        gathers = []
        for d, index in zip(given, found):
            led = self._stored(index).expand(middle)
            for _ in after:
                led = led.unsqueeze(len(led.shape))
            gathers.append(Gather(led.expand(shape).tree, value.shape[d], strides[d]))
        steps = (*strides[: given[0]], *(0 for _ in middle), *strides[given[-1] + 1 :])
        return Value(shape, Read(value.tree.buffer, value.tree.offset, steps, tuple(gathers)))

    def _along(self, value: Value, dim: int, index: Value) -> Value:
        """Return the elements of stored memory at ``index`` along a dimension and at the same place along the others."""
        assert isinstance(value.tree, Read)
        if not value.shape or index.dtype != torch.int64:
            raise Unsupported("gather or scatter of a scalar")
        strides = tuple(0 if d == dim else s for d, s in enumerate(value.tree.strides))
        gather = Gather(self._stored(index).tree, value.shape[dim], value.tree.strides[dim])
        return Value(index.shape, Read(value.tree.buffer, value.tree.offset, strides, (gather,)))

    def _op_index_select(self, node: Node, x: Node, dim: int, index: Node) -> Value:
        value, rows = self._stored(self._get(x)), self._get(index)
        indices = [rows if d == dim % len(value.shape) else None for d in range(len(value.shape))]
        return self._schedule.store(self._followed(value, indices))

    def _op_index(self, node: Node, x: Node, indices: Sequence[Node | None]) -> Value:
        value = self._stored(self._get(x))
        return self._schedule.store(self._followed(value, [None if i is None else self._get(i) for i in indices]))

    def _op_gather(self, node: Node, x: Node, dim: int, index: Node, *_: Any) -> Value:
        value = self._stored(self._get(x))
        return self._schedule.store(self._along(value, dim % max(1, len(value.shape)), self._get(index)))

    def _op_index_put(self, node: Node, x: Node, indices: Sequence[Any], values: Node, accumulate: bool = False) -> Value:
        whole = self._schedule.store(self._get(x))
        places = self._followed(whole, [None if i is None else self._get(i) for i in indices])
        self._schedule.scatter(self._get(values).expand(places.shape), places, "+" if accumulate else "", whole.size)
        return whole

    _op__unsafe_index_put = _op_index_put

    def _op_index_add(self, node: Node, x: Node, dim: int, index: Node, source: Node, alpha: float = 1) -> Value:
        whole, rows = self._schedule.store(self._get(x)), self._get(index)
        places = self._followed(whole, [rows if d == dim % len(whole.shape) else None for d in range(len(whole.shape))])
        self._schedule.scatter(self._apply("({0} * {1})", self._get(source), alpha), places, "+", whole.size)
        return whole

    def _op_scatter_add(self, node: Node, x: Node, dim: int, index: Node, source: Node) -> Value:
        whole, rows, value = self._schedule.store(self._get(x)), self._get(index), self._get(source)
        for d, size in enumerate(rows.shape):
            value = value.slice(d, 0, size)
        self._schedule.scatter(value, self._along(whole, dim % max(1, len(whole.shape)), rows), "+", whole.size)
        return whole

    # Reductions.

    def _reduced(self, value: Value, dims: Sequence[int], keep: bool, reduction: str = "+") -> Value:
        rank = len(value.shape)
        over = {d % rank for d in dims} if rank else set()
        small = tuple(1 if d in over else n for d, n in enumerate(value.shape))
        count = math.prod(value.shape[d] for d in over)
        start = {"+": 0, "max": -math.inf, "min": math.inf}[reduction]
        if count == 1:
            result = Value(small, value.tree)
        elif isinstance(value.tree, Const) and value.size:
            number = value.tree.value * count if reduction == "+" else value.tree.value
            result = Value(small, Const(number, value.dtype))
        elif not value.size:
            result = Value(small, Const(start, value.dtype))
        else:
            if reduction != "+" and not value.dtype.is_floating_point:
                raise Unsupported(f"{reduction} of {value.dtype}")
            result = Value.of(self._schedule.new(value.dtype, math.prod(small)), small)
            target = result.expand(value.shape)
            self._schedule.reduce(value, target, reduction, Const(start, value.dtype), math.prod(small))
        if not keep:
            for d in sorted(over, reverse=True):
                result = result.select(d, 0)
        return result

    def _all_dims(self, value: Value, dims: Any) -> list[int]:
        if dims is None or dims == []:
            return list(range(len(value.shape)))
        return [dims] if isinstance(dims, int) else list(dims)

    def _op_sum(self, node: Node, x: Node, dims: Any = None, keep: bool = False, dtype: Any = None) -> Value:
        value = self._cast(self._get(x), node.meta["val"].dtype)
        return self._reduced(value, self._all_dims(value, dims if not isinstance(dims, torch.dtype) else None), bool(keep))

    def _op_mean(self, node: Node, x: Node, dims: Any = None, keep: bool = False, dtype: Any = None) -> Value:
        value = self._cast(self._get(x), node.meta["val"].dtype)
        over = self._all_dims(value, dims if not isinstance(dims, torch.dtype) else None)
        count = math.prod(value.shape[d] for d in over)
        return self._apply("({0} / {1})", self._reduced(value, over, bool(keep)), float(count) if count else math.nan)

    def _op_amax(self, node: Node, x: Node, dims: Any = (), keep: bool = False) -> Value:
        value = self._get(x)
        return self._reduced(value, self._all_dims(value, list(dims)), keep, "max")

    def _op_amin(self, node: Node, x: Node, dims: Any = (), keep: bool = False) -> Value:
        value = self._get(x)
        return self._reduced(value, self._all_dims(value, list(dims)), keep, "min")

    def _op_var(self, node: Node, x: Node, dims: Any = None, correction: Any = None, keep: bool = False) -> Value:
        value = self._stored(self._get(x))
        over = self._all_dims(value, dims)
        count = math.prod(value.shape[d] for d in over)
        mean = self._schedule.store(self._apply("({0} / {1})", self._reduced(value, over, True), float(count)))
        squares = self._reduced(self._apply("(({0} - {1}) * ({0} - {1}))", value, mean), over, keep)
        return self._apply("({0} / {1})", squares, float(max(0, count - (1 if correction is None else correction))))

    def _op_linalg_vector_norm(
        self, node: Node, x: Node, order: float = 2, dims: Any = None, keep: bool = False, dtype: Any = None
    ) -> Value:
        value = self._get(x)
        if order != 2:
            raise Unsupported(f"linalg_vector_norm of order {order}")
        squares = self._reduced(self._apply("({0} * {0})", value), self._all_dims(value, dims), keep)
        return self._apply("z_sqrt({0})", squares)

    def _op_cumsum(self, node: Node, x: Node, dim: int, *_: Any) -> Value:
        value = self._stored(self._get(x))
        if not value.shape:
            return value
        dim %= len(value.shape)
        size = value.shape[dim]
        if size > _LONGEST_CUMSUM:
            raise Unsupported(f"cumsum of {size} elements")
        order = [d for d in range(len(value.shape)) if d != dim] + [dim]
        last = value.permute(order).unsqueeze(len(order) - 1)
        terms = self._apply("({1} ? {0} : 0)", last, self._constant(torch.ones(size, size, dtype=torch.bool).tril()))
        return self._reduced(terms, [-1], False).permute([order.index(d) for d in range(len(order))])

    def _op_logsumexp(self, node: Node, x: Node, dims: Any, keep: bool = False) -> Value:
        value = self._stored(self._get(x))
        over = self._all_dims(value, dims)
        top = self._reduced(value, over, True, "max")
        top = self._schedule.store(self._apply("(z_abs({0}) == INFINITY ? 0 : {0})", top))
        total = self._reduced(self._apply("z_exp({0} - {1})", value, top), over, True)
        result = self._apply("(z_log({0}) + {1})", total, top)
        for d in [] if keep else sorted((d % len(value.shape) for d in over), reverse=True):
            result = result.select(d, 0)
        return result

    def _op__log_softmax(self, node: Node, x: Node, dim: int, *_: Any) -> Value:
        value = self._stored(self._get(x))
        top = self._reduced(value, [dim], True, "max")
        total = self._reduced(self._apply("z_exp({0} - {1})", value, top), [dim], True)
        return self._apply("({0} - {1} - {2})", value, top, self._schedule.store(self._apply("z_log({0})", total)))

    def _op__softmax(self, node: Node, x: Node, dim: int, *_: Any) -> Value:
        value = self._stored(self._get(x))
        top = self._reduced(value, [dim], True, "max")
        weights = self._schedule.store(self._apply("z_exp({0} - {1})", value, top))
        return self._apply("({0} / {1})", weights, self._reduced(weights, [dim], True))

    def _op__log_softmax_backward_data(self, node: Node, grad: Node, output: Node, dim: int, *_: Any) -> Value:
        slope, y = self._stored(self._get(grad)), self._stored(self._get(output))
        return self._apply("({0} - z_exp({1}) * {2})", slope, y, self._reduced(slope, [dim], True))

    def _op__softmax_backward_data(self, node: Node, grad: Node, output: Node, dim: int, *_: Any) -> Value:
        slope, y = self._stored(self._get(grad)), self._stored(self._get(output))
        total = self._reduced(self._apply("({0} * {1})", slope, y), [dim], True)
        return self._apply("({1} * ({0} - {2}))", slope, y, total)

    def _op_clamp(self, node: Node, x: Node, low: Any = None, high: Any = None) -> Value:
        value = self._cast(self._get(x), node.meta["val"].dtype)
        for bound, code in ((low, "z_max({0}, {1})"), (high, "z_min({0}, {1})")):
            if bound is not None:
                number = self._get(bound)
                value = self._apply(code, value, self._cast(number, value.dtype) if isinstance(number, Value) else number)
        return value

    def _op_gelu(self, node: Node, x: Node, approximate: str = "none") -> Value:
        if approximate != "none":
            raise Unsupported("gelu by an approximation")
        return self._apply("({0} * (1 + z_erf({0} * {1})) / 2)", self._get(x), math.sqrt(0.5))

    def _op_gelu_backward(self, node: Node, grad: Node, x: Node, approximate: str = "none") -> Value:
        if approximate != "none":
            raise Unsupported("gelu by an approximation")
        code = "({0} * ((1 + z_erf({1} * {2})) / 2 + {1} * {3} * z_exp({1} * {1} / -2)))"
        return self._apply(code, self._get(grad), self._get(x), math.sqrt(0.5), 1 / math.sqrt(2 * math.pi))

    def _op_log_sigmoid_forward(self, node: Node, x: Node) -> list[Value]:
        value = self._get(x)
        result = self._apply("(z_min({0}, 0) - z_log1p(z_exp(-z_abs({0}))))", value)
        return [self._schedule.store(result), value]

    # Products of matrices.

    def _op_mm(self, node: Node, a: Node, b: Node) -> Value:
        product = self._product(self._get(a).unsqueeze(0), self._get(b).unsqueeze(0), self._home(node))
        return product.select(0, 0)

    def _op_bmm(self, node: Node, a: Node, b: Node) -> Value:
        return self._product(self._get(a), self._get(b), self._home(node))

    def _home(self, node: Node) -> Value | None:
        """Return the place ``(batch, m, n)`` for a product, if one is known where it can lie."""
        if node not in self._homes:
            return None
        cat, number = self._homes[node]
        shape = node.meta["val"].shape
        place = self._places(cat)[number].reshape((*(1,) * (3 - len(shape)), *shape))
        rows = isinstance(place, Value) and isinstance(place.tree, Read) and place.tree.strides[2] == 1
        return place if rows and place.dtype == node.meta["val"].dtype else None  # type: ignore[union-attr]

    def _op_mv(self, node: Node, a: Node, b: Node) -> Value:
        product = self._product(self._get(a).unsqueeze(0), self._get(b).unsqueeze(1).unsqueeze(0))
        return product.select(2, 0).select(0, 0)

    def _op_dot(self, node: Node, a: Node, b: Node) -> Value:
        return self._reduced(self._apply("({0} * {1})", self._get(a), self._get(b)), [0], False)

    def _op_addmm(self, node: Node, c: Node, a: Node, b: Node, beta: float = 1, alpha: float = 1) -> Value:
        product = self._op_mm(node, a, b)
        return self._apply("({2} * {0} + {3} * {1})", self._get(c), product, float(beta), float(alpha))

    def _op_baddbmm(self, node: Node, c: Node, a: Node, b: Node, beta: float = 1, alpha: float = 1) -> Value:
        product = self._op_bmm(node, a, b)
        return self._apply("({2} * {0} + {3} * {1})", self._get(c), product, float(beta), float(alpha))

    def _product(self, a: Value, b: Value, target: Value | None = None) -> Value:
        """Return products of matrices ``(batch, m, k)`` and ``(batch, k, n)``, perhaps at ``target``."""
        if not a.dtype.is_floating_point:
            raise Unsupported(f"products of matrices of {a.dtype}")
        (batch, m, k), n = a.shape, b.shape[2]
        if 1 in (m, n, k) or not a.size or not b.size:
            return self._small_product(a, b)
        if k > _LONGEST_PANEL:
            raise Unsupported(f"products of matrices over {k} elements")
        left, right = self._stored(a), self._stored(b)
        if target is None:
            target = Value.of(self._schedule.new(a.dtype, batch * m * n), (batch, m, n))
        self._schedule.multiply(left, right, target)
        return target

    def _small_product(self, a: Value, b: Value) -> Value:
        """Return products of matrices one of which is a vector, as sums of products."""
        (batch, m, k), n = a.shape, b.shape[2]
        left = self._stored(a).unsqueeze(3).expand((batch, m, k, n))
        right = self._stored(b).unsqueeze(1).expand((batch, m, k, n))
        terms = self._apply("({0} * {1})", left, right)
        matrix = left if n == 1 else right
        strides = matrix.tree.strides if isinstance(matrix.tree, Read) else (0, 0, 0, 0)
        inner = strides[2]
        if k > 1 and inner != 1:  # sum over the outer loop, so that the inner one runs along memory
            return self._reduced(terms.permute([0, 2, 1, 3]), [1], False)
        return self._reduced(terms, [2], False)


def _checked(dtype: torch.dtype) -> torch.dtype:
    if dtype not in _TYPES:
        raise Unsupported(f"numbers of type {dtype}")
    return dtype


def _buffer(value: Value) -> Buffer:
    assert isinstance(value.tree, Read) and value.tree.offset == 0 and value.tree.strides == row_major(value.shape)
    return value.tree.buffer


def _name(node: Node) -> str:
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return str(node.target)
    return node.target._schema.name.split("::")[1]


def _writes(node: Node) -> bool:
    """Tell whether an operation changes its first argument."""
    return _name(node).endswith("_") and not _name(node).endswith("__")


def _memory(node: Node) -> Node:
    """Return the operation that made the memory which an operation changes."""
    while _writes(node):
        node = node.args[0]  # type: ignore[assignment]
    return node


def _is_view(node: Node) -> bool:
    return node.target is operator.getitem or _name(node) in _VIEWS


def _arguments(node: Node) -> list[Any]:
    """Return all arguments in the order of the operation's schema, with defaults filled in."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        raise Unsupported(str(node.target))
    found = list(node.args)
    for argument in schema.arguments[len(found) :]:
        found.append(node.kwargs.get(argument.name, argument.default_value))
    return found
