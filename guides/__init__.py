"""Approximate posteriors, objectives and diagnostics for any Pyro model.

Start with :func:`fit`; the registries :data:`families` and :data:`objectives` list what there is.
"""

from guides.errors import (
    DataError,
    DiscreteLatentError,
    GuideMismatchError,
    MinibatchScaleError,
    NonFiniteLossError,
    NonFiniteLossWarning,
    OptionError,
    UnsupportedModelError,
)
from guides.families import MAP, Dropout, Ensemble, Family, FlatFamily, FullRank, Laplace, LowRank, MeanField
from guides.fitting import fit, fit_many
from guides.objectives import ELBO, Estimate, Objective
from guides.posterior import Draws, Posterior, Site
from guides.registries import families, objectives

__all__ = [
    "ELBO",
    "MAP",
    "DataError",
    "DiscreteLatentError",
    "Draws",
    "Dropout",
    "Ensemble",
    "Estimate",
    "Family",
    "FlatFamily",
    "FullRank",
    "GuideMismatchError",
    "Laplace",
    "LowRank",
    "MeanField",
    "MinibatchScaleError",
    "NonFiniteLossError",
    "NonFiniteLossWarning",
    "Objective",
    "OptionError",
    "Posterior",
    "Site",
    "UnsupportedModelError",
    "families",
    "fit",
    "fit_many",
    "objectives",
]
