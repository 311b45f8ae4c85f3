"""A linear-Gaussian VAE with everything in closed form, and other models with latents per data point."""

import math

import pyro
import pyro.distributions as dist
import torch
from torch import nn

ROWS, PIXELS, LATENT, NOISE = 60, 4, 2, 0.7


def loadings(seed=0):
    """Orthogonal columns, so that the posterior's latents are independent and a diagonal guide is exact."""
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(PIXELS, LATENT, generator=generator))
    return q * torch.tensor([2.0, 1.0])


def skewed_loadings():
    """Columns that are not orthogonal, so that the posterior's latents are correlated."""
    return torch.tensor([[1.0, 0.8], [0.5, 0.9], [-0.3, 0.4], [0.7, 0.9]])


def pca(weights):
    """z ~ N(0, I), x ~ N(W z, NOISE^2 I)."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(LATENT), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weights.T, NOISE).to_event(1), obs=x)

    return model


def rows_of(weights, count=ROWS, seed=1):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(count, LATENT, generator=generator)
    return z @ weights.T + NOISE * torch.randn(count, PIXELS, generator=generator)


def exact(weights):
    """Matrix of the posterior mean (LATENT, PIXELS), and its covariance."""
    covariance = torch.linalg.inv(weights.T @ weights / NOISE**2 + torch.eye(LATENT))
    return covariance @ weights.T / NOISE**2, covariance


def evidence(weights, x):
    """log p(x_n) in nats, (rows,)."""
    covariance = weights @ weights.T + NOISE**2 * torch.eye(PIXELS)
    return torch.distributions.MultivariateNormal(torch.zeros(PIXELS), covariance).log_prob(x)


class ExactEncoder(nn.Module):
    """Location and scale of the posterior where its latents are independent."""

    def __init__(self, weights):
        super().__init__()
        mean, covariance = exact(weights)
        self.mean = nn.Parameter(mean)
        self.rho = nn.Parameter(covariance.diagonal().log() / 2)

    def forward(self, x):
        loc = x @ self.mean.T
        return loc, self.rho.exp().expand_as(loc)


def encoder(inputs=PIXELS, features=8, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(inputs, features), nn.Tanh())


def pair(x):
    """Two layers: z_2 ~ N(0, 1), z_1 ~ N(z_2, 0.5), x ~ N(z_1, NOISE) in every pixel."""
    with pyro.plate("data", len(x)):
        top = pyro.sample("z_2", dist.Normal(torch.zeros(LATENT), 1.0).to_event(1))
        z = pyro.sample("z_1", dist.Normal(top, 0.5).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True).expand(x.shape), NOISE).to_event(1), obs=x)


def supports(x):
    """Local latents of several supports and shapes."""
    with pyro.plate("data", len(x)):
        scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
        share = pyro.sample("share", dist.Dirichlet(torch.tensor([2.0, 3.0, 4.0])))
        shift = pyro.sample("shift", dist.Uniform(-1.0, 2.0))
        table = pyro.sample("table", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2))
        mean = (table @ share.unsqueeze(-1)).squeeze(-1).sum(-1) + shift
        pyro.sample("x", dist.Normal(mean.unsqueeze(-1), scale.unsqueeze(-1)).expand([len(x), PIXELS]).to_event(1), obs=x)


def with_global(x):
    """A mean that all rows share, and a latent per row."""
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(mean, 1.0))
        pyro.sample("x", dist.Normal(z.unsqueeze(-1), NOISE).expand([len(x), PIXELS]).to_event(1), obs=x)


def global_posterior(x):
    """Mean and standard deviation of the mean in :func:`with_global`."""
    per_row = 1 + NOISE**2 / PIXELS
    precision = len(x) / per_row + 1 / 4
    return float(x.mean(-1).sum() / per_row / precision), math.sqrt(1 / precision)
