"""Mixtures of Gaussians: guides on the model with its assignments summed out, beside coordinate ascent with them kept."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch

import guides
import zoo
from benchmarks.protocol.split import Evaluation, Split
from benchmarks.protocol.task import TASKS, Override, Task

__all__ = ["evaluate", "load", "model"]

CLUSTERS, COLUMNS, ROWS, HELD_OUT = 3, 2, 300, 1000
RESTARTS = 10


def load(index: int, *, spread: float) -> Split:
    """Return data from three Gaussian clusters of sizes 3:2:1, standardised on the training part.

    :param index: seed of the drawing.
    :param spread: standard deviation of the centres; the clusters' own are about 1.
    """
    generator = torch.Generator().manual_seed(3000 + index)
    centres = spread * torch.randn(CLUSTERS, COLUMNS, generator=generator)
    shapes = torch.eye(COLUMNS) + 0.4 * torch.randn(CLUSTERS, COLUMNS, COLUMNS, generator=generator)
    sizes = torch.arange(CLUSTERS, 0, -1, dtype=torch.float32)
    label = torch.multinomial(sizes, ROWS + HELD_OUT, replacement=True, generator=generator)
    noise = torch.randn(ROWS + HELD_OUT, COLUMNS, 1, generator=generator)
    x = centres[label] + (shapes[label] @ noise).squeeze(-1)
    x = (x - x[:ROWS].mean(0)) / x[:ROWS].std(0, correction=0)
    return Split(train=(x[:ROWS],), test=(x[ROWS:],))


def model(split: Split, *, kind: str, components: int, covariance: str) -> zoo.GaussianMixture:
    """Return a mixture: ``kind`` is ``"finite"`` or ``"dirichlet_process"``."""
    cls = {"finite": zoo.GaussianMixture, "dirichlet_process": zoo.DirichletProcessMixture}[kind]
    return cls(components, split.train[0].shape[1], covariance, degrees_of_freedom=COLUMNS + 2.0, scatter=0.5)


def evaluate(posterior: Any, split: Split, *, num_samples: int, seed: int) -> Evaluation:
    """Score held-out density, and stand it beside that of coordinate ascent on the same model and data.

    ``elbo_behind_cavi`` compares like with like: both bounds are of the model with its assignments summed out.
    """
    if split.test is None:
        raise ValueError("this evaluator needs held-out data, the split has test=None")
    closed = guides.cavi(posterior.model, split.train[0].cpu(), restarts=RESTARTS, seed=seed, progress=False)
    metrics = {"log_likelihood_cavi": float(closed.log_predictive(split.test[0].cpu()).mean())}
    density = posterior.log_likelihood(split.test[0].to(posterior.device), num_samples=num_samples, seed=seed)["x"]
    metrics["log_likelihood_standardised"] = float((density.double().logsumexp(0) - math.log(num_samples)).mean())
    if not getattr(posterior.guide, "is_point_mass", False):
        drawn = posterior.draws(num_samples, seed=seed)
        bound = float((drawn.log_p - drawn.log_q).double().mean())
        metrics["elbo_behind_cavi"] = closed.marginal_elbo(num_samples, seed=seed)[0] - bound
    return Evaluation(metrics)


SPREAD = Override({"init_loc_fn": "spread"})

for _name, _kind, _components, _covariance in (
    ("gaussian_mixture", "finite", 3, "full"),
    ("dirichlet_process_mixture", "dirichlet_process", 6, "diagonal"),
):
    TASKS.add(
        _name,
        Task(
            name=_name,
            summary=f"{_components} Gaussians ({_kind.replace('_', ' ')}, {_covariance}) on 300 points in three clusters",
            load=partial(load, spread=2.0),
            model=partial(model, kind=_kind, components=_components, covariance=_covariance),
            evaluate=evaluate,
            metrics=("log_likelihood_standardised", "log_likelihood_cavi", "elbo_behind_cavi", "elbo"),
            splits=10,
            fit={"steps": 1500, "lr": 0.02, "schedule": "cosine"},
            guides={
                "full_rank": SPREAD,
                "laplace": Override({"curvature": "hessian", "init_loc_fn": "spread"}),
                "low_rank": SPREAD,
                "map": SPREAD,
                "mean_field": Override({**SPREAD.options, "init_scale": 0.01}),
            },
            skip={
                "dropout": "the model has no network to drop units of",
            },
            source="Drawn from three clusters; a protocol of our own. Coordinate ascent: the best of ten restarts by ELBO.",
        ),
    )
