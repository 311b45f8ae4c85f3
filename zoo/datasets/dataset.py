"""A data set, and the ways to cut it into training, validation and test parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

__all__ = ["Dataset", "Split"]

Rows = Tensor | slice
Splitter = Callable[[int], tuple[Rows, ...]]


@dataclass(frozen=True)
class Split:
    r"""Training, validation and test parts of one data set.

    :param name: name of the data set.
    :param x_train: inputs ``(N, D)``, float32.
    :param y_train: targets ``(N,)``: float32 for regression and binary labels, int64 for classes; ``(N, 0)`` without labels.
    :param x_test: inputs of the test part.
    :param y_test: targets of the test part.
    :param x_valid: inputs of the validation part, or ``None``.
    :param y_valid: targets of the validation part, or ``None``.
    :param task: ``"regression"``, ``"binary"``, ``"multiclass"``, or ``"unlabelled"``.
    :param feature_names: names of the columns of ``x``, where they are known.
    :param target_name: name of the target, with its unit where there is one.
    :param description: what the data are, where they come from, their licence.
    :param num_classes: number of classes, 0 for regression.
    :param y_mean: what :meth:`standardise` subtracted from ``y``, 0 before.
    :param y_scale: what :meth:`standardise` divided ``y`` by, 1 before. A standardised RMSE times ``y_scale``, and a
        standardised log density minus ``log(y_scale)``, are in the original unit.

    Example::

        >>> from zoo.datasets import diabetes
        >>> split = diabetes().random_split((0.7, 0.1, 0.2), seed=0).standardise()
        >>> [len(x) for x in (split.x_train, split.x_valid, split.x_test)]
        [309, 44, 89]
    """

    name: str
    x_train: Tensor = field(repr=False)
    y_train: Tensor = field(repr=False)
    x_test: Tensor = field(repr=False)
    y_test: Tensor = field(repr=False)
    x_valid: Tensor | None = field(default=None, repr=False)
    y_valid: Tensor | None = field(default=None, repr=False)
    task: str = "regression"
    feature_names: tuple[str, ...] = field(default=(), repr=False)
    target_name: str = "y"
    description: str = field(default="", repr=False)
    num_classes: int = 0
    y_mean: float = 0.0
    y_scale: float = 1.0

    def standardise(self) -> Split:
        """Return the split with inputs, and targets of a regression, of mean 0 and standard deviation 1.

        Mean and standard deviation (with ``N`` in the denominator) are those of the training part alone, in all parts.
        Columns that are constant in the training part are only centred.
        """
        mean, scale = _moments(self.x_train)
        y_mean, y_scale = 0.0, 1.0
        if self.task == "regression":
            y_mean, y_scale = (float(value) for value in _moments(self.y_train))

        def x_part(x: Tensor) -> Tensor:
            return ((x.double() - mean) / scale).to(x.dtype)

        def y_part(y: Tensor) -> Tensor:
            return ((y.double() - y_mean) / y_scale).to(y.dtype) if self.task == "regression" else y

        return replace(
            self,
            x_train=x_part(self.x_train),
            y_train=y_part(self.y_train),
            x_test=x_part(self.x_test),
            y_test=y_part(self.y_test),
            x_valid=None if self.x_valid is None else x_part(self.x_valid),
            y_valid=None if self.y_valid is None else y_part(self.y_valid),
            y_mean=self.y_mean + self.y_scale * y_mean,
            y_scale=self.y_scale * y_scale,
        )

    def unstandardise(self, y: Tensor) -> Tensor:
        """Return targets, or draws or means of them, in the original unit."""
        return y * self.y_scale + self.y_mean

    def hold_out(self, fraction: float, seed: int = 0) -> Split:
        """Return the split with a random ``fraction`` of the training part moved to the validation part.

        :param fraction: between 0 and 1, exclusive.
        :param seed: seed of the choice.
        :raises ValueError: if there is a validation part already, or a part would be empty.
        """
        if self.x_valid is not None:
            raise ValueError(f"{self.name}: this split has a validation part of {len(self.x_valid)} rows already")
        train, valid = _random_parts(self.name, len(self.x_train), (1 - fraction, fraction), seed)
        x, y = self.x_train, self.y_train
        return replace(self, x_train=x[train], y_train=y[train], x_valid=x[valid], y_valid=y[valid])


@dataclass(frozen=True)
class Dataset:
    """All rows of a data set, and how to split them.

    :param name: name of the data set.
    :param x: inputs ``(N, D)``, float32.
    :param y: targets ``(N,)``: float32 for regression and binary labels, int64 for classes; ``(N, 0)`` without labels.
    :param task: ``"regression"``, ``"binary"``, ``"multiclass"``, or ``"unlabelled"``.
    :param feature_names: names of the columns of ``x``, where they are known.
    :param target_name: name of the target, with its unit where there is one.
    :param description: what the data are, where they come from, their licence.
    :param num_classes: number of classes, 0 for regression.
    :param num_splits: number of published splits.
    :param splitter: gives the rows of a published split, numbers or slices: ``(train, test)`` or ``(train, test, valid)``.

    Example::

        >>> from zoo.datasets import digits
        >>> data = digits()
        >>> data.x.shape, data.task, data.num_classes
        (torch.Size([1797, 64]), 'multiclass', 10)
    """

    name: str
    x: Tensor = field(repr=False)
    y: Tensor = field(repr=False)
    task: str = "regression"
    feature_names: tuple[str, ...] = field(default=(), repr=False)
    target_name: str = "y"
    description: str = field(default="", repr=False)
    num_classes: int = 0
    num_splits: int = 0
    splitter: Splitter | None = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.x)

    def split(self, index: int) -> Split:
        """Return a published split.

        :param index: from 0 to ``num_splits - 1``.
        :raises ValueError: if there is no split of that number.
        """
        if self.splitter is None or not 0 <= index < self.num_splits:
            known = f"split must be from 0 to {self.num_splits - 1}" if self.num_splits else "use random_split(ratio, seed)"
            raise ValueError(f"{self.name} has {self.num_splits} published splits, got split={index}; {known}")
        return self._parts(*self.splitter(index))

    def random_split(self, ratio: Sequence[float] = (0.7, 0.1, 0.2), seed: int = 0) -> Split:
        """Return a random split; the caller's random state is not touched.

        :param ratio: sizes of training, validation and test part, or of training and test part; any positive numbers,
            ``(0.7, 0.1, 0.2)`` or ``(70, 10, 20)``. The test part takes what rounding leaves.
        :param seed: seed of the permutation.
        :raises ValueError: if ``ratio`` has not two or three positive numbers, or a part would be empty.
        """
        if len(ratio) not in (2, 3):
            raise ValueError(f"ratio needs two or three numbers (training, validation, test), got {tuple(ratio)}")
        parts = _random_parts(self.name, len(self.x), ratio, seed)
        return self._parts(parts[0], parts[-1], parts[1] if len(parts) == 3 else None)

    def _parts(self, train: Rows, test: Rows, valid: Rows | None = None) -> Split:
        return Split(
            name=self.name,
            x_train=self.x[train],
            y_train=self.y[train],
            x_test=self.x[test],
            y_test=self.y[test],
            x_valid=None if valid is None else self.x[valid],
            y_valid=None if valid is None else self.y[valid],
            task=self.task,
            feature_names=self.feature_names,
            target_name=self.target_name,
            description=self.description,
            num_classes=self.num_classes,
        )


def _random_parts(name: str, rows: int, ratio: Sequence[float], seed: int) -> tuple[Tensor, ...]:
    if not all(r > 0 for r in ratio):
        raise ValueError(f"ratio needs positive numbers, got {tuple(ratio)}")
    sizes = [round(rows * r / sum(ratio)) for r in ratio[:-1]]
    sizes.append(rows - sum(sizes))
    if min(sizes) < 1:
        raise ValueError(f"{name}: ratio {tuple(ratio)} cuts {rows} rows into parts of {sizes}; no part may be empty")
    return torch.randperm(rows, generator=torch.Generator().manual_seed(seed)).split(sizes)


def _moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation by column, in float64; the deviation of a constant column is 1."""
    values = values.double()
    mean, scale = values.mean(0), values.std(0, correction=0)
    return mean, torch.where(scale > 1e-9 * mean.abs(), scale, torch.ones_like(scale))
