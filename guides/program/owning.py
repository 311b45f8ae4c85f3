"""Copies of programs, in memory and in pickles: what a posterior owns is nobody else's.

Three things stand in the way of a plain copy. Pyro's autoguides lose their model when they are copied or pickled, the
original as well as the copy. Modules keep tensors of the run that they last took part in, which may have been inside a
transform of :mod:`torch.func` that is over. And functions are never copied, so that the modules which a model or guide
function closes over stay the same ones, and a layout of parameters has to go on pointing to those.
"""

from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import torch
from pyro.infer.autoguide import AutoGuide
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from guides.errors import DataError
from guides.program.buffers import normalisers
from guides.program.parameters import Owner, ParameterLayout, reachable_modules

__all__ = ["copy_of", "is_owned", "owned", "pack", "replanted", "unpack"]

_MARK = "_of_a_posterior"


class ProgramLike(Protocol):
    """What is copied: model, guide and objective with the layout of their parameters; a ``Program``."""

    @property
    def model(self) -> Any:
        """The prepared model."""

    @property
    def guide(self) -> Any:
        """The guide."""

    @property
    def objective(self) -> Any:
        """The objective."""

    @property
    def parameters(self) -> ParameterLayout:
        """The layout of the parameters, with the modules that own them."""

    @property
    def prototype(self) -> Trace:
        """A trace of the model."""


P = TypeVar("P", bound=ProgramLike)


def owned(program: P, memo: dict[int, Any]) -> P:
    """Return a copy of a program whose modules are marked as those of a posterior, which no later fit changes.

    Modules that functions close over are not copied and stay the caller's; so does everything that cannot be copied, such
    as a model that holds an open file.
    """
    before = {id(module) for module in _modules(program)}
    try:
        copied = copy_of(program, memo)
    except (TypeError, copy.Error, pickle.PicklingError, NotImplementedError):  # of copy.deepcopy, for what is no data
        return program
    for module in _modules(copied):
        if id(module) not in before:
            module.__dict__[_MARK] = True
    return copied


def is_owned(module: nn.Module) -> bool:
    """Tell whether a module belongs to a posterior."""
    return _MARK in module.__dict__


def copy_of(program: P, memo: dict[int, Any]) -> P:
    """Return a copy of a program that shares no module with it, but for those that functions close over.

    :param memo: as for :func:`copy.deepcopy`; what is in it is taken from there.
    """
    with _copyable(_modules(program), memo):
        model, guide = copy.deepcopy(program.model, memo), copy.deepcopy(program.guide, memo)
        objective = copy.deepcopy(program.objective, memo)
    layout = program.parameters
    moved = [
        {name: tuple((memo.get(id(module), module), a) for module, a in group) for name, group in owners.items()}
        for owners in (layout.owners, layout.pyro_owners)
    ]
    kept = tuple(memo.get(id(module), module) for module in layout.normalisers)
    start = layout.initial.clone()
    parameters = replace(layout, owners=moved[0], pyro_owners=moved[1], initial=start, normalisers=kept)
    whole: Any = program  # a dataclass
    copied: P = replace(whole, model=model, guide=guide, objective=objective, parameters=parameters)
    return copied


def replanted(guide: nn.Module, model: Callable[..., Any]) -> nn.Module:
    """Return a copy of a posterior's guide that belongs to no posterior, for ``model`` instead of the posterior's."""
    memo: dict[int, Any] = {}
    modules = list(guide.modules())
    if isinstance(guide, AutoGuide):
        held = guide.model
        while isinstance(held, functools.partial):  # inside handlers, such as that of the initial values
            held = held.args[-1]
        memo[id(held)], memo[id(_bound_to(held))] = model, _bound_to(model)
    with _copyable(modules, memo):
        copied = copy.deepcopy(guide, memo)
    for module in copied.modules():
        module.__dict__.pop(_MARK, None)
    return copied


def _bound_to(function: Any) -> Any:
    """Return the object of a method, whose copy would be made anew; of anything else the thing itself."""
    return getattr(function, "__self__", function)


def pack(program: ProgramLike) -> dict[str, Any]:
    """Return what a pickle of a program holds; parameters are found by the place of their module among all of them.

    The program's own guide is not fit for use afterwards: pickle a copy.
    """
    modules = _modules(program)
    number = {id(module): i for i, module in enumerate(modules)}
    layout = program.parameters
    places = [
        {name: [(number[id(module)], attribute) for module, attribute in group] for name, group in owners.items()}
        for owners in (layout.owners, layout.pyro_owners)
    ]
    prototype = program.prototype.copy()
    for name, site in list[tuple[str, Any]](prototype.nodes.items()):
        if site["type"] != "sample":  # whose function is Pyro's global store
            prototype.remove_node(name)
    return {
        **vars(program),
        "parameters": replace(layout, owners={}, pyro_owners={}, normalisers=()),
        "prototype": prototype,
        "places": places,
        "kinds": [type(module).__name__ for module in modules],
        "models": [guide._model for guide in _autoguides(modules)],
    }


def unpack(program: ProgramLike, state: dict[str, Any]) -> None:
    """Fill a program with what :func:`pack` returned.

    :raises DataError: if model or guide are no longer made of the modules that they were made of.
    """
    places, kinds, models = (state.pop(name) for name in ("places", "kinds", "models"))
    vars(program).update(state)
    modules = _modules(program)
    if [type(module).__name__ for module in modules] != kinds:
        found = ", ".join(type(module).__name__ for module in modules)
        raise DataError(f"model and guide of this pickle hold the modules {', '.join(kinds)}; here they hold {found}")
    for guide, model in zip(_autoguides(modules), models, strict=True):
        if model is not None:  # it was pickled before, and has lost it
            guide.__dict__["_model"] = model
    owners: list[dict[str, tuple[Owner, ...]]] = [
        {name: tuple((modules[i], attribute) for i, attribute in group) for name, group in part.items()} for part in places
    ]
    kept = normalisers(modules)
    vars(program)["parameters"] = replace(program.parameters, owners=owners[0], pyro_owners=owners[1], normalisers=kept)


def _modules(program: ProgramLike) -> list[nn.Module]:
    return reachable_modules(program.model.model, program.guide, program.objective)


def _autoguides(modules: list[nn.Module]) -> list[Any]:
    """Return Pyro's guides among modules, and those that guides hold in tuples, out of sight of :mod:`torch.nn`."""
    found: list[Any] = [m for m in modules if isinstance(m, AutoGuide)]
    for guide in found:  # which grows
        held = [v for value in vars(guide).values() if isinstance(value, tuple) for v in value]
        inside = [m for v in held if isinstance(v, AutoGuide) for m in v.modules() if isinstance(m, AutoGuide)]
        found += [m for m in inside if not any(m is other for other in found)]
    return found


def _unique(modules: list[Any]) -> list[nn.Module]:
    return list({id(m): m for m in modules}.values())


@contextmanager
def _copyable(modules: list[nn.Module], memo: dict[int, Any]) -> Iterator[None]:
    """Let :func:`copy.deepcopy` copy modules inside the block, and give the originals back what it took from them."""
    guides = [(guide, guide._model, guide.master) for guide in _autoguides(modules)]
    for module in _unique([*modules, *(guide for guide, _, _ in guides)]):
        for value in _kept(module):
            plain = _plain(value)
            if plain is not value:
                memo[id(value)] = plain
        if isinstance(module, AutoGuide):
            if module.prototype_trace is not None:
                memo[id(module.prototype_trace)] = module.prototype_trace  # which nobody changes
            plates = vars(module).get("plates")
            if plates is not None:
                memo[id(plates)] = {}  # made anew by every run
    try:
        with _PlainCopies():
            yield
    finally:
        for guide, model, master in guides:
            guide.__dict__.update(_model=model, master=master)
    with _PlainCopies():
        for guide, model, _ in guides:
            copied = memo.get(id(guide))
            if copied is not None:
                copied.__dict__["_model"] = copy.deepcopy(model, memo)


class _PlainCopies(TorchFunctionMode):
    """Copy tensors that a run left behind, such as those in the cache of a transform, as what they are without the run."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not Tensor.__deepcopy__:
            return func(*args, **(kwargs or {}))
        value, memo = args
        if id(value) in memo:
            return memo[id(value)]
        plain = _plain(value)
        if plain is value:
            return func(*args, **(kwargs or {}))
        memo[id(value)] = plain.clone()
        return memo[id(value)]


def _kept(module: nn.Module) -> Iterator[Tensor]:
    """Yield the tensors that a module keeps besides its parameters, those in tuples too: a transform's last pair."""
    for value in vars(module).values():
        for held in value if isinstance(value, tuple | list) else (value,):
            if isinstance(held, Tensor) and not isinstance(held, nn.Parameter):
                yield held


def _plain(value: Tensor) -> Tensor:
    """Return a tensor without the history and the transforms of the run that made it."""
    while torch._C._functorch.is_functorch_wrapped_tensor(value):
        value = torch._C._functorch.get_unwrapped(value)
    return value if value.is_leaf else value.detach()
