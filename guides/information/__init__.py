"""Measures of information: of discrete tables, of distributions, of observations, and of the latents of a VAE."""

from guides.information.discrete import Table
from guides.information.measure import Measure

__all__ = ["Measure", "Table"]
