"""Sampled posteriors from files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from guides.errors import DataError
from guides.objectives.elbo import ELBO
from guides.posterior import RESTORERS
from guides.program.data import Data, forms_from
from guides.program.program import Program
from guides.program.sites import nodes
from guides.samplers.sampled import Drawn, Sampled

__all__ = ["restore_sampled"]


def restore_sampled(content: dict[str, Any], model: Callable[..., Any], guide: Any = None) -> Sampled:
    """Rebuild a sampled posterior from what :meth:`guides.Posterior.save` wrote.

    :raises DataError: if its draws are of another model.
    """
    training = replace(Data.of(content["args"], content["kwargs"]), forms=forms_from(content.get("forms", {})))
    held = content["sampled"]
    program = Program.build(model, Drawn(model), ELBO(), training, batch_size=None, seed=content["seed"])
    shapes = {n: tuple(nodes(program.prototype)[n]["value"].shape) for n in program.latents}
    found = {n: tuple(v.shape[2:]) for n, v in held["latents"].items()}
    if shapes != found:
        raise DataError(f"the saved draws are of the latent sites {found}, this model has {shapes}")
    drawn: Any = program.guide
    drawn.placed(held["points"])
    return Sampled(
        family=content["family"],
        options=content["options"],
        losses=content["losses"],
        objective=content["objective"],
        steps=content["steps"],
        seed=content["seed"],
        stop_reasons=tuple(content["stop_reasons"]),
        seconds=content["seconds"],
        info=tuple(content["info"]),
        validation=content["validation"],
        program=program,
        flat=content["flat"],
        training=training,
        run=None,
        latents=held["latents"],
        points=held["points"],
        statistics=held["statistics"],
        gradients=held["gradients"],
    )


RESTORERS["sampled"] = restore_sampled
