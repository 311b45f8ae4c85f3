"""UCI regression on the 20 published 90:10 splits, the protocol that most papers on Bayesian networks report."""

from __future__ import annotations

from functools import partial

from benchmarks.data import tables as data
from benchmarks.evaluation import predictions as evaluation
from benchmarks.protocol.task import TASKS, Override, Task
from benchmarks.tasks.curves import METRICS

__all__ = ["GUIDES", "SETS"]

# Short name, name of the data set, target with unit, number of published splits, steps (mean_field: steps), batch size.
# Steps for Boston, energy and yacht were chosen by validation inside the training parts (10 % held out of each of the first
# ten), never on test parts; the other sets follow whichever of the three has noise like theirs.
SETS = (
    ("boston", "bostonHousing", "median house value (1000 USD)", 20, (1000, 800), 128),
    ("concrete", "concrete", "compressive strength (MPa)", 20, (4000, 6000), 128),
    ("energy", "energy", "heating load (kWh/m²)", 20, (4000, 6000), 128),
    ("kin8nm", "kin8nm", "distance of the end effector", 20, (4000, 6000), 256),
    ("naval", "naval-propulsion-plant", "compressor decay coefficient", 20, (4000, 6000), 256),
    ("power", "power-plant", "net hourly electrical output (MW)", 20, (4000, 6000), 256),
    ("protein", "protein-tertiary-structure", "RMSD of the residue (Å)", 5, (8000, 8000), 512),
    ("wine", "wine-quality-red", "quality (score)", 20, (1000, 800), 128),
    ("yacht", "yacht", "residuary resistance per unit weight of displacement", 20, (4000, 6000), 128),
)

# What single guides do differently, on every data set; one place to tune, and part of the protocol's hash.
GUIDES = {
    "dropout": Override(options={"rate": 0.005}),
    "laplace": Override(options={"curvature": "ggn"}),
}

MIXTURE = {
    "components": 5,
    "options": {"estimator": "local", "init_scale": 0.01},
    "init_loc_fn": "median",
    "weights": "uniform",
}

for _short, _dataset, _target, _splits, (_steps, _long), _batch in SETS:
    TASKS.add(
        f"uci_{_short}",
        Task(
            name=f"uci_{_short}",
            summary=f"{_short}: {_splits} published 90:10 splits, one hidden layer of 50 ReLU units",
            load=partial(data.published_split, dataset=_dataset),
            model=partial(data.network, hidden=(50,), activation="relu"),
            evaluate=evaluation.regression,
            metrics=("log_likelihood", "rmse", *METRICS[2:]),
            splits=_splits,
            fit={"steps": _steps, "batch_size": _batch, "lr": 0.01, "schedule": "cosine"},
            guides={
                **GUIDES,
                "mean_field": Override(options={"estimator": "local", "init_scale": 0.01}, fit={"steps": _long}),
                # Starts, weights and warm-up: chosen on validation parts of boston, energy and yacht.
                "mixture": Override(
                    options=MIXTURE | {"warmup": int(0.7 * _long)},
                    fit={"steps": _long, "objective": "selbo"},
                ),
            },
            dataset=_short,
            target=_target,
            source="Splits of Hernández-Lobato & Adams 2015 as published with Gal's experiments; standardised on the "
            "training part, scores in original units.",
        ),
    )
