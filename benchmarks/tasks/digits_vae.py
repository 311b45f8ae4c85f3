"""VAEs on scikit-learn's digits, in seconds."""

from __future__ import annotations

from functools import partial
from typing import Any

from benchmarks.data import images as image_data
from benchmarks.evaluation import images as image_evaluation
from benchmarks.protocol.task import TASKS, Override, Task

__all__: list[str] = []

METRICS = ("log_px", "elbo_test", "rate", "distortion", "active_units", "khat_bad")
RATIO = (0.7, 0.1, 0.2)
NETWORKS: Any = {"hidden": (128, 128), "activation": "relu", "grey_levels": image_data.DIGIT_LEVELS}
SOURCE = (
    "Random splits 70:10:20, 17 grey levels; a protocol of our own. Widths and latents were chosen by the ELBO of the "
    "validation part of split 0, and so is the epoch in each run; the number of epochs, for semi_amortized fewer, by time."
)

for _name, _latent_dim, _summary in (
    ("digits_vae", 8, "VAE on 1797 digits of 8 by 8 pixels, 17 grey levels, 8 latents"),
    ("digits_plane", 2, "the same with two latents, whose plane can be drawn"),
):
    TASKS.add(
        _name,
        Task(
            name=_name,
            summary=_summary,
            load=partial(image_data.digits, ratio=RATIO),
            model=partial(image_data.vae, latent_dim=_latent_dim, **NETWORKS),
            encoder=image_data.encoder,
            evaluate=partial(image_evaluation.generation, shape=(8, 8)),
            metrics=METRICS,
            splits=5,
            fit={"epochs": 150, "batch_size": 100, "lr": 2e-3, "schedule": "cosine"},
            guides={
                "semi_amortized": Override(options={"refinements": 3}, fit={"epochs": 60}),  # each step costs four
                "amortized_kumaraswamy": Override(  # the same networks and numbers of latents, codes that are sticks
                    model=partial(
                        image_data.stick_breaking_vae,
                        sticks=_latent_dim,
                        concentration=3.0,
                        **NETWORKS,
                    )
                ),
                "deep_mixture_amortized": Override(  # the same networks and numbers of latents, a prior of three components
                    model=partial(
                        image_data.deep_latent_gaussian_mixture,
                        latent_dim=_latent_dim,
                        components=3,
                        concentration=1.0,
                        **NETWORKS,
                    ),
                    fit={"objective": "dlgmm"},
                ),
            },
            target="images",
            num_samples=200,
            keep_draws=0,
            replicates=1,
            source=SOURCE,
        ),
    )
