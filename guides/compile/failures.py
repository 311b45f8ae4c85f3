"""Which site of a model an error came from."""

from __future__ import annotations

import traceback
from typing import Any

__all__ = ["at_site", "site_of"]

_LOCALS = ("site", "msg", "initial_msg", "node")


def site_of(error: BaseException) -> str | None:
    """Return the name of the sample site that was being drawn or scored when an error arose, or ``None``.

    Pyro raises its own error from the first one, whose frames know the site; reading them costs nothing until then.
    """
    found: str | None = None
    while error.__cause__ is not None:
        error = error.__cause__
    for frame, _ in traceback.walk_tb(error.__traceback__):
        for held in (frame.f_locals.get(name) for name in _LOCALS):
            found = _name(held) or found
    return found


def at_site(error: BaseException) -> str:
    """Return ``" at site 'z'"``, or nothing where the error came from elsewhere."""
    name = site_of(error)
    return "" if name is None else f" at site {name!r}"


def _name(held: Any) -> str | None:
    if isinstance(held, dict) and held.get("type") == "sample" and isinstance(held.get("name"), str):
        return str(held["name"])
    return None
