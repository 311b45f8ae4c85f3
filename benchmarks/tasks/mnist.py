"""Fixed binarised MNIST under the protocols of the DLGMM authors and of Burda et al."""

from __future__ import annotations

from functools import partial
from typing import Any

from benchmarks.data import images as image_data
from benchmarks.evaluation import images as image_evaluation
from benchmarks.protocol.task import TASKS, Task

__all__: list[str] = []

METRICS = ("log_px", "elbo_test", "rate", "distortion", "active_units", "khat_bad", "train_seconds")
COMMON: Any = {
    "load": image_data.binarized_mnist,
    "encoder": image_data.encoder,
    "evaluate": partial(image_evaluation.generation, shape=(28, 28)),
    "metrics": METRICS,
    "target": "images",
    "num_samples": 100,
    "keep_draws": 0,
    "replicates": 1,
    "threads": None,
}
SPLIT = "Larochelle and Murray's fixed binarisation, its own 50,000 / 10,000 / 10,000 images"
AUTHORS = (
    f"{SPLIT}. The protocol of the DLGMM authors' logs (Nalisnick et al. 2016): 500 hidden units, 25 latents, batches of "
    "100, stopping 25 epochs after the best validation ELBO. Ours differs in the learning rate, 1e-3 with a cosine (theirs "
    "is 3e-4), an encoder with an activation (theirs has none), and 100 importance samples (theirs 50)."
)
AUTHORS_FIT = {"epochs": 200, "batch_size": 100, "lr": 1e-3, "schedule": "cosine", "patience": 25}
BURDA = (
    f"{SPLIT}. The protocol of Burda et al. 2016: tanh, batches of 20, 3280 epochs, learning rate 1e-3 divided by "
    "10^(1/7) after 1, 3, 9, ... epochs. Ours keeps the epoch of the best validation score, which is early stopping (theirs "
    "has none); 100 importance samples, 5000 with --samples 5000."
)
BURDA_FIT = {"epochs": 3280, "batch_size": 20, "lr": 1e-3, "schedule": image_data.burda_schedule}


TASKS.add(
    "mnist_vae",
    Task(
        name="mnist_vae",
        summary="VAE 784-500-25 on fixed binarised MNIST",
        model=partial(image_data.vae, hidden=(500,), latent_dim=25, activation="relu"),
        fit=AUTHORS_FIT,
        dataset="mnist_500_25",
        source=AUTHORS,
        **COMMON,
    ),
)

TASKS.add(
    "mnist_vamp",
    Task(
        name="mnist_vamp",
        summary="VAE 784-500-25 with a VampPrior of 500 pseudo-inputs",
        model=partial(image_data.vae, hidden=(500,), latent_dim=25, activation="relu", pseudo_inputs=500),
        fit=AUTHORS_FIT,
        source=AUTHORS,
        **COMMON,
    ),
)

TASKS.add(
    "mnist_dlgm",
    Task(
        name="mnist_dlgm",
        summary="Deep latent Gaussian model, layers of 50 and 25 latents",
        model=partial(image_data.deep_vae, hidden=((500,), (200,)), latent_dims=(50, 25), activation="relu"),
        fit=AUTHORS_FIT,
        source=AUTHORS.replace("25 latents", "layers of 50 and 25 latents"),
        **COMMON,
    ),
)

TASKS.add(
    "mnist_dlgmm",
    Task(
        name="mnist_dlgmm",
        summary="Deep latent Gaussian mixture 784-500-25, three components",
        model=partial(
            image_data.deep_latent_gaussian_mixture,
            hidden=(500,),
            latent_dim=25,
            components=3,
            concentration=1.0,
            activation="relu",
        ),
        fit={**AUTHORS_FIT, "objective": "dlgmm"},
        dataset="mnist_500_25",
        source=f"{AUTHORS} The means and scales of the prior's components are learned here; theirs are all 0 and 1.",
        **COMMON,
    ),
)

TASKS.add(
    "mnist_plane",
    Task(
        name="mnist_plane",
        summary="VAE 784-500-2, whose latent plane can be drawn",
        model=partial(image_data.vae, hidden=(500,), latent_dim=2, activation="relu"),
        fit=AUTHORS_FIT,
        source=AUTHORS.replace("25 latents", "2 latents"),
        **COMMON,
    ),
)

TASKS.add(
    "mnist_burda",
    Task(
        name="mnist_burda",
        summary="VAE 784-200-200-50, tanh, 3280 epochs",
        model=partial(image_data.vae, hidden=(200, 200), latent_dim=50, activation="tanh"),
        fit=BURDA_FIT,
        dataset="mnist_200_200_50",
        source=BURDA,
        **COMMON,
    ),
)

TASKS.add(
    "mnist_burda_two",
    Task(
        name="mnist_burda_two",
        summary="Two layers of latents, 100 and 50, tanh, 3280 epochs",
        model=partial(image_data.deep_vae, hidden=((200, 200), (100, 100)), latent_dims=(100, 50), activation="tanh"),
        fit=BURDA_FIT,
        dataset="mnist_200_200_50",
        source=BURDA,
        **COMMON,
    ),
)
