"""A small instance of every distribution that Pyro has, by the name of its class.

Each is made from a positive number ``a`` near 1, which stands for a latent where the distribution is a likelihood.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions.transforms import AffineTransform

__all__ = ["LEFT_OUT", "TABLE", "VALUES"]

# Values of distributions that cannot be drawn from.
VALUES = {
    "CoalescentTimesWithRate": [-0.5],
    "GammaGaussianHMM": [[0.1, 0.2], [0.3, 0.4], [0.5, 0.6], [0.7, 0.8]],
    "GaussianMRF": [[0.1, 0.2], [0.3, 0.4]],
    "GroupedNormalNormal": [0.5, 1.0, 1.5],
    "ImproperUniform": 1.0,
    "LogNormalNegativeBinomial": 2.0,
    "VonMises3D": [0.0, 0.0, 1.0],
}

LEFT_OUT = {
    "ExpandedDistribution": "an intermediate class that plates make, used below by plates",
    "ExponentialFamily": "abstract",
    "MaskedDistribution": "made by .mask, which has tests of its own in test_scales.py",
    "TorchDistribution": "abstract",
    "Rejector": "takes functions, a method of drawing and no distribution of its own",
    "LKJCorrCholesky": "deprecated, raises when it is made",
}


def share(a: Tensor) -> Tensor:
    return a / (1 + a)


def vector(a: Tensor, n: int = 3) -> Tensor:
    return a.unsqueeze(-1) * torch.linspace(0.5, 1.5, n)


def eye(a: Tensor, n: int = 2) -> Tensor:
    return a[..., None, None] * torch.eye(n)


def mvn(a: Tensor, n: int = 2) -> Any:
    return dist.MultivariateNormal(a.unsqueeze(-1).expand(*a.shape, n), torch.eye(n))


def steps(a: Tensor) -> Any:
    return dist.Normal(vector(a, 4), 1.0).to_event(1)


def _gaussian_hmm(a: Tensor) -> Any:
    return dist.GaussianHMM(mvn(a), torch.eye(2), mvn(0 * a), torch.eye(2), mvn(a), duration=4)


def _gamma_gaussian_hmm(a: Tensor) -> Any:
    return dist.GammaGaussianHMM(dist.Gamma(a + 1, a), mvn(a), torch.eye(2), mvn(0 * a), torch.eye(2), mvn(a), duration=4)


def _linear_hmm(a: Tensor) -> Any:
    noise = dist.StudentT(3.0, a.unsqueeze(-1).expand(*a.shape, 2), 1.0).to_event(1)
    return dist.LinearHMM(noise, torch.eye(2), noise, torch.eye(2), noise, duration=4)


def _discrete_hmm(a: Tensor) -> Any:
    observed = dist.Normal(vector(a, 2).unsqueeze(-2), 1.0)
    return dist.DiscreteHMM(torch.zeros(2), torch.tensor([[1.0, 0.0], [0.0, 1.0]]), observed, duration=4)


def _independent_hmm(a: Tensor) -> Any:
    one = dist.MultivariateNormal(a[..., None, None].expand(*a.shape, 2, 1), torch.eye(1))
    still = dist.MultivariateNormal(torch.zeros(2, 4, 1), torch.eye(1))
    matrix = torch.eye(1).expand(2, 4, 1, 1)
    return dist.IndependentHMM(dist.GaussianHMM(one, matrix, still, matrix, still, duration=4))


def _gaussian_mrf(a: Tensor) -> Any:
    return dist.GaussianMRF(mvn(a), mvn(0 * a, 4), mvn(a, 4))


def _masked_mixture(a: Tensor) -> Any:
    return dist.MaskedMixture(torch.tensor(True), dist.Normal(a, 1.0), dist.Normal(-a, 2.0))


def _mixture(a: Tensor) -> Any:
    return dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Normal(vector(a, 2), 1.0))


def _flipped(a: Tensor) -> Any:
    return dist.TransformedDistribution(dist.HalfNormal(a), [AffineTransform(0.0, -1.0)])


def _skewed(a: Tensor) -> Any:
    return dist.SineSkewed(dist.SineBivariateVonMises(a * 0, a * 0, a, a, 0.1 * a), torch.tensor([0.1, 0.2]))


TABLE: dict[str, Callable[[Tensor], Any]] = {
    "AVFMultivariateNormal": lambda a: dist.AVFMultivariateNormal(torch.ones(2), torch.eye(2), 0.1 * torch.ones(2, 1, 2)),
    "AffineBeta": lambda a: dist.AffineBeta(2 * a, 3.0, -1.0, 2.0),
    "AsymmetricLaplace": lambda a: dist.AsymmetricLaplace(a, 1.0, 2.0),
    "Bernoulli": lambda a: dist.Bernoulli(share(a)),
    "Beta": lambda a: dist.Beta(a + 1, 2.0),
    "BetaBinomial": lambda a: dist.BetaBinomial(a, 2.0, total_count=5),
    "Binomial": lambda a: dist.Binomial(5, share(a)),
    "Categorical": lambda a: dist.Categorical(vector(a, 3) / vector(a, 3).sum(-1, True)),
    "Cauchy": lambda a: dist.Cauchy(a, 1.0),
    "Chi2": lambda a: dist.Chi2(a + 2),
    "CoalescentTimes": lambda a: dist.CoalescentTimes(torch.tensor([0.0, 0.1, 0.2]), a),
    "CoalescentTimesWithRate": lambda a: dist.CoalescentTimesWithRate(
        torch.tensor([0.0, 0.1]), a.unsqueeze(-1) + torch.ones(6)
    ),
    "ContinuousBernoulli": lambda a: dist.ContinuousBernoulli(share(a) * 0.8),
    "Delta": lambda a: dist.Delta(torch.ones(())),
    "Dirichlet": lambda a: dist.Dirichlet(vector(a) + 1),
    "DirichletMultinomial": lambda a: dist.DirichletMultinomial(vector(a), 4),
    "DiscreteHMM": _discrete_hmm,
    "Empirical": lambda a: dist.Empirical(torch.tensor([0.0, 1.0]), torch.zeros(2)),
    "Exponential": lambda a: dist.Exponential(a),
    "ExtendedBetaBinomial": lambda a: dist.ExtendedBetaBinomial(a, 2.0, torch.tensor(5.0)),
    "ExtendedBinomial": lambda a: dist.ExtendedBinomial(torch.tensor(5.0), share(a)),
    "FisherSnedecor": lambda a: dist.FisherSnedecor(a + 2, 5.0),
    "FoldedDistribution": lambda a: dist.FoldedDistribution(dist.Normal(a, 1.0)),
    "Gamma": lambda a: dist.Gamma(a + 1, 2.0),
    "GammaGaussianHMM": _gamma_gaussian_hmm,
    "GammaPoisson": lambda a: dist.GammaPoisson(a + 1, 1.0),
    "GaussianHMM": _gaussian_hmm,
    "GaussianMRF": _gaussian_mrf,
    "GaussianScaleMixture": lambda a: dist.GaussianScaleMixture(torch.ones(2), torch.zeros(2), torch.ones(2)),
    "GeneralizedPareto": lambda a: dist.GeneralizedPareto(0.0, a, 0.1),
    "Geometric": lambda a: dist.Geometric(share(a)),
    "GroupedNormalNormal": lambda a: dist.GroupedNormalNormal(
        torch.zeros(2), torch.ones(2), a.reshape(()), torch.tensor([0, 1, 1])
    ),
    "Gumbel": lambda a: dist.Gumbel(a, 1.0),
    "HalfCauchy": lambda a: dist.HalfCauchy(a),
    "HalfNormal": lambda a: dist.HalfNormal(a),
    "ImproperUniform": lambda a: dist.ImproperUniform(constraints.positive, (), ()),
    "Independent": lambda a: dist.Independent(dist.Gamma(vector(a), 1.0), 1),
    "IndependentHMM": _independent_hmm,
    "InverseGamma": lambda a: dist.InverseGamma(a + 3, 2.0),
    "Kumaraswamy": lambda a: dist.Kumaraswamy(a + 1, torch.tensor(2.0)),
    "LKJ": lambda a: dist.LKJ(3, a),
    "LKJCholesky": lambda a: dist.LKJCholesky(3, a),
    "Laplace": lambda a: dist.Laplace(a, 1.0),
    "LinearHMM": _linear_hmm,
    "LogNormal": lambda a: dist.LogNormal(a, 1.0),
    "LogNormalNegativeBinomial": lambda a: dist.LogNormalNegativeBinomial(
        torch.tensor(3.0), a, torch.tensor(0.5), num_quad_points=3
    ),
    "Logistic": lambda a: dist.Logistic(a, 1.0),
    "LogisticNormal": lambda a: dist.LogisticNormal(vector(a), torch.ones(3)),
    "LowRankMultivariateNormal": lambda a: dist.LowRankMultivariateNormal(vector(a), torch.ones(3, 1), torch.ones(3)),
    "MaskedMixture": _masked_mixture,
    "MixtureOfDiagNormals": lambda a: dist.MixtureOfDiagNormals(torch.ones(2, 2), torch.ones(2, 2), torch.zeros(2)),
    "MixtureOfDiagNormalsSharedCovariance": lambda a: dist.MixtureOfDiagNormalsSharedCovariance(
        torch.ones(2, 2), torch.ones(2), torch.zeros(2)
    ),
    "MixtureSameFamily": _mixture,
    "Multinomial": lambda a: dist.Multinomial(4, vector(a)),
    "MultivariateNormal": mvn,
    "MultivariateStudentT": lambda a: dist.MultivariateStudentT(a + 3, torch.zeros(2), torch.eye(2)),
    "NanMaskedMultivariateNormal": lambda a: dist.NanMaskedMultivariateNormal(vector(a, 2), torch.eye(2)),
    "NanMaskedNormal": lambda a: dist.NanMaskedNormal(a, 1.0),
    "NegativeBinomial": lambda a: dist.NegativeBinomial(3.0, share(a)),
    "Normal": lambda a: dist.Normal(a, 1.0),
    "OMTMultivariateNormal": lambda a: dist.OMTMultivariateNormal(torch.zeros(2), torch.eye(2)),
    "OneHotCategorical": lambda a: dist.OneHotCategorical(vector(a)),
    "OneHotCategoricalStraightThrough": lambda a: dist.OneHotCategoricalStraightThrough(vector(a)),
    "OneOneMatching": lambda a: dist.OneOneMatching(torch.zeros(3, 3)),
    "OneTwoMatching": lambda a: dist.OneTwoMatching(torch.zeros(4, 2)),
    "OrderedLogistic": lambda a: dist.OrderedLogistic(a, torch.tensor([-1.0, 1.0])),
    "Pareto": lambda a: dist.Pareto(1.0, a + 1),
    "Poisson": lambda a: dist.Poisson(a),
    "ProjectedNormal": lambda a: dist.ProjectedNormal(vector(a)),
    "RelaxedBernoulli": lambda a: dist.RelaxedBernoulli(torch.tensor(1.0), share(a)),
    "RelaxedBernoulliStraightThrough": lambda a: dist.RelaxedBernoulliStraightThrough(torch.tensor(1.0), share(a)),
    "RelaxedOneHotCategorical": lambda a: dist.RelaxedOneHotCategorical(torch.tensor(1.0), vector(a)),
    "RelaxedOneHotCategoricalStraightThrough": lambda a: dist.RelaxedOneHotCategoricalStraightThrough(
        torch.tensor(1.0), vector(a)
    ),
    "SineBivariateVonMises": lambda a: dist.SineBivariateVonMises(0 * a, 0 * a, a, a, 0.1 * a),
    "SineSkewed": _skewed,
    "SkewLogistic": lambda a: dist.SkewLogistic(a, 1.0),
    "SoftAsymmetricLaplace": lambda a: dist.SoftAsymmetricLaplace(a, 1.0),
    "SoftLaplace": lambda a: dist.SoftLaplace(a, 1.0),
    "SpanningTree": lambda a: dist.SpanningTree(torch.zeros(6)),
    "Stable": lambda a: dist.Stable(torch.tensor(1.5), torch.tensor(0.0), 1.0, a),
    "StableWithLogProb": lambda a: dist.StableWithLogProb(torch.tensor(1.5), torch.tensor(0.0), 1.0, a),
    "StudentT": lambda a: dist.StudentT(3.0, a, 1.0),
    "TransformedDistribution": _flipped,
    "TruncatedPolyaGamma": lambda a: dist.TruncatedPolyaGamma(torch.tensor(1.0)),
    "Uniform": lambda a: dist.Uniform(-3.0, 3.0 + 0 * a),
    "Unit": lambda a: dist.Unit(-a),
    "VonMises": lambda a: dist.VonMises(0.1 * a, a),
    "VonMises3D": lambda a: dist.VonMises3D(torch.tensor([1.0, 0.0, 0.0])),
    "Weibull": lambda a: dist.Weibull(1.0, a + 1),
    "Wishart": lambda a: dist.Wishart(torch.tensor(4.0), torch.eye(2)),
    "ZeroInflatedDistribution": lambda a: dist.ZeroInflatedDistribution(dist.Poisson(a), gate=torch.tensor(0.3)),
    "ZeroInflatedNegativeBinomial": lambda a: dist.ZeroInflatedNegativeBinomial(
        torch.tensor(3.0), probs=share(a), gate=torch.tensor(0.3)
    ),
    "ZeroInflatedPoisson": lambda a: dist.ZeroInflatedPoisson(a, gate=torch.tensor(0.3)),
}
