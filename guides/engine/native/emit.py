"""C++ from kernels."""

from __future__ import annotations

import math
from importlib import resources

import torch

from guides.engine.native.lowering import Lowered
from guides.engine.native.schedule import Kernel, Loop, Product, Routine, Statement
from guides.engine.native.values import TYPES, Buffer, Call, Const, Read, Tree, reads

__all__ = ["source"]

Shape = tuple[int, ...]

_WORTH_THREADS = 1 << 14  # elements of a loop
_WORTH_THREADS_PRODUCT = 1 << 20  # multiplications


def source(lowered: Lowered, state: int, shared: int, replicates: int, threads: int) -> tuple[str, int]:
    """Return the C++ of a loop of steps, and the bytes of memory that it works in.

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
        self._needed = self._read_elsewhere()
        self._in_place = [self._may_overwrite(i) for i in range(state)]
        # One name for each piece of memory.
        self._names: dict[Buffer, str] = {b: b.name for b in lowered.inputs}
        for i in range(state):
            self._names[lowered.outputs[i]] = lowered.inputs[i].name if self._in_place[i] else f"next{i}"

    def whole(self) -> tuple[str, int]:
        outside = {b for i, b in enumerate(self._lowered.outputs) if i < self._state}
        places, size = self._lowered.schedule.arena({self._lowered.outputs[self._state]})
        copied = [v for v in self._varying if self._replicates > 1 and v.size]
        spare = [self._lowered.outputs[i] for i in range(self._state) if not self._in_place[i]]
        for buffer in (*copied, *spare):
            places[buffer] = size
            size += -(-buffer.size * buffer.dtype.itemsize // 64) * 64
        functions = "\n".join(self._function(n, k) for n, k in enumerate(self._kernels))
        lines = [*self._run(places, outside, set(copied))]
        header = resources.files("guides.engine.native").joinpath("runtime.h").read_text()
        return f"{header}\n{functions}\n" + "\n".join(lines) + "\n", size

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

    def is_needed(self, buffer: Buffer) -> bool:
        """Tell whether what a loop stores in a buffer has to be in memory."""
        return buffer in self._needed

    def _run(self, places: dict[Buffer, int], outside: set[Buffer], copied: set[Buffer]) -> list[str]:
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
            if (buffer not in outside or buffer in self._spare()) and buffer not in copied:
                t = TYPES[buffer.dtype]
                lines.append(f"  {t}* {self._name(buffer)} = ({t}*)(arena + {place});")
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
                lines.append(f"    std::swap({made.inputs[i].name}, next{i});")
        lines.append("  }")
        for i, there in enumerate(self._in_place):
            if not there:
                buffer = made.inputs[i]
                place = self._state + i
                move = f"memcpy(given[{place}], {buffer.name}, {buffer.size} * sizeof(*{buffer.name}));"
                lines.append(f"  if (given[{place}] != (void*){buffer.name}) {move}")
        return [*lines, "}"]

    def _spare(self) -> set[Buffer]:
        return {self._lowered.outputs[i] for i in range(self._state) if not self._in_place[i]}

    def _name(self, buffer: Buffer) -> str:
        return self._names.get(buffer, buffer.name)

    def _parameters(self, kernel: Kernel) -> dict[str, str]:
        """Return the memory that a kernel works on: C++ types by name."""
        written = {self._name(b) for b in kernel.writes()}
        found = {}
        for buffer in [*(r.buffer for r in kernel.reads()), *kernel.writes()]:
            if isinstance(kernel, Loop) and buffer in kernel.writes() and not self.is_needed(buffer):
                continue
            name = self._name(buffer)
            found[name] = f"{'' if name in written else 'const '}{TYPES[buffer.dtype]}* __restrict"
        return found

    def _function(self, number: int, kernel: Kernel) -> str:
        parameters = ", ".join(f"{t} {n}" for n, t in self._parameters(kernel).items())
        if isinstance(kernel, Loop):
            body = _LoopBody(self, kernel).lines()
        else:
            call = self._product(kernel) if isinstance(kernel, Product) else self._routine(kernel)
            body = [f"  for (int64_t b = 0; b < {kernel.batch}; ++b) {call}"]
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
        return f"{self._name(read.buffer)} + {read.offset} + b * {batch}", str(row), str(column)

    def threads_for(self, elements: int) -> bool:
        """Tell whether a loop over so many elements is worth several threads."""
        return self._threads > 1 and elements >= _WORTH_THREADS

    name = _name


class _LoopBody:
    """The nest of one loop."""

    def __init__(self, source: _Source, loop: Loop) -> None:
        self._source = source
        self._loop = loop
        self._groups = self._merged()
        self._shape = [math.prod(loop.shape[d] for d in group) for group in self._groups]
        self._lines: list[str] = []
        self._variables: dict[object, str] = {}

    def _merged(self) -> list[list[int]]:
        """Return runs of dimensions in which everything moves evenly, so that each is one loop."""
        shape, found = self._loop.shape, list[tuple[int, ...]]()
        for statement in self._loop.statements:
            found.append(statement.target.strides)
            found += [r.strides for r in reads(statement.tree)]
            found += [r.strides for g in statement.target.gathers for r in reads(g.index)]
        groups: list[list[int]] = []
        for d in range(len(shape)):
            if groups and all(s[d - 1] == s[d] * shape[d] for s in found):
                groups[-1].append(d)
            else:
                groups.append([d])
        return groups

    def lines(self) -> list[str]:
        """Return the body of the function."""
        depth = len(self._groups)
        shared = [s for s in self._loop.statements if s.reduction]
        local = [s for s in shared if not s.target.gathers and (not depth or s.target.strides[self._groups[-1][-1]] == 0)]
        for s in shared:
            if s.start is not None:
                name = self._source.name(s.target.buffer)
                self._lines.append(f"  for (int64_t e = 0; e < {s.size}; ++e) {name}[e] = {_literal(s.start)};")
        sums = {id(s): f"sum{n}" for n, s in enumerate(local)} if depth else {}
        pragma = self._parallel(shared, local)
        for level in range(depth):
            pad = "  " * (level + 1)
            if level == depth - 1:
                for s in local:
                    self._lines.append(f"{pad}{TYPES[s.target.dtype]} {sums[id(s)]} = {_identity(s)};")
                if self._shape[level] >= 4 and not any(s.target.gathers for s in shared):
                    simd = "".join(f" reduction({s.reduction}:{sums[id(s)]})" for s in local)
                    both = "parallel for simd" if pragma and depth == 1 else "simd"
                    self._lines.append(f"#pragma omp {both}{simd}")
            elif level == 0 and pragma:
                self._lines.append(pragma)
            self._lines.append(f"{pad}for (int64_t i{level} = 0; i{level} < {self._shape[level]}; ++i{level}) {{")
        self._statements("  " * (depth + 1), sums)
        for level in reversed(range(depth)):
            pad = "  " * (level + 1)
            self._lines.append(f"{pad}}}")
            if level == depth - 1:
                for s in local:
                    self._lines.append(f"{pad}{_combined(self._element(s.target, level), sums[id(s)], s.reduction)}")
        return self._lines

    def _parallel(self, shared: list[Statement], local: list[Statement]) -> str:
        """Return what shares the outermost loop among threads, nothing if it had better not be shared."""
        depth = len(self._groups)
        if not depth or not self._source.threads_for(math.prod(self._loop.shape)):
            return ""
        if any(s.target.gathers for s in shared):
            return ""
        if depth == 1:
            return "" if len(local) < len(shared) else "parallel"
        racing = [s for s in shared if s.target.strides[self._groups[0][-1]] == 0]
        if any(s.reduction != "+" for s in racing):
            return ""
        clauses = "".join(f" reduction(+:{self._source.name(s.target.buffer)}[:{s.size}])" for s in racing)
        return f"#pragma omp parallel for{clauses}"

    def _statements(self, pad: str, sums: dict[int, str]) -> None:
        stores: list[str] = []
        for s in self._loop.statements:
            value = self._expression(s.tree, pad)
            if not s.reduction:
                if not value.startswith("v"):
                    value = self._variable(f"{TYPES[s.target.dtype]} ", f"({TYPES[s.target.dtype]})({value})", pad)
                self._variables[s.target] = value
                if self._source.is_needed(s.target.buffer):
                    stores.append(f"{pad}{self._element(s.target)} = {value};")
            elif id(s) in sums:
                self._lines.append(f"{pad}{_combined(sums[id(s)], value, s.reduction)}")
            else:
                self._lines.append(f"{pad}{_combined(self._element(s.target, pad=pad), value, s.reduction)}")
        self._lines += stores

    def _variable(self, kind: str, code: str, pad: str) -> str:
        name = f"v{len(self._lines)}"
        self._lines.append(f"{pad}const {kind}{name} = {code};")
        return name

    def _expression(self, tree: Tree, pad: str) -> str:
        if isinstance(tree, Const):
            return _literal(tree)
        key: object = tree if isinstance(tree, Read) else id(tree)
        if key not in self._variables:
            kind = f"{TYPES[tree.dtype]} "
            if isinstance(tree, Read):
                code = self._element(tree, pad=pad)
            else:
                args = [self._expression(a, pad) for a in tree.args]
                code = _call(tree, args)
            self._variables[key] = self._variable(kind, code, pad)
        return self._variables[key]

    def _element(self, read: Read, levels: int | None = None, pad: str = "") -> str:
        """Return the C++ of one element; ``levels`` is the number of loops that it may depend on."""
        place = [str(read.offset)] if read.offset else []
        for level, group in enumerate(self._groups[:levels]):
            stride = read.strides[group[-1]]
            if stride:
                place.append(f"i{level}" if stride == 1 else f"{stride} * i{level}")
        for gather in read.gathers:
            index = self._expression(gather.index, pad)
            # As in PyTorch, -1 is the last element. What is out of bounds stays inside the memory: the check sees it.
            wrapped = f"({index} < 0 ? {index} + {gather.size} : {index})"
            place.append(f"{gather.stride} * {wrapped}")
        return f"{self._source.name(read.buffer)}[{' + '.join(place) or '0'}]"


def _call(tree: Call, args: list[str]) -> str:
    kind = TYPES[tree.dtype]
    code = tree.code.replace("@", kind)
    return f"({kind})({code.format(*args)})"


def _literal(const: Const) -> str:
    kind = TYPES[const.dtype]
    if const.dtype == torch.bool:
        return "true" if const.value else "false"
    if not const.dtype.is_floating_point:
        return f"{kind}({int(const.value)})"
    value = float(const.value)
    if math.isnan(value):
        return f"{kind}(NAN)"
    if math.isinf(value):
        return f"{kind}({'-' if value < 0 else ''}INFINITY)"
    return f"{kind}({value!r})"


def _identity(statement: Statement) -> str:
    start = {"+": "0", "max": "-INFINITY", "min": "INFINITY"}[statement.reduction]
    return f"{TYPES[statement.target.dtype]}({start})"


def _combined(place: str, value: str, reduction: str) -> str:
    return f"{place} += {value};" if reduction == "+" else f"{place} = z_{reduction}({place}, {value});"
