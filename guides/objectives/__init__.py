"""Objectives, one file each; importing this package registers them."""

from guides.objectives.base import Objective
from guides.objectives.compacted import Compacted
from guides.objectives.dlgmm import DLGMMELBO
from guides.objectives.elbo import ELBO
from guides.objectives.entropy_bound import EntropyBoundELBO
from guides.objectives.iwae import IWAE
from guides.objectives.renyi import Renyi
from guides.objectives.schedules import KLAnnealing
from guides.objectives.score_function import ScoreFunction
from guides.objectives.selbo import SELBO
from guides.objectives.siwae import SIWAE
from guides.program.objective import Estimate

__all__ = [
    "DLGMMELBO",
    "ELBO",
    "IWAE",
    "SELBO",
    "SIWAE",
    "Compacted",
    "EntropyBoundELBO",
    "Estimate",
    "KLAnnealing",
    "Objective",
    "Renyi",
    "ScoreFunction",
]
