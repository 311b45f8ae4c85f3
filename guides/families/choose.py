"""From what a user names as a guide to a guide."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from pyro.infer.autoguide import AutoGuide
from torch import Tensor, nn

from guides.errors import OptionError
from guides.program.guide import as_guide, name_of
from guides.program.owning import is_owned, replanted
from guides.registries import families, samplers, solvers

__all__ = ["Model", "check_order", "guide_factory", "is_guide"]

Model = Callable[..., Any]


def guide_factory(model: Model, guide: Any) -> tuple[Callable[[], Callable[..., Any]], str, dict[str, Any]]:
    """Return a function that makes a new guide, the family's name and its options."""
    if guide is None:
        guide = getattr(model, "natural_guide", None)
        if guide is None:
            raise OptionError(
                f"no guide was given and the model has no natural_guide; pass one of {', '.join(families)} after the model"
            )
    if isinstance(guide, Mapping):
        guide = ("structured", {"sites": dict(guide)})
    options: dict[str, Any] = {}
    if isinstance(guide, tuple):
        guide, options = guide
    for registry, kind in ((samplers, "a sampler"), (solvers, "a solver")):
        if isinstance(guide, str) and guide in registry:
            raise OptionError(f"{guide!r} is {kind}, which guides.fit runs on one data set, and no guide to be optimised")
    if isinstance(guide, str):
        family, name = families[guide], guide
    elif isinstance(guide, type):
        family, name = guide, next((n for n, f in families.items() if f is guide), guide.__name__)
    else:
        name = next((n for n, f in families.items() if f is type(guide)), name_of(guide))
        again = isinstance(guide, nn.Module) and is_owned(guide)  # it starts from a posterior, which must not move
        return (
            (lambda: replanted(guide, model) if again else guide),
            name,
            dict(as_guide(guide).constructor_options),
        )

    def make() -> Callable[..., Any]:
        try:
            inspect.signature(family).bind(model, **options)
        except TypeError as error:
            known = ", ".join(list(inspect.signature(family).parameters)[1:])
            raise OptionError(f"guide {name!r}: {error}; its options are {known}") from None
        return family(model, **options)

    return make, name, dict(options)


def check_order(guide: Any, data: tuple[Any, ...]) -> None:
    """Check that no guide stands among the data.

    :raises OptionError: naming it.
    """
    for i, value in enumerate(data):
        named = isinstance(value, str) and (value in families or value in samplers or value in solvers)
        if isinstance(value, list) and value and all(isinstance(v, str) and v in families for v in value):
            raise OptionError("guide is a list; fit takes one guide, guides.compare(model, [...], ...) several")
        if guide is None and (named or isinstance(value, AutoGuide)):
            raise OptionError(
                f"the guide {_kind(value)} stands among the data (argument {i}); it comes right after the model: "
                "fit(model, 'mean_field', x, y)"
            )


def _kind(value: Any) -> str:
    return repr(value) if isinstance(value, str) else f"a {type(value).__name__}"


def is_guide(value: Any) -> bool:
    """Tell whether an argument that may be a guide or the first of the data names or is a guide."""
    if isinstance(value, str | type) or (callable(value) and not isinstance(value, Tensor)):
        return True
    if isinstance(value, Mapping):  # families by pattern of sites, and not an argument of the model
        return bool(value) and all(isinstance(v, str) or (isinstance(v, tuple) and is_guide(v)) for v in value.values())
    return isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], dict)
