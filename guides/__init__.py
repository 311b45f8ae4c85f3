"""Approximate posteriors, objectives and diagnostics for any Pyro model.

Start with :func:`fit`; the registries :data:`families`, :data:`objectives` and :data:`samplers` list what there is, and
:mod:`guides.errors` what can go wrong. Results of these functions, and what authors of guides need beside the two base
classes, are documented where they are defined.
"""

from _posterior_zoo_registry import __version__
from guides import errors, information, predictive
from guides.calibration import calibrate
from guides.comparison import compare
from guides.conjugate.cavi import cavi
from guides.density.density import log_density
from guides.diagnostics import diagnose
from guides.evidence.gaps import inference_gap
from guides.evidence.marginal import log_marginal
from guides.families import (
    MAP,
    Amortized,
    AmortizedKumaraswamy,
    DeepMixtureAmortized,
    Dropout,
    Ensemble,
    FlatFamily,
    FullRank,
    Laplace,
    LowRank,
    MeanField,
    Mixture,
    MixtureAmortized,
    SemiAmortized,
    StickBreakingRNN,
    Structured,
)
from guides.fitted.arviz_io import to_arviz
from guides.fitting import fit, fit_many
from guides.objectives import (
    DLGMMELBO,
    ELBO,
    IWAE,
    SELBO,
    SIWAE,
    EntropyBoundELBO,
    KLAnnealing,
    Objective,
    Renyi,
    ScoreFunction,
)
from guides.posterior import Posterior
from guides.registries import families, objectives, samplers, solvers
from guides.samplers.reference import reference

__all__ = [
    "DLGMMELBO",
    "ELBO",
    "IWAE",
    "MAP",
    "SELBO",
    "SIWAE",
    "Amortized",
    "AmortizedKumaraswamy",
    "DeepMixtureAmortized",
    "Dropout",
    "Ensemble",
    "EntropyBoundELBO",
    "FlatFamily",
    "FullRank",
    "KLAnnealing",
    "Laplace",
    "LowRank",
    "MeanField",
    "Mixture",
    "MixtureAmortized",
    "Objective",
    "Posterior",
    "Renyi",
    "ScoreFunction",
    "SemiAmortized",
    "StickBreakingRNN",
    "Structured",
    "__version__",
    "calibrate",
    "cavi",
    "compare",
    "diagnose",
    "errors",
    "families",
    "fit",
    "fit_many",
    "inference_gap",
    "information",
    "log_density",
    "log_marginal",
    "objectives",
    "predictive",
    "reference",
    "samplers",
    "solvers",
    "to_arviz",
]
