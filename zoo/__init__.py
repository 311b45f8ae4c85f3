"""Models and data sets: plain Pyro models that run under stock SVI, NUTS and Predictive.

Models of a target are called ``model(x, y=None)``: with ``y`` they observe, without it they predict. Models of the data
themselves are called ``model(x)``. ``zoo.models`` is the registry of models, ``zoo.datasets`` the data sets and theirs.
"""

from _posterior_zoo_registry import __version__
from zoo import datasets, networks, pixels, posteriordb
from zoo._registries import models
from zoo.cvae import ConditionalRegressor, ConditionalVAE
from zoo.deep_latent_gaussian_mixture import DeepLatentGaussianMixture
from zoo.dirichlet_process_mixture import DirichletProcessMixture
from zoo.eight_schools import EightSchools
from zoo.gaussian_mixture import GaussianMixture
from zoo.likelihood import Likelihood
from zoo.linear_regression import BayesianLinearRegression, EvidenceMaximum
from zoo.logistic_regression import BayesianLogisticRegression
from zoo.mlp import BayesianMLP
from zoo.module import BayesianModule, bayesianize
from zoo.probabilistic_pca import ProbabilisticPCA
from zoo.stick_breaking_vae import StickBreakingVAE
from zoo.vae import VAE

__all__ = [
    "VAE",
    "BayesianLinearRegression",
    "BayesianLogisticRegression",
    "BayesianMLP",
    "BayesianModule",
    "ConditionalRegressor",
    "ConditionalVAE",
    "DeepLatentGaussianMixture",
    "DirichletProcessMixture",
    "EightSchools",
    "EvidenceMaximum",
    "GaussianMixture",
    "Likelihood",
    "ProbabilisticPCA",
    "StickBreakingVAE",
    "__version__",
    "bayesianize",
    "datasets",
    "models",
    "networks",
    "pixels",
    "posteriordb",
]
