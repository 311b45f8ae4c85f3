"""Laplace: the mode, the curvature there for any likelihood, and the evidence that follows."""

from guides.families.laplace.laplace import Laplace, LaplaceNormal

__all__ = ["Laplace", "LaplaceNormal"]
