"""Can this fit be trusted? One file per diagnostic, filed in ``diagnostics_registry``; ``diagnose`` runs all."""

from __future__ import annotations

from guides.diagnostics.answers import Answers, SiteErrors, answers
from guides.diagnostics.chains import ChainFigures, chains
from guides.diagnostics.components import Components, components
from guides.diagnostics.convergence import Convergence, Trend, convergence, loss_trend
from guides.diagnostics.diagnosis import Diagnosis, diagnose
from guides.diagnostics.finding import Finding, Undefined, diagnostics_registry
from guides.diagnostics.importance import (
    CorrectedMoments,
    ImportanceESS,
    SiteMoments,
    corrected_moments,
    importance_sample_size,
)
from guides.diagnostics.latent_use import LatentUse, latent_use
from guides.diagnostics.loo import Elpd, ElpdLOO, elpd_loo
from guides.diagnostics.pareto import ParetoK, pareto_k
from guides.diagnostics.rhat import RHat, r_hat
from guides.diagnostics.row_weights import RowWeights, row_weights
from guides.psis import fit_generalized_pareto, importance_ess, pareto_k_threshold, psis

__all__ = [
    "Answers",
    "ChainFigures",
    "Components",
    "Convergence",
    "CorrectedMoments",
    "Diagnosis",
    "Elpd",
    "ElpdLOO",
    "Finding",
    "ImportanceESS",
    "LatentUse",
    "ParetoK",
    "RHat",
    "RowWeights",
    "SiteErrors",
    "SiteMoments",
    "Trend",
    "Undefined",
    "answers",
    "chains",
    "components",
    "convergence",
    "corrected_moments",
    "diagnose",
    "diagnostics_registry",
    "elpd_loo",
    "fit_generalized_pareto",
    "importance_ess",
    "importance_sample_size",
    "latent_use",
    "loss_trend",
    "pareto_k",
    "pareto_k_threshold",
    "psis",
    "r_hat",
    "row_weights",
]
