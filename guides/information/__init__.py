"""Measures of information: of discrete tables, of distributions, of observations, and of the latents of a VAE."""

from guides.information.discrete import Table
from guides.information.distributions import (
    conditional_entropy,
    cross_entropy,
    entropy,
    joint_entropy,
    kl_divergence,
    mutual_information,
)
from guides.information.gaussian import gaussian_mutual_information
from guides.information.latent import LatentInformation, latent_information
from guides.information.measure import Measure
from guides.information.surprise import surprise

__all__ = [
    "LatentInformation",
    "Measure",
    "Table",
    "conditional_entropy",
    "cross_entropy",
    "entropy",
    "gaussian_mutual_information",
    "joint_entropy",
    "kl_divergence",
    "latent_information",
    "mutual_information",
    "surprise",
]
