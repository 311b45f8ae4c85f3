"""Eight schools, centred and not: the smallest posterior that a mean-field guide gets wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

import zoo
from benchmarks.evaluation import predictions as evaluation
from benchmarks.protocol.split import Evaluation, Split
from benchmarks.protocol.task import TASKS, Task

__all__ = ["evaluate", "exact", "exact_quantiles", "load", "model"]

GRID = 20_000


def load(index: int) -> Split:
    """Return the data; there is nothing to split, so every index gives the same."""
    return Split(train=zoo.EightSchools.data())


def model(split: Split, *, centered: bool) -> zoo.EightSchools:
    """Return the model in one of its two forms."""
    return zoo.EightSchools(centered=centered)


def _given_tau(sigma: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, float]:
    """Return tau's grid ``(GRID, 1)``, its posterior weights, mean and precision of mu given tau, and the log evidence."""
    quantiles = (torch.arange(GRID, dtype=torch.float64) + 0.5) / GRID
    tau = 5 * torch.tan(0.5 * math.pi * quantiles).unsqueeze(-1)
    total = sigma**2 + tau**2
    precision = 1 / 25 + (1 / total).sum(-1)
    mean = (y / total).sum(-1) / precision
    # log N(y; 0, diag(V) + 25) by the matrix determinant lemma and Woodbury's identity
    log_det = total.log().sum(-1) + math.log(25) + precision.log()
    quadratic = (y**2 / total).sum(-1) - precision * mean**2
    log_likelihood = -0.5 * (len(y) * math.log(2 * math.pi) + log_det + quadratic)
    weights = log_likelihood.softmax(0)
    return tau, weights, mean, precision, float(log_likelihood.logsumexp(0)) - math.log(GRID)


def exact(sigma: Tensor, y: Tensor) -> tuple[float, dict[str, tuple[Tensor, Tensor]]]:
    r"""Return log evidence, and mean and standard deviation of each site, by quadrature over :math:`\tau` alone.

    Given :math:`\tau` all else is Gaussian: :math:`y_j \sim N(\mu, V_j)` with :math:`V_j = \sigma_j^2 + \tau^2`, and
    :math:`\mu \mid y, \tau \sim N(m, v)` with :math:`1/v = 1/25 + \sum_j 1/V_j`. What is left is one integral, taken by the
    midpoint rule over the half-Cauchy prior's quantiles.
    """
    sigma, y = sigma.double(), y.double()
    tau, weights, mean, precision, log_evidence = _given_tau(sigma, y)
    total = sigma**2 + tau**2
    shrinkage = tau**2 / total
    theta_mean = shrinkage * y + (1 - shrinkage) * mean.unsqueeze(-1)
    theta_variance = shrinkage * sigma**2 + (1 - shrinkage) ** 2 / precision.unsqueeze(-1)

    def moments(given: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        weight = weights.reshape(-1, *[1] * (given.dim() - 1))
        average = (weight * given).sum(0)
        return average, ((weight * (variance + given**2)).sum(0) - average**2).sqrt()

    return log_evidence, {
        "mu": moments(mean, 1 / precision),
        "theta": moments(theta_mean, theta_variance),
    }


def exact_quantiles(sigma: Tensor, y: Tensor, levels: Sequence[float], draws: int = 20_000) -> dict[str, list[list[float]]]:
    """Return quantiles of each site's exact posterior, one row for each level, from exact independent draws.

    The draws come from the factors of :func:`exact`: tau from its grid, mu given tau, theta given both.
    """
    generator = torch.Generator().manual_seed(0)
    tau, weights, mean, precision = _given_tau(sigma.double(), y.double())[:4]
    index = torch.multinomial(weights, draws, replacement=True, generator=generator)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    mu = mean[index] + normal(draws) * precision[index].rsqrt()
    shrinkage = tau[index] ** 2 / (sigma.double() ** 2 + tau[index] ** 2)
    theta = shrinkage * y + (1 - shrinkage) * mu.unsqueeze(-1) + shrinkage.sqrt() * sigma * normal(draws, len(y))
    at = torch.tensor(levels, dtype=torch.float64)
    sites = {"mu": mu.unsqueeze(-1), "tau": tau[index], "theta": theta}
    return {name: torch.quantile(values, at, dim=0).tolist() for name, values in sites.items()}


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
    return Evaluation(
        metrics | {"mean_error": max(errors), "sd_ratio": min(ratios)},
        {"exact": exact_quantiles(sigma, y, evaluation.QUANTILES)},
    )


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
            fit={"steps": 2500, "lr": 0.03, "schedule": "cosine"},
            skip={"dropout": "the model has no network to drop units of"},
            forest=() if _centered else ("mu", "tau", "theta"),
            target="SAT points",
            num_samples=2000,
            source="Rubin 1981; Yao et al. 2018 report k-hat 1.00 (centred) and 0.64 (non-centred) for mean-field.",
        ),
    )
