"""All parameters of a model and guide as one flat vector.

Optimising one vector costs a handful of kernels whatever the number of sites, and a function of one vector is what
:mod:`torch.func` differentiates and vectorises.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro.params.param_store import ParamStoreDict
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import constraints, transform_to

from guides.errors import UnsupportedModelError

__all__ = ["ParameterLayout", "Substitute", "isolated_store"]


@contextmanager
def isolated_store() -> Iterator[ParamStoreDict]:
    """Give the block an empty Pyro parameter store and put the caller's back afterwards."""
    store = pyro.get_param_store()
    with store.scope():
        yield store


class Substitute(Messenger):
    """Answer ``pyro.param`` statements from ``values`` instead of the parameter store."""

    def __init__(self, values: dict[str, Tensor]) -> None:
        super().__init__()
        self._values = values

    def _pyro_param(self, msg: Any) -> None:
        if msg["name"] in self._values:
            msg["value"] = self._values[msg["name"]]
            msg["done"] = True


def _reachable_modules(function: Callable[..., Any]) -> list[nn.Module]:
    """Return the modules that calling ``function`` can reach: itself, its owner, what it closes over."""
    function = inspect.unwrap(function)
    found = [function, getattr(function, "__self__", None)]
    if inspect.isfunction(function):
        closure = inspect.getclosurevars(function)
        found += [*closure.nonlocals.values(), *closure.globals.values()]
    return [f for f in found if isinstance(f, nn.Module)]


class _Caller(nn.Module):
    """Call a function as a module, so that ``torch.func.functional_call`` can replace parameters of what it reaches."""

    def __init__(self, modules: list[nn.Module]) -> None:
        super().__init__()
        self.reached = nn.ModuleList(modules)

    def forward(self, function: Callable[[], Any]) -> Any:
        return function()


@dataclass(frozen=True)
class ParameterLayout:
    """Names, shapes and constraints of the parameters, and where each lies in the flat unconstrained vector.

    :ivar names: parameter names as Pyro's store has them.
    :ivar shapes: unconstrained shapes.
    :ivar supports: constraints of the values that model and guide see.
    :ivar module_paths: for parameters of plain ``nn.Module`` objects, their path below ``caller``.
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    supports: tuple[constraints.Constraint, ...]
    module_paths: dict[str, str]
    caller: _Caller
    initial: Tensor

    @classmethod
    def discover(cls, store: ParamStoreDict, *functions: Callable[..., Any]) -> ParameterLayout:
        """Read the layout off a parameter store that one run of ``functions`` has filled.

        :raises UnsupportedModelError: if ``pyro.module`` registered a module that cannot be found from ``functions``.
        """
        modules = [m for f in functions for m in _reachable_modules(f)]
        caller = _Caller(modules)
        paths = {id(parameter): path for path, parameter in _plain_parameters(caller)}
        names, shapes, supports, flat, module_paths = [], [], [], [], {}
        for name, value in store._params.items():
            names.append(name)
            shapes.append(value.shape)
            supports.append(store._constraints[name])
            flat.append(value.detach().reshape(-1))
            if id(value) in paths:
                module_paths[name] = paths[id(value)]
            elif "$$$" in name:
                raise UnsupportedModelError(
                    f"parameter {name!r} belongs to a module that pyro.module registered but that cannot be reached "
                    "from the model; make the model an nn.Module that holds it, or a method of one"
                )
        initial = torch.cat(flat) if flat else torch.zeros(0)
        return cls(tuple(names), tuple(shapes), tuple(supports), module_paths, caller, initial)

    @property
    def size(self) -> int:
        """Length of the flat vector."""
        return self.initial.numel()

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """Return the unconstrained tensors by name; ``flat`` may have leading dimensions."""
        parts = flat.split([s.numel() for s in self.shapes], dim=-1)
        return {n: p.reshape((*flat.shape[:-1], *s)) for n, p, s in zip(self.names, parts, self.shapes)}

    def constrained(self, flat: Tensor) -> dict[str, Tensor]:
        """Return the tensors as model and guide see them, by name."""
        unconstrained = self.split(flat)
        return {n: transform_to(c)(unconstrained[n]) for n, c in zip(self.names, self.supports)}

    def flatten(self, constrained: dict[str, Tensor], leading: tuple[int, ...] = ()) -> Tensor:
        """Return the flat vector for constrained tensors by name; the inverse of :meth:`constrained`."""
        parts = [transform_to(c).inv(constrained[n]).reshape(*leading, -1) for n, c in zip(self.names, self.supports)]
        return torch.cat(parts, dim=-1) if parts else self.initial

    def call(self, flat: Tensor, function: Callable[[], Any]) -> Any:
        """Call ``function`` with every parameter replaced by its part of ``flat``."""
        values = self.constrained(flat)
        with Substitute(values):
            if not self.module_paths:
                return function()
            swapped = {path: values[name] for name, path in self.module_paths.items()}
            return torch.func.functional_call(self.caller, swapped, (function,))


def _plain_parameters(root: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield path and value of the parameters that modules read as attributes.

    A ``PyroParam`` (whose parameter is called ``<name>_unconstrained``) is read through ``pyro.param`` instead, where
    :class:`Substitute` finds it.
    """
    for prefix, module in root.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not (isinstance(module, pyro.nn.PyroModule) and name.endswith("_unconstrained")):
                yield (f"{prefix}.{name}" if prefix else name), parameter
