"""How good are the predictions? Scores of predictive draws against held-out values, vectorised.

Draws come first: ``draws`` is (S, *batch) where ``y`` is (*batch). Every score is per point, (*batch), unless it says
otherwise, so that a caller can average, take standard errors, or compare point by point. Units are those of ``y``; with
targets standardised as (y - mean) / sd, errors and CRPS in original units are sd times, squared errors sd squared times, and
log densities log(sd) nats below those in standardised units. :func:`regression_metrics` does that.
"""

from guides.predictive.classification import (
    ClassificationMetrics,
    accuracy,
    brier_score,
    class_probabilities,
    classification_metrics,
    expected_calibration_error,
    reliability_curve,
)
from guides.predictive.regression import (
    LEVELS,
    RegressionMetrics,
    calibration_curve,
    coverage,
    crps,
    crps_gaussian_mixture,
    gaussian_mixture_cdf,
    log_predictive_density,
    mse,
    pit,
    regression_metrics,
    rmse,
)

__all__ = [
    "LEVELS",
    "ClassificationMetrics",
    "RegressionMetrics",
    "accuracy",
    "brier_score",
    "calibration_curve",
    "class_probabilities",
    "classification_metrics",
    "coverage",
    "crps",
    "crps_gaussian_mixture",
    "expected_calibration_error",
    "gaussian_mixture_cdf",
    "log_predictive_density",
    "mse",
    "pit",
    "regression_metrics",
    "reliability_curve",
    "rmse",
]
