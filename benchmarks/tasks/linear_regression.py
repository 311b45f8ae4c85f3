"""Bayesian linear regression: the task where everything is known exactly."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.distributions import MultivariateNormal, kl_divergence

import zoo
from benchmarks.evaluation import predictions as evaluation
from benchmarks.protocol.split import Split
from benchmarks.protocol.task import TASKS, Override, Task

__all__ = ["evaluate", "load", "model"]

FEATURES, ROWS, HELD_OUT, NOISE, PRIOR = 5, 60, 200, 0.5, 1.0


def load(index: int, *, correlation: float = 0.6) -> Split:
    """Return data drawn from the model, with correlated inputs, so that a diagonal guide has something to miss.

    :param index: seed of the drawing.
    :param correlation: of every pair of inputs.
    """
    generator = torch.Generator().manual_seed(1000 + index)
    shared = torch.randn(ROWS + HELD_OUT, 1, generator=generator)
    own = torch.randn(ROWS + HELD_OUT, FEATURES, generator=generator)
    x = correlation**0.5 * shared + (1 - correlation) ** 0.5 * own
    weights = PRIOR * torch.randn(FEATURES + 1, generator=generator)
    y = x @ weights[:-1] + weights[-1] + NOISE * torch.randn(ROWS + HELD_OUT, generator=generator)
    return Split(train=(x[:ROWS], y[:ROWS]), test=(x[ROWS:], y[ROWS:]))


def model(split: Split) -> zoo.BayesianLinearRegression:
    """Return the model that the data were drawn from."""
    return zoo.BayesianLinearRegression(FEATURES, prior_scale=PRIOR, noise_scale=NOISE)


def evaluate(posterior: Any, split: Split, *, num_samples: int, seed: int) -> evaluation.Evaluation:
    """Score predictions, and measure the distance to the closed-form posterior and evidence.

    The best gap of a diagonal Gaussian follows from the exact covariance S: with the same mean and precisions
    diag(S^-1), half of log det S plus sum of log diag(S^-1).
    """
    found = evaluation.regression(posterior, split, num_samples=num_samples, seed=seed)
    metrics = dict(found.metrics)
    x, y = (part.cpu() for part in split.train)
    exact = model(split).exact_posterior(x, y)
    evidence = float(model(split).log_evidence(x, y))
    precision = exact.precision_matrix.double()
    metrics["evidence_gap_expected"] = 0.5 * float(precision.diagonal().log().sum() - torch.logdet(precision))
    if not getattr(posterior.guide, "is_point_mass", False):
        drawn = posterior.draws(4 * num_samples, seed=seed)
        weights = (drawn.log_p - drawn.log_q).double()
        metrics["evidence_gap"] = evidence - float(weights.mean())
        w = drawn.latents["w"].double().cpu().flatten(0, 1)
        moments = MultivariateNormal(w.mean(0), torch.cov(w.mT))
        truth = MultivariateNormal(exact.mean.double(), precision_matrix=precision)
        metrics["kl_to_exact"] = float(kl_divergence(moments, truth))
    claimed = posterior.info[0].get("log_evidence")
    if claimed is not None:
        metrics["evidence_error"] = float(claimed) - evidence
    return evaluation.Evaluation(metrics, found.curves)


TASKS.add(
    "linear_regression",
    Task(
        name="linear_regression",
        summary="Bayesian linear regression, 60 points, 6 weights; posterior and evidence are known exactly",
        load=partial(load, correlation=0.6),
        model=model,
        evaluate=evaluate,
        metrics=(
            "evidence_gap",
            "evidence_gap_expected",
            "kl_to_exact",
            "log_likelihood",
            "rmse",
            "crps",
            "coverage_80",
        ),
        splits=20,
        fit={"steps": 1000, "lr": 0.05, "schedule": "cosine"},
        guides={"map": Override(fit={"steps": 300}), "laplace": Override(fit={"steps": 300})},
        skip={"dropout": "a linear model has no hidden units to drop"},
        source="Closed forms: Bishop (2006), sections 3.3 and 3.5.",
    ),
)
