"""The rungs of the ladder that ``auto`` climbs, as data that a user can change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from guides.density.method import Method, method_of
from guides.errors import OptionError
from guides.samplers.base import Sampler

__all__ = ["LADDER", "Rung", "read_ladder"]


@dataclass(frozen=True)
class Rung:
    """One method to try.

    :ivar name: of a solver or sampler.
    :ivar options: its options.
    :ivar gradients: evaluations of the gradient that it usually takes, by which its time is told beforehand.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    gradients: int = 10_000

    @property
    def method(self) -> Method:
        """The method, with its options."""
        found = method_of((self.name, self.options), {})
        if found is None:
            raise OptionError(f"ladder names {self.name!r}, which is no solver or sampler")
        return found

    @property
    def samples(self) -> bool:
        """Whether it draws from the posterior itself."""
        return isinstance(self.method, Sampler)

    def __str__(self) -> str:
        return self.name + ("" if not self.options else f"({', '.join(f'{k}={v}' for k, v in self.options.items())})")


LADDER: tuple[Rung, ...] = (
    Rung("pathfinder", gradients=1000),
    Rung("dadvi", gradients=10_000),
    Rung("nuts", gradients=200_000),
    Rung("nuts", {"target_accept": 0.95, "tune": 2000, "draws": 2000}, gradients=1_000_000),
)
"""Cheap before dear; the last is for chains that diverge or have hardly mixed."""


def read_ladder(ladder: Sequence[Any] | None) -> tuple[Rung, ...]:
    """Return rungs from what a user gave: rungs, names, or names with options; the default's if ``None``.

    :raises OptionError: naming what cannot be a rung.
    """
    if ladder is None:
        return LADDER
    if isinstance(ladder, str) or not isinstance(ladder, Sequence) or not ladder:
        raise OptionError(f"ladder must be a list of methods, such as ['pathfinder', 'nuts'], not {ladder!r}")
    usual = {rung.name: rung.gradients for rung in reversed(LADDER)}
    rungs = []
    for each in ladder:
        name, options = each if isinstance(each, tuple) and len(each) == 2 else (each, {})
        if isinstance(each, Rung) and each.name != "auto":
            rung = each
        elif isinstance(name, str) and name != "auto" and isinstance(options, Mapping):
            rung = Rung(name, options, usual.get(name, 10_000))
        else:
            raise OptionError(f"ladder holds {each!r}; a rung is a solver or sampler by name, or (name, options)")
        rung.method  # noqa: B018  # refuses wrong names and options before any work
        rungs.append(rung)
    return tuple(rungs)
