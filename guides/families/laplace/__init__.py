"""Laplace: the mode, the curvature there for any likelihood, and the evidence that follows."""

from guides.families.laplace.laplace import Laplace
from guides.families.laplace.normal import LaplaceNormal

__all__ = ["Laplace", "LaplaceNormal"]
