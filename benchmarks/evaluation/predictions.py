"""From a fitted posterior and a split to numbers and curves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from benchmarks.protocol.split import Curve, Evaluation, Split
from guides import diagnostics, predictive
from guides.samplers import Sampled

__all__ = ["classification", "fit_only", "kept_inference_data", "regression", "trust"]

LEVELS = tuple(round(0.05 * step, 2) for step in range(1, 20))
QUANTILES = (0.025, 0.25, 0.5, 0.75, 0.975)
BAND_SAMPLES = 4000
MOST_KEPT_VALUES = 400_000
FEWEST_KEPT_DRAWS = 20


def trust(posterior: Any, *, num_samples: int, seed: int) -> Evaluation:
    """Return ELBO, k-hat, effective sample size, R-hat and convergence, for any posterior.

    What a posterior has no value for (a point mass has no density, one restart no R-hat) is absent. Where every data point
    has a latent of its own, or nothing is latent, only convergence is judged here: those tasks' evaluators do the rest.

    :param posterior: a ``guides.Posterior``.
    :param num_samples: draws behind every figure.
    :param seed: seed of the draws.
    """
    if posterior.program.amortized or not posterior.program.latents:
        judge: Any = diagnostics.convergence
        found = judge(posterior, None)  # it reads no draws, and draws for all training rows would be many
        return Evaluation({"converged": float(found.status == "converged")} if hasattr(found, "status") else {})
    if isinstance(posterior, Sampled):  # judged by its chains: there is no guide whose weights would say anything
        judged = posterior.diagnose()
        rhat = {"rhat": float(judged.r_hat)} if judged.r_hat is not None else {}
        return Evaluation(rhat, {}, {"level": judged.verdict, "summary": judged.summary})
    judges = [name for name in diagnostics.diagnostics_registry if name != "elpd_loo"]  # cells are scored on held-out data
    diagnosis = posterior.diagnose(num_samples=num_samples, seed=seed, only=judges)
    metrics: dict[str, float] = {}
    weights = getattr(diagnosis.findings.get("pareto_k"), "log_weights", None)
    if isinstance(weights, Tensor):
        weights = weights.double().flatten()
        metrics["elbo"] = float(weights.mean())
        metrics["elbo_se"] = float(weights.std()) / math.sqrt(weights.numel())
    if diagnosis.k_hat is not None:
        metrics["khat"] = float(diagnosis.k_hat)
    if diagnosis.ess is not None:
        metrics["ess_fraction"] = min(diagnosis.ess) / diagnosis.num_samples
    if diagnosis.r_hat is not None:
        metrics["rhat"] = float(diagnosis.r_hat)
    if diagnosis.convergence is not None:
        metrics["converged"] = float(diagnosis.convergence == "converged")
    return Evaluation(metrics, {}, {"level": diagnosis.verdict, "summary": diagnosis.summary})


def fit_only(posterior: Any, split: Split, *, num_samples: int, seed: int) -> Evaluation:
    """Return nothing: a task without held-out data is judged by ELBO and k-hat, which every cell has."""
    return Evaluation({})


def regression(posterior: Any, split: Split, *, num_samples: int, seed: int) -> Evaluation:
    """Score predictions of a real target on the held-out part, in standardised and in original units.

    :raises ValueError: if the split has no test part.
    """
    x, y = _test(split, posterior)
    site = observed_site(posterior)
    draws = posterior.predict(x, num_samples=num_samples, seed=seed)
    density = posterior.log_likelihood(x, y, num_samples=num_samples, seed=seed)[site]
    noise_free = draws.get("f")
    mean = noise_free.mean(0) if noise_free is not None and noise_free.shape[1:] == y.shape else None
    scored = predictive.regression_metrics(draws[site], y, density, mean=mean, target_sd=split.target_scale)
    metrics = {key: value for key, value in scored.to_dict().items() if isinstance(value, float)}
    metrics |= {f"coverage_{level.rstrip('%')}": share for level, share in scored.coverage.items()}
    covered = predictive.coverage(predictive.pit(draws[site], y), LEVELS)
    curves: dict[str, Any] = {
        "calibration": {
            "stated": list(LEVELS),
            "observed": covered.tolist(),
            "stated_is": "probability of the central interval",
        }
    }
    if split.curve is not None:
        curves["bands"] = _bands(posterior, split, split.curve, seed)
    return Evaluation(metrics, curves)


def classification(posterior: Any, split: Split, *, num_samples: int, seed: int) -> Evaluation:
    """Score predicted class probabilities on the held-out part.

    :raises ValueError: if the split has no test part.
    """
    x, labels = _test(split, posterior)
    probabilities = _class_probabilities(posterior, split, x, labels, num_samples, seed)
    scored = predictive.classification_metrics(probabilities, labels.long())
    confidence, accuracy, share = predictive.reliability_curve(probabilities, labels.long(), num_bins=10)
    curves = {
        "calibration": {
            "stated": confidence.tolist(),
            "observed": accuracy.tolist(),
            "share": share.tolist(),
            "stated_is": "confidence",
        }
    }
    return Evaluation({k: v for k, v in scored.to_dict().items() if isinstance(v, float)}, curves)


def _class_probabilities(posterior: Any, split: Split, x: Tensor, labels: Tensor, num_samples: int, seed: int) -> Tensor:
    """Return predictive class probabilities ``(N, K)``, from the logits ``"f"`` that the zoo's classifiers record.

    A model without that site is asked for the likelihood of each label in turn, which costs K passes instead of one.
    """
    classes = max(int(max(split.train[1].max(), labels.max())) + 1, 2)
    logits = posterior.predict(x, num_samples=num_samples, seed=seed).get("f")
    if logits is not None and logits.shape[1:] == (len(labels), classes):
        return logits.softmax(-1).mean(0)
    if logits is not None and classes == 2 and logits.shape[1:] == labels.shape:
        positive = logits.sigmoid().mean(0)
        return torch.stack([1 - positive, positive], -1)
    site = observed_site(posterior)
    return predictive.class_probabilities(
        [
            posterior.log_likelihood(x, torch.full_like(labels, label), num_samples=num_samples, seed=seed)[site]
            for label in range(classes)
        ]
    )


def observed_site(posterior: Any) -> str:
    """Return the name of the one observed site.

    :raises ValueError: if there is none, or more than one.
    """
    names = [name for name, site in posterior.sites.items() if site.kind == "observed"]
    if len(names) != 1:
        raise ValueError(f"this evaluator needs exactly one observed site, the model has {names or 'none'}; write another")
    return names[0]


def _test(split: Split, posterior: Any) -> tuple[Tensor, Tensor]:
    if split.test is None:
        raise ValueError(
            "this evaluator needs held-out data, the split has test=None; use benchmarks.evaluation.predictions.fit_only"
        )
    x, y = split.test
    return x.to(posterior.device), y.to(posterior.device)


def _bands(posterior: Any, split: Split, curve: Curve, seed: int) -> dict[str, Any]:
    """Return predictive quantiles over a grid, with data and true curve, in original units."""
    site = observed_site(posterior)
    drawn = posterior.predict(curve.inputs.to(posterior.device), num_samples=BAND_SAMPLES, seed=seed)[site]
    levels = torch.tensor(QUANTILES, dtype=drawn.dtype, device=drawn.device)
    quantiles = torch.quantile(drawn, levels, dim=0) * split.target_scale + split.target_shift
    rounded: Mapping[str, list[float]] = {
        f"{level:g}": [round(value, 5) for value in row.tolist()] for level, row in zip(QUANTILES, quantiles)
    }
    return {
        "x": [round(value, 5) for value in curve.x.tolist()],
        "quantiles": rounded,
        "points": {name: [round(v, 4) for v in part.tolist()] for name, part in zip("xy", curve.points)},
        "truth": None if curve.truth is None else [round(value, 5) for value in curve.truth.tolist()],
    }


def kept_inference_data(posterior: Any, draws: int, *, seed: int) -> Any:
    """Return the posterior as ArviZ keeps it, with few enough draws for a small file; ``None`` if it is too large for any.

    :param posterior: a ``guides.Posterior``.
    :param draws: how many draws to keep, fewer where the latents are many.
    :param seed: seed of the draws.
    """
    values = sum(math.prod(site.shape) for site in posterior.sites.values() if site.kind != "observed")
    kept = min(draws, MOST_KEPT_VALUES // max(values, 1))
    if kept < min(draws, FEWEST_KEPT_DRAWS):
        return None
    return posterior.to_arviz(num_samples=kept, groups=("posterior", "sample_stats", "observed_data"), seed=seed)
