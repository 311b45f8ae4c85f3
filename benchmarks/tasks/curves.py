"""Toy curves: what does a guide say where there are no data?"""

from __future__ import annotations

from functools import partial

from benchmarks.data import tables as data
from benchmarks.evaluation import predictions as evaluation
from benchmarks.protocol.task import TASKS, Override, Task

__all__ = ["GUIDES", "LAPLACE", "METRICS"]

METRICS = ("log_likelihood", "rmse", "crps", "calibration_error", "coverage_50", "coverage_80", "coverage_95")
LAPLACE = Override(options={"curvature": "ggn"})
# Scales that start small let a network fit its data before it learns how sure to be of itself.
GUIDES = {
    "laplace": LAPLACE,
    "mean_field": Override(options={"init_scale": 0.01}),
    "full_rank": Override(options={"init_scale": 0.01}),
}

TASKS.add(
    "blundell_curve",
    Task(
        name="blundell_curve",
        summary="Blundell's curve, 300 points on [0, 0.5], drawn on [-0.2, 1.2]: bands outside the data",
        load=partial(data.curve, dataset="blundell", num_train=300, low=-0.2, high=1.2),
        model=partial(data.network, hidden=(20,), activation="relu", prior=(2.0, 0.5)),
        evaluate=evaluation.regression,
        metrics=METRICS,
        splits=20,
        fit={"steps": 1000, "lr": 0.03, "schedule": "cosine"},
        guides=GUIDES,
        source="Curve of Blundell et al. 2015, section 5.2; tested on fresh points of the training range. Width, "
        "prior and number of points are ours, chosen on split 0 by ELBO with test scores and pictures in "
        "sight: an illustration, not a contest.",
    ),
)

TASKS.add(
    "foong_gap",
    Task(
        name="foong_gap",
        summary="Foong's two clusters, 100 points, tested in the gap between them",
        load=partial(data.curve, dataset="foong", low=-1.5, high=1.5, standardise=False),
        model=partial(data.network, hidden=(20,), activation="relu", prior=(1.0, 0.8), noise=0.1),
        evaluate=evaluation.regression,
        metrics=METRICS,
        splits=20,
        fit={"steps": 1000, "lr": 0.03, "schedule": "cosine"},
        guides=GUIDES,
        source="Curve of Foong et al. 2019 with its noise known; the test points lie in the gap, where training "
        "never was. Width (20; theirs 50) and prior are ours, chosen on split 0 with ELBO and spread in the "
        "gap in sight: an illustration, not a contest.",
    ),
)
