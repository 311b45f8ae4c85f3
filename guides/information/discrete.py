"""Entropies, divergences and mutual information of discrete variables, in closed form from their joint table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from guides.errors import DataError, OptionError
from guides.information.measure import Unit, per_nat

__all__ = ["Table"]

_TOLERANCE = 1e-5  # of the sum of all probabilities: room for single precision, none for forgetting to normalise


@dataclass(frozen=True, init=False, eq=False)
class Table:
    r"""The joint distribution of discrete variables: one axis per variable, one entry per outcome.

    .. math::
        H(X) = -\sum_x p(x) \log p(x), \qquad H(X \mid Y) = H(X, Y) - H(Y)

        I(X; Y \mid Z) = \sum_{x,y,z} p(x, y, z) \log \frac{p(x, y, z)\, p(z)}{p(x, z)\, p(y, z)}

    All sums are in double precision and take 0 log 0 as 0. Results are scalars that can be differentiated.

    :param probabilities: non-negative, summing to one over all axes.
    :param names: one name per axis.
    :ivar probabilities: the table, float64.
    :ivar names: the axes.
    :raises DataError: if the table has a negative entry or NaN, does not sum to one, or the names do not fit its axes.

    References: Shannon (1948), *A mathematical theory of communication*; Cover & Thomas (2006), *Elements of Information
    Theory*, chapter 2.

    Example::

        >>> rain_and_umbrella = Table(torch.tensor([[0.3, 0.1], [0.1, 0.5]]), "rain", "umbrella")
        >>> round(rain_and_umbrella.entropy("rain", given="umbrella", unit="bits").item(), 3)
        0.715
        >>> round(rain_and_umbrella.mutual_information("rain", "umbrella", unit="bits").item(), 3)
        0.256
    """

    probabilities: Tensor
    names: tuple[str, ...]

    def __init__(self, probabilities: Tensor, *names: str) -> None:
        probabilities = torch.as_tensor(probabilities).double()
        if len(names) != probabilities.dim() or len(set(names)) != len(names):
            raise DataError(
                f"the table has {probabilities.dim()} axes (shape {tuple(probabilities.shape)}) and the names {names}; give "
                "every axis one name, all different"
            )
        if not bool((probabilities >= 0).all()):
            bad = int((~(probabilities >= 0)).sum())
            raise DataError(f"the table has {bad} negative or NaN entries; probabilities are zero or more")
        total = float(probabilities.detach().sum())
        if abs(total - 1.0) > _TOLERANCE:
            raise DataError(
                f"the entries of the table sum to {total:.6g}, not to one; divide counts by their sum. A table of "
                "conditional probabilities p(y | x) is no joint table: multiply it by p(x) first"
            )
        object.__setattr__(self, "probabilities", probabilities)
        object.__setattr__(self, "names", names)

    def marginal(self, *names: str) -> Table:
        """Return the table of some of the variables, its axes in the order given.

        :param names: variables to keep.
        :raises OptionError: for a name that the table does not have.
        """
        return Table(self._sum(names), *names)

    def surprise(self, unit: Unit = "nats") -> Tensor:
        """Return the Shannon information -log p of every outcome, in the shape of the table; infinite at p = 0.

        :param unit: ``"nats"`` or ``"bits"``.
        """
        return -self.probabilities.log() * per_nat(unit)

    def entropy(self, *names: str, given: str | Iterable[str] = (), unit: Unit = "nats") -> Tensor:
        """Return the entropy of some variables: joint if there are several, conditional if others are given.

        :param names: the variables; all of them (that are not given) if left out.
        :param given: the variables that are known.
        :param unit: ``"nats"`` or ``"bits"``.
        :raises OptionError: for a name that the table does not have, or a variable on both sides.
        """
        known = _names(given)
        names = names or tuple(name for name in self.names if name not in known)
        _disjoint(names, known)
        joint, condition = self._sum((*names, *known)), self._sum(known)
        return _clamped(torch.special.entr(joint).sum() - torch.special.entr(condition).sum()) * per_nat(unit)

    def mutual_information(
        self, first: str | Iterable[str], second: str | Iterable[str], given: str | Iterable[str] = (), unit: Unit = "nats"
    ) -> Tensor:
        """Return how much one group of variables says about another, given a third.

        :param first: a variable, or several.
        :param second: a variable, or several.
        :param given: the variables that are known; none for plain mutual information.
        :param unit: ``"nats"`` or ``"bits"``.
        :raises OptionError: for a name that the table does not have, or a variable in two groups.
        """
        a, b, known = _names(first), _names(second), _names(given)
        _disjoint(a, b)
        _disjoint((*a, *b), known)
        groups = ((*a, *known), (*b, *known), (*a, *b, *known), known)
        one, other, both, condition = (torch.special.entr(self._sum(group)).sum() for group in groups)
        return _clamped(one + other - both - condition) * per_nat(unit)

    def cross_entropy(self, other: Table, unit: Unit = "nats") -> Tensor:
        r"""Return the mean surprise of ``other`` at outcomes of this table, :math:`-\sum_x p(x) \log q(x)`.

        :param other: a table q of the same variables, in any order of axes.
        :param unit: ``"nats"`` or ``"bits"``.
        :returns: infinite if q gives no probability to an outcome that p has.
        :raises DataError: if the tables have different variables or numbers of outcomes.
        """
        return -torch.xlogy(self.probabilities, self._aligned(other)).sum() * per_nat(unit)

    def kl_divergence(self, other: Table, unit: Unit = "nats") -> Tensor:
        r"""Return the Kullback-Leibler divergence from this table to another, :math:`\sum_x p(x) \log(p(x) / q(x))`.

        :param other: a table q of the same variables, in any order of axes.
        :param unit: ``"nats"`` or ``"bits"``.
        :returns: infinite if q gives no probability to an outcome that p has.
        :raises DataError: if the tables have different variables or numbers of outcomes.
        """
        p, q = self.probabilities, self._aligned(other)
        return _clamped((torch.xlogy(p, p) - torch.xlogy(p, q)).sum()) * per_nat(unit)

    def _sum(self, names: tuple[str, ...]) -> Tensor:
        for name in names:
            if name not in self.names:
                raise OptionError(f"the table has no variable {name!r}; it has {', '.join(map(repr, self.names))}")
        if len(set(names)) != len(names):
            raise OptionError(f"a variable is named twice in {names}")
        others = [axis for axis, name in enumerate(self.names) if name not in names]
        kept = [name for name in self.names if name in names]
        table = self.probabilities.sum(others) if others else self.probabilities
        return table.permute([kept.index(name) for name in names])

    def _aligned(self, other: Table) -> Tensor:
        mine = dict(zip(self.names, self.probabilities.shape))
        theirs = dict(zip(other.names, other.probabilities.shape))
        if mine != theirs:
            raise DataError(f"the tables are of different variables: {mine} and {theirs} (name: number of outcomes)")
        return other._sum(self.names)


def _names(value: str | Iterable[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _disjoint(first: tuple[str, ...], second: tuple[str, ...]) -> None:
    if shared := sorted(set(first) & set(second)):
        raise OptionError(f"variable {shared[0]!r} stands on both sides; a variable belongs to one group")


def _clamped(value: Tensor) -> Tensor:
    """Return a sum that is non-negative but for rounding, without the rounding."""
    return value.clamp(min=0.0)
