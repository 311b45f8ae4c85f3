"""Families of approximate posteriors, one file each; importing this package registers them."""

from guides.families.amortized import Amortized
from guides.families.amortized_kumaraswamy import AmortizedKumaraswamy
from guides.families.base import Family, FlatFamily
from guides.families.deep_mixture_amortized import DeepMixtureAmortized
from guides.families.dropout import Dropout
from guides.families.ensemble import Ensemble
from guides.families.full_rank import FullRank
from guides.families.laplace import Laplace, LaplaceNormal
from guides.families.low_rank import LowRank
from guides.families.map import MAP
from guides.families.mean_field import MeanField
from guides.families.mixture import Mixture
from guides.families.mixture_amortized import MixtureAmortized
from guides.families.semi_amortized import SemiAmortized
from guides.families.stick_breaking_rnn import StickBreakingRNN
from guides.families.structured import Structured

__all__ = [
    "MAP",
    "Amortized",
    "AmortizedKumaraswamy",
    "DeepMixtureAmortized",
    "Dropout",
    "Ensemble",
    "Family",
    "FlatFamily",
    "FullRank",
    "Laplace",
    "LaplaceNormal",
    "LowRank",
    "MeanField",
    "Mixture",
    "MixtureAmortized",
    "SemiAmortized",
    "StickBreakingRNN",
    "Structured",
]
