"""What tells two pieces of work apart, so that a checkpoint of one is never taken for the result of the other."""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass
from importlib import metadata
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from guides.compile.tracing import recorded
from guides.program.data import Data
from guides.program.guide import as_guide
from guides.program.isolation import quiet, seeded
from guides.program.noise import Noise
from guides.program.parameters import isolated_store
from guides.program.program import Program

__all__ = ["arguments", "digest", "estimates", "operations", "program_parts", "versions"]

_DRAWS = 2


def digest(value: Any) -> str:
    """Return the SHA-256 of a value: all bytes of tensors and arrays, the code of functions, what objects hold."""
    whole = hashlib.sha256()
    for piece in _pieces(value, {}):
        whole.update(len(piece).to_bytes(8, "little"))
        whole.update(piece)
    return whole.hexdigest()


def arguments(what: str, datasets: Sequence[Data]) -> dict[str, str]:
    """Return the hashes of the arguments of all data sets, by name."""
    first = datasets[0]
    several = [first] if all(d is first for d in datasets) else list(datasets)
    found = {f"{what}argument {i}": digest([d.args[i] for d in several]) for i in range(len(first.args))}
    return found | {f"{what}argument {k!r}": digest([d.kwargs[k] for d in several]) for k in first.kwargs}


def versions() -> str:
    """Return the versions of everything that the numbers depend on."""
    try:
        own = metadata.version("pyro-posterior-zoo")
    except metadata.PackageNotFoundError:
        own = "not installed"
    return f"torch {torch.__version__}, pyro {pyro.__version__}, pyro-posterior-zoo {own}"


def program_parts(program: Program) -> dict[str, str]:
    """Return what model, guide and objective are made of, by words; not their parameters."""
    guide, objective = program.guide, program.objective
    layout = program.parameters
    settings = {k: v for k, v in vars(objective).items() if k[0] != "_"}
    return {
        "the guide": type(guide).__name__,
        "the guide's options": digest(as_guide(guide).constructor_options),
        "the objective": type(objective).__name__,
        "the objective's settings": digest(settings),
        "the parameters' names and shapes": digest(list(zip(layout.names, layout.shapes))),
        "versions": versions(),
        "the device": layout.initial.device.type,
    }


def operations(program: Program, flat: Tensor, data: Data) -> str:
    """Return the hash of the tensor operations, with their constants, that model, guide and objective perform.

    Of the operations it takes the collection, whatever their order. A program that cannot be traced is told by the code of
    its functions instead.
    """
    noise = _noise(program, flat, 0)

    def run(flat: Tensor, *tensors: Tensor) -> Tensor:
        return _estimate(program, flat, tensors, data, noise)

    try:
        with isolated_store(), quiet(), seeded(0), torch.no_grad():
            graph = recorded(run, [flat.detach().clone(), *(data.args[i] for i in _tensors(data))])
    except Exception:  # whatever tracing cannot follow: the code says it too
        return digest([program.model, program.guide, program.objective])
    return digest(sorted(_described(graph, node) for node in graph.graph.nodes))


def estimates(program: Program, flat: Tensor, data: Data) -> list[float]:
    """Return the objective at parameters ``flat``, shape ``(size,)``, for draws that are always the same."""
    tensors = [data.args[i] for i in _tensors(data)]
    with isolated_store(), quiet(), seeded(0), torch.no_grad():
        return [float(_estimate(program, flat, tensors, data, _noise(program, flat, k))) for k in range(_DRAWS)]


def _noise(program: Program, flat: Tensor, seed: int) -> Noise:
    return program.noise.draw((program.particles,), torch.Generator(flat.device).manual_seed(seed))


def _tensors(data: Data) -> list[int]:
    return [i for i, a in enumerate(data.args) if isinstance(a, Tensor)]


def _estimate(program: Program, flat: Tensor, tensors: Sequence[Tensor], data: Data, noise: Noise) -> Tensor:
    args = list(data.args)
    for i, tensor in zip(_tensors(data), tensors):
        args[i] = tensor
    step = torch.ones((), device=flat.device)
    factor = program.size / max(1, data.size)
    return program.estimate(flat, noise.normals, noise.uniforms, args, data.kwargs, factor, step).value


def _described(graph: GraphModule, node: torch.fx.Node) -> str:
    plain = torch.fx.map_arg((node.args, dict(node.kwargs)), lambda n: "")  # which result is which is the estimates' matter
    found = node.meta.get("tensor_meta")
    shape = "" if found is None or not hasattr(found, "shape") else f"{tuple(found.shape)}"
    constant = digest(getattr(graph, str(node.target))) if node.op == "get_attr" else ""
    target = "" if node.op in ("get_attr", "placeholder") else str(node.target)
    return f"{node.op} {target} {plain} {shape} {constant}"


def _pieces(value: Any, seen: dict[int, Any]) -> Iterator[bytes]:
    """Yield the bytes that tell a value from others."""
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        yield f"{type(value).__name__} {value!r}".encode()
    elif isinstance(value, Tensor):
        dense = value.detach().cpu()
        dense = (dense.to_dense() if dense.layout != torch.strided else dense).contiguous()
        yield f"tensor {dense.dtype} {tuple(dense.shape)}".encode()
        yield dense.reshape(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(value, np.ndarray) and value.dtype != object:
        yield f"array {value.dtype} {value.shape}".encode()
        yield np.ascontiguousarray(value).tobytes()
    elif id(value) in seen:
        yield b"again"
    else:
        seen[id(value)] = value  # held, so that no other gets its address
        yield type(value).__qualname__.encode()
        yield from _inside(value, seen)


def _inside(value: Any, seen: dict[int, Any]) -> Iterator[bytes]:
    parts: Any
    if isinstance(value, dict):
        parts = [part for item in value.items() for part in item]
    elif isinstance(value, set | frozenset):
        parts = sorted(digest(v) for v in value)
    elif isinstance(value, list | tuple):
        parts = value
    elif isinstance(value, nn.Module):  # its parameters train along; where they start is compared by itself
        parts = [(name, tuple(p.shape)) for name, p in value.named_parameters()]
    elif isinstance(value, CodeType):
        parts = [value.co_code, value.co_names, [c for c in value.co_consts if not _is_text(c, value)]]
    elif isinstance(value, FunctionType):
        parts = [value.__code__, value.__defaults__, _called(value)]
    elif isinstance(value, MethodType):
        parts = [value.__func__, value.__self__]
    elif isinstance(value, functools.partial):
        parts = [value.func, value.args, value.keywords]
    elif isinstance(value, type | ModuleType):
        parts = [value.__name__]
    elif is_dataclass(value) or hasattr(value, "__dict__"):
        parts = sorted((k, v) for k, v in vars(value).items())
    else:
        parts = [repr(value)] if " at 0x" not in repr(value) else []
    for part in parts:
        yield from _pieces(part, seen)


def _is_text(constant: Any, code: CodeType) -> bool:
    """Tell whether a constant is the docstring, which computes nothing."""
    return bool(code.co_consts) and constant is code.co_consts[0] and isinstance(constant, str)


def _called(function: FunctionType) -> list[Any]:
    """Return the values that a function closes over, and the user's functions that it calls by name."""
    closure = inspect.getclosurevars(function)
    held: list[Any] = [v for v in closure.nonlocals.values() if not isinstance(v, nn.Module)]
    for value in closure.globals.values():
        if isinstance(value, FunctionType) and value.__module__.split(".")[0] not in ("torch", "pyro", "guides"):
            held.append(value)
    return held
