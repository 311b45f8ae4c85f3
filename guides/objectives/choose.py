"""From what a user names as an objective to an objective."""

from __future__ import annotations

from guides.errors import OptionError, check_whole
from guides.objectives.base import Objective
from guides.registries import objectives

__all__ = ["make_objective"]


def make_objective(objective: str | Objective, num_particles: int | None) -> Objective:
    """Return the objective of that name with ``num_particles`` draws per step (or its own number), or the objective itself.

    :raises OptionError: for something that is neither, for no particles, or particles given twice.
    """
    if num_particles is not None:
        check_whole("num_particles", num_particles, least=1)
    if isinstance(objective, str):
        return objectives[objective]() if num_particles is None else objectives[objective](num_particles=num_particles)
    if not isinstance(objective, Objective):
        known = ", ".join(objectives)
        raise OptionError(f"objective must be a name ({known}) or a guides.Objective, not {type(objective).__name__}")
    if num_particles is not None:
        raise OptionError("num_particles is set in the objective object already; pass it there only")
    return objective
