"""A quantity in nats or bits with its standard error, and the units."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from guides.errors import OptionError

__all__ = ["Measure", "Unit", "per_nat"]

Unit = Literal["nats", "bits"]

_PER_NAT = {"nats": 1.0, "bits": 1.0 / math.log(2.0)}


@dataclass(frozen=True, eq=False)
class Measure:
    """A measure of information, exact or estimated; print it for ``value ± standard error``.

    :ivar value: any shape, one number per distribution of a batch.
    :ivar standard_error: Monte Carlo standard error, the shape of ``value``; zero where ``exact``.
    :ivar num_samples: draws behind each number; 0 where ``exact``.
    :ivar exact: whether the value is a closed form.
    :ivar unit: ``"nats"`` or ``"bits"``.

    Example::

        >>> Measure.of_draws(torch.tensor([0.0, 1.0, 2.0]))
        1.000 ± 0.577 nats (3 draws)
    """

    value: Tensor
    standard_error: Tensor
    num_samples: int
    exact: bool
    unit: Unit = "nats"

    @classmethod
    def closed_form(cls, value: Tensor, unit: Unit = "nats") -> Measure:
        """Wrap an exact value given in nats.

        :param value: nats, any shape.
        :param unit: unit of the result.
        """
        value = value * per_nat(unit)
        return cls(value, torch.zeros_like(value), 0, True, unit)

    @classmethod
    def of_draws(cls, values: Tensor, unit: Unit = "nats") -> Measure:
        """Average independent values given in nats.

        :param values: ``(S, *batch)``, nats. An infinite value makes the mean infinite and its standard error NaN.
        :param unit: unit of the result.
        """
        values = values * per_nat(unit)
        count = values.shape[0]
        error = values.std(0) / math.sqrt(count) if count > 1 else torch.full_like(values[0], math.nan)
        return cls(values.mean(0), error, count, False, unit)

    def to(self, unit: Unit) -> Measure:
        """Return the same measure in another unit.

        :raises OptionError: for a unit other than ``"nats"`` and ``"bits"``.
        """
        factor = per_nat(unit) / per_nat(self.unit)
        return Measure(self.value * factor, self.standard_error * factor, self.num_samples, self.exact, unit)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain Python."""
        return {
            "value": self.value.tolist(),
            "standard_error": self.standard_error.tolist(),
            "num_samples": self.num_samples,
            "exact": self.exact,
            "unit": self.unit,
        }

    def __float__(self) -> float:
        return float(self.value)

    def __str__(self) -> str:
        if self.value.dim():
            draws = "exact" if self.exact else f"{self.num_samples} draws"
            return f"{tuple(self.value.shape)} values, mean {float(self.value.mean()):.3f} {self.unit} ({draws})"
        if self.exact:
            return f"{float(self.value):.3f} {self.unit}"
        return f"{float(self.value):.3f} ± {float(self.standard_error):.3f} {self.unit} ({self.num_samples} draws)"

    def __repr__(self) -> str:
        return str(self)


def per_nat(unit: Unit) -> float:
    """Return how many of ``unit`` make one nat.

    :raises OptionError: for a unit other than ``"nats"`` and ``"bits"``.

    Example::

        >>> round(per_nat("bits"), 4)
        1.4427
    """
    if unit not in _PER_NAT:
        raise OptionError(f"unit is {unit!r}; use 'nats' (natural logarithm) or 'bits' (logarithm to base 2)")
    return _PER_NAT[unit]
