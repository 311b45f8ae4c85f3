"""What a tensor of a traced graph is to the generator of C++: an expression over strided reads of memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch

__all__ = [
    *("TYPES", "Buffer", "Call", "Const", "Gather", "Read", "Tree", "Unsupported", "Value"),
    *("calls", "checked", "reads", "row_major"),
]

TYPES = {
    torch.float32: "float",
    torch.float64: "double",
    torch.int64: "int64_t",
    torch.int32: "int32_t",
    torch.bool: "bool",
}
"""Types of numbers in C++."""

Shape = tuple[int, ...]
Layout = tuple[int, Shape]
"""Offset and strides, in elements."""


class Unsupported(Exception):
    """The generator cannot express an operation; the message names it."""


class _CannotReshape(Exception):
    """No strides describe the new shape."""


def checked(dtype: torch.dtype) -> torch.dtype:
    """Return a type of numbers that there is in C++.

    :raises Unsupported: for another.
    """
    if dtype not in TYPES:
        raise Unsupported(f"numbers of type {dtype}")
    return dtype


@dataclass(eq=False)
class Buffer:
    """Memory of ``size`` elements."""

    name: str
    dtype: torch.dtype
    size: int


@dataclass(frozen=True)
class Const:
    """A number."""

    value: float | int | bool
    dtype: torch.dtype


@dataclass(frozen=True)
class Gather:
    """A dimension in which a read goes where other memory says: at ``index``, one of ``size``, ``stride`` apart."""

    index: Tree
    size: int
    stride: int


@dataclass(frozen=True)
class Read:
    """The element of a buffer that belongs to an index of the iteration: at ``offset`` plus index times ``strides``."""

    buffer: Buffer
    offset: int
    strides: Shape
    gathers: tuple[Gather, ...] = ()

    @property
    def dtype(self) -> torch.dtype:
        """Type of the elements."""
        return self.buffer.dtype


@dataclass(frozen=True, eq=False)
class Call:
    """A C++ expression of other expressions; ``{0}``, ``{1}``, ... in ``code`` stand for them."""

    code: str
    args: tuple[Tree, ...]
    dtype: torch.dtype


Tree: TypeAlias = Const | Read | Call


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor: ``tree`` gives its element at an index of ``shape``."""

    shape: Shape
    tree: Tree

    @property
    def dtype(self) -> torch.dtype:
        """Type of the elements."""
        return self.tree.dtype

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def is_stored(self) -> bool:
        """Whether the elements lie in memory, at regular distances."""
        return isinstance(self.tree, Read) and not self.tree.gathers

    @classmethod
    def of(cls, buffer: Buffer, shape: Shape) -> Value:
        """Return the row-major tensor in a buffer."""
        return cls(shape, Read(buffer, 0, row_major(shape)))

    def permute(self, dims: Sequence[int]) -> Value:
        """Return the tensor with its dimensions in another order."""
        return self._moved(tuple(self.shape[d] for d in dims), lambda o, s: (o, tuple(s[d] for d in dims)))

    def expand(self, shape: Shape) -> Value:
        """Return the tensor with dimensions of size one repeated and new ones in front."""
        new = len(shape) - len(self.shape)
        repeated = [n != 1 and self.shape[d] == 1 for d, n in enumerate(shape[new:])]
        return self._moved(shape, lambda o, s: (o, (0,) * new + tuple(0 if again else n for n, again in zip(s, repeated))))

    def slice(self, dim: int, start: int, stop: int, step: int = 1) -> Value:
        """Return elements ``start``, ``start + step``, ... before ``stop`` of a dimension."""
        count = max(0, -(-(stop - start) // step))
        shape = (*self.shape[:dim], count, *self.shape[dim + 1 :])
        return self._moved(shape, lambda o, s: (o + start * s[dim], (*s[:dim], step * s[dim], *s[dim + 1 :])))

    def flip(self, dim: int) -> Value:
        """Return the tensor with a dimension in reverse."""
        last = self.shape[dim] - 1
        return self._moved(self.shape, lambda o, s: (o + last * s[dim], (*s[:dim], -s[dim], *s[dim + 1 :])))

    def select(self, dim: int, index: int) -> Value:
        """Return one element of a dimension, without the dimension."""
        shape = (*self.shape[:dim], *self.shape[dim + 1 :])
        return self._moved(shape, lambda o, s: (o + index * s[dim], (*s[:dim], *s[dim + 1 :])))

    def unsqueeze(self, dim: int) -> Value:
        """Return the tensor with a further dimension of size one."""
        shape = (*self.shape[:dim], 1, *self.shape[dim:])
        return self._moved(shape, lambda o, s: (o, (*s[:dim], 0, *s[dim:])))

    def diagonal(self, first: int, second: int) -> Value:
        """Return the main diagonal of two dimensions as the last dimension."""
        rest = [d for d in range(len(self.shape)) if d not in (first, second)]
        shape = (*(self.shape[d] for d in rest), min(self.shape[first], self.shape[second]))
        return self._moved(shape, lambda o, s: (o, (*(s[d] for d in rest), s[first] + s[second])))

    def strided(self, shape: Shape, strides: Shape, offset: int) -> Value:
        """Return elements of a tensor of one dimension at an offset plus index times strides."""
        return self._moved(shape, lambda o, s: (o + offset * s[0], tuple(stride * s[0] for stride in strides)))

    def reshape(self, shape: Shape) -> Value | None:
        """Return the elements in row-major order in another shape, ``None`` if they have to be copied for it."""
        try:
            return self._moved(shape, lambda o, s: (o, _strides_of(self.shape, s, shape)))
        except _CannotReshape:
            return None

    def _moved(self, shape: Shape, move: Callable[[int, Shape], Layout]) -> Value:
        done: dict[int, Tree] = {}

        def moved(tree: Tree) -> Tree:
            if isinstance(tree, Const):
                return tree
            if id(tree) not in done:
                if isinstance(tree, Call):
                    done[id(tree)] = replace(tree, args=tuple(moved(a) for a in tree.args))
                else:
                    offset, strides = move(tree.offset, tree.strides)
                    gathers = tuple(replace(g, index=moved(g.index)) for g in tree.gathers)
                    done[id(tree)] = Read(tree.buffer, offset, strides, gathers)
            return done[id(tree)]

        return Value(shape, moved(self.tree))


def row_major(shape: Shape) -> Shape:
    """Return the strides of a contiguous tensor."""
    strides = [1] * len(shape)
    for d in range(len(shape) - 2, -1, -1):
        strides[d] = strides[d + 1] * max(1, shape[d + 1])
    return tuple(strides)


def _strides_of(old: Shape, strides: Shape, new: Shape) -> Shape:
    """Return the strides of elements of shape ``old`` seen in shape ``new``.

    :raises _CannotReshape: if there are none.
    """
    if math.prod(old) == 0:
        return row_major(new)
    # Runs of old dimensions that are one after the other in memory, each of which new dimensions must fill exactly.
    runs: list[Layout] = []
    for size, stride in zip(old, strides):
        if size == 1:
            continue
        if runs and runs[-1][1][0] == stride * size:
            runs[-1] = (runs[-1][0] * size, (stride,))
        else:
            runs.append((size, (stride,)))
    found: list[int] = []
    left, stride = 1, 0
    for size in reversed(new):
        if size == 1:
            found.append(0)
            continue
        if left == 1:
            if not runs:
                raise _CannotReshape
            left, (stride,) = runs.pop()
        if left % size:
            raise _CannotReshape
        found.append(stride)
        stride, left = stride * size, left // size
    if left != 1 or runs:
        raise _CannotReshape
    return tuple(reversed(found))


def calls(tree: Tree) -> int:
    """Return how many operations a tree performs."""
    return sum(isinstance(t, Call) for t in _all(tree))


def reads(tree: Tree) -> Iterator[Read]:
    """Yield what a tree reads, the reads of row numbers included."""
    for t in _all(tree):
        if isinstance(t, Read):
            yield t


def _all(tree: Tree) -> Iterator[Tree]:
    seen: set[int] = set()
    stack: list[Tree] = [tree]
    while stack:
        now = stack.pop()
        if id(now) in seen:
            continue
        seen.add(id(now))
        yield now
        if isinstance(now, Call):
            stack.extend(now.args)
        elif isinstance(now, Read):
            stack.extend(g.index for g in now.gathers)
