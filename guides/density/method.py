"""What stands on a log density instead of taking steps of an optimiser: samplers and solvers, and how a user names one."""

from __future__ import annotations

import inspect
from abc import ABC
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import numpy as np
import torch

from guides.density.density import LogDensity
from guides.errors import NonFiniteLossError, OptionError, UnsupportedModelError
from guides.program.keywords import check_names
from guides.registries import samplers, solvers

__all__ = [
    "Method",
    "Start",
    "applying",
    "check_applies",
    "check_no_parameters",
    "label",
    "method_of",
    "name_of_method",
    "start",
]

_TRIES = 100
_REACH = 1.0  # starts are uniform within so much of medians of the prior, in the unconstrained space
_NEAR = 0.1  # or, where the density is not finite there, within so much
_KNOWN = ("seed", "compile", "progress", "device", "model_kwargs")  # of the options of a fit

Start = Callable[[int], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """A sampler or solver; its fields are its options.

    :cvar kind: what it is, in messages.
    :cvar because: why an option of an optimisation means nothing to it.
    :cvar instead: by such an option, what to say instead.
    """

    kind: ClassVar[str]
    because: ClassVar[str]
    instead: ClassVar[Mapping[str, str]] = {}


def method_of(guide: Any, more: Mapping[str, Any]) -> Method | None:
    """Return the method that a guide argument names, with its options; ``None`` if it names none.

    :param guide: a name, ``(name, options)``, or a :class:`Method`.
    :param more: options that were given beside it.
    :raises OptionError: for an option that it does not have, or a value that makes no sense.
    """
    if isinstance(guide, Method):
        return replace(guide, **_checked(type(guide), name_of_method(guide), more))
    name, options = guide if isinstance(guide, tuple) and len(guide) == 2 else (guide, {})
    if not isinstance(name, str) or not isinstance(options, Mapping):
        return None
    for registry in (samplers, solvers):
        if name in registry:
            kind = registry[name]
            found: Method = kind(**_checked(kind, name, {**options, **more}))
            return found
    return None


def name_of_method(method: Method) -> str:
    """Return the registry name of a method."""
    known = [*samplers.items(), *solvers.items()]
    return next((n for n, kind in known if kind is type(method)), type(method).__name__)


def label(method: Method) -> str:
    """Return name and options that are not the defaults, for tables."""
    changed = {f.name: getattr(method, f.name) for f in fields(method) if getattr(method, f.name) != f.default}
    name = name_of_method(method)
    return f"{name}({', '.join(f'{k}={v}' for k, v in changed.items())})" if changed else name


def applying(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those options of a fit that mean something for a method, too."""
    return {name: value for name, value in options.items() if name in _KNOWN}


def check_applies(method: Method, given: Mapping[str, Any], function: Callable[..., Any]) -> None:
    """Check that no option of an optimisation was given to a method, and no device but the CPU.

    :param given: the options of ``function``, by name.
    :raises OptionError: naming one that was.
    """
    name = name_of_method(method)
    for option, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is not parameter.KEYWORD_ONLY or option in _KNOWN or given[option] is parameter.default:
            continue
        if isinstance(given[option], int | float | str) and given[option] == parameter.default:
            continue
        instead = method.instead.get(option)
        raise OptionError(
            f"{option}={given[option]!r} means nothing for the {method.kind} {name!r}, {method.because}; "
            + (f"say {instead}" if instead else "leave it out")
        )
    if str(given["device"]) not in ("auto", "cpu"):
        raise OptionError(f"device={str(given['device'])!r}, but {method.kind}s run on the CPU, in float64; leave it out")


def check_no_parameters(density: LogDensity, method: str) -> None:
    """Check that a model has nothing to be trained.

    :param method: what would have to do it, in words.
    :raises UnsupportedModelError: naming its parameters.
    """
    names = density.program.parameters.names
    if names:
        raise UnsupportedModelError(
            f"the model has parameters to be trained ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''}), which "
            f"{method} cannot do: it knows latents only. Give them priors (pyro.sample instead of pyro.param, "
            "pyro.nn.PyroSample), or hold them at their values (requires_grad_(False))"
        )


def start(density: LogDensity, number: int) -> np.ndarray:
    """Return a point where density and gradient are finite, the same for the same number.

    :raises NonFiniteLossError: if none is found.
    """
    source = np.random.default_rng([number % 2**63, 1])
    for attempt in range(2 * _TRIES):
        reach = _REACH if attempt < _TRIES else _NEAR
        point: np.ndarray = density.start.numpy() + source.uniform(-reach, reach, density.size)
        value, gradient = density.value_and_gradient(point)
        if bool(torch.isfinite(value)) and bool(torch.isfinite(gradient).all()):
            return point
    raise NonFiniteLossError(
        f"the log density is not finite at any of {2 * _TRIES} starts around medians of the prior; is a latent bounded by "
        "data, or a scale of the data far from 1? Give the model a prior that covers the data, or standardise them"
    )


def _checked(kind: type[Any], name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    check_names(f"the {kind.kind} {name!r}", options, [f.name for f in fields(kind)])
    return dict(options)
