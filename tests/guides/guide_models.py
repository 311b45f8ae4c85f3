"""Small Pyro models that several tests of guides share, and closed forms for those that have one."""

import inspect
import math

import pyro
import pyro.distributions as dist
import torch
from torch.distributions import constraints

import guides

GENERAL = tuple(n for n, f in guides.families.items() if "encoder" not in inspect.signature(f).parameters)
"""The families that need nothing but a model; guides with an encoder need latents per data point too."""


def regression(x, y=None):
    """The model of reference.Regression; the weights are a matrix, so that guides can intercept the product."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[-1], 1]).to_event(2))
    s = pyro.sample("s", dist.HalfNormal(1.0))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal((x @ w).squeeze(-1), s), obs=y)


def linear(x, y=None):
    """Conjugate: w ~ N(0, 4 I), y ~ N(x w, 1/2)."""
    w = pyro.sample("w", dist.Normal(torch.zeros(x.shape[-1]), 2.0).to_event(1))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)


def linear_posterior(x, y, prior=2.0, noise=0.5):
    """Mean, covariance and log evidence of :func:`linear`, in float64."""
    x, y = x.double(), y.double()
    covariance = torch.linalg.inv(x.T @ x / noise**2 + torch.eye(x.shape[1]) / prior**2)
    marginal = prior**2 * x @ x.T + noise**2 * torch.eye(len(x))
    quadratic = y @ torch.linalg.solve(marginal, y)
    evidence = -0.5 * (quadratic + torch.logdet(marginal) + len(y) * math.log(2 * math.pi))
    return covariance @ x.T @ y / noise**2, covariance, float(evidence)


def logistic(x, y=None):
    w = pyro.sample("w", dist.Normal(torch.zeros(x.shape[-1]), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Bernoulli(logits=x @ w), obs=y)


def network(x, y=None):
    """One hidden layer of five units, noise fixed; weights (in, out) and multiplied as drawn."""
    w1 = pyro.sample("w1", dist.Normal(0.0, 1.0).expand([x.shape[-1], 5]).to_event(2))
    b1 = pyro.sample("b1", dist.Normal(0.0, 1.0).expand([5]).to_event(1))
    w2 = pyro.sample("w2", dist.Normal(0.0, 1.0).expand([5, 1]).to_event(2))
    b2 = pyro.sample("b2", dist.Normal(0.0, 1.0).expand([1]).to_event(1))
    f = (torch.tanh(x @ w1 + b1) @ w2 + b2).squeeze(-1)
    with pyro.plate("data", len(x)):
        pyro.deterministic("f", f)
        return pyro.sample("y", dist.Normal(f, 0.3), obs=y)


def schools(sigma, y=None):
    """Hierarchical, with a positive site and one latent per data point."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(sigma)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        return pyro.sample("y", dist.Normal(theta, sigma), obs=y)


SCHOOLS = (
    torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]),
    torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]),
)


ORDERED = dist.transforms.OrderedTransform()


def supports(x, y=None):
    """A latent of every common support, and a weight matrix for guides that need one."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[-1], 1]).to_event(2))
    s = pyro.sample("positive", dist.Gamma(3.0, 2.0))
    shift = pyro.sample("interval", dist.Uniform(-1.0, 2.0))
    parts = pyro.sample("simplex", dist.Dirichlet(torch.tensor([2.0, 3.0, 4.0])))
    tril = pyro.sample("cholesky", dist.LKJCholesky(3, 2.0))
    with pyro.plate("groups", 2):
        cuts = pyro.sample("ordered", dist.TransformedDistribution(dist.Normal(torch.zeros(2), 1.0).to_event(1), ORDERED))
    f = (x @ w).squeeze(-1) + shift + (tril @ parts).sum() + cuts.sum()
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(f, s), obs=y)


def hyper(x, y=None):
    """:func:`linear` with prior scale and noise to be chosen."""
    prior = pyro.param("prior_scale", torch.tensor(1.0), constraint=constraints.positive)
    noise = pyro.param("noise", torch.tensor(1.0), constraint=constraints.positive)
    w = pyro.sample("w", dist.Normal(torch.zeros(x.shape[-1]), prior).to_event(1))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(x @ w, noise), obs=y)


def line(rows=30, columns=3, noise=0.5, seed=1):
    """Correlated inputs, so that posteriors are correlated, and a linear response."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=generator) + torch.randn(rows, 1, generator=generator)
    weights = torch.linspace(1.0, -1.0, columns)
    return x, x @ weights + noise * torch.randn(rows, generator=generator)
