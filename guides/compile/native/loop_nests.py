"""C++ of loops over elements."""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from dataclasses import dataclass

import torch

from guides.compile.native.expressions import TYPES, Buffer, Call, Const, Read, Tree, reads
from guides.compile.native.kernels import Loop, Statement

__all__ = ["Nest", "Surroundings"]

_WORTH_THREADS = 1 << 14  # elements of a loop


@dataclass(frozen=True)
class Surroundings:
    """What the C++ of a kernel depends on besides the kernel.

    :ivar names: of buffers that are called otherwise than by their own name.
    :ivar needed: buffers that others read than the loop that writes them, which has the numbers at hand.
    """

    names: Mapping[Buffer, str]
    needed: Set[Buffer]
    threads: int

    def name(self, buffer: Buffer) -> str:
        """Return what a buffer is called."""
        return self.names.get(buffer, buffer.name)


class Nest:
    """C++ of one loop: as few nested ones as its strides allow."""

    def __init__(self, loop: Loop, surroundings: Surroundings) -> None:
        self._surroundings = surroundings
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
                name = self._surroundings.name(s.target.buffer)
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
        if not depth or not self._worth_threads():
            return ""
        if any(s.target.gathers for s in shared):
            return ""
        if depth == 1:
            return "" if len(local) < len(shared) else "parallel"
        racing = [s for s in shared if s.target.strides[self._groups[0][-1]] == 0]
        if any(s.reduction != "+" for s in racing):
            return ""
        clauses = "".join(f" reduction(+:{self._surroundings.name(s.target.buffer)}[:{s.size}])" for s in racing)
        return f"#pragma omp parallel for{clauses}"

    def _worth_threads(self) -> bool:
        return self._surroundings.threads > 1 and math.prod(self._loop.shape) >= _WORTH_THREADS

    def _statements(self, pad: str, sums: dict[int, str]) -> None:
        stores: list[str] = []
        for s in self._loop.statements:
            value = self._expression(s.tree, pad)
            if not s.reduction:
                if not value.startswith("v"):
                    value = self._variable(f"{TYPES[s.target.dtype]} ", f"({TYPES[s.target.dtype]})({value})", pad)
                self._variables[s.target] = value
                if s.target.buffer in self._surroundings.needed:
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
                if tree.gathers and tree.dtype.is_floating_point:
                    # Not an error as in PyTorch, but never another number: the loss is NaN, and the fit says where.
                    inside = (f"z_inside({self._expression(g.index, pad)}, {g.size})" for g in tree.gathers)
                    code = f"{' && '.join(inside)} ? {code} : NAN"
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
            place.append(f"{gather.stride} * z_place({self._expression(gather.index, pad)}, {gather.size})")
        return f"{self._surroundings.name(read.buffer)}[{' + '.join(place) or '0'}]"


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
