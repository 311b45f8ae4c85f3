"""From a model and data to a normal: what ``guides.fit`` does for a solver, and what a file of the result needs."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from guides.density.density import LogDensity, log_density
from guides.density.method import check_no_parameters, name_of_method, start
from guides.errors import DataError, NotAtTheModeWarning, check_whole
from guides.fitted.saved import fields_of, latent_shapes
from guides.objectives.elbo import ELBO
from guides.posterior import RESTORERS
from guides.program.alone import undivided
from guides.program.inputs import read
from guides.program.program import Program
from guides.registries import solvers
from guides.solvers.base import Solution, Solver
from guides.solvers.solved import Solved

__all__ = ["restore_solved", "solve"]


def solve(
    model: Callable[..., Any],
    solver: Solver,
    data: tuple[Any, ...],
    *,
    seed: int,
    compile: str,
    model_kwargs: dict[str, Any] | None,
    density: LogDensity | None = None,
) -> Solved:
    """Find a normal approximation of a model's posterior by a solver.

    :param density: the model's, if there is one already.
    :raises UnsupportedModelError: for a model with parameters to be trained.
    :raises NonFiniteLossError: if no start has a finite density.
    """
    check_whole("seed", seed)
    name = name_of_method(solver)
    began = time.perf_counter()
    with undivided("guides.fit"):
        density = density or log_density(model, *data, compile=compile, seed=seed, model_kwargs=model_kwargs)
        check_no_parameters(density, f"the guide {name!r}")
        solver.check_size(density.size)
        given = read(model, data, model_kwargs, torch.device("cpu"), seed=seed)
        first = start(density, seed)
    over = time.perf_counter()
    found = solver.run(density, first, seed)
    solved = time.perf_counter()
    if not found.converged:
        warnings.warn(f"guide {name!r} {found.reason}", NotAtTheModeWarning, stacklevel=3)
    with undivided("guides.fit"):
        program = Program.build(model, solver.guide(model), ELBO(), given, batch_size=None, seed=seed)
        seconds = {"setup": over - began, "train": solved - over, "finish": time.perf_counter() - solved}
        return Solved(
            family=name,
            options={f.name: getattr(solver, f.name) for f in fields(solver)},
            losses=torch.zeros(1, 0),
            objective="",
            steps=found.iterations,
            seed=seed,
            stop_reasons=(found.reason,),
            seconds=seconds,
            info=({**found.info, "gradients": found.gradients, "products": found.products, "converged": found.converged},),
            validation=torch.zeros(1, 0),
            program=program,
            flat=_parameters(program, found)[None],
            training=given,
            run=None,
            gradients=found.gradients,
            products=found.products,
        ).owning()


def restore_solved(content: dict[str, Any], model: Callable[..., Any], guide: Any = None) -> Solved:
    """Rebuild a solver's posterior from what :meth:`guides.Posterior.save` wrote.

    :raises DataError: if it is of another model.
    """
    held = fields_of(content)
    solver: Solver = solvers[content["family"]](**content["options"])
    program = Program.build(model, solver.guide(model), ELBO(), held["training"], batch_size=None, seed=content["seed"])
    here = latent_shapes(program)
    layout = program.parameters
    if content["sites"] != here or layout.names != tuple(content["names"]) or layout.size != content["flat"].shape[-1]:
        raise DataError(f"the saved normal is of the latent sites {content['sites']}, this model has {here}")
    took = content["solved"]
    return Solved(
        **held,
        program=program,
        gradients=took["gradients"],
        products=took["products"],
    ).owning()


def _parameters(program: Program, found: Solution) -> Tensor:
    """Return the flat parameters at which the program's guide is the normal that was found."""
    layout = program.parameters
    ending = {name.rpartition(".")[2]: name for name in layout.names}
    kind = layout.initial.dtype
    return layout.flatten({ending[key]: value.to(kind) for key, value in found.values().items()})


RESTORERS["solved"] = restore_solved
