"""Completing images: quadrants as in Pyro's tutorial, and the middle columns."""

from __future__ import annotations

from functools import partial

from benchmarks.data import images as image_data
from benchmarks.evaluation import images as image_evaluation
from benchmarks.protocol.task import TASKS, Override, Task

__all__: list[str] = []

SOURCE = (
    "The tutorial's quadrants (the middle columns: Doersch 2016) on Larochelle and Murray's fixed binarisation, its own "
    "50,000 / 10,000 / 10,000 images. The best epoch by validation score, the tutorial's by test score; log p(y | x) by "
    "importance sampling from the guide, the tutorial's quantity beside it. One hidden layer of 500 in every network."
)

for _name, _given, _what, _dataset in (
    ("cvae_3_quadrants", 3, "three quadrants given", "mnist_given_3"),
    ("cvae_2_quadrants", 2, "two quadrants given", "mnist_given_2"),
    ("cvae_1_quadrant", 1, "one quadrant given", "mnist_given_1"),
    ("cvae_middle_columns", "middle_columns", "the two middle columns given", ""),
):
    TASKS.add(
        _name,
        Task(
            name=_name,
            summary=f"Completion of binarised MNIST, {_what}",
            load=partial(image_data.completion, given=_given),
            model=partial(image_data.conditional_vae, hidden=(500,), latent_dim=50, activation="relu"),
            encoder=image_data.encoder,
            evaluate=partial(image_evaluation.completion, shape=(28, 28)),
            metrics=("log_py", "tutorial_loss", "khat_bad"),
            fit={"epochs": 10, "batch_size": 200, "lr": 1e-3, "schedule": "cosine", "patience": 3},
            guides={"map": Override(model=partial(image_data.conditional_net, hidden=(500,), activation="relu"))},
            dataset=_dataset,
            target=_what,
            num_samples=100,
            keep_draws=0,
            replicates=1,
            threads=None,
            source=SOURCE,
        ),
    )
