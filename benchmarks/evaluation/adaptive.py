"""What a mixture per data point does with its components: how many it uses, for which images, and what they look like."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from benchmarks.evaluation.images import generation, spread, with_parameters
from benchmarks.evaluation.latent_modes import ascend, count_modes
from benchmarks.protocol.split import Evaluation, Split
from guides.distributions.mixtures import weight_entropy
from guides.families.encoders.component_heads import RowMixture
from guides.families.mixture import DEAD

__all__ = ["adaptive"]

ROWS = 500
MANY = 64

SHOWN = 8
PAIRS = 4
BETWEEN = (1, 7)

PROBED = 100
STARTS, STEPS = 12, 200
APART, WITHIN = 0.5, 7.0


def adaptive(posterior: Any, split: Split, *, num_samples: int, seed: int, shape: tuple[int, int], most: int) -> Evaluation:
    """Score a model of black and white images, and say what the posteriors of the test images are made of.

    :param posterior: of a :class:`zoo.VAE` with one layer of latents.
    :param split: its test part is scored, class by class where components are counted.
    :param num_samples: importance samples S for each image behind ``log_px``.
    :param seed: of all draws.
    :param shape: height and width of an image.
    :param most: components that a fixed mixture runs; savings are shares of its decoder rows.
    :raises ValueError: if there are no test images, or they have no labels.
    """
    found = generation(posterior, split, num_samples=num_samples, seed=seed, shape=shape)
    if split.test is None or split.labels is None:
        raise ValueError("this evaluator counts components class by class, and the split has labels=None")
    images = split.test[0].to(posterior.device)
    log_weights = torch.cat([_mixture(posterior, rows, seed).log_weights for rows in images.split(ROWS)])
    ran, effective = (log_weights > -torch.inf).sum(1).double(), weight_entropy(log_weights.double()).exp()
    weights = log_weights.double().exp().mean(0)
    metrics = {
        "objective_test": _objective(posterior, images, seed),
        "importance_samples": float(num_samples),
        "effective_components": float(effective.mean()),
        "components_run": float(ran.mean()),
        "rows_saved": 1 - float(ran.mean()) / most,
        "dead_components": float((weights < DEAD).sum()),
        "halted_first": float((ran == 1).double().mean()),
        "epoch_seconds": found.metrics["train_seconds"] / found.metrics["epochs"],
    }
    curves: dict[str, Any] = {"components": _by_class(split.labels, ran, effective) | {"weights": weights.tolist()}}
    several = log_weights.shape[1] > 1
    if several:
        probed = spread(torch.arange(len(images)), PROBED)
        modes = _modes(posterior, images[probed], seed)
        curves["modes"] = {"modes": modes.tolist(), "run": ran[probed].tolist(), "effective": effective[probed].tolist()}
        metrics["modes"] = float(modes.double().mean())
    drawn, curves["ambiguous"] = _drawings(posterior, images, split.labels, seed, most)
    drawn = {name: image.unflatten(-1, shape) for name, image in drawn.items()}
    return Evaluation(found.metrics | metrics, found.curves | curves, found.verdict, found.images | drawn)


def _mixture(posterior: Any, images: Tensor, seed: int) -> RowMixture:
    """Return the mixtures of some images; for a guide that is none, its one normal, from draws."""
    if hasattr(posterior.guide, "mixture"):
        mixture: RowMixture = with_parameters(posterior, lambda: posterior.guide.mixture(images))
        return mixture
    (drawn,) = posterior.draws(MANY, images, seed=seed).latents.values()
    loc, scale = drawn[0].mean(0).unsqueeze(1), drawn[0].std(0).unsqueeze(1)
    return RowMixture(loc.new_zeros(len(images), 1), loc, scale, None)


def _objective(posterior: Any, images: Tensor, seed: int) -> float:
    """Return the objective that was maximised, in nats for each image."""
    program = posterior.program

    def run() -> float:
        torch.manual_seed(seed)
        return sum(float(program.objective.estimate(program.model, posterior.guide, (rows,), {}).value) for rows in parts)

    parts = images.split(ROWS)
    with torch.random.fork_rng():
        total: float = with_parameters(posterior, run)
    return total / len(images)


def _by_class(labels: Tensor, ran: Tensor, effective: Tensor) -> dict[str, list[float]]:
    """Return mean components run and effective components of each class."""
    classes = labels.unique().tolist()
    chosen = [(labels == label).to(ran.device) for label in classes]
    return {
        "classes": classes,
        "run": [float(ran[these].mean()) for these in chosen],
        "effective": [float(effective[these].mean()) for these in chosen],
    }


def _modes(posterior: Any, images: Tensor, seed: int) -> Tensor:
    """Return how many modes of p(z | x) ascents from draws of the prior find for each image."""
    model = posterior.model

    def log_joint(z: Tensor) -> Tensor:
        joint: Tensor = model.decode(z).log_prob(images) + model.prior().log_prob(z)
        return joint

    def run() -> Tensor:
        torch.manual_seed(seed)
        ends = ascend(log_joint, model.prior().sample((STARTS, len(images))), STEPS)
        return count_modes(ends, log_joint(ends), APART, WITHIN)

    with torch.random.fork_rng():
        counted: Tensor = with_parameters(posterior, run)
    return counted.cpu()


def _drawings(
    posterior: Any, images: Tensor, labels: Tensor, seed: int, most: int
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return what components draw of test images, and of images between a one and a seven, with the weights there.

    ``component_samples`` has for each image the image itself, then a decoded draw of every component; ``ambiguous`` a one,
    the seven nearest to it, an image between them, then the decoded mean of every component. Components that did not run are
    black, up to ``most`` of them.
    """
    generator = torch.Generator().manual_seed(seed)
    shown = spread(images, SHOWN)
    mixture = _mixture(posterior, shown, seed)
    noise = torch.randn(mixture.loc.shape, generator=generator).to(mixture.loc)
    drawn = _decoded(posterior, mixture, mixture.loc + mixture.scale * noise, most)
    found = {"component_samples": torch.cat([shown.unsqueeze(1), drawn], 1)}
    ones, sevens = (images[(labels == label).to(images.device)] for label in BETWEEN)
    if not len(ones) or not len(sevens):
        return found, {}
    ones = spread(ones, PAIRS)
    sevens = sevens[torch.cdist(ones, sevens).argmin(1)]
    between = torch.bernoulli(((ones + sevens) / 2).cpu(), generator=generator).to(images)
    mixture = _mixture(posterior, between, seed)
    means = _decoded(posterior, mixture, mixture.loc, most)
    found["ambiguous"] = torch.cat([torch.stack([ones, sevens, between], 1), means], 1)
    return found, {"weights": mixture.log_weights.exp().tolist()}


def _decoded(posterior: Any, mixture: RowMixture, codes: Tensor, most: int) -> Tensor:
    """Return mean images ``(N, most, pixels)`` of codes ``(N, K, D)``, black where a component did not run."""
    images = with_parameters(posterior, lambda: posterior.model.decode(codes).mean)
    images = images * (mixture.log_weights > -torch.inf).unsqueeze(-1)
    return pad(images, (0, 0, 0, most - images.shape[1]))
