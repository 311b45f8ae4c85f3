"""Many independent estimates of an objective at once, how to compare them, and a local model with closed forms."""

import math

import pyro
import pyro.distributions as dist
import torch
from torch.distributions import MultivariateNormal, constraints

from guides.program.data import Data
from guides.program.isolation import quiet
from guides.program.parameters import isolated_store
from guides.program.program import Program

WEIGHT = torch.tensor([[1.0, 0.5, -0.4], [0.2, -0.8, 0.6]])
NOISE = 0.5


def replicate_estimates(objective, model, guide, data, count, factor=1.0, step=1.0, seed=0):
    """Values (count,) and gradients by parameter (count, ...) of independent estimates, by the engine's vectorised step."""
    program = Program.build(model, guide, objective, Data.of(data), batch_size=None, seed=0)
    noise = program.noise.draw((count, program.particles), torch.Generator().manual_seed(seed))

    def one(flat, normals, uniforms):
        estimate = program.estimate(flat, normals, uniforms, data, {}, factor, torch.tensor(step))
        return estimate.surrogate, estimate.value

    with quiet(), isolated_store():
        gradient = torch.vmap(torch.func.grad(one, has_aux=True), in_dims=(None, 0, 0), randomness="different")
        gradients, found = gradient(program.parameters.initial, noise.normals, noise.uniforms)
    return found.double(), program.parameters.split(gradients.double())


def same_mean(a, b, z=4.5):
    """Whether two sets of draws (count, ...) have the same mean, as far as their Monte Carlo error tells."""
    error = (a.var(0) / len(a) + b.var(0) / len(b)).sqrt()
    return bool(((a.mean(0) - b.mean(0)).abs() < z * error + 1e-4).all())


def has_mean(draws, want, z=4.5):
    """Whether draws (count, ...) have the mean ``want``."""
    return bool(((draws.mean(0) - want).abs() < z * draws.std(0) / math.sqrt(len(draws)) + 1e-4).all())


def same_estimates(a, b):
    assert a[1].keys() == b[1].keys()
    return same_mean(a[0], b[0]) and all(same_mean(a[1][n], b[1][n]) for n in a[1])


def rows(count=6, seed=2):
    """Data for :func:`factors`."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(count, 2, generator=generator)
    return z @ WEIGHT + NOISE * torch.randn(count, 3, generator=generator)


def factors(x):
    """Probabilistic PCA with learned loadings: one latent vector per row."""
    weight = pyro.param("weight", WEIGHT.clone())
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ weight, NOISE).to_event(1), obs=x)


def log_evidence(x, weight=WEIGHT):
    """log p(x_n) of :func:`factors` in nats, (rows,)."""
    covariance = weight.double().mT @ weight.double() + NOISE**2 * torch.eye(3).double()
    return MultivariateNormal(torch.zeros(3).double(), covariance).log_prob(x.double())


def encoder(shift=0.0, widen=1.0):
    """The exact posterior of :func:`factors` as a linear encoder with a full covariance, moved and widened."""
    covariance = torch.linalg.inv(torch.eye(2) + WEIGHT @ WEIGHT.mT / NOISE**2)
    gain = WEIGHT.mT @ covariance / NOISE**2
    tril = widen * torch.linalg.cholesky(covariance)

    def guide(x):
        mean = x @ pyro.param("gain", gain.clone()) + pyro.param("offset", torch.full((2,), shift))
        scale_tril = pyro.param("scale_tril", tril.clone(), constraint=constraints.lower_cholesky)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(mean, scale_tril=scale_tril))

    guide.amortized = frozenset({"z"})
    return guide
