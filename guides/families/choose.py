"""From what a user names as a guide to a guide."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from guides.errors import OptionError
from guides.program.guide import as_guide, name_of
from guides.program.owning import is_owned, replanted
from guides.registries import families, samplers

__all__ = ["Model", "guide_factory"]

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
    if isinstance(guide, str) and guide in samplers:
        raise OptionError(f"{guide!r} is a sampler, which guides.fit runs on one data set, and no guide to be optimised")
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
