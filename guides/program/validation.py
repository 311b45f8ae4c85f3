"""Distributions without the checks of values that they were made with."""

from __future__ import annotations

from typing import Any

from pyro.poutine.messenger import Messenger
from torch.distributions import Distribution

__all__ = ["Unvalidated"]


class Unvalidated(Messenger):
    """Let sites use their distributions without checks, those too that were made outside the model.

    Checks branch on values, which can be neither vectorised nor traced. Switching validation off reaches the distributions
    that are made while it is off; one made before, or expanded from one (``PyroSample(dist.Normal(0., 1.).expand([3]))``),
    keeps its own. The caller's objects are left as they are: sites get shallow copies. Values were checked when the fit was
    set up.
    """

    def _pyro_sample(self, msg: Any) -> None:
        msg["fn"] = _unchecked(msg["fn"])


def _unchecked(fn: Any) -> Any:
    if not isinstance(fn, Distribution):
        return fn
    held = {name: value for name, value in vars(fn).items() if isinstance(value, Distribution)}
    inner = {name: new for name, value in held.items() if (new := _unchecked(value)) is not value}
    if not inner and not vars(fn).get("_validate_args"):
        return fn
    copied = object.__new__(type(fn))
    vars(copied).update(vars(fn), _validate_args=False, **inner)
    return copied
