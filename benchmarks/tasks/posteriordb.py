"""The posteriors of posteriordb: every guide at its defaults, in Stan's parametrisation, against reference draws."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

import zoo
from benchmarks.evaluation import reference
from benchmarks.protocol.split import Evaluation, Split
from benchmarks.protocol.task import TASKS, Task

__all__ = ["evaluate", "load", "model", "truth"]


def load(index: int, *, name: str) -> Split:
    """Return the data; there is nothing to split, so every index gives the same."""
    return Split(train=zoo.posteriordb.posteriors[name].data())


def model(split: Split, *, name: str) -> Any:
    """Return the model."""
    return zoo.posteriordb.posteriors[name].model


def truth(name: str) -> dict[str, Tensor]:
    """Return reference draws of Stan's parameters and of the model's latents, ``(10,000, *shape)``."""
    posterior = zoo.posteriordb.posteriors[name]
    draws = posterior.draws()
    return {site: value.flatten(0, 1) for site, value in (draws | posterior.latents(draws)).items()}


def evaluate(posterior: Any, split: Split, *, num_samples: int, seed: int, name: str) -> Evaluation:
    """Hold a posterior against the reference draws; see :func:`benchmarks.evaluation.reference.against`."""
    return reference.against(posterior, truth(name), seed)


for _name in zoo.posteriordb.posteriors:
    TASKS.add(
        _name,
        Task(
            name=_name,
            summary=f"posteriordb's {_name}: no tuning, 10,000 reference draws",
            load=partial(load, name=_name),
            model=partial(model, name=_name),
            evaluate=partial(evaluate, name=_name),
            metrics=("mean_error", "sd_off", "corrected_mean_error", "corrected_sd_off", "wasserstein", "verdict_true"),
            skip={"dropout": "the model has no network to drop units of"},
            keep_draws=0,
            source="Magnusson et al. 2024, posteriordb. Guides and fit at their defaults.",
        ),
    )
