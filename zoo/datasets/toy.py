"""Curves in one dimension, drawn by the code; each seed is another draw."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from zoo._registries import datasets as registry
from zoo.datasets.dataset import Dataset

__all__ = ["blundell", "foong"]


@registry.register("blundell")
def blundell(num_train: int = 100, num_test: int = 100, noise: float = 0.02, seed: int = 0) -> Dataset:
    r"""The regression curve of Bayes by Backprop: what does a network say outside its data?

    .. math::

        y = x + 0.3 \sin(2\pi(x + \epsilon)) + 0.3 \sin(4\pi(x + \epsilon)) + \epsilon, \qquad
        \epsilon \sim \mathcal{N}(0, 0.02^2), \qquad x \sim \mathcal{U}(0, 0.5)

    The paper writes :math:`\mathcal{N}(0, 0.02)` and does not say whether 0.02 is a variance; its figure shows the standard
    deviation. It plots x from -0.2 to 1.2. The noise enters inside the sines too, so the noise of y depends on x.

    :param num_train: training points, of split 0.
    :param num_test: test points from the same range, of split 0.
    :param noise: standard deviation of epsilon.
    :param seed: seed of inputs and noise.

    References:
        Blundell, Cornebise, Kavukcuoglu and Wierstra (2015), Weight uncertainty in neural networks, section 5.2.

    Example::

        >>> split = blundell(seed=1).split(0)
        >>> split.x_train.shape, bool(split.x_train.max() <= 0.5)
        (torch.Size([100, 1]), True)
    """
    generator = torch.Generator().manual_seed(seed)
    rows = num_train + num_test
    x = 0.5 * torch.rand(rows, 1, generator=generator)
    epsilon = noise * torch.randn(rows, generator=generator)
    inside = 2 * math.pi * (x.squeeze(-1) + epsilon)
    y = x.squeeze(-1) + 0.3 * torch.sin(inside) + 0.3 * torch.sin(2 * inside) + epsilon
    return _curve("blundell", x, y, num_train, "Blundell et al. 2015, section 5.2")


@registry.register("foong")
def foong(num_train: int = 100, num_test: int = 100, noise: float = 0.1, seed: int = 0) -> Dataset:
    r"""Two clusters with a gap between them: is a guide uncertain in between?

    .. math::

        y = \cos(4x + 0.8) + \epsilon, \qquad \epsilon \sim \mathcal{N}(0, 0.1^2), \qquad
        x \sim \mathcal{U}(-1, -0.7) \text{ or } \mathcal{U}(0.5, 1)

    half of the training points from each cluster. The test points of split 0 lie in the gap, from -0.7 to 0.5, where a
    mean-field posterior is known to be overconfident.

    :param num_train: training points, of split 0.
    :param num_test: test points in the gap, of split 0.
    :param noise: standard deviation of epsilon.
    :param seed: seed of inputs and noise.

    References:
        Foong, Li, Hernández-Lobato and Turner (2019), 'In-between' uncertainty in Bayesian neural networks.

    Example::

        >>> split = foong().split(0)
        >>> bool((split.x_test > -0.7).all() and (split.x_test < 0.5).all())
        True
    """
    generator = torch.Generator().manual_seed(seed)
    left = num_train // 2
    unit = torch.rand(num_train + num_test, 1, generator=generator)
    x = torch.cat([-1 + 0.3 * unit[:left], 0.5 + 0.5 * unit[left:num_train], -0.7 + 1.2 * unit[num_train:]])
    y = torch.cos(4 * x.squeeze(-1) + 0.8) + noise * torch.randn(len(x), generator=generator)
    return _curve("foong", x, y, num_train, "Foong et al. 2019, two clusters and the gap between them")


def _curve(name: str, x: Tensor, y: Tensor, num_train: int, description: str) -> Dataset:
    if not 2 <= num_train < len(x):
        raise ValueError(f"num_train must be at least 2 and num_test at least 1, got {num_train} and {len(x) - num_train}")
    splitter = partial(_first_and_rest, num_train, len(x))
    return Dataset(name, x, y, feature_names=("x",), description=description, num_splits=1, splitter=splitter)


def _first_and_rest(first: int, rows: int, index: int) -> tuple[Tensor, Tensor]:
    return torch.arange(first), torch.arange(first, rows)
