"""Data sets that come with scikit-learn: no file, no network."""

from __future__ import annotations

from typing import Any

import torch

from _posterior_zoo_registry.extras import needs
from zoo._registries import datasets as registry
from zoo.datasets.dataset import Dataset

__all__ = ["breast_cancer", "diabetes", "digits"]

_SETS = "the data sets of scikit-learn"


@registry.register("diabetes")
def diabetes() -> Dataset:
    """Disease progression of 442 diabetes patients one year after baseline, from 10 measurements: regression.

    References:
        Efron, Hastie, Johnstone and Tibshirani (2004), Least angle regression.

    Example::

        >>> diabetes().x.shape
        torch.Size([442, 10])
    """
    with needs("data", _SETS):
        from sklearn.datasets import load_diabetes

    bunch = load_diabetes(scaled=False)
    return Dataset(
        name="diabetes",
        x=_tensor(bunch.data),
        y=_tensor(bunch.target),
        feature_names=tuple(bunch.feature_names),
        target_name="disease progression (score, 25 to 346)",
        description="442 diabetes patients, 10 baseline variables; Efron et al. 2004, distributed with scikit-learn",
    )


@registry.register("breast_cancer")
def breast_cancer() -> Dataset:
    """Breast tumours, 569 of them, benign (1) or malignant (0), from 30 measurements of cell nuclei: binary.

    References:
        Street, Wolberg and Mangasarian (1993), Nuclear feature extraction for breast tumor diagnosis.

    Example::

        >>> breast_cancer().y.mean() > 0.5
        tensor(True)
    """
    with needs("data", _SETS):
        from sklearn.datasets import load_breast_cancer

    bunch = load_breast_cancer()
    return Dataset(
        name="breast_cancer",
        x=_tensor(bunch.data),
        y=_tensor(bunch.target),
        task="binary",
        feature_names=tuple(map(str, bunch.feature_names)),
        target_name="benign",
        description="Wisconsin diagnostic breast cancer, 569 tumours; UCI (CC BY 4.0), distributed with scikit-learn",
        num_classes=2,
    )


@registry.register("digits")
def digits() -> Dataset:
    """Handwritten digits, 1797 images of 8 by 8 pixels with grey levels from 0 to 1: ten classes.

    ``x.view(-1, 1, 8, 8)`` gives the images.

    References:
        Alpaydin and Kaynak (1998), Optical recognition of handwritten digits, UCI.

    Example::

        >>> digits().x.max()
        tensor(1.)
    """
    with needs("data", _SETS):
        from sklearn.datasets import load_digits

    bunch = load_digits()
    return Dataset(
        name="digits",
        x=_tensor(bunch.data) / 16,
        y=torch.as_tensor(bunch.target, dtype=torch.int64),
        task="multiclass",
        feature_names=tuple(bunch.feature_names),
        target_name="digit",
        description="test part of UCI's optical digits, 8 by 8; UCI (CC BY 4.0), distributed with scikit-learn",
        num_classes=10,
    )


def _tensor(values: Any) -> torch.Tensor:
    return torch.as_tensor(values, dtype=torch.float32)
