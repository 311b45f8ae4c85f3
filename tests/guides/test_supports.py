"""Supports: priors whose support is stated under another name, moves, or has no map; values checked outside the model."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoGuideList, AutoNormal, init_to_value
from pyro.nn import PyroModule, PyroSample
from torch import Tensor
from torch.autograd.functional import jacobian
from torch.distributions import biject_to, constraints
from torch.distributions.transforms import AffineTransform, ExpTransform

import guides
from guides import errors
from guides.program.bijections import BoundedTransform, LowerCholeskyVector, PositiveDefiniteVector
from guides.program.supports import plain_support

INF = math.inf


def transformed(base: Any, *transforms: Any) -> Any:
    return dist.TransformedDistribution(base, list(transforms))


def mixture(components: Any) -> Any:
    return dist.MixtureSameFamily(dist.Categorical(torch.ones(components.batch_shape[-1])), components)


# distribution, least value, largest value
INTERVALS: dict[str, tuple[Any, float, float]] = {
    "mirrored": (transformed(dist.HalfNormal(2.0), AffineTransform(0.0, -1.0)), -INF, 0.0),
    "shifted": (transformed(dist.Exponential(1.0), AffineTransform(2.0, 3.0)), 2.0, INF),
    "turned": (transformed(dist.Uniform(0.0, 1.0), AffineTransform(2.0, -3.0)), -1.0, 2.0),
    "exponential of a half-normal": (transformed(dist.HalfNormal(1.0), ExpTransform()), 1.0, INF),
    "shifted log-normal": (transformed(dist.Normal(0.0, 1.0), ExpTransform(), AffineTransform(1.0, 2.0)), 1.0, INF),
    "affine normal": (transformed(dist.Normal(0.0, 1.0), AffineTransform(1.0, 2.0)), -INF, INF),
    "mixture of gammas": (mixture(dist.Gamma(torch.ones(2), torch.ones(2))), 0.0, INF),
    "mixture of normals": (mixture(dist.Normal(torch.zeros(2), torch.ones(2))), -INF, INF),
    "mixture of uniforms": (mixture(dist.Uniform(torch.tensor([0.0, 0.5]), torch.tensor([1.0, 2.0]))), 0.0, 2.0),
    "von Mises": (dist.VonMises(0.0, 1.0), -math.pi, math.pi),
    "masked": (dist.HalfNormal(1.0).mask(True), 0.0, INF),
    "expanded": (transformed(dist.HalfNormal(1.0), AffineTransform(0.0, -1.0)).expand([3]).to_event(1), -INF, 0.0),
}


@pytest.mark.parametrize("name", INTERVALS)
def test_support_of_numbers_is_where_the_distribution_draws_and_no_more(name: str) -> None:
    fn, low, high = INTERVALS[name]
    values = biject_to(plain_support(fn))(torch.tensor([-12.0, -3.0, 0.0, 3.0, 12.0]).reshape(5, *(1,) * fn.event_dim))
    assert bool((values >= low).all() and (values <= high).all())
    assert values.min() < (low + 0.1 if low > -INF else -2.0)
    assert values.max() > (high - 0.1 if high < INF else 2.0)
    assert bool(plain_support(fn).check(fn.sample((50,))).all())


def test_a_mask_chooses_the_support_of_every_element() -> None:
    fn = dist.MaskedMixture(torch.tensor([True, False]), dist.Normal(torch.zeros(2), 1.0), dist.HalfNormal(torch.ones(2)))
    values = biject_to(plain_support(fn))(torch.tensor([[-3.0, -3.0], [3.0, 3.0]]))
    assert bool((values[:, 0] > 0).all())
    assert torch.equal(values[:, 1], torch.tensor([-3.0, 3.0]))


BIJECTIONS = {
    "bounds": (BoundedTransform(torch.tensor([-INF, 1.0, -INF, -1.0]), torch.tensor([INF, INF, 2.0, 3.0])), (4,)),
    "triangular": (LowerCholeskyVector(), (6,)),
    "positive definite": (PositiveDefiniteVector(), (6,)),
}


@pytest.mark.parametrize("name", BIJECTIONS)
def test_bijection_inverts_and_knows_its_jacobian(name: str) -> None:
    transform, shape = BIJECTIONS[name]
    x = torch.randn(shape, dtype=torch.float64)

    def free(x: Tensor) -> Tensor:
        y = transform(x)
        if y.dim() < 2:
            return y
        row, column = torch.tril_indices(3, 3)
        return y[row, column]

    y = transform(x)
    torch.testing.assert_close(transform.inv(y), x)
    exact = torch.linalg.slogdet(jacobian(free, x)).logabsdet
    torch.testing.assert_close(transform.log_abs_det_jacobian(x, y).sum(), exact)
    assert transform.inverse_shape(y.shape) == x.shape
    assert transform.forward_shape(x.shape) == y.shape
    torch.testing.assert_close(torch.vmap(transform)(x.expand(3, *shape)), y.expand(3, *y.shape))


def one_latent(prior: Any) -> Any:
    def model(y: Tensor) -> None:
        z = pyro.sample("z", prior)
        with pyro.plate("d", len(y)):
            pyro.sample("y", dist.Normal(z.reshape(-1).sum(), 1.0), obs=y)

    return model


def exact_mean_and_sd(log_prior: Any, y: Tensor, low: float, high: float) -> tuple[float, float]:
    """Integrate the posterior of one number on a grid."""
    grid = torch.linspace(low, high, 20001, dtype=torch.float64)[1:-1]
    log_p = log_prior(grid) + torch.distributions.Normal(grid[:, None], 1.0).log_prob(y.double()).sum(-1)
    weight = torch.softmax(log_p, 0)
    mean = (weight * grid).sum()
    return float(mean), float((weight * (grid - mean) ** 2).sum().sqrt())


POSTERIORS = {
    "mirrored": (INTERVALS["mirrored"][0], lambda z: -(z**2) / 8.0, -6.0, 0.0, -0.5),
    "shifted": (INTERVALS["shifted"][0], lambda z: -(z - 2.0) / 3.0, 2.0, 12.0, 4.0),
    "mixture of gammas": (
        mixture(dist.Gamma(torch.tensor([2.0, 20.0]), torch.tensor([2.0, 5.0]))),
        lambda z: torch.logaddexp(
            torch.distributions.Gamma(2.0, 2.0).log_prob(z), torch.distributions.Gamma(20.0, 5.0).log_prob(z)
        ),
        0.0,
        12.0,
        3.0,
    ),
    "von Mises": (dist.VonMises(0.5, 2.0), lambda z: 2.0 * torch.cos(z - 0.5), -math.pi, math.pi, 1.0),
    "scale mixture": (
        mixture(dist.Normal(torch.zeros(2), torch.tensor([1.5, 0.5]))),
        lambda z: torch.logaddexp(
            torch.distributions.Normal(0.0, 1.5).log_prob(z), torch.distributions.Normal(0.0, 0.5).log_prob(z)
        ),
        -8.0,
        8.0,
        1.0,
    ),
}


@pytest.mark.parametrize("name", POSTERIORS)
def test_posterior_under_a_prior_of_odd_support_is_the_exact_one(name: str) -> None:
    prior, log_prior, low, high, at = POSTERIORS[name]
    y = at + torch.randn(20)
    posterior = guides.fit(
        one_latent(prior), "full_rank", y, steps=500, lr=0.05, schedule="cosine", compile="trace", num_particles=4
    )
    z = posterior.sample(4000)["z"]
    mean, sd = exact_mean_and_sd(log_prior, y, low, high)
    assert bool((z >= low).all() and (z <= high).all())
    assert abs(float(z.mean()) - mean) < 0.2 * sd
    assert abs(float(z.std()) - sd) < 0.2 * sd


def test_wishart_prior_on_a_precision_is_conjugate() -> None:
    y = torch.randn(40, 2) @ torch.tensor([[1.0, 0.5], [0.0, 0.7]])

    def model(y: Tensor) -> None:
        precision = pyro.sample("p", dist.Wishart(torch.tensor(4.0), covariance_matrix=torch.eye(2)))
        with pyro.plate("d", len(y)):
            pyro.sample("y", dist.MultivariateNormal(torch.zeros(2), precision_matrix=precision), obs=y)

    posterior = guides.fit(model, "full_rank", y, steps=600, lr=0.05, schedule="cosine", compile="trace")
    exact = (4.0 + 40) * torch.linalg.inv(torch.eye(2) + y.T @ y)
    torch.testing.assert_close(posterior.sample(4000)["p"].mean(0), exact, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("guide", ["mean_field", "full_rank", "map", "laplace"])
def test_flat_prior_gives_the_likelihood(guide: str) -> None:
    y = 2 + torch.randn(50)

    def model(y: Tensor) -> None:
        z = pyro.sample("z", dist.ImproperUniform(constraints.positive, (), ()))
        with pyro.plate("d", len(y)):
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    start: Any = {"init_loc_fn": init_to_value(values={"z": torch.tensor(1.5)})}
    posterior = guides.fit(model, (guide, start), y, steps=800, lr=0.03, schedule="cosine")
    z = posterior.sample(2000)["z"]
    assert abs(float(z.mean()) - float(y.mean())) < 0.03
    assert guide == "map" or abs(float(z.std()) - 50**-0.5) < 0.02


def level(y: Tensor) -> None:
    pyro.sample("free", dist.Normal(0.0, 1.0))
    low = pyro.sample("low", dist.HalfNormal(1.0))
    level = pyro.sample("level", dist.Pareto(low, 2.0))
    with pyro.plate("d", len(y)):
        pyro.sample("y", dist.Normal(level, 1.0), obs=y)


def between(y: Tensor) -> None:
    top = pyro.sample("low", dist.HalfNormal(1.0))
    level = pyro.sample("level", dist.Uniform(0.0, 1.0 + top))
    with pyro.plate("d", len(y)):
        pyro.sample("y", dist.Normal(level, 1.0), obs=y)


def shifted(y: Tensor) -> None:
    low = pyro.sample("low", dist.Normal(0.0, 1.0))
    level = pyro.sample("level", dist.TransformedDistribution(dist.HalfNormal(1.0), [AffineTransform(low, 1.0)]))
    with pyro.plate("d", len(y)):
        pyro.sample("y", dist.Normal(level, 1.0), obs=y)


@pytest.mark.parametrize("guide", ["mean_field", "map", "laplace", "mixture", "ensemble", AutoNormal])
@pytest.mark.parametrize("model", [level, between, shifted])
def test_support_that_depends_on_a_latent_is_refused_by_both_names(model: Any, guide: Any) -> None:
    wanted = "(?s)'level'.*'low'" if guide is not AutoNormal or model is not shifted else "'level'"
    with pytest.raises(errors.UnsupportedModelError, match=wanted) as refused:
        guides.fit(model, guide, torch.ones(5), steps=2)
    assert "'free'" not in str(refused.value)


def test_support_that_depends_on_a_latent_is_refused_in_parts_of_a_guide() -> None:
    guide = AutoGuideList(between)
    guide.append(guides.MeanField(between))
    with pytest.raises(errors.UnsupportedModelError, match=r"'level'.*'low'"):
        guides.fit(between, guide, torch.ones(5), steps=2)


def test_support_that_depends_on_a_parameter_is_refused() -> None:
    def model(y: Tensor) -> None:
        top = pyro.param("top", torch.tensor(2.0), constraint=constraints.positive)
        z = pyro.sample("z", dist.Uniform(0.0, top))
        with pyro.plate("d", len(y)):
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    with pytest.raises(errors.UnsupportedModelError, match=r"'z'.*parameters"):
        guides.fit(model, "mean_field", torch.ones(5), steps=2)


def rows_above(x: Tensor, y: Tensor) -> None:
    with pyro.plate("d", len(y)):
        z = pyro.sample("z", dist.Uniform(x, x + 1.0))
        pyro.sample("y", dist.Normal(z, 0.3), obs=y)


def test_support_that_depends_on_rows_of_the_data_is_followed() -> None:
    x = torch.arange(6.0)
    posterior = guides.fit(rows_above, "mean_field", x, x + 0.5, steps=50)
    z = posterior.sample(200)["z"]
    assert bool((z > x).all() and (z < x + 1).all())


def test_support_that_depends_on_the_batch_is_refused() -> None:
    def model(y: Tensor) -> None:
        z = pyro.sample("z", dist.Uniform(0.0, y.max()))
        with pyro.plate("d", len(y)):
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    y = torch.rand(100)
    guides.fit(model, "mean_field", y, steps=2)
    with pytest.raises(errors.UnsupportedModelError, match=r"'z'.*batch"):
        guides.fit(model, "mean_field", y, steps=2, batch_size=10)


def test_support_that_depends_on_the_data_set_is_refused_by_joint_fits() -> None:
    def model(y: Tensor) -> None:
        z = pyro.sample("z", dist.Uniform(0.0, y.max()))
        with pyro.plate("d", len(y)):
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    with pytest.raises(errors.UnsupportedModelError, match=r"'z'.*data set"):
        guides.fit_many(model, "mean_field", [(torch.ones(5),), (2 * torch.ones(5),)], steps=2)


def test_support_without_a_map_is_refused_and_has_a_mode() -> None:
    model = one_latent(dist.ProjectedNormal(torch.ones(3)))
    with pytest.raises(errors.UnsupportedModelError, match=r"(?s)'z' \(ProjectedNormal\).*Sphere"):
        guides.fit(model, "mean_field", torch.ones(5), steps=2)
    z = guides.fit(model, "map", torch.ones(5), steps=5).sample(1)["z"]
    torch.testing.assert_close(z.norm(dim=-1), torch.ones(1))


def test_prior_without_a_density_is_refused() -> None:
    class Drawn(dist.Normal):
        def log_prob(self, value: Tensor) -> Tensor:
            raise NotImplementedError

    with pytest.raises(errors.UnsupportedModelError, match="'z'"):
        guides.fit(one_latent(Drawn(torch.tensor(1.5), torch.tensor(1.0))), "mean_field", torch.ones(5), steps=2)


def test_autoguide_of_pyro_is_refused_where_it_would_map_to_a_wrong_support() -> None:
    with pytest.raises(errors.UnsupportedModelError, match=r"(?s)'z'.*AutoNormal"):
        guides.fit(one_latent(INTERVALS["mirrored"][0]), AutoNormal, -torch.ones(5), steps=2)


class OutsidePrior(PyroModule):
    prior = dist.Normal(0.0, 1.0).expand([3]).to_event(1)
    scale = dist.HalfNormal(torch.ones(2)).expand([2])
    mixed = mixture(dist.Normal(torch.zeros(2), torch.tensor([1.0, 2.0])))

    def __init__(self) -> None:
        super().__init__()
        self.w = PyroSample(self.prior)
        self.s = PyroSample(self.scale)
        self.m = PyroSample(self.mixed)

    def forward(self, y: Tensor) -> None:
        scale, loc = self.s, self.w.sum() + self.m
        with pyro.plate("d", len(y)):
            pyro.sample("y", dist.Normal(loc, scale[0]), obs=y)


@pytest.mark.parametrize("guide", ["mean_field", "full_rank", "mixture"])
def test_priors_made_outside_the_model_are_traced(guide: str) -> None:
    held = [OutsidePrior.prior, OutsidePrior.prior.base_dist, OutsidePrior.scale, OutsidePrior.mixed]
    before = [dict(vars(h)) for h in held]
    assert any(b.get("_validate_args") for b in before)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        posterior = guides.fit(OutsidePrior(), guide, torch.randn(20), steps=10, compile="trace")
        posterior.predict(num_samples=5)
    assert [dict(vars(h)) for h in held] == before


def test_values_are_still_checked_before_any_work() -> None:
    likelihood = dist.Poisson(torch.tensor(1.0)).expand([3])

    def model(y: Tensor) -> None:
        pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("d", 3):
            pyro.sample("y", likelihood, obs=y)

    with pytest.raises(errors.DataError, match="support"):
        guides.fit(model, "mean_field", torch.tensor([1.0, -1.0, 2.0]), steps=2)


class Noted(dist.Normal):
    """A normal whose density looks at its value, as densities of users do."""

    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(value) * (1.0 if float(value.detach().sum()) > -INF else 2.0)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        return Noted(self.loc.expand(batch_shape), self.scale.expand(batch_shape))


def test_warning_that_a_model_runs_eagerly_names_the_site() -> None:
    def model(y: Tensor) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", Noted(torch.tensor(0.0), torch.tensor(1.0)))
        with pyro.plate("d", len(y)):
            pyro.sample("y", dist.Normal(a + b, 1.0), obs=y)

    with pytest.warns(errors.EagerFallbackWarning, match="'b'"):
        guides.fit(model, "full_rank", torch.ones(5), steps=3, compile="trace")


@pytest.mark.parametrize("prior", ["mirrored", "mixture of gammas", "von Mises"])
def test_loss_is_that_of_stock_pyro(prior: str) -> None:
    model, y = one_latent(INTERVALS[prior][0]), torch.randn(5)
    guide = guides.MeanField(model)
    guide(y)
    pyro.set_rng_seed(1)
    ours = guides.ELBO(kl="monte_carlo").loss(model, guide, y)
    pyro.set_rng_seed(1)
    assert ours == pytest.approx(Trace_ELBO().loss(model, guide, y), rel=1e-5)
    drawn = poutine.trace(guide).get_trace(y)
    assert bool(poutine.trace(poutine.replay(model, trace=drawn)).get_trace(y).log_prob_sum().isfinite())
