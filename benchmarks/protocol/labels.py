"""Labels of guides on the command line, ``name:key=value``, and whose options they are."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import guides
from guides.optimise.settings import Settings
from guides.program.keywords import keywords_of

__all__ = ["parse_guide", "sort_options", "stops_by_itself", "takes_encoder"]


def stops_by_itself(family: str) -> bool:
    """Tell whether nothing is optimised step by step, so that there are no options of a fit but a sampler's or solver's."""
    return family in guides.samplers or family in guides.solvers


def takes_encoder(family: str) -> bool:
    """Tell whether a guide computes the latents of a data point from that data point, by an encoder that it is given."""
    return not stops_by_itself(family) and "encoder" in inspect.signature(guides.families[family]).parameters


def sort_options(
    family: str,
    options: Mapping[str, Any],
    fit: Mapping[str, Any],
    build_objective: Callable[..., guides.Objective] | None = None,
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Sort the options of a label by who takes them: the guide, ``guides.fit``, the objective.

    The guide comes first, so that an option that it knows is never taken from it; what nobody knows is left to it too, as
    its constructor then names those that it has.

    :param build_objective: builds the objective where it is not the registered one that ``options`` or ``fit`` name.

    Example::

        >>> sort_options("mean_field", {"init_scale": 0.1, "num_particles": 5}, {})
        ({'init_scale': 0.1}, {'num_particles': 5}, {})
    """
    if stops_by_itself(family):
        return dict(options), {}, {}
    own = inspect.signature(guides.families[family]).parameters
    of_fit = {"objective", "num_particles", *keywords_of(Settings.of)}
    build = build_objective or guides.objectives[options.get("objective", fit.get("objective", "elbo"))]
    of_objective = inspect.signature(build).parameters
    sorted_: tuple[dict[str, Any], dict[str, Any], dict[str, Any]] = ({}, {}, {})
    for key, value in options.items():
        place = 0 if key in own else 1 if key in of_fit else 2 if key in of_objective else 0
        sorted_[place][key] = value
    return sorted_


def parse_guide(label: str) -> tuple[str, dict[str, Any]]:
    """Split ``name:key=value:key=value`` into the guide's registry name and its options.

    Values are read as Python literals where they are, as words where they are not. Options of ``guides.fit`` and of the
    objective may stand among the guide's own: ``amortized:objective=iwae:num_particles=5``.

    :raises ValueError: if an option has no ``=``.

    Example::

        >>> parse_guide("laplace:curvature=kron:floor=1e-6")
        ('laplace', {'curvature': 'kron', 'floor': 1e-06})
    """
    import ast

    name, *pairs = label.split(":")
    options: dict[str, Any] = {}
    for pair in pairs:
        key, separator, text = pair.partition("=")
        if not separator or not key:
            raise ValueError(f"guide {label!r}: option {pair!r} should read key=value, as in laplace:curvature=kron")
        try:
            options[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            options[key] = text
    return name, options
