"""Posteriors of known shape with several modes: which of them does a guide find, and how much mass does it give each?"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.data import densities
from benchmarks.protocol.split import Evaluation, Split
from benchmarks.protocol.task import TASKS, Override, Task

__all__ = ["GUIDES", "METRICS", "evaluate", "load", "log_density_on", "model"]

METRICS = ("evidence_gap", "energy_distance", "mode_mass_error", "modes_found")
FOUND = 0.2
"""A mode counts as found if the guide gives it at least this share of its mass."""


def load(index: int, *, density: str) -> Split:
    """Return the data, if any; there is nothing to split, so every index gives the same."""
    data = {"two_means": lambda: (densities.two_means_data(),), "bump": densities.bump}.get(density, lambda: ())
    return Split(train=data())


def model(split: Split, *, density: str) -> nn.Module:
    """Return the model whose posterior is sought."""
    if density in densities.PLANAR:
        return densities.PlanarDensity(density)
    return densities.TwoMeans() if density == "two_means" else densities.bump_network()


def evaluate(posterior: Any, split: Split, *, num_samples: int, seed: int, density: str) -> Evaluation:
    """Compare draws with exact ones: KL divergence to the posterior, energy distance, mass per mode."""
    reference = densities.REFERENCES[density]()
    drawn = posterior.draws(4 * num_samples, seed=seed)
    order = [name for name, site in posterior.sites.items() if site.kind == "latent"]
    values = densities.latents({name: drawn.latents[name][0].cpu().double() for name in order})
    masses = densities.mode_masses(values, reference)
    metrics = {
        "energy_distance": densities.energy_distance(values, reference.draws),
        "mode_mass_error": float((masses - reference.masses).abs().max()),
        "modes_found": float((masses >= FOUND * reference.masses).sum()),
    }
    curves: dict[str, Any] = {"masses": {"guide": masses.tolist(), "exact": reference.masses.tolist()}}
    if not getattr(posterior.guide, "is_point_mass", False):
        metrics["evidence_gap"] = reference.log_evidence - float((drawn.log_p - drawn.log_q).double().mean())
    if values.shape[-1] == 2:
        shown: dict[str, Any] = {"draws": [[round(v, 3) for v in row] for row in values[:300].tolist()]}
        if "evidence_gap" in metrics:
            shown["log_density"] = [round(v, 2) for v in log_density_on(densities.plane(), posterior, order[0]).tolist()]
        curves["plane"] = shown
    return Evaluation(metrics, curves)


def log_density_on(points: Tensor, posterior: Any, site: str) -> Tensor:
    """Return the guide's log density of the one site at points ``(N, 2)``."""

    def at(point: Tensor) -> Tensor:
        found: Tensor = posterior.log_prob({site: point})
        return found

    return torch.vmap(at, randomness="different")(points.to(posterior.device)).cpu()


# More components than modes, each alone until it has arrived somewhere. Laplace: the likelihoods have no Fisher information.
_MIXTURE = {"components": 10, "family": "full_rank", "warmup": 500}
GUIDES = {
    "mixture": Override(options=_MIXTURE, fit={"objective": "selbo"}),
    "laplace": Override(options={"curvature": "hessian", "predictive": "sampled"}),
    "mean_field": Override(options={"init_scale": 0.01}),
}

# Two units have eight arrangements, each with a mode of its own.
_MANY = Override(options={**_MIXTURE, "components": 24}, fit={"objective": "selbo"})

_FIT = {"steps": 2000, "lr": 0.03, "schedule": "cosine", "num_particles": 4}
_SKIP = {"dropout": "the model has no network to drop units of"}

for _name, _density, _summary in (
    ("two_moons", "two_moons", "Two crescents in the plane, normalised on a grid"),
    ("ring", "ring", "A ring in the plane: one mode that no normal describes; mass by quadrant"),
    (
        "two_means",
        "two_means",
        "Means of two normals with weights 0.52 and 0.48: two modes of unequal mass, exact on a grid",
    ),
    (
        "bump_network",
        "bump",
        "Two hidden units on 16 points; exact draws with the linear layer integrated out; mass by signs",
    ),
):
    TASKS.add(
        _name,
        Task(
            name=_name,
            summary=_summary,
            load=partial(load, density=_density),
            model=partial(model, density=_density),
            evaluate=partial(evaluate, density=_density),
            metrics=METRICS,
            splits=5,
            fit=_FIT,
            guides=GUIDES if _density != "bump" else {**GUIDES, "mixture": _MANY},
            skip={} if _density == "bump" else _SKIP,
            num_samples=2000,
            keep_draws=0,
            source="Crescents and ring after Rezende & Mohamed (2015); network and means are ours. A split is a seed.",
        ),
    )
