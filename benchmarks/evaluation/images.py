"""From a fitted model of images to log-likelihoods of test images, the use of its latents, and what it draws."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import guides
from benchmarks.protocol.split import Evaluation, Split
from guides.program.parameters import isolated_store
from zoo.datasets.completion import UNKNOWN

__all__ = ["completion", "generation", "spread", "with_parameters"]

ACTIVE = 0.01
ELBO_DRAWS = 10
ROWS = 500

SAMPLES = 60
RECONSTRUCTED = 20
PATHS, STEPS = 4, 10
PLANE = 16
COMPLETED, COMPLETIONS = 10, 3
MANY = 64


def generation(posterior: Any, split: Split, *, num_samples: int, seed: int, shape: tuple[int, int]) -> Evaluation:
    """Score a model of whole images on the test images and keep what it draws.

    :param posterior: of a VAE with one or more layers of latents.
    :param split: its test part is scored.
    :param num_samples: importance samples S for each image behind ``log_px``.
    :param seed: of all draws.
    :param shape: height and width of an image; its pixels are grey levels in [0, 1].
    """
    data = _test(split, posterior)
    marginal = guides.log_marginal(posterior, *data, num_samples=num_samples, seed=seed, split="test")
    metrics = {"log_px": float(marginal.mean), "log_px_se": float(marginal.mean_standard_error)}
    metrics |= _khat(marginal) | _training(posterior)
    elbo, distortion, activity = _latent_use(posterior, data, seed)
    metrics |= {"elbo_test": elbo, "rate": -elbo - distortion, "distortion": distortion}
    metrics |= {"active_units": float((activity > ACTIVE).sum())}
    images = {name: drawn.reshape(*drawn.shape[:-1], *shape) for name, drawn in _drawings(posterior, data, seed).items()}
    return Evaluation(metrics, {"unit_activity": activity.clamp(min=1e-7).tolist()}, _verdict(metrics), images)


def completion(posterior: Any, split: Split, *, num_samples: int, seed: int, shape: tuple[int, int]) -> Evaluation:
    """Score a model of some pixels given the others on the test images and keep what it fills in.

    :param posterior: of a conditional VAE, or of a net without latents.
    :param split: its test part is scored: images in which the pixels asked for are marked, and those pixels.
    :param num_samples: importance samples S for each image behind ``log_py``; a net without latents needs none.
    :param seed: of all draws.
    :param shape: height and width of an image; its pixels are grey levels in [0, 1].
    """
    x, y = _test(split, posterior)
    if posterior.program.latents:
        marginal = guides.log_marginal(posterior, x, y, num_samples=num_samples, seed=seed, split="test")
        metrics = {"log_py": float(marginal.mean), "log_py_se": float(marginal.mean_standard_error)}
        metrics |= _khat(marginal)
        elbo, distortion, activity = _latent_use(posterior, (x, y), seed)
        metrics |= {"tutorial_loss": -elbo, "rate": -elbo - distortion, "distortion": distortion}
        metrics |= {"active_units": float((activity > ACTIVE).sum())}
    else:
        exact = float(_log_likelihood(posterior, (x, y), 1, seed).mean())
        metrics = {"log_py": exact, "log_py_se": 0.0, "tutorial_loss": -exact}
    x, y = spread(x, COMPLETED), spread(y, COMPLETED)
    asked = x[0] == UNKNOWN
    drawn = _completions(posterior, x, COMPLETIONS if posterior.program.latents else 1, seed)
    whole = x.expand(len(drawn) + 1, -1, -1).clone()
    whole[..., asked] = torch.cat([y.unsqueeze(0), drawn])
    whole = whole.unflatten(-1, shape)
    images = {"truth": whole[0], "completions": whole[1:], "mask": (~asked).float().unflatten(-1, shape)}
    return Evaluation(metrics | _training(posterior), {}, _verdict(metrics), images)


def spread(rows: Tensor, count: int) -> Tensor:
    """Return ``count`` of the rows, evenly spread: published test sets are sorted by digit in places."""
    return rows[torch.linspace(0, len(rows) - 1, count, device=rows.device).round().long()]


def _test(split: Split, posterior: Any) -> tuple[Tensor, ...]:
    """Return the test part where the posterior is.

    :raises ValueError: if there is none.
    """
    if split.test is None:
        raise ValueError("this evaluator needs test images, the split has test=None")
    return tuple(part.to(posterior.device) for part in split.test)


def _khat(marginal: Any) -> dict[str, float]:
    """Return mean k-hat over images, and the share whose weights are unreliable at so many draws."""
    share = marginal.share_above_threshold
    return {} if math.isnan(share) else {"khat": float(marginal.k_hat.nanmean()), "khat_bad": share}


def _training(posterior: Any) -> dict[str, float]:
    return {"train_seconds": float(posterior.seconds["train"]), "epochs": float(posterior.validation.shape[-1])}


def _verdict(metrics: dict[str, float]) -> dict[str, str]:
    """Say whether guides of single images can be trusted, by the share of images whose weights are unreliable."""
    bad = metrics.get("khat_bad")
    if bad is None:
        return {}
    level = "good" if bad < 0.05 else "usable" if bad < 0.5 else "unreliable"
    return {"level": level, "summary": f"k-hat is too high for so few draws at {100 * bad:.0f} % of the test images"}


def _latent_use(posterior: Any, data: tuple[Tensor, ...], seed: int) -> tuple[float, float, Tensor]:
    """Return mean ELBO and distortion in nats, and of every latent how much its mean moves over images.

    That variance of means is estimated without bias, as the covariance of means over two halves of the draws.
    """
    elbo = distortion = 0.0
    halves: list[tuple[Tensor, Tensor]] = []
    rows = len(data[0])
    for start in range(0, rows, ROWS):
        part = tuple(each[start : start + ROWS] for each in data)
        draws = posterior.draws(ELBO_DRAWS, *part, seed=seed + start)
        elbo += float((draws.log_p - draws.log_q).double().mean())
        distortion -= sum(float(each.double().sum()) for each in draws.log_likelihood.values()) / ELBO_DRAWS
        codes = torch.cat([draws.latents[name][0].flatten(2) for name in posterior.program.latents], -1)
        halves.append((codes[: ELBO_DRAWS // 2].mean(0), codes[ELBO_DRAWS // 2 :].mean(0)))
    first, second = (torch.cat(half).double() for half in zip(*halves))
    activity = ((first - first.mean(0)) * (second - second.mean(0))).sum(0) / max(rows - 1, 1)
    return elbo / rows, distortion / rows, activity.cpu()


def _log_likelihood(posterior: Any, data: tuple[Tensor, ...], draws: int, seed: int) -> Tensor:
    """Return log p(y | x, z) of each row in nats, shape ``(S, rows)``."""
    (found,) = posterior.log_likelihood(*data, num_samples=draws, seed=seed).values()
    return found


def with_parameters(posterior: Any, run: Callable[[], Any]) -> Any:
    """Return what ``run()`` returns, without gradients, with the fitted parameters in the model, which is left as it was."""
    with isolated_store(), torch.no_grad():
        return posterior.program.parameters.call(posterior.flat[0], run)


def _drawings(posterior: Any, data: tuple[Tensor, ...], seed: int) -> dict[str, Tensor]:
    """Return samples, reconstructions, interpolations and, of two latents, the plane, each ``(..., pixels)``."""
    model = posterior.model
    (images,) = data

    def decoded(codes: Tensor) -> Tensor:
        return with_parameters(posterior, lambda: model.decode(codes.flatten(0, -2)).mean.reshape(*codes.shape[:-1], -1))

    def code(images: Tensor) -> Tensor:
        draws = posterior.draws(MANY, images, seed=seed)
        found = draws.latents | draws.deterministic
        taken = next(name for name in ("z", "z_1", "weights") if name in found)  # what the decoder is given
        return found[taken][0].mean(0)

    found = {"samples": with_parameters(posterior, lambda: model.generate(SAMPLES, seed=seed)).flatten(1)}
    found["originals"] = spread(images, RECONSTRUCTED)
    found["reconstructions"] = decoded(code(found["originals"]))
    ends = code(spread(images, 2 * PATHS))
    way = torch.linspace(0, 1, STEPS, device=ends.device).unsqueeze(-1)
    found["interpolation"] = decoded(ends[:PATHS, None] * (1 - way) + ends[PATHS:, None] * way)
    if ends.shape[-1] == 2:
        middles = (torch.arange(PLANE, dtype=ends.dtype, device=ends.device) + 0.5) / PLANE
        at = torch.distributions.Normal(0.0, 1.0).icdf(middles)
        found["manifold"] = decoded(torch.stack(torch.meshgrid(at, at.flip(0), indexing="xy"), -1))
    return found


def _completions(posterior: Any, x: Tensor, draws: int, seed: int) -> Tensor:
    """Return mean values of the pixels asked for, one draw of the code after another, shape ``(draws, rows, pixels)``."""
    model = posterior.model

    def run() -> Tensor:
        if not posterior.program.latents:
            return model.decode(x).mean.unsqueeze(0)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return torch.stack([model.decode(x, model.prior(x).sample()).mean for _ in range(draws)])

    return with_parameters(posterior, run)
