"""What one diagnostic reports, and the registry that holds the diagnostics: the leaf of this folder."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

from torch import Tensor

from _posterior_zoo_registry import Registry
from guides.program.guide import is_point_mass as has_point_mass
from guides.program.guide import is_sampled

__all__ = [
    "DrawsLike",
    "Finding",
    "Level",
    "PosteriorLike",
    "Undefined",
    "diagnostics_registry",
    "is_point_mass",
    "jsonable",
    "next_family",
]

Level = Literal["good", "corrected", "usable", "unreliable", "unknown"]


class DrawsLike(Protocol):
    """Draws from a guide as the diagnostics read them: C chains (restarts) of S draws each.

    ``latents[site]`` is (C, S, *site shape); ``log_p`` and ``log_q`` are (C, S), in nats: the log joint
    density of latents and all of the data, and the guide's log density, in the same parametrisation;
    ``log_likelihood[site]`` is (C, S, *batch shape), one number per observation.
    """

    @property
    def latents(self) -> Mapping[str, Tensor]:
        """Value of every latent site, (C, S, *site shape)."""

    @property
    def log_p(self) -> Tensor:
        """Log joint density of latents and data, (C, S), nats."""

    @property
    def log_q(self) -> Tensor:
        """Log density of the guide, (C, S), nats."""

    @property
    def deterministic(self) -> Mapping[str, Tensor]:
        """Deterministic site -> (C, S, *site shape)."""

    @property
    def counted(self) -> Mapping[str, Tensor]:
        """Which elements of ``log_likelihood``'s batch are data points: not those that the model masks out."""

    @property
    def log_likelihood(self) -> Mapping[str, Tensor]:
        """Pointwise log-likelihood of every observed site, (C, S, *batch shape), nats."""


class PosteriorLike(Protocol):
    """What the diagnostics need from a fitted posterior; ``guides.Posterior`` has it."""

    @property
    def guide(self) -> Any:
        """The guide; ``guide.is_point_mass = True`` says that it has no density."""

    @property
    def family(self) -> str:
        """Registry name of the guide's family."""

    @property
    def losses(self) -> Tensor:
        """Minus the objective at every step, (R, steps), nats."""

    @property
    def replicates(self) -> int:
        """Number of restarts R."""

    @property
    def stop_reasons(self) -> tuple[str, ...]:
        """Why each restart stopped."""

    def draws(self, num_samples: int = ..., *data: Any, seed: int | None = ..., log_likelihood: bool = ...) -> Any:
        """Draws with their densities; see :class:`DrawsLike`."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of one diagnostic: figures (fields of the subclass), a level and words.

    :param level: ``"good"``, ``"corrected"`` (with importance weights), ``"usable"`` (with care: what is missing cannot be
        told), ``"unreliable"``, or ``"unknown"`` where the diagnostic has no say.
    :param text: what was found, one sentence in plain words.
    :param advice: what to try next; empty where nothing is wrong.
    """

    title: ClassVar[str] = "diagnostic"
    level: Level
    text: str
    advice: str = ""

    def rows(self) -> list[tuple[str, str]]:
        """Return (label, value) pairs for the table of :class:`~guides.diagnostics.Diagnosis`."""
        return [(self.title, self.text)]

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain Python for ``json``; numbers that are not finite become None."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: jsonable(value) for name, value in fields.items() if not isinstance(value, Tensor)}


@dataclass(frozen=True, kw_only=True)
class Undefined(Finding):
    """A diagnostic that has no value here; ``text`` says why, ``advice`` how to get one."""

    title: ClassVar[str] = "not defined"
    label: str

    def rows(self) -> list[tuple[str, str]]:
        """Return one row that says why there is no number."""
        return [(self.label, self.text)]


#: Name -> function ``(posterior, draws) -> Finding``. Other packages add to it through the entry-point group
#: ``guides.diagnostics``; :func:`guides.diagnostics.diagnose` runs every entry.
diagnostics_registry: Registry[Callable[[PosteriorLike, DrawsLike], Finding]] = Registry(
    "diagnostic", group="guides.diagnostics"
)


def is_point_mass(posterior: PosteriorLike) -> bool:
    """Say whether the guide is made of point masses (MAP, deep ensembles), so that log q is no density."""
    return has_point_mass(posterior.guide) and not is_sampled(posterior.guide)


_CORRELATED = "this family follows correlations already, so look for skewness or several modes, and compare with NUTS"
_NEXT_FAMILY = {
    "": "try a family that can follow correlations ('full_rank', 'low_rank', 'laplace')",
    "full_rank": _CORRELATED,
    "laplace": "try 'full_rank', which is fitted to the whole posterior rather than to its mode",
    "low_rank": "try 'full_rank', or a higher rank",
}


def next_family(family: str) -> str:
    """Return what to try where a family misses posterior mass."""
    return _NEXT_FAMILY.get(family, _NEXT_FAMILY[""])


def jsonable(value: Any) -> Any:
    """Turn dataclasses, tensors, mappings and sequences into what ``json`` writes."""
    if isinstance(value, Finding):
        return value.to_dict()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: jsonable(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Tensor):
        return jsonable(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
