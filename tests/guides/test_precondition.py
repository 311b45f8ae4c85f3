"""Optimising in the space of a pilot: exact maps there and back, regressions on columns as they are, and what is refused."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from guide_models import line, linear, linear_posterior

import guides
from guides.errors import OptionError, UnsupportedModelError
from guides.program.whitened import Space
from guides.solvers.pilot import Pilot

QUICK = {"steps": 150, "compile": "trace"}


def years(x, y):
    """Coefficients of correlation -0.9999, of sds of about 30 and 0.015."""
    b = pyro.sample("b", dist.Normal(0.0, 1000.0).expand([2]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(b[0] + b[1] * x, 1.0), obs=y)


@pytest.fixture(scope="module")
def records():
    x = torch.linspace(1990.0, 2020.0, 31)
    return x, 0.1 * (x - 2000) + torch.randn(31, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def truth(records):
    x, y = (r.double() for r in records)
    design = torch.stack([torch.ones_like(x), x], -1)
    covariance = torch.linalg.inv(design.T @ design + torch.eye(2) / 1000.0**2)
    return covariance @ design.T @ y, covariance


@pytest.mark.parametrize("components", [(), (3,)])
@pytest.mark.parametrize("full", [False, True])
def test_the_space_is_left_and_entered_by_inverse_maps(components, full):
    source = torch.Generator().manual_seed(0)
    root = torch.randn(4, 4, generator=source, dtype=torch.float64).tril()
    root.diagonal().abs_().add_(0.1)
    space = Space(torch.randn(4, generator=source).double(), root if full else root.diagonal(), {n: n for n in NAMES})
    tril = torch.randn(*components, 4, 4, generator=source, dtype=torch.float64).tril(-1) + torch.eye(4)
    scale = torch.rand(*components, 4, generator=source, dtype=torch.float64) + 0.1
    given = {
        "loc": torch.randn(*components, 4, generator=source).double(),
        "scale": scale,
        "scale_tril": tril,
        "other": scale,
    }
    found = space.forward(given)
    whole = root if full else root.diagonal().diag()
    z = torch.randn(4, generator=source, dtype=torch.float64)  # a draw there is the map of a draw here
    inside = given["loc"] + (given["scale"][..., None] * given["scale_tril"] @ z)
    outside = found["loc"] + (found["scale"][..., None] * found["scale_tril"] @ z)
    torch.testing.assert_close(outside, space.centre + inside @ whole.T)
    again = space.back(found)
    for name, value in given.items():
        torch.testing.assert_close(again[name], value)


NAMES = ("loc", "scale", "scale_tril")


@pytest.mark.parametrize("family", ["full_rank", ("low_rank", {"rank": 1})])
def test_a_regression_on_years_is_right_at_the_defaults(family, records, truth):
    mean, covariance = truth
    sds = covariance.diagonal().sqrt()
    before = guides.fit(years, family, *records, **QUICK).sample(4000)["b"].double()
    posterior = guides.fit(years, family, *records, precondition="pathfinder", **QUICK)
    after = posterior.sample(4000)["b"].double()
    assert float(((before.mean(0) - mean) / sds).abs().max()) > 1
    assert float(((after.mean(0) - mean) / sds).abs().max()) < 0.15
    assert float((after.std(0) / sds).log().abs().max()) < 0.2
    assert float(torch.corrcoef(after.T)[0, 1]) < -0.999
    assert 150 < posterior.evaluations == 150 + posterior.info[0]["pilot_gradients"] < 1150


def test_independent_normals_are_as_wide_as_they_should_be(records, truth):
    mean, covariance = truth
    posterior = guides.fit(years, "mean_field", *records, precondition="pathfinder", lr=0.003, **QUICK)
    draws = posterior.sample(4000)["b"].double()
    assert float(((draws.mean(0) - mean) / covariance.diagonal().sqrt()).abs().max()) < 0.1
    narrow = torch.linalg.inv(covariance).diagonal().rsqrt()  # what independent normals are at the optimum
    assert float((draws.std(0) / narrow).log().abs().max()) < 0.2


def test_what_it_returns_is_in_the_models_terms(tmp_path):
    data = line()
    mean, covariance, _ = linear_posterior(*data)
    mixed = guides.fit(linear, ("mixture", {"components": 2}), *data, precondition="auto", **QUICK)
    assert float(((mixed.sample(2000)["w"].mean(0) - mean) / covariance.diagonal().sqrt()).abs().max()) < 0.5
    posterior = guides.fit(linear, "full_rank", *data, precondition="auto", replicates=2, **QUICK)
    torch.testing.assert_close(posterior.parameters["FullRank.loc"][0], posterior.guide.loc.detach(), rtol=0, atol=0.2)
    for row in posterior.parameters["FullRank.loc"]:
        assert float(((row - mean) / covariance.diagonal().sqrt()).abs().max()) < 0.3
    longer = posterior.continue_(20)
    assert (longer.steps, longer.evaluations) == (170, posterior.evaluations + 2 * 20)
    assert float(((longer.parameters["FullRank.loc"][1] - mean) / covariance.diagonal().sqrt()).abs().max()) < 0.3
    posterior.save(tmp_path / "posterior")
    loaded = guides.Posterior.load(tmp_path / "posterior", linear)
    torch.testing.assert_close(loaded.sample(20)["w"], posterior.sample(20)["w"])
    assert loaded.evaluations == posterior.evaluations
    again = guides.fit(linear, "full_rank", *data, precondition=loaded, **QUICK)
    assert float(((again.sample(2000)["w"].mean(0) - mean) / covariance.diagonal().sqrt()).abs().max()) < 0.3


def test_replicates_start_at_modes_by_their_weight():
    points, weights = torch.tensor([[0.0], [5.0]]).double(), torch.tensor([0.4, 0.6]).double()
    starts = Pilot(points[0], torch.eye(1).double(), points, weights, 0).starts(1000, seed=0)
    assert float(starts[0]) == 5.0
    assert 0.5 < float((starts == 5.0).double().mean()) < 0.7


def test_what_cannot_be_is_refused_or_left_alone():
    data = line()

    def trained(x, y):
        pyro.sample("w", dist.Normal(pyro.param("at", torch.tensor(1.0)), 1.0))

    with pytest.raises(OptionError, match="precondition='nuts' is not known"):
        guides.fit(linear, "mean_field", *data, precondition="nuts")
    with pytest.raises(OptionError, match=r"cannot be preconditioned: it is for 'mean_field'"):
        guides.fit(linear, "map", *data, precondition="pathfinder")
    with pytest.raises(OptionError, match="parameters beside the guide's"):
        guides.fit(trained, "mean_field", *data, precondition="pathfinder")
    with pytest.raises(OptionError, match="the guide is an object"):
        guides.fit(linear, guides.MeanField(linear), *data, precondition="pathfinder")
    plain = guides.fit(linear, "map", *data, steps=5, compile="eager")
    same = guides.fit(linear, "map", *data, steps=5, compile="eager", precondition="auto")
    torch.testing.assert_close(same.flat, plain.flat, rtol=0, atol=0)


def test_a_posterior_without_a_width_is_no_space():
    def model(y):
        a, b = pyro.sample("a", dist.Normal(0.0, 1.0)), pyro.sample("b", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(a + b, 1.0), obs=y)

    y = torch.linspace(-1.0, 1.0, 9)
    point = guides.fit(model, "map", y, steps=3, compile="eager")
    with pytest.raises(OptionError, match=r"a posterior of 'map', whose draws have no covariance.*hardly vary in 'a'"):
        guides.fit(model, "full_rank", y, steps=10**6, precondition=point)


def test_auto_goes_without_a_pilot_where_there_is_no_density():
    def noisy(x, y):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(w + 0.1 * torch.randn(()), 1.0), obs=y)

    x, y = line()
    posterior = guides.fit(noisy, "mean_field", x, y, steps=5, compile="eager", precondition="auto")
    assert posterior.evaluations == 5
    with pytest.raises(UnsupportedModelError, match="random numbers beside its sample sites"):
        guides.fit(noisy, "mean_field", x, y, steps=5, compile="eager", precondition="pathfinder")
