"""The log density of a model, against the potential of Pyro's own HMC."""

import warnings
from concurrent.futures import ThreadPoolExecutor

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.infer.mcmc.util import initialize_model
from pyro.infer.reparam import LocScaleReparam

import guides
from guides import errors
from guides.program.bijections import LowerCholeskyVector
from guides.program.supports import PlainSupports

X = torch.linspace(-1.0, 1.0, 6)
Y = torch.tensor([0.3, -0.7, 1.1, 0.2, 2.0, -0.4])
COUNTS = torch.tensor([1.0, 0.0, 2.0, 5.0, 1.0, 3.0])
SEEN = torch.tensor([True, False, True, True, False, True])


def positive(y):
    scale = pyro.sample("scale", dist.Gamma(2.0, 1.5))
    heavy = pyro.sample("heavy", dist.HalfCauchy(5.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.StudentT(3.0 + heavy, 0.1, scale), obs=y)


def between(y):
    low = pyro.sample("low", dist.Uniform(-2.0, 3.0))
    share = pyro.sample("share", dist.Beta(2.0, 3.0))
    above = pyro.sample("above", dist.Pareto(1.5, 3.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(low + share, above), obs=y)


def simplex(counts):
    p = pyro.sample("p", dist.Dirichlet(torch.tensor([1.0, 2.0, 0.7, 3.0, 1.0, 1.0])))
    pyro.sample("counts", dist.Multinomial(int(counts.sum()), p), obs=counts)


def ordered(y):
    cuts = pyro.sample(
        "cuts",
        dist.TransformedDistribution(dist.Normal(torch.zeros(3), 2.0).to_event(1), dist.transforms.OrderedTransform()),
    )
    with pyro.plate("data", len(y)):
        pyro.sample("level", dist.OrderedLogistic(y, cuts), obs=(y > 0).long() + (y > 1).long())


def correlated(x, y):
    factor = pyro.sample("factor", dist.LKJCholesky(3, 1.5))
    scale = pyro.sample("scale", dist.LogNormal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("data", 2):
        pyro.sample(
            "y", dist.MultivariateNormal(torch.zeros(3), scale_tril=scale.unsqueeze(-1) * factor), obs=y.reshape(2, 3)
        )


def schools(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with poutine.reparam(config={"theta": LocScaleReparam(0.0)}), pyro.plate("school", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, 10.0), obs=10 * y)
    pyro.deterministic("spread", tau**2)


def plates(y):
    with pyro.plate("rows", 2, dim=-2):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("columns", 3, dim=-1):
            b = pyro.sample("b", dist.Normal(a, 2.0))
            pyro.sample("y", dist.Laplace(b, 1.0), obs=y.reshape(2, 3))


def masked(y):
    level = pyro.sample("level", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(y)), poutine.mask(mask=SEEN), poutine.scale(scale=2.5):
        pyro.sample("y", dist.Normal(level, 1.0), obs=y)


def scaled_prior(y):
    with poutine.scale(scale=0.3):
        level = pyro.sample("level", dist.LogNormal(0.0, 1.0))
    pyro.factor("penalty", -0.1 * level**2)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(level, 1.0), obs=y)


def flat(y):
    slope = pyro.sample("slope", dist.ImproperUniform(dist.constraints.positive, (), (2,)))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(slope.sum() * X.to(y.dtype), 1.0), obs=y)


def conditioned(y):
    return pyro.condition(schools, data={"mu": torch.tensor(0.7)})(y)


def subsampled(y):
    level = pyro.sample("level", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y), subsample_size=len(y)) as rows:
        pyro.sample("y", dist.Normal(level, 1.0), obs=y[rows])


@config_enumerate
def clusters(y):
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("component", 2):
        means = pyro.sample("means", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(y)):
        k = pyro.sample("k", dist.Categorical(weights))
        pyro.sample("y", dist.Normal(means[k], 1.0), obs=y)


@config_enumerate
def chain(y):
    with pyro.plate("state", 2):
        moves = pyro.sample("moves", dist.Dirichlet(torch.tensor([2.0, 1.0])))
        means = pyro.sample("means", dist.Normal(0.0, 3.0))
    state = torch.tensor(0)
    for t in pyro.markov(range(len(y))):
        state = pyro.sample(f"state_{t}", dist.Categorical(moves[state]))
        pyro.sample(f"y_{t}", dist.Normal(means[state], 1.0), obs=y[t])


def regression(x, y):
    weights = pyro.sample("weights", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    noise = pyro.sample("noise", dist.Exponential(1.0))
    design = torch.stack([torch.ones_like(x), x, x**2], -1)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(design @ weights, noise), obs=y)


CASES = {
    "positive": (positive, (Y,)),
    "between": (between, (Y,)),
    "simplex": (simplex, (COUNTS,)),
    "ordered": (ordered, (Y,)),
    "correlated": (correlated, (X, Y)),
    "schools": (schools, (Y,)),
    "plates": (plates, (Y,)),
    "masked": (masked, (Y,)),
    "scaled_prior": (scaled_prior, (Y,)),
    "flat": (flat, (Y,)),
    "conditioned": (conditioned, (Y,)),
    "subsampled": (subsampled, (Y,)),
    "clusters": (clusters, (Y,)),
    "chain": (chain, (Y,)),
    "regression": (regression, (X, Y)),
}


def in_double(function, *args):
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return function(*args)
    finally:
        torch.set_default_dtype(before)


def potential(model, data, density, z):
    """Return minus Pyro's potential and its gradient at a flat vector."""

    known = PlainSupports()(model) if model is flat else model  # Pyro itself has no start for a flat prior

    def run():
        pyro.set_rng_seed(0)
        with poutine.block():
            _, function, _, _ = initialize_model(known, tuple(d.double() for d in data))
        vector = z.clone().requires_grad_()
        parts = vector.split([shape.numel() for shape in density._shapes.values()])
        value = -function({n: p.reshape(s) for (n, s), p in zip(density._shapes.items(), parts)})
        return value.detach(), torch.autograd.grad(value, vector)[0]

    return in_double(run)


@pytest.mark.parametrize("name", CASES)
def test_is_pyros_potential(name):
    model, data = CASES[name]
    density = guides.log_density(model, *data, compile="trace")
    z = 0.5 * torch.randn(density.size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wanted, slope = potential(model, data, density, z)
    value, gradient = density.value_and_gradient(z)
    assert density.runs == "trace"
    assert torch.allclose(value, wanted, rtol=1e-10, atol=0)
    assert torch.allclose(gradient, slope, rtol=1e-10, atol=1e-10 * float(slope.abs().max()))
    there = density.to_sites(z, deterministic=False)
    assert torch.allclose(density.from_sites(there), z, rtol=1e-8, atol=1e-8)


def odd(y):
    base = dist.Normal(torch.zeros(3), 1.0).to_event(1)
    root = pyro.sample("root", dist.TransformedDistribution(base, LowerCholeskyVector()))
    below = pyro.sample(
        "below", dist.TransformedDistribution(dist.Exponential(1.0), dist.transforms.AffineTransform(2.0, -1.0))
    )
    spread = pyro.sample("spread", dist.Wishart(torch.tensor(4.0), torch.eye(2)))
    with pyro.plate("data", 3):
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(2), below**2 * spread + root @ root.mT), obs=y.reshape(3, 2))


def test_supports_that_pyro_lacks_have_the_jacobian_of_their_free_elements():
    """Pyro has no map to such matrices, and a wrong one to a mirrored half-line; autograd knows every determinant."""
    density = guides.log_density(odd, Y, compile="trace")
    z = 0.5 * torch.randn(density.size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    row, column = torch.tril_indices(2, 2)

    def triangles(z):
        found = density._constrained(z)[0].values()
        return torch.cat([m[row, column] if m.dim() else m.reshape(1) for m in found])

    values = density._constrained(z)[0]
    determinant = torch.linalg.slogdet(torch.func.jacrev(triangles)(z))[1]

    def joint():
        return poutine.trace(pyro.condition(odd, data=values)).get_trace(Y.double()).log_prob_sum()

    assert torch.allclose(density(z), in_double(joint) + determinant, rtol=1e-10, atol=0)


def test_native_eager_and_batches_agree():
    plain = guides.log_density(schools, Y, compile="eager")
    native = guides.log_density(schools, Y, compile="native")
    z = torch.randn(2, 3, native.size, dtype=torch.float64)
    assert (plain.runs, native.runs) == ("eager", "native")
    assert native(z).shape == (2, 3) and native.gradient(z).shape == z.shape
    assert torch.allclose(native(z), plain(z), rtol=1e-12)
    assert torch.allclose(native.gradient(z), plain.gradient(z), rtol=1e-10, atol=1e-12)
    step = 1e-5 * torch.eye(native.size, dtype=torch.float64)
    slopes = (native.gradient(z[0, 0] + step) - native.gradient(z[0, 0] - step)) / 2e-5
    assert torch.allclose(native.hessian(z[0, 0]), slopes, rtol=1e-6, atol=1e-7)
    v = z[0].clone().requires_grad_()
    native(v).sum().backward()
    assert torch.equal(v.grad, native.gradient(z[0]))


def test_sites_have_names_dimensions_and_what_is_computed_from_them():
    density = guides.log_density(schools, Y, compile="eager")
    assert density.names[:4] == ("mu", "tau", "theta_decentered[0]", "theta_decentered[1]")
    assert density.dims == {"mu": (), "tau": (), "theta_decentered": ("school",)}
    found = density.to_sites(torch.zeros(5, density.size))
    assert {name: tuple(v.shape) for name, v in found.items()} == {
        "mu": (5,),
        "tau": (5,),
        "theta_decentered": (5, 6),
        "theta": (5, 6),
        "spread": (5,),
    }
    assert torch.equal(found["spread"], found["tau"] ** 2) and found["tau"].dtype is torch.float64


def test_discrete_latents_are_drawn_with_the_others():
    density = guides.log_density(clusters, Y, compile="eager")
    z = density.from_sites({"weights": torch.tensor([0.5, 0.5]), "means": torch.tensor([-9.0, 9.0])})
    draws = density.to_sites(z.expand(50, -1))["k"]
    assert draws.shape == (50, 6) and draws[:, 4].float().mean() > 0.9


def test_single_precision_in_a_model_is_double_here():
    net = torch.nn.Linear(6, 1)

    def model(y):
        w = pyro.sample("w", dist.Normal(torch.zeros(6, dtype=torch.float32), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(net(w.float()).squeeze(-1) + X @ w, 1.0), obs=y.sum())

    density = guides.log_density(model, Y, compile="trace")
    z = torch.randn(6, dtype=torch.float64)
    mean = z @ net.weight[0].detach().double() + net.bias[0].detach().double() + z @ X.double()
    wanted = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum()
    wanted = wanted + torch.distributions.Normal(mean, 1.0).log_prob(Y.double().sum())
    assert abs(float(density(z) - wanted)) < 1e-12
    assert torch.get_default_dtype() is torch.float32


def test_workspaces_of_threads_do_not_share_memory():
    density = guides.log_density(schools, Y, compile="native")
    points = torch.randn(4, density.size, dtype=torch.float64)
    wanted = torch.cat([density(points)[:, None], density.gradient(points)], -1).numpy()
    spaces = [density.workspace() for _ in points]

    def often(k):
        return all((spaces[k](points[k].numpy()) == wanted[k]).all() for _ in range(2000))

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(often, range(4)))


def test_refuses_what_has_no_density():
    def noisy(y):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(a + torch.randn(()), 1.0), obs=y.sum())

    def discrete(y):
        k = pyro.sample("k", dist.Bernoulli(0.5))
        pyro.sample("y", dist.Normal(k, 1.0), obs=y.sum())

    with pytest.raises(errors.UnsupportedModelError, match="random numbers beside"):
        guides.log_density(noisy, Y)
    with pytest.raises(errors.DiscreteLatentError, match="'k'"):
        guides.log_density(discrete, Y)
    with pytest.raises(errors.OptionError, match="compile='fast'"):
        guides.log_density(schools, Y, compile="fast")
    density = guides.log_density(schools, Y, compile="eager")
    with pytest.raises(errors.DataError, match="last dimension must be the 8"):
        density(torch.zeros(3))
    with pytest.raises(errors.DataError, match="'tau' is not in its support"):
        density.from_sites(density.to_sites(density.start) | {"tau": torch.tensor(-1.0)})
    with pytest.raises(errors.DataError, match="no value for latent site 'tau'"):
        density.from_sites({"mu": torch.tensor(-1.0)})
