"""Sampled posteriors from files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from guides.errors import DataError
from guides.fitted.saved import fields_of, latent_shapes
from guides.objectives.elbo import ELBO
from guides.posterior import RESTORERS
from guides.program.program import Program
from guides.samplers.sampled import Drawn, Sampled

__all__ = ["restore_sampled"]


def restore_sampled(content: dict[str, Any], model: Callable[..., Any], guide: Any = None) -> Sampled:
    """Rebuild a sampled posterior from what :meth:`guides.Posterior.save` wrote.

    :raises DataError: if its draws are of another model.
    """
    held = fields_of(content)
    drawn = content["sampled"]
    program = Program.build(model, Drawn(model), ELBO(), held["training"], batch_size=None, seed=content["seed"])
    shapes = latent_shapes(program)
    found = {n: tuple(v.shape[2:]) for n, v in drawn["latents"].items()}
    if shapes != found:
        raise DataError(f"the saved draws are of the latent sites {found}, this model has {shapes}")
    guide_of_draws: Any = program.guide
    guide_of_draws.placed(drawn["points"])
    return Sampled(
        **held,
        program=program,
        latents=drawn["latents"],
        points=drawn["points"],
        statistics=drawn["statistics"],
        gradients=drawn["gradients"],
    )


RESTORERS["sampled"] = restore_sampled
