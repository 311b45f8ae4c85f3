"""Pathfinder: exact on normals, weights of modes by their mass, alive where no density is finite; as a guide."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from guide_models import line, linear, linear_posterior
from torch.distributions import MultivariateNormal

import guides
from guides.distributions.bent import BentNormal
from guides.errors import NonFiniteLossError, OptionError, UnsupportedModelError
from guides.solvers.pathfinder import mixture
from guides.solvers.pathfinder.normals import PathNormals
from guides.solvers.pathfinder.paths import Found, find_paths


def normal(mean, precision, log_mass=0.0):
    """A normal of a mass that is not one, and what Pathfinder asks of it."""

    def evaluate(z):
        d = z - mean
        value = (
            -0.5 * ((d @ precision) * d).sum(-1) + 0.5 * torch.logdet(precision) - 0.5 * len(mean) * math.log(2 * math.pi)
        )
        return value + log_mass, -(d @ precision)

    return evaluate


def rotated(size, smallest, largest, seed=0):
    source = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(size, size, generator=source, dtype=torch.float64)).Q
    curvature = torch.logspace(math.log10(smallest), math.log10(largest), size, dtype=torch.float64)
    mean = axes @ (3 * torch.randn(size, generator=source, dtype=torch.float64) / curvature.sqrt())
    return mean, axes @ torch.diag(curvature) @ axes.T


@pytest.mark.parametrize(("size", "largest"), [(1, 1.0), (2, 1e8), (6, 1e4)])
def test_on_a_normal_it_is_exact(size, largest):
    mean, precision = rotated(size, 1e-4 if size > 1 else 1.0, largest)
    found = find_paths(normal(mean, precision, log_mass=1.5), torch.zeros(size, dtype=torch.float64), paths=4)
    best = found.normals[torch.tensor([found.best])]
    covariance = torch.linalg.inv(precision)
    gap = 0.5 * (torch.trace(precision @ best.tril()[0] @ best.tril()[0].T) - size - torch.logdet(precision))
    off = best.loc[0] - mean
    assert float(gap - best.tril()[0].diagonal().log().sum() + 0.5 * off @ precision @ off) < 0.02  # nats
    assert abs(float(found.elbo[found.best]) - 1.5) < 0.05
    torch.testing.assert_close(best.deviations()[0], covariance.diagonal().sqrt(), rtol=0.1, atol=0.0)
    assert found.gradients < 400


def test_the_normals_are_what_they_say():
    mean, precision = rotated(5, 0.1, 100.0)
    found = find_paths(normal(mean, precision), torch.zeros(5, dtype=torch.float64), paths=3, history=1, iterations=4)
    normals = found.normals
    assert normals.core.shape[-1] == 2  # a diagonal in three of five directions
    noise = torch.randn(7, len(normals.loc), 5, dtype=torch.float64)
    z, log_q = normals.draws(noise)
    tril = normals.tril()
    judge = MultivariateNormal(normals.loc, scale_tril=tril)
    torch.testing.assert_close(log_q, judge.log_prob(z))
    torch.testing.assert_close(normals.log_prob(z[:, 0]), judge.log_prob(z[:, :1]))
    torch.testing.assert_close(normals.deviations(), judge.variance.sqrt())
    torch.testing.assert_close(normals.covariance_times(z[0]), (tril @ tril.mT @ z[0][..., None]).squeeze(-1))


def test_a_bent_normal_is_a_normal():
    source = torch.Generator().manual_seed(0)
    loc, basis, core = (torch.randn(2, *s, generator=source, dtype=torch.float64) for s in ((6,), (6, 2), (2, 2)))
    scale = loc.exp()
    bent = BentNormal(loc, scale, basis, core)
    root = scale[..., None] * (torch.eye(6, dtype=torch.float64) + basis @ core @ basis.mT)
    judge = MultivariateNormal(loc, root @ root.mT)
    z = judge.sample((4,))
    torch.testing.assert_close(bent.log_prob(z), judge.log_prob(z))
    torch.testing.assert_close(bent.variance, judge.variance)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        draws = bent.expand((3, 2)).rsample((2,))
        torch.manual_seed(1)
        noise = torch.randn(2, 3, 2, 6, dtype=torch.float64)
    torch.testing.assert_close(draws, loc + (root @ noise[..., None]).squeeze(-1))


def test_modes_that_are_apart_weigh_what_they_hold():
    eye = torch.eye(2, dtype=torch.float64)
    left, right = normal(torch.full((2,), -8.0, dtype=torch.float64), eye), normal(torch.full((2,), 8.0).double(), eye)

    def evaluate(z):
        (a, slope_a), (b, slope_b) = left(z), right(z)
        parts = torch.stack([a + math.log(0.3), b + math.log(0.7)])
        shares = torch.softmax(parts, 0)[..., None]
        return torch.logsumexp(parts, 0), shares[0] * slope_a + shares[1] * slope_b

    found = find_paths(evaluate, torch.zeros(2, dtype=torch.float64), paths=8)
    right_of = found.normals.loc[:, 0] > 0
    assert 0 < int(right_of.sum()) < 8
    shares = found.log_weights.exp()
    per_path = torch.where(right_of, 0.7 / right_of.sum(), 0.3 / (~right_of).sum()).double()
    torch.testing.assert_close(shares, per_path / per_path.sum(), rtol=0.05, atol=0.0)


def test_it_survives_where_the_density_is_not_finite():
    """A half of the space has none, a quarter of it NaN, and the rest a funnel, whose density has no mode."""

    def evaluate(z):
        v, x = z.unbind(-1)
        value = -(v**2) / 18 - 0.5 * (x * (-v / 2).exp()) ** 2 - v / 2
        slope = torch.stack([-v / 9 + 0.5 * (x * (-v / 2).exp()) ** 2 - 0.5, -x * (-v).exp()], -1)
        value = torch.where(x > 1.5, -math.inf, value)
        return torch.where(v < -40, math.nan, value), slope

    found = find_paths(evaluate, torch.tensor([0.0, 1.0]).double(), paths=6)
    assert torch.isfinite(found.elbo[found.best])
    assert abs(float(found.log_weights.exp().sum()) - 1) < 1e-9
    nowhere = lambda z: (torch.full(z.shape[:-1], -math.inf, dtype=torch.float64), torch.zeros_like(z))  # noqa: E731
    with pytest.raises(NonFiniteLossError, match="not finite at any of"):
        find_paths(nowhere, torch.zeros(2, dtype=torch.float64))


@pytest.fixture(scope="module")
def data():
    return line()


@pytest.fixture(scope="module")
def fitted(data):
    return guides.fit(linear, "pathfinder", *data)


def test_as_a_guide_it_has_the_exact_posterior(fitted, data):
    mean, covariance, evidence = linear_posterior(*data)
    draws = fitted.sample(4000)["w"].double()
    error = (draws.mean(0) - mean) / covariance.diagonal().sqrt()
    assert float(error.abs().max()) < 4.5 / math.sqrt(4000)
    torch.testing.assert_close(torch.cov(draws.T), covariance, rtol=0.12, atol=0.12 * float(covariance.diagonal().min()))
    assert all(abs(e - evidence) < 0.05 for e in fitted.info[0]["elbo"])
    assert fitted.evaluations == fitted.info[0]["gradients"] < 200
    assert fitted.diagnose().verdict == "good"
    value = {"w": draws[0].float()}
    judge = MultivariateNormal(mean, covariance).log_prob(draws[0])
    assert abs(float(fitted.log_prob(value) - judge)) < 0.05
    assert abs(float(fitted.median(2000)["w"][0] - mean[0])) < 0.2 * float(covariance[0, 0].sqrt())
    assert fitted.sample(50, corrected=True)["w"].shape == (50, len(mean))
    assert fitted.to_arviz(num_samples=20).posterior["w"].shape == (1, 20, len(mean))


@pytest.mark.parametrize("dense", [500, 1])
def test_a_file_holds_it_whatever_its_components_are(dense, data, tmp_path, monkeypatch):
    monkeypatch.setattr(mixture, "_DENSE", dense)
    options = {"paths": 3, "history": 2}
    posterior = guides.fit(linear, ("pathfinder", options), *data, seed=3)
    again = guides.fit(linear, "pathfinder", *data, seed=3, **options)
    posterior.save(tmp_path / "posterior")
    loaded = guides.Posterior.load(tmp_path / "posterior", linear)
    for other in (again, loaded):
        torch.testing.assert_close(other.sample(20)["w"], posterior.sample(20)["w"])
        assert (other.family, other.info, other.evaluations) == (posterior.family, posterior.info, posterior.evaluations)
    assert loaded.predict(data[0][:4], num_samples=5)["y"].shape == (5, 4)
    draws = posterior.draws(2000)
    bound = (draws.log_p - draws.log_q).mean()
    weights = torch.tensor(posterior.info[0]["weights"])
    assert abs(float(bound) - float((weights * torch.tensor(posterior.info[0]["elbo"])).sum())) < 0.5
    with pytest.raises(OptionError, match="not trained on"):
        posterior.continue_(10)


def test_years_as_a_covariate_cost_it_nothing():
    """Coefficients of correlation -0.9999, a hundred times apart in scale, in Stan's parametrisation."""

    def model(x, y):
        b = pyro.sample("b", dist.Normal(0.0, 1000.0).expand([2]).to_event(1))
        s = pyro.sample("s", dist.HalfNormal(10.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(b[0] + b[1] * x, s), obs=y)

    x = torch.linspace(1990.0, 2020.0, 31)
    y = 0.1 * (x - 2000) + torch.randn(31, generator=torch.Generator().manual_seed(0))
    posterior = guides.fit(model, "pathfinder", x, y)
    centred = x.double() - x.double().mean()
    slope = float((centred * y).sum() / centred.square().sum())
    b = posterior.sample(2000)["b"].double()
    assert abs(float(b[:, 1].mean()) - slope) < 0.2 * float(b[:, 1].std())
    assert 0.8 < float(b[:, 1].std() / (y - y.mean() - slope * centred).std() * centred.norm()) < 1.25
    assert posterior.evaluations < 1000
    assert posterior.diagnose(num_samples=1000).k_hat < 0.7


def test_what_cannot_be_is_refused_before_any_work(data):
    def trained(x, y):
        scale = pyro.param("scale", torch.tensor(1.0))
        w = pyro.sample("w", dist.Normal(0.0, scale))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(w, 1.0), obs=y)

    with pytest.raises(UnsupportedModelError, match=r"parameters to be trained \(scale\)"):
        guides.fit(trained, "pathfinder", *data)
    with pytest.raises(OptionError, match="paths"):
        guides.fit(linear, "pathfinder", *data, paths=0)
    with pytest.raises(OptionError, match="steps=100 means nothing"):
        guides.fit(linear, "pathfinder", *data, steps=100)


def test_paths_that_led_nowhere_leave_no_trace():
    """A component of no weight and no sensible scale must not make the mixture's density NaN in single precision."""
    loc, scale = torch.zeros(3, 2).double(), torch.tensor([[1.0, 1.0], [1e-30, 1e30], [2.0, 2.0]]).double()
    normals = PathNormals(loc, scale, torch.eye(2).double().repeat(3, 1, 1), torch.eye(2).double().repeat(3, 1, 1))
    log_weights = torch.log_softmax(torch.tensor([0.0, -50.0, 1.0]).double(), 0)
    found = Found(normals, log_weights, log_weights, torch.ones(3).long(), 10, 10)
    values = mixture.values_of(found, 4)
    assert torch.equal(values["scale"], scale[[0, 2, 2, 2]])
    torch.testing.assert_close(torch.softmax(values["logits"], 0)[[0, 2]], torch.softmax(log_weights[[0, 2]], 0))
    assert torch.softmax(values["logits"].float(), 0)[[1, 3]].eq(0).all()
