"""From a model and data to chains: what ``guides.fit`` does for a sampler."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import numpy as np
import torch

from guides.density.density import LogDensity, log_density
from guides.density.method import Start, check_no_parameters, name_of_method, start
from guides.errors import check_whole
from guides.objectives.elbo import ELBO
from guides.program.alone import undivided
from guides.program.data import Data
from guides.program.inputs import read
from guides.program.program import Program
from guides.program.progress import shows_progress
from guides.samplers.base import Chains, Sampler
from guides.samplers.sampled import Drawn, Sampled

__all__ = ["Prepared", "concluded", "prepared", "sample"]


def sample(
    model: Callable[..., Any],
    sampler: Sampler,
    data: tuple[Any, ...],
    *,
    seed: int,
    compile: str,
    progress: bool | None,
    model_kwargs: dict[str, Any] | None,
    density: LogDensity | None = None,
) -> Sampled:
    """Draw from the posterior of a model by a sampler.

    :param density: the model's, if there is one already.
    :raises UnsupportedModelError: for a model with parameters to be trained.
    :raises NonFiniteLossError: if no start has a finite density.
    """
    check_whole("seed", seed)
    ready = prepared(model, data, name_of_method(sampler), seed, compile, model_kwargs, density)
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
    density: LogDensity | None = None,
) -> Prepared:
    """Return the compiled density of a model, and where chains may start."""
    began = time.perf_counter()
    with undivided("guides.fit"):
        density = density or log_density(model, *data, compile=compile, seed=seed, model_kwargs=model_kwargs)
        check_no_parameters(density, f"the sampler {name!r}")
        given = read(model, data, model_kwargs, torch.device("cpu"), seed=seed)
        program = Program.build(model, Drawn(model), ELBO(), given, batch_size=None, seed=seed)
        begin = partial(start, density)
        begin(seed)  # there is one, or this says so before the chains begin
        density.workspace()  # compiled before the chains start
    over = time.perf_counter()
    return Prepared(density, program, given, begin, seed, over - began, over)


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
        family=name_of_method(sampler),
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
