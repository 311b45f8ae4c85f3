"""Is a generated program safe? Its kernels are followed element by element, without trusting what arranged them.

For the tests, which set ``GUIDES_VERIFY``: every number that is read was written before, what is needed at the same time
lies apart, and old state is overwritten only where nobody reads it any more.
"""

from __future__ import annotations

import torch
from torch import Tensor

from guides.compile.native.codegen import Emitted
from guides.compile.native.expressions import Buffer, Read, reads
from guides.compile.native.kernels import Kernel, Loop, Product, room
from guides.compile.native.lowering import Lowered

__all__ = ["UnsafeProgramError", "verify"]

Shape = tuple[int, ...]


class UnsafeProgramError(RuntimeError):
    """A program of the generator that would read what is not there, or overwrite what is needed."""


def verify(lowered: Lowered, emitted: Emitted) -> None:
    """Check a program.

    :raises UnsafeProgramError: naming the kernel and the memory.
    """
    _Check(lowered, emitted).run()


class _Check:
    def __init__(self, lowered: Lowered, emitted: Emitted) -> None:
        self._lowered, self._emitted = lowered, emitted
        known = (*lowered.inputs, *(buffer for buffer, _ in lowered.constants))
        self._written = {buffer: torch.ones(max(1, buffer.size), dtype=torch.bool) for buffer in known}
        # Old state, by the new state that replaces it in its place.
        self._old = {lowered.outputs[i]: lowered.inputs[i] for i, there in enumerate(emitted.in_place) if there}
        self._first: dict[Buffer, int] = {}
        self._last: dict[Buffer, int] = {}

    def run(self) -> None:
        for number, kernel in enumerate(self._lowered.schedule.kernels):
            if isinstance(kernel, Loop):
                self._loop(number, kernel)
            else:
                self._call(number, kernel)
        for buffer in self._lowered.outputs:
            if not self._there(buffer).all():
                raise UnsafeProgramError(f"result {buffer.name} is not written whole")
        self._memory()

    def _there(self, buffer: Buffer) -> Tensor:
        return self._written.setdefault(buffer, torch.zeros(max(1, buffer.size), dtype=torch.bool))

    def _call(self, number: int, kernel: Kernel) -> None:
        assert not isinstance(kernel, Loop)
        if isinstance(kernel, Product):
            m, n, k = kernel.sizes
            inputs = [(kernel.left, (kernel.batch, m, k)), (kernel.right, (kernel.batch, k, n))]
            target = (kernel.batch, m, n)
        else:
            size, columns = (
                (*kernel.parameters, kernel.parameters[0])[:2] if len(kernel.parameters) == 1 else kernel.parameters[:2]
            )
            inputs = [(read, (kernel.batch, size, size if i == 0 else columns)) for i, read in enumerate(kernel.inputs)]
            target = (kernel.batch, size, columns)
        for read, shape in inputs:
            self._read(number, read, _elements(read, shape))
        if self._old.get(kernel.target.buffer) in [read.buffer for read, _ in inputs]:
            raise UnsafeProgramError(
                f"kernel {number} reads {kernel.target.buffer.name}'s old values while it writes new ones"
            )
        self._write(number, kernel.target.buffer, _elements(kernel.target, target))

    def _loop(self, number: int, loop: Loop) -> None:
        stores: dict[Read, Tensor] = {}  # of this loop, until now
        sums: dict[Buffer, Tensor] = {}
        everything = [s.target for s in loop.statements if not s.reduction]
        for statement in loop.statements:
            needed = [*reads(statement.tree), *(r for g in statement.target.gathers for r in reads(g.index))]
            for read in needed:
                if read in stores:  # in a register
                    continue
                if read.buffer in sums:
                    raise UnsafeProgramError(f"kernel {number} reads {read.buffer.name} while it is being summed up")
                places = _elements(read, loop.shape)
                for target in everything:
                    elsewhere = target.buffer is read.buffer and target != read
                    old = self._old.get(target.buffer) is read.buffer and (target.offset, target.strides) != (
                        read.offset,
                        read.strides,
                    )
                    if (elsewhere or old) and _meet(places, _elements(target, loop.shape)):
                        raise UnsafeProgramError(
                            f"kernel {number} reads {read.buffer.name} where it writes at other indices"
                        )
                self._read(number, read, places)
            places = _elements(statement.target, loop.shape)
            if not statement.reduction:
                stores[statement.target] = places
                continue
            buffer = statement.target.buffer
            if statement.start is None and not bool(self._there(buffer)[places].all()) and buffer not in sums:
                raise UnsafeProgramError(f"kernel {number} adds to {buffer.name}, which was not written before")
            sums[buffer] = torch.arange(buffer.size) if statement.start is not None else places
        for read, places in stores.items():
            if read.buffer in self._emitted.stored:
                self._write(number, read.buffer, places)
        for buffer, places in sums.items():
            self._write(number, buffer, places)

    def _read(self, number: int, read: Read, places: Tensor) -> None:
        buffer = read.buffer
        if not places.numel():
            return
        if int(places.min()) < 0 or int(places.max()) >= max(1, buffer.size):
            raise UnsafeProgramError(f"kernel {number} reads outside of {buffer.name}")
        if not bool(self._there(buffer)[places].all()):
            raise UnsafeProgramError(f"kernel {number} reads {buffer.name} where nothing was written")
        self._last[buffer] = number

    def _write(self, number: int, buffer: Buffer, places: Tensor) -> None:
        if places.numel() and (int(places.min()) < 0 or int(places.max()) >= buffer.size):
            raise UnsafeProgramError(f"kernel {number} writes outside of {buffer.name}")
        self._there(buffer)[places] = True
        if buffer in self._old:
            self._there(self._old[buffer])[places] = False
        self._first.setdefault(buffer, number)
        self._last[buffer] = number

    def _memory(self) -> None:
        """Check that buffers lie apart that are needed in the same kernel."""
        end = len(self._lowered.schedule.kernels)
        kept = {*self._lowered.inputs, *self._lowered.outputs}
        spans = []
        for buffer, place in self._emitted.places.items():
            if buffer not in self._emitted.stored and buffer not in kept:
                continue
            first, last = self._first.get(buffer, 0), self._last.get(buffer, 0)
            if buffer in self._emitted.always:
                first, last = 0, end
            elif buffer in kept:
                last = end
            if place + room(buffer) > self._emitted.size:
                raise UnsafeProgramError(f"{buffer.name} lies beyond the end of the memory")
            spans.append((place, place + room(buffer), first, last, buffer))
        spans.sort(key=lambda span: span[0])
        for i, (_, stop, first, last, buffer) in enumerate(spans):
            for start, _, begins, ends, other in spans[i + 1 :]:
                if start >= stop:
                    break
                if begins <= last and first <= ends:
                    raise UnsafeProgramError(f"{buffer.name} and {other.name} are needed at once and share memory")


def _elements(read: Read, shape: Shape) -> Tensor:
    """Return the elements of a buffer that belong to the indices of a shape; through a gather, all that it can lead to."""
    places = torch.tensor([read.offset])
    for size, stride in zip(shape, read.strides):
        if stride:
            places = (places.unsqueeze(1) + stride * torch.arange(size)).flatten()
        elif not size:
            return torch.zeros(0, dtype=torch.long)
    for gather in read.gathers:
        places = (places.unsqueeze(1) + gather.stride * torch.arange(gather.size)).flatten()
    return places.unique()


def _meet(one: Tensor, other: Tensor) -> bool:
    return bool(torch.isin(one, other).any())
