"""From a model and data to chains: what ``guides.fit`` does for a sampler."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from guides.density.density import LogDensity, log_density
from guides.errors import NonFiniteLossError, OptionError, UnsupportedModelError, check_whole
from guides.objectives.elbo import ELBO
from guides.program.alone import undivided
from guides.program.data import Data
from guides.program.inputs import read
from guides.program.keywords import check_names
from guides.program.program import Program
from guides.program.progress import shows_progress
from guides.registries import samplers
from guides.samplers.base import Chains, Sampler, Start
from guides.samplers.sampled import Drawn, Sampled

__all__ = ["Prepared", "applying", "check_applies", "concluded", "guide_name", "label", "prepared", "sample", "sampler_of"]

_TRIES = 100
_REACH = 1.0  # chains start uniformly within so much of medians of the prior, in the unconstrained space
_NEAR = 0.1  # or, where the density is not finite there, within so much
_KNOWN = ("seed", "compile", "progress", "device", "model_kwargs")  # of the options of a fit


def sampler_of(guide: Any, more: Mapping[str, Any]) -> Sampler | None:
    """Return the sampler that a guide argument names, with its options; ``None`` if it names none.

    :param guide: a name, ``(name, options)``, or a :class:`Sampler`.
    :param more: options that were given beside it.
    :raises OptionError: for an option that it does not have, or a value that makes no sense.
    """
    if isinstance(guide, Sampler):
        return replace(guide, **_checked(type(guide), guide_name(guide), more))
    name, options = guide if isinstance(guide, tuple) and len(guide) == 2 else (guide, {})
    if not isinstance(name, str) or name not in samplers or not isinstance(options, Mapping):
        return None
    kind = samplers[name]
    found: Sampler = kind(**_checked(kind, name, {**options, **more}))
    return found


def guide_name(sampler: Sampler) -> str:
    """Return the registry name of a sampler."""
    return next((n for n, kind in samplers.items() if kind is type(sampler)), type(sampler).__name__)


def label(sampler: Sampler) -> str:
    """Return name and options that are not the defaults, for tables."""
    changed = {f.name: getattr(sampler, f.name) for f in fields(sampler) if getattr(sampler, f.name) != f.default}
    name = guide_name(sampler)
    return f"{name}({', '.join(f'{k}={v}' for k, v in changed.items())})" if changed else name


def applying(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those options of a fit that mean something for a sampler, too."""
    return {name: value for name, value in options.items() if name in _KNOWN}


def check_applies(name: str, given: Mapping[str, Any], function: Callable[..., Any]) -> None:
    """Check that no option of an optimisation was given to a sampler.

    :param given: the options of ``function``, by name.
    :raises OptionError: naming one that was.
    """
    for option, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is not parameter.KEYWORD_ONLY or option in _KNOWN or given[option] is parameter.default:
            continue
        if isinstance(given[option], int | float | str) and given[option] == parameter.default:
            continue
        instead = {"replicates": "chains=", "steps": "draws= and tune=", "epochs": "draws= and tune="}.get(option)
        raise OptionError(
            f"{option}={given[option]!r} means nothing for the sampler {name!r}, which draws and does not optimise; "
            + (f"say {instead}" if instead else "leave it out")
        )


def sample(
    model: Callable[..., Any],
    sampler: Sampler,
    data: tuple[Any, ...],
    *,
    seed: int,
    compile: str,
    progress: bool | None,
    device: str | torch.device,
    model_kwargs: dict[str, Any] | None,
) -> Sampled:
    """Draw from the posterior of a model by a sampler.

    :raises UnsupportedModelError: for a model with parameters to be trained.
    :raises NonFiniteLossError: if no start has a finite density.
    """
    check_whole("seed", seed)
    if str(device) not in ("auto", "cpu"):
        raise OptionError(f"device={str(device)!r}, but samplers run on the CPU, in float64; leave it out")
    ready = prepared(model, data, guide_name(sampler), seed, compile, model_kwargs)
    chains = sampler.run(ready.density, ready.start, seed, shows_progress(progress))
    return concluded(ready, sampler, chains)


@dataclass(frozen=True)
class Prepared:
    """What a sampler needs, and what its posterior is made of.

    :ivar program: the model as the posterior evaluates it, in the default precision.
    :ivar seconds: that preparing took; ``began``: when it was over.
    """

    density: LogDensity
    program: Program
    training: Data
    start: Start
    seed: int
    seconds: float
    began: float


def prepared(
    model: Callable[..., Any],
    data: tuple[Any, ...],
    name: str,
    seed: int,
    compile: str,
    model_kwargs: dict[str, Any] | None,
) -> Prepared:
    """Return the compiled density of a model, and where chains may start."""
    began = time.perf_counter()
    with undivided("guides.fit"):
        density = log_density(model, *data, compile=compile, seed=seed, model_kwargs=model_kwargs)
        _check_no_parameters(density, name)
        given = read(model, data, model_kwargs, torch.device("cpu"), seed=seed)
        program = Program.build(model, Drawn(model), ELBO(), given, batch_size=None, seed=seed)
        start = partial(_start, density)
        start(seed)  # there is one, or this says so before the chains begin
        density.workspace()  # compiled before the chains start
    over = time.perf_counter()
    return Prepared(density, program, given, start, seed, over - began, over)


def concluded(ready: Prepared, sampler: Sampler, chains: Chains) -> Sampled:
    """Return chains as a posterior."""
    took = time.perf_counter() - ready.began
    points = torch.from_numpy(chains.points)
    shapes = {n: site.shape for n, site in ready.density.sites.items()}
    values = ready.density.to_sites(points, deterministic=False)
    kind = torch.get_default_dtype()
    latents = {n: v.reshape(*points.shape[:2], *shapes[n]).to(kind) for n, v in values.items()}
    statistics = {n: torch.from_numpy(np.ascontiguousarray(v)) for n, v in chains.statistics.items()}
    guide: Any = ready.program.guide
    guide.placed(points)
    return Sampled(
        family=guide_name(sampler),
        options={f.name: getattr(sampler, f.name) for f in fields(sampler)},
        losses=torch.zeros(1, 0),
        objective="",
        steps=sampler.tune + sampler.draws,
        seed=ready.seed,
        stop_reasons=(f"drew {points.shape[1]} times in each of {points.shape[0]} chains",),
        seconds={"setup": ready.seconds, "train": took, "finish": 0.0},
        info=({"gradients": chains.gradients},),
        validation=torch.zeros(1, 0),
        program=ready.program,
        flat=ready.program.parameters.initial[None],
        training=ready.training,
        run=None,
        latents=latents,
        points=points,
        statistics=statistics,
        gradients=chains.gradients,
    )


def _checked(kind: type[Any], name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    known = [f.name for f in fields(kind)]
    check_names(f"the sampler {name!r}", options, known)
    return dict(options)


def _check_no_parameters(density: LogDensity, name: str) -> None:
    names = density.program.parameters.names
    if names:
        raise UnsupportedModelError(
            f"the model has parameters to be trained ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''}), which the "
            f"sampler {name!r} cannot do: it draws latents. Give them priors (pyro.sample instead of pyro.param, "
            "pyro.nn.PyroSample), or hold them at their values (requires_grad_(False))"
        )


def _start(density: LogDensity, number: int) -> np.ndarray:
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
