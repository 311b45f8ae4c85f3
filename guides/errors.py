"""What can go wrong, one class per cause, so that callers can tell the causes apart."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

__all__ = [
    "DataError",
    "DiscreteLatentError",
    "EagerFallbackWarning",
    "FailedDrawsWarning",
    "FixedSubsampleWarning",
    "GuideMismatchError",
    "InterruptedFitWarning",
    "MinibatchScaleError",
    "NoReferenceError",
    "NonFiniteLossError",
    "NonFiniteLossWarning",
    "NotAtTheModeWarning",
    "OptionError",
    "StorageError",
    "StorageWarning",
    "UnsupportedModelError",
    "check_known",
    "check_whole",
]


class DataError(ValueError):
    """Data that no fit can use: empty, not finite, or of shapes that do not match."""


class OptionError(ValueError):
    """An option of a fit whose value makes no sense for this model or these data."""


class EagerFallbackWarning(RuntimeWarning):
    """A model that cannot be traced; it runs as it is, more slowly."""


class FixedSubsampleWarning(RuntimeWarning):
    """A model that chooses its rows in a way that cannot be steered: what is said of the fit is said of those rows."""


class GuideMismatchError(ValueError):
    """A guide whose latent sites are not those of the model."""


class DiscreteLatentError(ValueError):
    """A discrete latent site under a guide that needs continuous ones."""


class MinibatchScaleError(ValueError):
    """An observed site that would be minibatched without being rescaled to the full data."""


class UnsupportedModelError(ValueError):
    """A model that lacks the structure which a guide or an option needs."""


class NoReferenceError(RuntimeError):
    """Chains that have not been shown to be draws of the posterior, so that nothing may be held against them."""


class NonFiniteLossError(RuntimeError):
    """A loss that is NaN or infinite before the first step, so that there is nothing to keep."""


class NonFiniteLossWarning(RuntimeWarning):
    """A loss that turned NaN or infinite during a fit; the last finite parameters were kept."""


class NotAtTheModeWarning(RuntimeWarning):
    """An optimisation that ended before it reached the mode, around which a Laplace approximation is made."""


class StorageError(OSError):
    """A file that cannot be written: the disk is full, the folder does not allow it, or there is none."""


class StorageWarning(RuntimeWarning):
    """A checkpoint that cannot be written; the work goes on without it."""


class InterruptedFitWarning(RuntimeWarning):
    """A fit that Ctrl-C ended; it returns what was fitted until then."""


class FailedDrawsWarning(RuntimeWarning):
    """Draws at which the model cannot be evaluated, as where a matrix has no Cholesky factor."""


def check_known(name: str, value: Any, known: Iterable[Any]) -> None:
    """Check that an option is one of the words (or other values) that it may be.

    :raises OptionError: listing them.
    """
    if value not in known:
        raise OptionError(f"{name}={value!r} is not known; use one of {', '.join(map(repr, known))}")


def check_whole(name: str, value: Any, least: int | None = None) -> None:
    """Check that an option is a whole number, and large enough.

    :raises OptionError: saying what it is instead.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise OptionError(f"{name} must be a whole number, not {value!r}")
    if least is not None and value < least:
        raise OptionError(f"{name} must be at least {least}, not {value!r}")
