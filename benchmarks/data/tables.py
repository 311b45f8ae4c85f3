"""Splits of the zoo's data sets as tasks need them; what a loader is called with is part of the protocol."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

import zoo
from benchmarks.protocol.split import Curve, Split
from zoo import datasets

__all__ = ["curve", "network", "published_split", "random_split"]


def _ours(split: datasets.Split, curve: Curve | None = None) -> Split:
    """Return a standardised split of the zoo as a task's split."""
    validation = None
    if split.x_valid is not None and split.y_valid is not None:
        validation = (split.x_valid, split.y_valid)
    return Split(
        train=(split.x_train, split.y_train),
        test=(split.x_test, split.y_test),
        validation=validation,
        target_scale=split.y_scale,
        target_shift=split.y_mean,
        curve=curve,
    )


def published_split(index: int, *, dataset: str, validation: float = 0.0) -> Split:
    """Return a published split, standardised on its training part.

    :param index: number of the split.
    :param dataset: name of the UCI data set.
    :param validation: share of the training part that is held out for early stopping; the test part is never touched.
    """
    split = datasets.registry[dataset]().split(index)
    if validation:
        split = split.hold_out(validation, seed=index)
    return _ours(split.standardise())


def random_split(index: int, *, dataset: str, ratio: tuple[float, ...]) -> Split:
    """Return the random split of seed ``index``, standardised on its training part.

    :param index: seed of the permutation.
    :param dataset: name of a data set in ``zoo.datasets.registry``.
    :param ratio: sizes of training, validation and test part, or of training and test part.
    """
    return _ours(datasets.registry[dataset]().random_split(ratio, seed=index).standardise())


def curve(
    index: int, *, dataset: str, low: float, high: float, standardise: bool = True, points: int = 161, **options: Any
) -> Split:
    """Return a toy curve drawn with seed ``index``, with a grid for predictive bands.

    :param index: seed of the drawing.
    :param dataset: name of a curve in ``zoo.datasets.registry``.
    :param low: left end of the grid, in original units.
    :param high: right end of the grid.
    :param standardise: whether inputs and targets are standardised on the training part.
    :param points: number of grid points.
    :param options: further arguments of the data set's function.
    """
    draw: Any = datasets.registry[dataset]
    raw = draw(seed=index, **options).split(0)
    x = torch.linspace(low, high, points)
    grid = replace(raw, x_test=x.unsqueeze(-1), y_test=torch.zeros(points))
    drawn = Curve(
        inputs=(grid.standardise() if standardise else grid).x_test,
        x=x,
        points=(raw.x_train.squeeze(-1), raw.y_train),
        truth=_TRUTHS[dataset](x) if dataset in _TRUTHS else None,
    )
    return _ours(raw.standardise() if standardise else raw, drawn)


def _blundell(x: torch.Tensor) -> torch.Tensor:
    return x + 0.3 * torch.sin(2 * torch.pi * x) + 0.3 * torch.sin(4 * torch.pi * x)


def _foong(x: torch.Tensor) -> torch.Tensor:
    return torch.cos(4 * x + 0.8)


_TRUTHS = {"blundell": _blundell, "foong": _foong}


def network(split: Split, **options: Any) -> zoo.BayesianMLP:
    """Return a :class:`zoo.BayesianMLP` with as many inputs as the split has columns.

    :param split: gives the number of inputs, and nothing else.
    :param options: further arguments of the network.
    """
    return zoo.BayesianMLP(split.train[0].shape[-1], **options)
