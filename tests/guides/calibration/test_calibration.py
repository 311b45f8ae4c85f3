"""Calibration by simulation: it passes an exact guide, finds biased and over-confident ones, refuses what it cannot do."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from scipy.stats import binom

import guides
from guides.calibration.bands import ecdf_band
from guides.errors import DataError, OptionError, UnsupportedModelError

X = torch.tensor([[1.0, 0.9], [0.8, 1.0], [1.1, 1.0], [-1.0, -0.9], [0.3, 0.2], [-0.5, -0.6]])
FIT = {"steps": 400, "lr": 0.1, "schedule": "cosine", "num_datasets": 100, "compile": "trace", "progress": False}


def regression(x, y):
    """Its posterior is a correlated normal: 'full_rank' holds it, 'mean_field' is too narrow."""
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.deterministic("sum", w.sum())
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)


def exact(shift=0.0, width=1.0):
    """The exact posterior of the regression as a guide without anything to learn but a number that moves nothing."""
    precision = torch.eye(2) + X.T @ X / 0.25
    covariance = torch.linalg.inv(precision)

    def guide(x, y):
        idle = pyro.param("idle", torch.zeros(()))
        mean = covariance @ (x.T @ y) / 0.25 + shift * covariance.diagonal().sqrt() + 0 * idle
        pyro.sample("w", dist.MultivariateNormal(mean, width**2 * covariance))

    return guide


@pytest.fixture(scope="module")
def found():
    """Calibrations of the exact posterior, one that is moved and one that is too narrow."""
    kinds = {"exact": {}, "moved": {"shift": 0.5}, "narrow": {"width": 0.5}, "wide": {"width": 2.0}}
    options = FIT | {"steps": 1, "num_datasets": 400, "compile": "eager"}
    return {name: guides.calibrate(regression, exact(**kind), X, torch.zeros(6), **options) for name, kind in kinds.items()}


def test_the_exact_posterior_passes(found):
    c = found["exact"]
    assert c.calibrated and "CALIBRATED" in str(c) and "NOT" not in str(c) and c.failed == 0
    assert c.ranks["w"].shape == (400, 2) and c.ranks["sum"].shape == (400,)
    assert int(c.ranks["w"].min()) >= 0 and int(c.ranks["w"].max()) <= 99
    for name, spread in c.spread.items():
        assert (spread - 1).abs().max() < 0.2 and c.bias[name].abs().max() < 3.5 and c.symmetry[name].min() > 0.01


def test_a_guide_whose_means_are_off_is_found(found):
    c = found["moved"]
    assert not c.calibrated and bool(c.outside["w"].all())
    assert (c.bias["w"] < -5).all() and (c.symmetry["w"] < 1e-4).all()
    assert "w[0]" in str(c) and "too high" in str(c)


def test_a_guide_that_is_too_narrow_or_too_wide_is_found(found):
    c = found["narrow"]
    assert not c.calibrated and (c.spread["w"] > 1.5).all() and "too narrow" in str(c)
    assert (c.symmetry["w"] > 0.01).all()  # its means are right
    wide = found["wide"]
    assert not wide.calibrated and (wide.spread["w"] < 0.6).all() and "too wide" in str(wide)


def test_a_picture_shows_the_furthest_first(found):
    figure = found["narrow"].plot()
    assert [axes.get_title() for axes in figure.axes][:2] and len(figure.axes) == 3
    assert {axes.get_title() for axes in figure.axes} == {"w[0]", "w[1]", "sum"}


def test_fitted_guides_are_judged():
    narrow = guides.calibrate(regression, "mean_field", X, torch.zeros(6), **FIT)
    assert not narrow.calibrated and (narrow.spread["w"] > 1.5).all()
    full = guides.calibrate(regression, "full_rank", X, torch.zeros(6), **FIT)
    assert full.calibrated, full


def test_a_seed_repeats_and_observed_values_lend_their_shapes_alone():
    options = FIT | {"num_datasets": 20, "steps": 20, "compile": "eager"}
    c = guides.calibrate(regression, "full_rank", X, torch.zeros(6), **options)
    again = guides.calibrate(regression, "full_rank", X, torch.ones(6), **options)
    assert torch.equal(c.ranks["w"], again.ranks["w"])
    other = guides.calibrate(regression, "full_rank", X, torch.zeros(6), **options | {"seed": 1})
    assert not torch.equal(c.ranks["w"], other.ranks["w"])


def test_a_band_holds_uniform_ranks_as_often_as_it_says():
    band = ecdf_band(200, 19, 0.9)
    generator = torch.Generator().manual_seed(0)
    ranks = torch.randint(0, 20, (200, 4000), generator=generator)
    inside = 1 - band.leaves(ranks).double().mean()
    assert abs(float(inside) - 0.9) < 0.02  # counts are whole numbers, so that 0.9 itself is not reached
    one = ecdf_band(200, 1, 0.9)
    assert float(one.lower) == binom.ppf(0.05, 200, 0.5)  # of a single point it is the central interval


def flat(x, y):
    w = pyro.sample("w", dist.ImproperUniform(constraints.real, (), ()))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x[:, 0] * w, 1.0), obs=y)


def masked(x, y):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).mask(False))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x[:, 0] * w, 1.0), obs=y)


def factor(x, y):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    pyro.factor("extra", -w.square())
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x[:, 0] * w, 1.0), obs=y)


def scaled(x, y):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)), pyro.poutine.scale(scale=0.1):
        pyro.sample("y", dist.Normal(x[:, 0] * w, 1.0), obs=y)


def series(x, y):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    past = torch.cat([torch.zeros(1), y[:-1]])
    pyro.sample("y", dist.Normal(w * past, 1.0).to_event(1), obs=y)


def learnt(x, y):
    scale = pyro.param("scale", torch.ones(()), constraint=constraints.positive)
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x[:, 0] * w, scale), obs=y)


def subsampled(x, y):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), subsample_size=2) as index:
        pyro.sample("y", dist.Normal(x[index, 0] * w, 1.0), obs=y[index])


def changed(x, y):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x[:, 0] * w, 1.0), obs=y + 1)


@pytest.mark.parametrize(
    ("model", "error", "words"),
    [
        (flat, UnsupportedModelError, "no sampler"),
        (masked, UnsupportedModelError, "'w': its prior is masked out"),
        (factor, UnsupportedModelError, "'extra': it is a factor"),
        (scaled, UnsupportedModelError, "'y': its density is scaled"),
        (series, UnsupportedModelError, r"site 'y' depend on the observed data \(argument 1\)"),
        (learnt, UnsupportedModelError, "'scale': it is a parameter"),
        (subsampled, UnsupportedModelError, "'data': it chooses rows at random"),
        (changed, DataError, "what site 'y' observes.* is no argument"),
    ],
    ids=lambda v: getattr(v, "__name__", None),
)
def test_models_that_cannot_be_simulated_are_refused(model, error, words):
    with pytest.raises(error, match=words):
        guides.calibrate(model, "mean_field", X, torch.arange(6.0), **FIT)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_datasets": 5}, "num_datasets"),
        ({"num_draws": 0}, "num_draws"),
        ({"prob": 95}, "prob"),
        ({"stepz": 5}, "stepz"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(options, words):
    with pytest.raises((OptionError, TypeError), match=words):
        guides.calibrate(regression, "mean_field", X, torch.zeros(6), **FIT | options)
