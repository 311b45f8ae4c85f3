"""Objectives, one file each; importing this package registers them."""

from guides.objectives.base import Estimate, Objective
from guides.objectives.elbo import ELBO

__all__ = ["ELBO", "Estimate", "Objective"]
