"""Scores of class probabilities against labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from guides.errors import DataError
from guides.predictive.regression import log_predictive_density

__all__ = [
    "ClassificationMetrics",
    "accuracy",
    "brier_score",
    "class_probabilities",
    "classification_metrics",
    "expected_calibration_error",
    "reliability_curve",
]

_WHOLE = 0.05


def _check_probabilities(probabilities: Tensor, labels: Tensor) -> None:
    if probabilities.dim() != 2 or labels.shape != probabilities.shape[:1]:
        raise DataError(
            f"probabilities has shape {tuple(probabilities.shape)} and labels {tuple(labels.shape)}; expected (N, K) and"
            " (N,)."
            " For a binary target stack (1 - p, p)"
        )


def class_probabilities(log_likelihoods: Sequence[Tensor]) -> Tensor:
    r"""Return predictive class probabilities from the log-likelihood of each label, without counting draws.

    .. math:: p(c \mid x_n) = \frac1S \sum_s p(y_n = c \mid x_n, z_s)

    :param log_likelihoods: K tensors (S, N) in nats; entry c has every label set to c, from the same draws:
        ``[posterior.log_likelihood(x, torch.full((N,), c), seed=0)["y"] for c in range(K)]``.
    :returns: (N, K), rows sum to one.
    :raises DataError: for anything else, such as logits, or draws of a predicted site.

    Example::

        >>> class_probabilities([torch.full((4, 1), 0.25).log(), torch.full((4, 1), 0.75).log()])
        tensor([[0.2500, 0.7500]])
    """
    what = (
        "pass a list of K log-likelihoods (S, N), one for each label: posterior.log_likelihood(x, torch.full((N,), c), ...)"
    )
    if isinstance(log_likelihoods, Tensor):
        raise DataError(
            f"log_likelihoods is one tensor of shape {tuple(log_likelihoods.shape)}; {what}. Of logits (S, N, K), such as a "
            "site of posterior.predict, take f.softmax(-1).mean(0); of logits (S, N), p = f.sigmoid().mean(0)"
        )
    shapes = sorted({tuple(value.shape) for value in log_likelihoods})
    if len(log_likelihoods) < 2 or len(shapes) > 1 or len(shapes[0]) != 2:
        raise DataError(f"log_likelihoods holds {len(log_likelihoods)} tensors of shapes {shapes}; {what}")
    logs = torch.stack([log_predictive_density(value) for value in log_likelihoods], dim=-1)
    total = logs.logsumexp(-1).exp()
    if not bool(((total - 1.0).abs() < _WHOLE).all()):
        worst = float(total[(total - 1.0).abs().nan_to_num(torch.inf).argmax()])
        raise DataError(
            f"the probabilities of the {len(log_likelihoods)} labels add up to {worst:.3g} at a point instead of 1; {what}, "
            "for all labels that there are, with the same seed so that they are of the same draws"
        )
    return logs.softmax(-1)


def accuracy(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Return the share of points whose most probable class is right, a scalar.

    :param probabilities: (N, K).
    :param labels: (N,) class indices.

    Example::

        >>> accuracy(torch.tensor([[0.2, 0.8], [0.9, 0.1]]), torch.tensor([1, 1])).item()
        0.5
    """
    _check_probabilities(probabilities, labels)
    return (probabilities.argmax(-1) == labels).to(probabilities.dtype).mean()


def brier_score(probabilities: Tensor, labels: Tensor) -> Tensor:
    r"""Return the multi-class Brier score of each point: 0 is perfect, 2 the worst.

    .. math:: \sum_k (p_{nk} - [y_n = k])^2

    For a binary target this is twice the one-sided score (p - y)^2.

    :param probabilities: (N, K).
    :param labels: (N,) class indices.
    :returns: (N,).

    References: Brier (1950), *Verification of forecasts expressed in terms of probability*.

    Example::

        >>> brier_score(torch.tensor([[0.0, 1.0]]), torch.tensor([0])).item()
        2.0
    """
    _check_probabilities(probabilities, labels)
    truth = torch.nn.functional.one_hot(labels.long(), probabilities.shape[-1])
    return (probabilities - truth).square().sum(-1)


def reliability_curve(probabilities: Tensor, labels: Tensor, num_bins: int = 15) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean confidence, accuracy and share of points per bin of confidence (the largest class probability).

    :param probabilities: (N, K).
    :param labels: (N,) class indices.
    :param num_bins: B equally wide bins of [0, 1].
    :returns: confidence (B,), accuracy (B,), share (B,); the first two are NaN in an empty bin.

    Example::

        >>> confidence, accurate, share = reliability_curve(torch.tensor([[0.2, 0.8]]), torch.tensor([1]), num_bins=2)
        >>> share
        tensor([0., 1.])
    """
    _check_probabilities(probabilities, labels)
    confidence, predicted = probabilities.max(-1)
    right = (predicted == labels).to(confidence.dtype)
    index = (confidence * num_bins).long().clamp(0, num_bins - 1)
    table = torch.zeros(3, num_bins, dtype=confidence.dtype, device=confidence.device)
    table.index_add_(1, index, torch.stack([confidence, right, torch.ones_like(right)]))
    return table[0] / table[2], table[1] / table[2], table[2] / labels.numel()


def expected_calibration_error(probabilities: Tensor, labels: Tensor, num_bins: int = 15) -> Tensor:
    r"""Return the gap between confidence and accuracy, averaged over bins, a scalar in [0, 1].

    .. math:: \sum_b \frac{n_b}{N} \, |\text{accuracy}_b - \text{confidence}_b|

    It is biased upwards with few points per bin; compare methods at the same N and number of bins.

    :param probabilities: (N, K).
    :param labels: (N,) class indices.
    :param num_bins: equally wide bins of [0, 1].

    References: Guo, Pleiss, Sun, Weinberger (2017), *On calibration of modern neural networks*,
    https://proceedings.mlr.press/v70/guo17a.html

    Example::

        >>> expected_calibration_error(torch.tensor([[0.0, 1.0]]), torch.tensor([1])).item()
        0.0
    """
    confidence, accurate, share = reliability_curve(probabilities, labels, num_bins)
    return (share * (confidence - accurate).abs()).nansum()


@dataclass(frozen=True)
class ClassificationMetrics:
    """Scores of a classification on N held-out points.

    :param num_points: N.
    :param accuracy: share of points whose most probable class is right.
    :param log_likelihood: mean log predictive probability of the right class, nats.
    :param brier: mean multi-class Brier score, between 0 and 2.
    :param calibration_error: expected calibration error, 15 bins.
    """

    num_points: int
    accuracy: float
    log_likelihood: float
    brier: float
    calibration_error: float

    def to_dict(self) -> dict[str, Any]:
        """Return the scores as plain Python."""
        return dataclasses.asdict(self)


def classification_metrics(probabilities: Tensor, labels: Tensor) -> ClassificationMetrics:
    """Score predictive class probabilities; see :func:`class_probabilities` for how to get them from a posterior.

    :param probabilities: (N, K), rows sum to one.
    :param labels: (N,) class indices.
    :raises DataError: if shapes do not fit or there is no point.

    Example::

        >>> classification_metrics(torch.tensor([[0.2, 0.8], [0.9, 0.1]]), torch.tensor([1, 0])).accuracy
        1.0
    """
    _check_probabilities(probabilities, labels)
    if not labels.numel():
        raise DataError("labels is empty; at least one point is needed")
    chosen = probabilities.gather(-1, labels.long().unsqueeze(-1)).squeeze(-1)
    return ClassificationMetrics(
        num_points=labels.numel(),
        accuracy=float(accuracy(probabilities, labels)),
        log_likelihood=float(chosen.log().mean()),
        brier=float(brier_score(probabilities, labels).mean()),
        calibration_error=float(expected_calibration_error(probabilities, labels)),
    )
