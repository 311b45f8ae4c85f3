"""Approximate posteriors, objectives and diagnostics for any Pyro model.

Start with :func:`fit`; the registries :data:`families` and :data:`objectives` list what there is.
"""

from guides.calibration import Calibration, calibrate
from guides.comparison import Comparison, compare
from guides.conjugate.cavi import cavi
from guides.conjugate.structure import ConjugatePosterior, ConjugateStructure
from guides.density.density import LogDensity, log_density
from guides.diagnostics import Diagnosis, diagnose, diagnostics_registry
from guides.errors import (
    DataError,
    DiscreteLatentError,
    EagerFallbackWarning,
    FailedDrawsWarning,
    FixedSubsampleWarning,
    GuideMismatchError,
    InterruptedFitWarning,
    MinibatchScaleError,
    NonFiniteLossError,
    NonFiniteLossWarning,
    NoReferenceError,
    NotAtTheModeWarning,
    OptionError,
    StorageError,
    StorageWarning,
    UnsupportedModelError,
)
from guides.evidence.gaps import InferenceGap, inference_gap
from guides.evidence.marginal import LogMarginal, log_marginal
from guides.families import (
    MAP,
    Amortized,
    AmortizedKumaraswamy,
    DeepMixtureAmortized,
    Dropout,
    Ensemble,
    Family,
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
from guides.fitted.draws import Draws, Site
from guides.fitting import fit, fit_many
from guides.objectives import (
    DLGMMELBO,
    ELBO,
    IWAE,
    SELBO,
    SIWAE,
    Compacted,
    Cyclical,
    EntropyBoundELBO,
    Estimate,
    Objective,
    Renyi,
    ScoreFunction,
    Warmup,
)
from guides.pooled import Pooled
from guides.posterior import Posterior
from guides.program.prior import sample_prior
from guides.registries import families, objectives, samplers
from guides.samplers import HMC, NUTS, Sampled, Sampler
from guides.samplers.reference import reference

__all__ = [
    "DLGMMELBO",
    "ELBO",
    "HMC",
    "IWAE",
    "MAP",
    "NUTS",
    "SELBO",
    "SIWAE",
    "Amortized",
    "AmortizedKumaraswamy",
    "Calibration",
    "Compacted",
    "Comparison",
    "ConjugatePosterior",
    "ConjugateStructure",
    "Cyclical",
    "DataError",
    "DeepMixtureAmortized",
    "Diagnosis",
    "DiscreteLatentError",
    "Draws",
    "Dropout",
    "EagerFallbackWarning",
    "Ensemble",
    "EntropyBoundELBO",
    "Estimate",
    "FailedDrawsWarning",
    "Family",
    "FixedSubsampleWarning",
    "FlatFamily",
    "FullRank",
    "GuideMismatchError",
    "InferenceGap",
    "InterruptedFitWarning",
    "Laplace",
    "LogDensity",
    "LogMarginal",
    "LowRank",
    "MeanField",
    "MinibatchScaleError",
    "Mixture",
    "MixtureAmortized",
    "NoReferenceError",
    "NonFiniteLossError",
    "NonFiniteLossWarning",
    "NotAtTheModeWarning",
    "Objective",
    "OptionError",
    "Pooled",
    "Posterior",
    "Renyi",
    "Sampled",
    "Sampler",
    "ScoreFunction",
    "SemiAmortized",
    "Site",
    "StickBreakingRNN",
    "StorageError",
    "StorageWarning",
    "Structured",
    "UnsupportedModelError",
    "Warmup",
    "calibrate",
    "cavi",
    "compare",
    "diagnose",
    "diagnostics_registry",
    "families",
    "fit",
    "fit_many",
    "inference_gap",
    "log_density",
    "log_marginal",
    "objectives",
    "reference",
    "sample_prior",
    "samplers",
    "to_arviz",
]
