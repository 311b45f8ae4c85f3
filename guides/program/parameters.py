"""All parameters of a model and guide as one flat vector.

Optimising one vector costs a handful of kernels whatever the number of sites, and a function of one vector is what
:mod:`torch.func` differentiates and vectorises.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, compress
from types import ModuleType, SimpleNamespace
from typing import Any

import pyro
import torch
from pyro.params.param_store import ParamStoreDict
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import constraints, transform_to

from guides.errors import UnsupportedModelError
from guides.program.alone import LOCK
from guides.program.buffers import normalisers, without_statistics

__all__ = ["Owner", "ParameterLayout", "Substitute", "detached_parameters", "isolated_store", "reachable_modules"]


@contextmanager
def isolated_store() -> Iterator[ParamStoreDict]:
    """Give the block an empty Pyro parameter store and put the caller's back afterwards; other threads wait meanwhile."""
    store = pyro.get_param_store()
    with LOCK, store.scope():
        yield store


class Substitute(Messenger):
    """Answer ``pyro.param`` statements from ``values`` instead of the parameter store."""

    def __init__(self, values: dict[str, Tensor]) -> None:
        super().__init__()
        self._values = values

    def _pyro_param(self, msg: Any) -> None:
        if msg["name"] in self._values:
            value: Any = self._values[msg["name"]]
            # Where a plate with some of its rows writes down which rows of the parameter it takes.
            value._pyro_unconstrained_param = SimpleNamespace()
            msg["value"], msg["done"] = value, True


class _Detach(Messenger):
    """Cut the gradient of every ``pyro.param`` statement."""

    def _pyro_post_param(self, msg: Any) -> None:
        msg["value"] = msg["value"].detach()


@contextmanager
def detached_parameters(function: Callable[..., Any]) -> Iterator[None]:
    """Let ``function``, called inside the block, see its parameters as constants; gradients still flow through its inputs.

    Other functions see them as constants too where they share modules with ``function``.
    """
    plain = _plain_parameters(reachable_modules(function))
    owners = {f"{i}": (owner,) for i, (_, owner) in enumerate(plain)}
    values = {f"{i}": parameter.detach() for i, (parameter, _) in enumerate(plain)}
    with _swapped(owners, values), _Detach(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*was not registered in the param store", category=UserWarning)
        yield


def reachable_modules(*functions: Any) -> list[nn.Module]:
    """Return all modules that calling the functions can reach, each once."""
    return _unique(m for f in functions for root in _reachable_modules(f) for m in root.modules())


def _reachable_modules(value: Any, depth: int = 3) -> list[nn.Module]:
    """Return the modules that calling ``value`` can reach: itself, its owner, what it closes over, what those hold."""
    if isinstance(value, nn.Module):
        return [value]
    if depth == 0 or isinstance(value, type | ModuleType | Tensor):
        return []
    held: list[Any] = []
    if inspect.isfunction(value):
        closure = inspect.getclosurevars(inspect.unwrap(value))
        held = [getattr(value, "__wrapped__", None), *closure.nonlocals.values(), *closure.globals.values()]
    elif inspect.ismethod(value):
        held = [value.__self__, value.__func__]
    elif isinstance(value, functools.partial):
        held = [value.func, *value.args, *value.keywords.values()]
    elif isinstance(value, dict):
        held = list(value.values())
    elif isinstance(value, list | tuple):
        held = list(value)
    elif hasattr(value, "__dict__"):
        held = list(vars(value).values())
    return [m for h in held for m in _reachable_modules(h, depth - 1)]


Owner = tuple[nn.Module, str]
"""A module and the name of one of its own parameters."""


@contextmanager
def _swapped(owners: Mapping[str, tuple[Owner, ...]], values: Mapping[str, Tensor]) -> Iterator[None]:
    """Put tensors in the places of parameters inside the block.

    As :func:`torch.func.functional_call` does, which loses parameters of a module that it reaches in two ways.
    """
    places = [(module, attribute, values[name]) for name, group in owners.items() for module, attribute in group]
    before = [module._parameters[attribute] for module, attribute, _ in places]
    try:
        for module, attribute, value in places:
            module._parameters[attribute] = value  # type: ignore[assignment]
        yield
    finally:
        for (module, attribute, _), parameter in zip(places, before):
            module._parameters[attribute] = parameter


@dataclass(frozen=True)
class ParameterLayout:
    """Names, shapes and constraints of the parameters, and where each lies in the flat unconstrained vector.

    :ivar names: parameter names as Pyro's store has them.
    :ivar shapes: unconstrained shapes.
    :ivar supports: constraints of the values that model and guide see.
    :ivar owners: for parameters that modules read as attributes, those modules.
    :ivar pyro_owners: for parameters that a ``PyroModule`` declares by ``PyroParam``, those modules.
    :ivar normalisers: modules that keep running statistics.
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    supports: tuple[constraints.Constraint, ...]
    owners: dict[str, tuple[Owner, ...]]
    pyro_owners: dict[str, tuple[Owner, ...]]
    initial: Tensor
    normalisers: tuple[nn.Module, ...] = ()

    @classmethod
    def discover(cls, store: ParamStoreDict, *functions: Any) -> ParameterLayout:
        """Read the layout off a parameter store that one run of ``functions`` has filled.

        :raises UnsupportedModelError: if ``pyro.module`` registered a module that cannot be found from ``functions``.
        """
        modules = reachable_modules(*functions)
        plain, pyro_params = _plain_parameters(modules), _pyro_parameters(modules)
        names, shapes, supports, flat = [], [], [], []
        owners: dict[str, tuple[Owner, ...]] = {}
        for name, value in store._params.items():
            names.append(name)
            shapes.append(value.shape)
            supports.append(store._constraints[name])
            flat.append(value.detach().reshape(-1))
            found = tuple(o for parameter, o in plain if _is_in_store(parameter, value))
            if found:
                owners[name] = found
            elif "$$$" in name:
                raise UnsupportedModelError(
                    f"parameter {name!r} belongs to a module that pyro.module registered but that cannot be reached "
                    "from the model; make the model an nn.Module that holds it, or a method of one"
                )
        initial = torch.cat(flat) if flat else torch.zeros(0)
        pyro_owners = {n: pyro_params[n] for n in names if n in pyro_params and n not in owners}
        return cls(tuple(names), tuple(shapes), tuple(supports), owners, pyro_owners, initial, normalisers(modules))

    @property
    def size(self) -> int:
        """Length of the flat vector."""
        return self.initial.numel()

    @property
    def parts(self) -> dict[str, slice]:
        """Where each parameter lies in the flat vector."""
        ends = list(accumulate((s.numel() for s in self.shapes), initial=0))
        return {name: slice(start, end) for name, start, end in zip(self.names, ends, ends[1:])}

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

    def without(self, prefix: str) -> tuple[ParameterLayout, Tensor]:
        """Return the layout without parameters whose names start with ``prefix``, and where the others lie in a vector."""
        kept = [not name.startswith(prefix) for name in self.names]
        index = torch.cat([torch.full((s.numel(),), k) for s, k in zip(self.shapes, kept)]).nonzero().squeeze(-1)
        index = index.to(self.initial.device)
        names = tuple(compress(self.names, kept))
        owners = {n: o for n, o in self.owners.items() if n in names}
        shapes, supports = tuple(compress(self.shapes, kept)), tuple(compress(self.supports, kept))
        initial = self.initial[index]
        return ParameterLayout(names, shapes, supports, owners, self.pyro_owners, initial, self.normalisers), index

    def call(self, flat: Tensor, function: Callable[[], Any], keep_statistics: bool = False) -> Any:
        """Call ``function`` with every parameter replaced by its part of ``flat``.

        :param keep_statistics: let modules write down running statistics of what they normalise.
        """
        values = self.constrained(flat)
        quiet = without_statistics(() if keep_statistics else self.normalisers)
        with Substitute(values), _swapped(self.owners, values), quiet:
            return function()

    def write_back(self, flat: Tensor, spared: Callable[[nn.Module], bool] = lambda module: False) -> None:
        """Give the modules that own parameters the values of ``flat``, so that they work in stock Pyro.

        :param spared: tells which modules to leave alone.
        """
        values = self.split(flat.detach())
        for name, group in (*self.owners.items(), *self.pyro_owners.items()):
            for module, attribute in group:
                if not spared(module):
                    module.get_parameter(attribute).data = values[name].clone()


def _unique(modules: Iterable[nn.Module]) -> list[nn.Module]:
    return list({id(m): m for m in modules}.values())


def _plain_parameters(modules: list[nn.Module]) -> list[tuple[nn.Parameter, Owner]]:
    """Return the parameters that modules read as attributes.

    A ``PyroParam`` (whose parameter is called ``<name>_unconstrained``) is read through ``pyro.param`` instead, where
    :class:`Substitute` finds it.
    """
    return [
        (parameter, (module, name))
        for module in modules
        for name, parameter in module.named_parameters(recurse=False)
        if not (isinstance(module, pyro.nn.PyroModule) and name.endswith("_unconstrained"))
    ]


def _pyro_parameters(modules: list[nn.Module]) -> dict[str, tuple[Owner, ...]]:
    """Return who owns each ``PyroParam``, by the name that it has in Pyro's parameter store."""
    found: dict[str, tuple[Owner, ...]] = {}
    for module in modules:
        if isinstance(module, pyro.nn.PyroModule):
            for name in module._pyro_params:
                full = f"{module._pyro_name}.{name}" if module._pyro_name else name
                found[full] = (*found.get(full, ()), (module, f"{name}_unconstrained"))
    return found


def _is_in_store(parameter: nn.Parameter, value: Tensor) -> bool:
    """Tell whether the store holds this parameter; of one that is not contiguous it holds a copy."""
    if parameter is value:
        return True
    return not parameter.is_contiguous() and parameter.shape == value.shape and bool(torch.equal(parameter, value))
