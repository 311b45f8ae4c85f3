"""Probabilistic PCA with encoders that are exact, or wrong by a known amount: everything has a closed form."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from torch.distributions import MultivariateNormal

import guides


class LinearGaussian:
    """z ~ N(0, I_L), x ~ N(z W, noise^2 I); the posterior has independent coordinates if the loadings are orthogonal."""

    def __init__(self, features=4, latent=2, noise=0.5, orthogonal=True, seed=0):
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(features, latent, generator=generator)
        self.weight = torch.linalg.qr(weight)[0].mT.contiguous()
        if not orthogonal:
            self.weight[1:] = 0.8 * self.weight[:-1] + 0.6 * self.weight[1:]
        self.noise, self.latent = noise, latent
        self.precision = torch.eye(latent) + self.weight @ self.weight.mT / noise**2

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.latent), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(z @ self.weight, self.noise).to_event(1), obs=x)

    def rows(self, count, seed=1):
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(count, self.latent, generator=generator)
        return z @ self.weight + self.noise * torch.randn(count, self.weight.shape[1], generator=generator)

    def log_marginal(self, x):
        covariance = self.weight.mT @ self.weight + self.noise**2 * torch.eye(self.weight.shape[1])
        return MultivariateNormal(torch.zeros(len(covariance)).double(), covariance.double()).log_prob(x.double())

    def posterior_mean(self, x):
        return x @ self.weight.mT @ torch.linalg.inv(self.precision) / self.noise**2

    def encoder(self, shift=0.0, stretch=1.0):
        """A guide that is the exact posterior, moved by ``shift`` and scaled by ``stretch``; it has one idle parameter."""
        tril = torch.linalg.cholesky(torch.linalg.inv(self.precision))

        def guide(x):
            idle = pyro.param("idle", torch.tensor(0.0))
            with pyro.plate("data", len(x)):
                q = dist.MultivariateNormal(self.posterior_mean(x) + shift + 0 * idle, scale_tril=stretch * tril)
                pyro.sample("z", q)

        guide.amortized = frozenset({"z"})
        return guide

    def fitted(self, x, **wrong):
        """The posterior object of :meth:`encoder`; the fit changes nothing."""
        return guides.fit(self.model, self.encoder(**wrong), x, steps=1)


def gap_of(shift, stretch, precision):
    """KL(q || posterior) of an encoder of :class:`LinearGaussian` that is wrong by ``shift`` and ``stretch``."""
    size = len(precision)
    moved = torch.full((size,), float(shift))
    return 0.5 * (size * (stretch**2 - 1) + float(moved @ precision @ moved)) - size * math.log(stretch)
