"""Which operations share a loop, in which order loops run, and where their results lie."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch

from guides.compile.native.expressions import Buffer, Const, Read, Tree, Value, reads

__all__ = ["ALIGNMENT", "Kernel", "Loop", "Product", "Routine", "Schedule", "Statement", "room"]

Shape = tuple[int, ...]

_MOST_STATEMENTS = 48
ALIGNMENT = 64
"""Bytes that the places of buffers are multiples of: a line of the cache, and the widest vector."""


@dataclass(frozen=True, eq=False)
class Statement:
    """Write ``tree`` to ``target`` at every index of a loop.

    :ivar reduction: ``""`` stores; ``"+"``, ``"max"`` and ``"min"`` reduce over the dimensions in which the target does not
        move, or to which several indices are led by a gather.
    :ivar start: what a reduction starts from; ``None`` where the target holds something already.
    :ivar size: elements of a reduction's result.
    """

    target: Read
    tree: Tree
    reduction: str = ""
    start: Const | None = None
    size: int = 0


@dataclass
class Loop:
    """Statements at every index of a shape, which has no dimension of size one."""

    shape: Shape
    statements: list[Statement] = field(default_factory=list)

    def reads(self) -> Iterator[Read]:
        """Yield what it reads, what it has just stored included."""
        for statement in self.statements:
            yield from reads(statement.tree)
            for gather in statement.target.gathers:
                yield from reads(gather.index)
            if statement.reduction:
                yield Read(statement.target.buffer, 0, ())

    def writes(self) -> Iterator[Buffer]:
        """Yield what it writes to."""
        for statement in self.statements:
            yield statement.target.buffer


@dataclass
class Product:
    """Products of matrices: ``(batch, m, k)`` times ``(batch, k, n)``, each with three strides."""

    batch: int
    sizes: tuple[int, int, int]
    left: Read
    right: Read
    target: Read

    def reads(self) -> Iterator[Read]:
        """Yield what it reads."""
        yield self.left
        yield self.right

    def writes(self) -> Iterator[Buffer]:
        """Yield what it writes to."""
        yield self.target.buffer


@dataclass
class Routine:
    """A template of the runtime, called for each matrix of a batch.

    :ivar parameters: of the template, after the type of the numbers.
    :ivar inputs: matrices, each with three strides: of the batch, of rows, of columns.
    :ivar target: matrices of contiguous rows, with three strides.
    """

    name: str
    parameters: tuple[int, ...]
    batch: int
    inputs: tuple[Read, ...]
    target: Read

    def reads(self) -> Iterator[Read]:
        """Yield what it reads."""
        yield from self.inputs

    def writes(self) -> Iterator[Buffer]:
        """Yield what it writes to."""
        yield self.target.buffer


Kernel: TypeAlias = Loop | Product | Routine


class Schedule:
    """Kernels in the order in which they run, and the buffers between them.

    A statement goes into the first loop of its shape in which all that it reads is there. What the same loop has just stored
    at the same index counts as there, so that chains and families of operations become one loop.
    """

    def __init__(self) -> None:
        self.kernels: list[Kernel] = []
        self._written: dict[Buffer, int] = {}
        self._stored: dict[Buffer, Read] = {}
        self._names = 0

    def new(self, shape: Shape, dtype: torch.dtype) -> Value:
        """Return memory that nobody has written to."""
        self._names += 1
        return Value.of(Buffer(f"b{self._names}", dtype, math.prod(shape)), shape)

    def store(self, value: Value, target: Value | None = None) -> Value:
        """Write a tensor to memory, row-major and new unless a place for it is given, and return it as it lies there."""
        if target is None:
            target = self.new(value.shape, value.dtype)
        if value.size:
            self._place(value, target, "", None, 0)
        return target

    def reduce(self, value: Value, target: Value, reduction: str, size: int, start: Const | None = None) -> None:
        """Reduce a tensor into memory that is expanded to its shape, or to the places there that other memory names.

        :param size: elements of the memory.
        :param start: what the reduction starts from; by default what the memory holds.
        """
        self._place(value, target, reduction, start, size)

    def multiply(self, left: Value, right: Value, target: Value) -> None:
        """Write products of matrices, ``(batch, m, k)`` times ``(batch, k, n)``, to memory ``(batch, m, n)``."""
        batch, m, k = left.shape
        trees = (left.tree, right.tree, target.tree)
        assert all(isinstance(tree, Read) for tree in trees)
        self.kernels.append(Product(batch, (m, right.shape[2], k), *trees))  # type: ignore[arg-type]
        self._note(trees[2].buffer, len(self.kernels) - 1, None)  # type: ignore[union-attr]

    def run(self, name: str, parameters: tuple[int, ...], inputs: Sequence[Value], target: Value) -> None:
        """Call a template of the runtime for each matrix of ``(batch, rows, columns)``, see :class:`Routine`."""
        trees = [value.tree for value in (*inputs, target)]
        assert all(isinstance(tree, Read) for tree in trees)
        self.kernels.append(Routine(name, parameters, target.shape[0], tuple(trees[:-1]), trees[-1]))  # type: ignore[arg-type]
        self._note(trees[-1].buffer, len(self.kernels) - 1, None)  # type: ignore[union-attr]

    def _place(self, value: Value, target: Value, reduction: str, start: Const | None, size: int) -> None:
        value, target = _without_ones(value), _without_ones(target)
        assert isinstance(target.tree, Read)
        statement = Statement(target.tree, value.tree, reduction, start, size)
        position = self._earliest(value.shape, statement)
        for number in range(position, len(self.kernels)):
            kernel = self.kernels[number]
            if isinstance(kernel, Loop) and kernel.shape == value.shape and len(kernel.statements) < _MOST_STATEMENTS:
                break
        else:
            number = len(self.kernels)
            self.kernels.append(Loop(value.shape))
        self.kernels[number].statements.append(statement)  # type: ignore[union-attr]
        self._note(target.tree.buffer, number, None if reduction or target.tree.gathers else target.tree)

    def _earliest(self, shape: Shape, statement: Statement) -> int:
        position = self._written.get(statement.target.buffer, -1) + 1
        found = list(reads(statement.tree)) + [r for g in statement.target.gathers for r in reads(g.index)]
        for read in found:
            number = self._written.get(read.buffer)
            if number is None:
                continue
            kernel = self.kernels[number]
            here = isinstance(kernel, Loop) and kernel.shape == shape and self._stored.get(read.buffer) == read
            position = max(position, number if here else number + 1)
        return position

    def _note(self, buffer: Buffer, number: int, stored: Read | None) -> None:
        once = buffer not in self._written
        self._written[buffer] = number
        self._stored.pop(buffer, None)
        if once and stored is not None:
            self._stored[buffer] = stored

    def arena(self, kept: set[Buffer]) -> tuple[dict[Buffer, int], int]:
        """Return where in one piece of memory every buffer begins, in bytes, and how large it must be.

        Buffers share memory if one is read for the last time before the other is written.

        :param kept: these are read after the last kernel.
        """
        first: dict[Buffer, int] = {}
        last: dict[Buffer, int] = {}
        for number, kernel in enumerate(self.kernels):
            for buffer in kernel.writes():
                first.setdefault(buffer, number)
                last[buffer] = number
            for read in kernel.reads():
                last[read.buffer] = number
        for buffer in kept:
            last[buffer] = len(self.kernels)
        places: dict[Buffer, int] = {}
        size = 0
        busy: list[tuple[int, int, Buffer]] = []  # from, to, buffer; by position
        for buffer in sorted(first, key=lambda b: first[b]):
            busy = [entry for entry in busy if last[entry[2]] >= first[buffer]]
            needed = room(buffer)
            at = 0
            for start, stop, _ in busy:
                if start - at >= needed:
                    break
                at = max(at, stop)
            places[buffer] = at
            busy.append((at, at + needed, buffer))
            busy.sort(key=lambda entry: entry[0])
            size = max(size, at + needed)
        return places, size


def room(buffer: Buffer) -> int:
    """Return how many bytes a buffer takes up."""
    return math.ceil(max(1, buffer.size) * buffer.dtype.itemsize / ALIGNMENT) * ALIGNMENT


def _without_ones(value: Value) -> Value:
    for d in reversed(range(len(value.shape))):
        if value.shape[d] == 1:
            value = value.select(d, 0)
    return value
