"""C++ from kernels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib import resources

from guides.compile.native.expressions import TYPES, Buffer, Read
from guides.compile.native.kernels import Kernel, Loop, Product, Routine, room
from guides.compile.native.loop_nests import Nest, Surroundings
from guides.compile.native.lowering import Lowered

__all__ = ["Emitted", "source"]

_WORTH_THREADS_PRODUCT = 1 << 20  # multiplications


@dataclass(frozen=True)
class Emitted:
    """The C++ of a loop of steps.

    :ivar text: with what it calls.
    :ivar own: the same without the library of functions that all loops share.
    :ivar size: bytes of memory that it works in.
    :ivar places: where buffers begin in this memory.
    :ivar stored: buffers whose numbers are written to memory; of others they stay in registers.
    :ivar always: buffers whose numbers are needed during all of a step, or from one to the next.
    :ivar in_place: for each tensor of the state, whether its new numbers replace the old ones where those lie.
    """

    text: str
    own: str
    size: int
    places: dict[Buffer, int]
    stored: frozenset[Buffer]
    always: frozenset[Buffer]
    in_place: tuple[bool, ...]


def source(lowered: Lowered, state: int, shared: int, replicates: int, threads: int) -> Emitted:
    """Return the C++ of a loop of steps.

    :param lowered: a step, from (state..., shared..., this step's tensors...) to (state..., losses ``(replicates,)``).
    """
    return _Source(lowered, state, shared, replicates, threads).whole()


class _Source:
    def __init__(self, lowered: Lowered, state: int, shared: int, replicates: int, threads: int) -> None:
        self._lowered = lowered
        self._kernels = lowered.schedule.kernels
        self._state, self._replicates, self._threads = state, replicates, threads
        self._varying = lowered.inputs[state + shared :]
        self._shared = lowered.inputs[state : state + shared]
        self._in_place = [self._may_overwrite(i) for i in range(state)]
        # One name for each piece of memory.
        names = {lowered.outputs[i]: lowered.inputs[i].name if self._in_place[i] else f"next{i}" for i in range(state)}
        self._surroundings = Surroundings(names, self._read_elsewhere(), threads)

    def whole(self) -> Emitted:
        places, size = self._lowered.schedule.arena({self._lowered.outputs[self._state]})
        copied = [v for v in self._varying if self._replicates > 1 and v.size]
        spare = []
        for new, there in zip(self._lowered.outputs, self._in_place):
            del places[new]  # it lies where the old state does, or where the last step's did
            spare += [] if there else [new]
        for buffer in (*copied, *spare):
            places[buffer] = size
            size += room(buffer)
        functions = "\n".join(self._function(n, k) for n, k in enumerate(self._kernels))
        lines = self._run(places, set(copied))
        header = resources.files("guides.compile.native").joinpath("runtime.h").read_text()
        own = f"{functions}\n" + "\n".join(lines) + "\n"
        stored = frozenset(self._surroundings.needed)
        always = frozenset((*copied, *spare))
        return Emitted(f"{header}\n{own}", own, size, places, stored, always, tuple(self._in_place))

    def _may_overwrite(self, i: int) -> bool:
        """Tell whether nothing reads old state after new state has begun to replace it, but at the same index."""
        old, new = self._lowered.inputs[i], self._lowered.outputs[i]
        if old.size != new.size or old.dtype != new.dtype:
            return False
        written = next(n for n, k in enumerate(self._kernels) if new in k.writes())
        for number, kernel in enumerate(self._kernels):
            found = [r for r in kernel.reads() if r.buffer is old]
            if not found or number < written:
                continue
            if number > written or not isinstance(kernel, Loop):
                return False
            (target,) = [s.target for s in kernel.statements if s.target.buffer is new]
            if any((r.offset, r.strides, r.gathers) != (target.offset, target.strides, ()) for r in found):
                return False
        return True

    def _read_elsewhere(self) -> set[Buffer]:
        """Return the buffers that others read than the loop that writes them, which has the numbers at hand."""
        writers: dict[Buffer, set[int]] = {}
        for number, kernel in enumerate(self._kernels):
            for buffer in kernel.writes():
                writers.setdefault(buffer, set()).add(number)
        found = set(self._lowered.outputs)
        for number, kernel in enumerate(self._kernels):
            if isinstance(kernel, Loop):
                found |= {s.target.buffer for s in kernel.statements if s.reduction}
            reads_here = (r.buffer for r in kernel.reads())
            found |= {b for b in reads_here if writers.get(b) != {number} or not isinstance(kernel, Loop)}
        return found

    def _run(self, places: dict[Buffer, int], copied: set[Buffer]) -> list[str]:
        """Return the function that a process calls."""
        made = self._lowered
        names = [*(f"old{i}" for i in range(self._state)), *(b.name for b in made.inputs[: self._state])]
        names += [b.name for b in self._shared] + [b.name for b, _ in made.constants]
        varying = [v for v in self._varying if v.size]
        names += [f"all_{v.name}" for v in varying] + ["losses", "arena"]
        types = [TYPES[b.dtype] for b in made.inputs[: self._state]] * 2
        types += [TYPES[b.dtype] for b in self._shared] + [TYPES[b.dtype] for b, _ in made.constants]
        types += [TYPES[v.dtype] for v in varying] + [TYPES[made.outputs[self._state].dtype], "char"]
        lines = ['extern "C" void run(int64_t steps, void** given) {']
        lines += [f"  {t}* {n} = ({t}*)given[{i}];" for i, (t, n) in enumerate(zip(types, names))]
        for buffer, place in places.items():
            if buffer not in copied:
                t = TYPES[buffer.dtype]
                lines.append(f"  {t}* {self._surroundings.name(buffer)} = ({t}*)(arena + {place});")
        for i, buffer in enumerate(made.inputs[: self._state]):
            lines.append(f"  memcpy({buffer.name}, old{i}, {buffer.size} * sizeof(*old{i}));")
        lines.append("  for (int64_t t = 0; t < steps; ++t) {")
        for v in varying:
            each = v.size // self._replicates
            if v in copied:
                t = TYPES[v.dtype]
                lines.append(f"    {t}* {v.name} = ({t}*)(arena + {places[v]});")
                move = f"memcpy({v.name} + r * {each}, all_{v.name} + (r * steps + t) * {each}, {each} * sizeof({t}));"
                lines.append(f"    for (int64_t r = 0; r < {self._replicates}; ++r) {move}")
            else:
                lines.append(f"    const {TYPES[v.dtype]}* {v.name} = all_{v.name} + t * {each};")
        lines += [f"    kernel{n}({', '.join(self._parameters(k))});" for n, k in enumerate(self._kernels)]
        loss = made.outputs[self._state].name
        lines.append(f"    for (int64_t r = 0; r < {self._replicates}; ++r) losses[r * steps + t] = {loss}[r];")
        for i, there in enumerate(self._in_place):
            if not there:
                lines.append(f"    z_swap({made.inputs[i].name}, next{i});")
        lines.append("  }")
        for i, there in enumerate(self._in_place):
            if not there:
                buffer = made.inputs[i]
                place = self._state + i
                move = f"memcpy(given[{place}], {buffer.name}, {buffer.size} * sizeof(*{buffer.name}));"
                lines.append(f"  if (given[{place}] != (void*){buffer.name}) {move}")
        return [*lines, "}"]

    def _parameters(self, kernel: Kernel) -> dict[str, str]:
        """Return the memory that a kernel works on: C++ types by name."""
        written = {self._surroundings.name(b) for b in kernel.writes()}
        found = {}
        for buffer in [*(r.buffer for r in kernel.reads()), *kernel.writes()]:
            if isinstance(kernel, Loop) and buffer in kernel.writes() and buffer not in self._surroundings.needed:
                continue
            name = self._surroundings.name(buffer)
            found[name] = f"{'' if name in written else 'const '}{TYPES[buffer.dtype]}* __restrict"
        return found

    def _function(self, number: int, kernel: Kernel) -> str:
        parameters = ", ".join(f"{t} {n}" for n, t in self._parameters(kernel).items())
        if isinstance(kernel, Loop):
            body = Nest(kernel, self._surroundings).lines()
        else:
            each = math.prod(kernel.sizes if isinstance(kernel, Product) else kernel.parameters)
            call = self._product(kernel) if isinstance(kernel, Product) else self._routine(kernel)
            body = [f"  for (int64_t b = 0; b < {kernel.batch}; ++b) {call}"]
            if self._threads > 1 and each < _WORTH_THREADS_PRODUCT <= each * kernel.batch:
                body.insert(0, "#pragma omp parallel for schedule(static)")
        return f"static __attribute__((noinline)) void kernel{number}({parameters}) {{\n" + "\n".join(body) + "\n}"

    def _product(self, product: Product) -> str:
        (m, n, k), t = product.sizes, TYPES[product.target.dtype]
        parallel = self._threads > 1 and m * n * k >= _WORTH_THREADS_PRODUCT
        arguments = (*self._matrix(product.left), *self._matrix(product.right), *self._matrix(product.target)[:-1])
        return f"z_product<{t}, {m}, {n}, {k}, {str(parallel).lower()}>({', '.join(arguments)});"

    def _routine(self, routine: Routine) -> str:
        parameters = (TYPES[routine.target.dtype], *map(str, routine.parameters))
        arguments = [argument for matrix in routine.inputs for argument in self._matrix(matrix)]
        arguments += self._matrix(routine.target)[:-1]
        return f"{routine.name}<{', '.join(parameters)}>({', '.join(arguments)});"

    def _matrix(self, read: Read) -> tuple[str, str, str]:
        """Return where a matrix of a batch lies, and how far its rows and columns are apart."""
        batch, row, column = read.strides
        return f"{self._surroundings.name(read.buffer)} + {read.offset} + b * {batch}", str(row), str(column)
