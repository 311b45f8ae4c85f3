"""Toy curves: what does a guide say where there are no data?"""

from __future__ import annotations

from functools import partial

from benchmarks import data, evaluation
from benchmarks.task import TASKS, Override, Task

METRICS = ("log_likelihood", "rmse", "crps", "calibration_error", "coverage_50", "coverage_80", "coverage_95")
LAPLACE = Override(options={"curvature": "ggn"})

TASKS.add(
    "blundell_curve",
    Task(
        name="blundell_curve",
        summary="Blundell's curve, 100 points on [0, 0.5], drawn on [-0.2, 1.2]: bands outside the data",
        load=partial(data.curve, dataset="blundell", low=-0.2, high=1.2),
        model=partial(data.network, hidden=(50,), activation="relu"),
        evaluate=evaluation.regression,
        metrics=METRICS,
        splits=20,
        fit={"steps": 4000, "lr": 0.01, "schedule": "cosine"},
        guides={"laplace": LAPLACE},
        source="Blundell et al. 2015, section 5.2; tested on fresh points of the training range.",
    ),
)

TASKS.add(
    "foong_gap",
    Task(
        name="foong_gap",
        summary="Foong's two clusters, 100 points, tested in the gap between them",
        load=partial(data.curve, dataset="foong", low=-1.5, high=1.5),
        model=partial(data.network, hidden=(50,), activation="relu"),
        evaluate=evaluation.regression,
        metrics=METRICS,
        splits=20,
        fit={"steps": 4000, "lr": 0.01, "schedule": "cosine"},
        guides={"laplace": LAPLACE},
        source="Foong et al. 2019; the test points lie in the gap, where training never was.",
    ),
)
