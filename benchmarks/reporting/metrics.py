"""What is measured, and how a number is to be read: its unit, its direction, its digits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

__all__ = ["METRICS", "Metric", "metric"]

Direction = Literal["up", "down", "target", "none"]


@dataclass(frozen=True)
class Metric:
    """How one measured number is to be read.

    :param name: the key under which cells store it.
    :param label: what a table's head calls it.
    :param unit: ``"nats"``, ``"target units"``, ...; empty for a pure number.
    :param better: ``"up"``, ``"down"``, ``"target"`` (nearer to ``goal``) or ``"none"`` (nothing to win).
    :param help: one sentence for the report's glossary.
    :param goal: the value aimed at, where ``better`` is ``"target"``.
    :param digits: decimals in a table.
    """

    name: str
    label: str
    unit: str
    better: Direction
    help: str
    goal: float = 0.0
    digits: int = 3

    @property
    def arrow(self) -> str:
        """The direction as one character, for a table's head."""
        return {"up": "↑", "down": "↓", "target": f"→ {self.goal:g}", "none": ""}[self.better]

    def loss(self, value: float) -> float:
        """Return ``value`` turned so that less is better; NaN where there is nothing to win."""
        if self.better == "up":
            return -value
        if self.better == "down":
            return value
        return abs(value - self.goal) if self.better == "target" else math.nan


_ALL = (
    Metric(
        "log_likelihood",
        "log-likelihood",
        "nats per point",
        "up",
        "Mean log predictive density of the held-out points, in the original units of the target.",
    ),
    Metric(
        "log_likelihood_standardised",
        "log-likelihood, standardised",
        "nats per point",
        "up",
        "The same for targets divided by their standard deviation over the training part.",
    ),
    Metric("rmse", "RMSE", "target units", "down", "Root mean squared error of the predictive mean, held-out points."),
    Metric(
        "rmse_standardised",
        "RMSE, standardised",
        "sd of target",
        "down",
        "RMSE of targets divided by their standard deviation over the training part.",
    ),
    Metric("mse", "MSE", "target units²", "down", "Mean squared error of the predictive mean, held-out points."),
    Metric("mse_standardised", "MSE, standardised", "variance of target", "down", "MSE of standardised targets."),
    Metric(
        "crps",
        "CRPS",
        "target units",
        "down",
        "Continuous ranked probability score: the absolute error generalised to a whole predictive distribution.",
    ),
    Metric("accuracy", "accuracy", "", "up", "Share of held-out points whose most probable class is the true one."),
    Metric("brier", "Brier score", "", "down", "Squared distance between the predicted probabilities and the truth."),
    Metric(
        "calibration_error",
        "calibration error",
        "",
        "down",
        "Mean gap between stated and observed frequency: of central intervals for regression, of confidence for classes.",
    ),
    Metric("coverage_50", "50 % coverage", "", "target", "Share of points inside the central 50 % interval.", 0.5, 2),
    Metric("coverage_80", "80 % coverage", "", "target", "Share of points inside the central 80 % interval.", 0.8, 2),
    Metric("coverage_95", "95 % coverage", "", "target", "Share of points inside the central 95 % interval.", 0.95, 2),
    Metric(
        "elbo", "ELBO", "nats", "up", "E_q[log p(x, z) - log q(z)] on the training data, a lower bound on log p(x).", 0, 2
    ),
    Metric("elbo_se", "ELBO error", "nats", "none", "Monte Carlo standard error of the ELBO.", 0, 2),
    Metric(
        "evidence_gap",
        "evidence gap",
        "nats",
        "down",
        "Exact log evidence minus the ELBO: the KL divergence from the guide to the exact posterior.",
    ),
    Metric(
        "evidence_gap_expected",
        "best possible gap",
        "nats",
        "none",
        "The smallest gap that the family allows, where theory gives it (mean-field: from the exact covariance).",
    ),
    Metric(
        "elbo_behind_cavi",
        "ELBO behind CAVI",
        "nats",
        "down",
        "ELBO of coordinate ascent on the same data, assignments summed out of both, minus the guide's; below 0 it leads.",
        0,
        2,
    ),
    Metric(
        "log_likelihood_cavi",
        "log-likelihood of CAVI",
        "nats per point",
        "none",
        "Mean log predictive density of the held-out points under coordinate ascent, in standardised units.",
    ),
    Metric(
        "kl_to_exact",
        "KL to exact posterior",
        "nats",
        "down",
        "KL divergence from a Gaussian with the draws' moments to the closed-form posterior; biased up by finite draws.",
    ),
    Metric(
        "evidence_error",
        "evidence error",
        "nats",
        "target",
        "The guide's own estimate of the log evidence minus the exact one, for guides that give one.",
    ),
    Metric(
        "energy_distance",
        "energy distance",
        "exact sd",
        "down",
        "Distance between the guide's draws and exact ones; zero for equal distributions, below it by chance.",
    ),
    Metric(
        "mode_mass_error",
        "mass error",
        "",
        "down",
        "Largest difference between the mass that the guide gives a mode and the exact mass.",
    ),
    Metric("modes_found", "modes found", "", "up", "Modes to which the guide gives a fifth of their mass or more.", 0, 1),
    Metric(
        "mean_error",
        "largest error of a mean",
        "exact sd",
        "down",
        "Largest difference between a posterior mean and the exact one, in exact posterior standard deviations.",
        0,
        2,
    ),
    Metric(
        "sd_ratio",
        "smallest sd ratio",
        "",
        "target",
        "Smallest ratio of a posterior standard deviation to the exact one; below 1 the guide is too narrow.",
        1.0,
        2,
    ),
    Metric(
        "mean_error_average",
        "mean error of a mean",
        "true sd",
        "down",
        "Mean absolute difference between posterior means and those of the reference, in true standard deviations.",
    ),
    Metric(
        "sd_off",
        "worst factor of an sd",
        "",
        "target",
        "Largest factor between a posterior standard deviation and the true one, 1 or more.",
        1.0,
        2,
    ),
    Metric(
        "corrected_mean_error",
        "largest error of a mean, corrected",
        "true sd",
        "down",
        "Largest error of a mean of draws resampled by their importance weights, in true standard deviations.",
        0,
        2,
    ),
    Metric(
        "corrected_sd_off",
        "worst factor of an sd, corrected",
        "",
        "target",
        "Largest factor between a standard deviation of draws resampled by their weights and the true one.",
        1.0,
        2,
    ),
    Metric(
        "wasserstein",
        "1-Wasserstein",
        "true sd",
        "down",
        "Mean 1-Wasserstein distance between the marginals of guide and reference, in true standard deviations.",
    ),
    Metric("raw_right", "raw draws right", "", "up", "1 where all means and standard deviations are right, else 0.", 0, 2),
    Metric("corrected_right", "corrected right", "", "up", "1 where those of corrected draws are, else 0.", 0, 2),
    Metric("verdict_true", "verdict true", "", "up", "1 where what diagnose() promises holds, else 0.", 0, 2),
    Metric("lie", "lies", "", "down", "1 where a verdict promises answers that are off, else 0.", 0, 2),
    Metric("too_strict", "too strict", "", "down", "1 where a fit called unreliable is right, else 0.", 0, 2),
    Metric("eubo", "EUBO", "nats", "down", "E_p[log p - log q] at exact draws: an upper bound on the evidence.", 0, 2),
    Metric(
        "mode_coverage",
        "entropic mode coverage",
        "",
        "up",
        "Entropy of the mass that the guide gives each of K equal modes, over log K: 1 for all alike, 0 for one.",
    ),
    Metric("gradients", "gradients", "", "down", "Gradients of the log joint density that a fit took.", 0, 0),
    Metric(
        "log_px",
        "log p(x)",
        "nats per image",
        "up",
        "Mean log marginal likelihood of the test images, by importance sampling from the guide with as many draws for each "
        "image as the protocol says (num_samples); on average below the truth.",
        0,
        2,
    ),
    Metric("log_px_se", "its Monte Carlo error", "nats", "none", "Standard error of log p(x) from its finite draws.", 0, 3),
    Metric(
        "log_py",
        "log p(y | x)",
        "nats per image",
        "up",
        "Mean log-likelihood of the pixels that were not given, by importance sampling from the guide; exact for a model "
        "without latents.",
        0,
        2,
    ),
    Metric("log_py_se", "its Monte Carlo error", "nats", "none", "Standard error of log p(y | x), finite draws.", 0, 3),
    Metric("elbo_test", "test ELBO", "nats per image", "up", "Mean ELBO of the test images.", 0, 2),
    Metric(
        "tutorial_loss",
        "negative ELBO",
        "nats per image",
        "down",
        "Minus the mean ELBO of the pixels that were not given, 10 draws for each image: the quantity of Pyro's tutorial, "
        "there on grey levels. For a model without latents, its cross-entropy.",
        0,
        2,
    ),
    Metric(
        "rate", "rate", "nats", "none", "KL divergence of the guide from the prior of the codes, mean over images.", 0, 2
    ),
    Metric(
        "distortion", "distortion", "nats", "none", "Minus the expected log-likelihood of an image given its code.", 0, 2
    ),
    Metric(
        "active_units", "active units", "", "none", "Latents whose mean moves with the image (variance above 0.01).", 0, 1
    ),
    Metric(
        "khat_bad",
        "k-hat too high",
        "",
        "down",
        "Share of test images whose k-hat is above the limit for so many draws.",
        0,
        3,
    ),
    Metric(
        "objective_test",
        "objective",
        "nats per image",
        "none",
        "What was maximised, as it is on the test images; penalties left out. A lower bound on log p(x), except as printed.",
        0,
        2,
    ),
    Metric("importance_samples", "S", "", "none", "Importance samples for each image behind log p(x).", 0, 0),
    Metric(
        "effective_components",
        "effective components",
        "",
        "none",
        "exp H[pi], the exponential of the entropy of an image's weights, mean over test images.",
        0,
        2,
    ),
    Metric("components_run", "components run", "", "down", "Components computed for an image, mean over test images.", 0, 2),
    Metric(
        "rows_saved",
        "decoder rows saved",
        "",
        "up",
        "Share of a fixed mixture's decoder rows that do without, if components after the last are not run (Compacted).",
        0,
        3,
    ),
    Metric(
        "dead_components",
        "dead",
        "",
        "down",
        "Components whose weight, mean over test images, is below 1e-4.",
        0,
        0,
    ),
    Metric("halted_first", "one component", "", "none", "Share of test images that do with a single component.", 0, 3),
    Metric(
        "modes",
        "modes",
        "",
        "none",
        "Modes of p(z | x) within 7 nats of the highest that gradient ascent from 12 draws of the prior ends at, mean over "
        "100 test images.",
        0,
        2,
    ),
    Metric(
        "epoch_seconds", "epoch", "s", "down", "Wall time of the optimisation for each epoch, compilation included.", 0, 1
    ),
    Metric("epochs", "epochs", "", "none", "Passes over the training part.", 0, 0),
    Metric("train_seconds", "training", "s", "down", "Wall time of the optimisation, compilation included.", 0, 1),
    Metric("khat", "k-hat", "", "down", "Pareto shape of the importance weights; below 0.5 good, up to 0.7 usable.", 0, 2),
    Metric(
        "ess_fraction",
        "ESS share",
        "",
        "up",
        "Importance effective sample size as a share of the draws; 1 would be the exact posterior.",
        0,
        2,
    ),
    Metric("rhat", "R-hat", "", "target", "Agreement between restarts; above 1.01 they found different answers.", 1.0),
    Metric("converged", "converged", "", "up", "1 where the loss trace had settled when the fit stopped, else 0.", 0, 2),
    Metric("steps", "steps", "", "none", "Optimisation steps taken.", 0, 0),
    Metric("seconds", "seconds", "s", "down", "Wall time of the cell, its share of a vectorised run.", 0, 2),
)

METRICS: dict[str, Metric] = {entry.name: entry for entry in _ALL}
"""Every metric that tables know how to label, by name."""


def metric(name: str) -> Metric:
    """Return the metric called ``name``; one nobody described is shown as it is, with nothing to win."""
    return METRICS.get(name, Metric(name, name.replace("_", " "), "", "none", ""))
