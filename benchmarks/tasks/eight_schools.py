"""Eight schools, centred and not: the smallest posterior that a mean-field guide gets wrong."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

import zoo
from benchmarks.evaluation import Evaluation
from benchmarks.task import TASKS, Split, Task

GRID = 20_000


def load(index: int) -> Split:
    """Return the data; there is nothing to split, so every index gives the same."""
    return Split(train=zoo.EightSchools.data())


def model(split: Split, *, centered: bool) -> zoo.EightSchools:
    """Return the model in one of its two forms."""
    return zoo.EightSchools(centered=centered)


def exact(sigma: Tensor, y: Tensor) -> tuple[float, dict[str, tuple[Tensor, Tensor]]]:
    r"""Return log evidence, and mean and standard deviation of each site, by quadrature over :math:`\tau` alone.

    Given :math:`\tau` all else is Gaussian: :math:`y_j \sim N(\mu, V_j)` with :math:`V_j = \sigma_j^2 + \tau^2`, and
    :math:`\mu \mid y, \tau \sim N(m, v)` with :math:`1/v = 1/25 + \sum_j 1/V_j`. What is left is one integral, taken by the
    midpoint rule over the half-Cauchy prior's quantiles.
    """
    sigma, y = sigma.double(), y.double()
    quantiles = (torch.arange(GRID, dtype=torch.float64) + 0.5) / GRID
    tau = 5 * torch.tan(0.5 * math.pi * quantiles).unsqueeze(-1)
    total = sigma**2 + tau**2
    precision = 1 / 25 + (1 / total).sum(-1)
    mean = (y / total).sum(-1) / precision
    # log N(y; 0, diag(V) + 25) by the matrix determinant lemma and Woodbury's identity
    log_det = total.log().sum(-1) + math.log(25) + precision.log()
    quadratic = (y**2 / total).sum(-1) - precision * mean**2
    log_likelihood = -0.5 * (len(y) * math.log(2 * math.pi) + log_det + quadratic)
    weights = (log_likelihood - log_likelihood.logsumexp(0)).exp()
    shrinkage = tau**2 / total
    theta_mean = shrinkage * y + (1 - shrinkage) * mean.unsqueeze(-1)
    theta_variance = shrinkage * sigma**2 + (1 - shrinkage) ** 2 / precision.unsqueeze(-1)

    def moments(given: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        weight = weights.reshape(-1, *[1] * (given.dim() - 1))
        average = (weight * given).sum(0)
        return average, ((weight * (variance + given**2)).sum(0) - average**2).sqrt()

    return float(log_likelihood.logsumexp(0)) - math.log(GRID), {
        "mu": moments(mean, 1 / precision),
        "theta": moments(theta_mean, theta_variance),
    }


def evaluate(posterior: Any, split: Split, *, num_samples: int, seed: int) -> Evaluation:
    """Measure the distance to the evidence and to the posterior moments that quadrature gives.

    ``mean_error`` and ``sd_ratio`` are over ``mu`` and the eight ``theta``: the largest error of a mean in exact standard
    deviations, and the smallest ratio of the guide's to the exact standard deviation.
    """
    sigma, y = (part.cpu() for part in split.train)
    evidence, moments = exact(sigma, y)
    drawn = posterior.draws(4 * num_samples, seed=seed)
    metrics: dict[str, float] = {}
    if not getattr(posterior.guide, "is_point_mass", False):
        metrics["evidence_gap"] = evidence - float((drawn.log_p - drawn.log_q).double().mean())
    sites = drawn.latents | drawn.deterministic
    errors, ratios = [], []
    for name, (mean, deviation) in moments.items():
        values = sites[name].double().cpu().flatten(0, 1)
        errors.append(float(((values.mean(0) - mean).abs() / deviation).max()))
        ratios.append(float((values.std(0) / deviation).min()))
    return Evaluation(metrics | {"mean_error": max(errors), "sd_ratio": min(ratios)})


for _name, _centered in (("eight_schools", False), ("eight_schools_centered", True)):
    TASKS.add(
        _name,
        Task(
            name=_name,
            summary=f"Eight schools, {'centred: a funnel' if _centered else 'non-centred'}; evidence by quadrature",
            load=load,
            model=partial(model, centered=_centered),
            evaluate=evaluate,
            metrics=("evidence_gap", "mean_error", "sd_ratio"),
            fit={"steps": 3000, "lr": 0.02, "schedule": "cosine"},
            skip={"dropout": "the model has no network to drop units of"},
            forest=() if _centered else ("mu", "tau", "theta"),
            target="SAT points",
            num_samples=2000,
            source="Rubin 1981; Yao et al. 2018 report k-hat 1.00 (centred) and 0.64 (non-centred) for mean-field.",
        ),
    )
