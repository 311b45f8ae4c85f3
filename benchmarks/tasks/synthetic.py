"""Distributions with exact draws: every guide at its defaults against the truth, its bounds, and the modes it covers."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pyro
import pyro.poutine as poutine
import torch
from torch import Tensor

from benchmarks.data.exact import TARGETS
from benchmarks.evaluation import reference
from benchmarks.protocol.split import Evaluation, Split
from benchmarks.protocol.task import TASKS, Task

__all__ = ["evaluate", "load", "model"]

_BOUND_DRAWS = 2000


def load(index: int) -> Split:
    """Return no data: the model is the target."""
    return Split(train=())


def model(split: Split, *, name: str) -> Any:
    """Return the target as a model."""
    return TARGETS[name].model()


def evaluate(posterior: Any, split: Split, *, num_samples: int, seed: int, name: str) -> Evaluation:
    """Hold a posterior against exact draws, and measure the upper bound on the evidence and the cover of the modes.

    The evidence is 0 nats. ``eubo`` is :math:`E_p[\\log p - \\log q]` over exact draws, above it as the ELBO is below.
    ``mode_coverage`` is the entropy of the guide's mass per mode over that of equal masses.

    References: Blessing, Jia, Esslinger, Vargas and Neumann (2024), Beyond ELBOs: a large-scale evaluation of variational
    methods for sampling.
    """
    target = TARGETS[name]
    truth = target.draws()
    found = reference.against(posterior, truth, seed)
    metrics = found.metrics
    if not getattr(posterior.guide, "is_point_mass", False):
        metrics["eubo"] = _upper_bound(posterior, truth, name)
    if target.mode is not None:
        drawn = posterior.draws(reference.RAW_DRAWS, seed=seed, log_likelihood=False).latents
        mass, exact = (
            torch.bincount(target.mode(values), minlength=target.modes).double() / reference.RAW_DRAWS
            for values in (
                {site: value[0].cpu() for site, value in drawn.items()},
                {site: value[: reference.RAW_DRAWS] for site, value in truth.items()},
            )
        )
        metrics["mode_mass_error"] = float((mass - exact).abs().max())
        if target.alike:
            metrics["mode_coverage"] = float(-mass.xlogy(mass).sum() / math.log(target.modes))
    return Evaluation(metrics, found.curves, found.verdict)


def _upper_bound(posterior: Any, truth: dict[str, Tensor], name: str) -> float:
    target = TARGETS[name].model()
    points = {site: value[:_BOUND_DRAWS].to(torch.get_default_dtype()) for site, value in truth.items()}

    def difference(point: dict[str, Tensor]) -> Tensor:
        log_p = poutine.trace(poutine.condition(target, data=point)).get_trace().log_prob_sum()
        found: Tensor = log_p - posterior.log_prob(point)
        return found

    with pyro.validation_enabled(False), torch.no_grad():  # checks of values cannot be vectorised
        return float(torch.vmap(difference, randomness="different")(points).double().mean())


for _name, _target in TARGETS.items():
    TASKS.add(
        _name,
        Task(
            name=_name,
            summary=f"Exact draws: {_target.summary}",
            load=load,
            model=partial(model, name=_name),
            evaluate=partial(evaluate, name=_name),
            metrics=("mean_error", "sd_off", "corrected_mean_error", "corrected_sd_off", "eubo", "mode_coverage"),
            skip={"dropout": "the model has no network to drop units of"},
            keep_draws=0,
            source="Neal 2003 (funnel); Haario et al. 1999 (banana); Noé et al. 2019 (wells). All at defaults.",
        ),
    )
