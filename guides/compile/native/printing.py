"""What the generator of C++ made of a graph, for people to read."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from guides.compile.native.codegen import Emitted
from guides.compile.native.expressions import TYPES, Buffer, Const, Read, Tree
from guides.compile.native.kernels import Kernel, Loop, Product, Statement, room
from guides.compile.native.lowering import Lowered

__all__ = ["kernels", "memory_plan"]

_INDICES = "ijklmnpq"


def kernels(lowered: Lowered) -> str:
    """Return the kernels in the order in which they run: what a loop runs over, and what it stores where.

    ``in0, in1, ...`` are the inputs of the step, ``c0, ...`` constants, ``b1, ...`` what it computes. ``b1[3 i + j]`` is the
    element of ``b1`` that belongs to the index ``i, j`` of the loop.
    """
    names = {buffer: f"in{i}" for i, buffer in enumerate(lowered.inputs)}
    parts = [f"kernel {n}: {_kernel(kernel)}" for n, kernel in enumerate(lowered.schedule.kernels)]
    outputs = ", ".join(buffer.name for buffer in lowered.outputs)
    return "\n".join([f"inputs: {', '.join(names.values())}", *parts, f"outputs: {outputs}"]) + "\n"


def memory_plan(lowered: Lowered, emitted: Emitted) -> str:
    """Return where everything lies that a step computes, and during which kernels it is needed."""
    used: dict[Buffer, list[int]] = {}
    for number, kernel in enumerate(lowered.schedule.kernels):
        for buffer in chain(kernel.writes(), (read.buffer for read in kernel.reads())):
            used.setdefault(buffer, []).append(number)
    lines = [f"{emitted.size} bytes"]
    for buffer, place in sorted(emitted.places.items(), key=lambda entry: (entry[1], entry[0].name)):
        what = f"{buffer.size} {TYPES[buffer.dtype]}"
        numbers = used.get(buffer, [])
        when = f"kernels {numbers[0]} to {numbers[-1]}" if numbers else "no kernel"
        where = f"bytes {place} to {place + room(buffer)}" if buffer in emitted.stored else "registers"
        lines.append(f"{buffer.name}: {what}, {where}, {when}")
    for i, there in enumerate(emitted.in_place):
        new, old = lowered.outputs[i].name, lowered.inputs[i].name
        lines.append(f"state {i}: {new} lies {f'where {old} does' if there else f'apart from {old}'}")
    return "\n".join(lines) + "\n"


def _kernel(kernel: Kernel) -> str:
    if isinstance(kernel, Loop):
        runs = ", ".join(f"{_INDICES[d]} < {size}" for d, size in enumerate(kernel.shape))
        return "\n".join([f"for {runs}" if runs else "once", *(f"  {_statement(s)}" for s in kernel.statements)])
    if isinstance(kernel, Product):
        (m, n, k), batch = kernel.sizes, f"{kernel.batch} times " if kernel.batch > 1 else ""
        sizes = f"({m}, {k}) x ({k}, {n})"
        return f"{batch}{_read(kernel.target)} = {_read(kernel.left)} x {_read(kernel.right)}, matrices {sizes}"
    inputs = ", ".join(_read(read) for read in kernel.inputs)
    parameters = ", ".join(map(str, kernel.parameters))
    return f"{_read(kernel.target)} = {kernel.name}<{parameters}>({inputs}), {kernel.batch} times"


def _statement(statement: Statement) -> str:
    target, value = _read(statement.target), _tree(statement.tree)
    if not statement.reduction:
        return f"{target} = {value}"
    start = "" if statement.start is None else f", from {_tree(statement.start)}"
    return f"{target} {'+=' if statement.reduction == '+' else f'{statement.reduction}='} {value}{start}"


def _tree(tree: Tree) -> str:
    if isinstance(tree, Const):
        return f"{tree.value!r}"
    if isinstance(tree, Read):
        return _read(tree)
    return tree.code.replace("@", TYPES[tree.dtype]).format(*map(_tree, tree.args))


def _read(read: Read) -> str:
    return f"{read.buffer.name}[{' + '.join(_place(read)) or '0'}]"


def _place(read: Read) -> Iterator[str]:
    if read.offset:
        yield str(read.offset)
    for d, stride in enumerate(read.strides):
        if stride:
            yield f"{_INDICES[d]}" if stride == 1 else f"{stride} {_INDICES[d]}"
    for gather in read.gathers:
        yield f"{gather.stride} ({_tree(gather.index)} of {gather.size})"
