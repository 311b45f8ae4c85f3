"""Models and data sets: plain Pyro models that run under stock SVI, NUTS and Predictive.

Every model is called ``model(x, y=None)``: with ``y`` it observes, without it it predicts. ``zoo.models`` is the registry of
them, ``zoo.datasets`` the data sets and their registry.
"""

from zoo import datasets
from zoo._registries import models
from zoo.eight_schools import EightSchools
from zoo.likelihood import Likelihood
from zoo.linear_regression import BayesianLinearRegression, EvidenceMaximum
from zoo.logistic_regression import BayesianLogisticRegression
from zoo.mlp import BayesianMLP
from zoo.module import BayesianModule, bayesianize

__all__ = [
    "BayesianLinearRegression",
    "BayesianLogisticRegression",
    "BayesianMLP",
    "BayesianModule",
    "EightSchools",
    "EvidenceMaximum",
    "Likelihood",
    "bayesianize",
    "datasets",
    "models",
]
