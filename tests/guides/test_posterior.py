"""What a posterior answers: draws, predictions for new rows, likelihoods; and the table of several of them."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from guide_models import GENERAL, SCHOOLS, line, linear, linear_posterior, network, regression, schools
from matplotlib.figure import Figure
from pyro import poutine

import guides
from guides import errors

QUICK = {"steps": 60, "lr": 0.05}


@pytest.fixture(scope="module")
def data():
    return line()


@pytest.fixture(scope="module")
def exact(data):
    """The linear model's posterior, by the family that contains it."""
    return guides.fit(linear, "laplace", *data, steps=600, lr=0.1, schedule="cosine")


@pytest.mark.parametrize("replicates", [1, 2])
def test_shapes(replicates, data):
    posterior = guides.fit(network, "mean_field", *data, replicates=replicates, **QUICK)
    lead = (2,) if replicates == 2 else ()
    x = data[0][:4]
    assert posterior.sample(6)["w1"].shape == (*lead, 6, 3, 5)
    predicted = posterior.predict(x, num_samples=6)
    assert set(predicted) == {"f", "y"}
    assert predicted["f"].shape == predicted["y"].shape == (*lead, 6, 4)
    assert posterior.log_likelihood(num_samples=6)["y"].shape == (*lead, 6, 30)
    draws = posterior.draws(6, predictive=True)
    assert draws.log_p.shape == draws.log_q.shape == (replicates, 6)
    assert draws.latents["w2"].shape == (replicates, 6, 5, 1)
    assert draws.log_likelihood["y"].shape == draws.deterministic["f"].shape == (replicates, 6, 30)
    assert draws.predictive["y"].shape == (replicates, 6, 30)
    assert posterior.draws(6).predictive == {}
    one = {n: v[0, 0] for n, v in draws.latents.items()}
    assert posterior.log_prob(one).shape == lead
    parameters = posterior.parameters
    assert all(v.shape[: len(lead)] == lead for v in parameters.values())
    assert posterior.replicate(0).replicates == 1


def test_predictions_have_the_closed_forms_moments(exact, data):
    mean, covariance, _ = linear_posterior(*data)
    x = torch.randn(5, 3)
    f = x.double() @ mean
    variance = ((x.double() @ covariance) * x).sum(1) + 0.25
    y = exact.predict(x, num_samples=4000)["y"].double()
    assert ((y.mean(0) - f).abs() < 4.5 * (variance / 4000).sqrt() + 0.02 * covariance.diagonal().sum().sqrt()).all()
    assert ((y.var(0) / variance - 1).abs() < 4.5 * math.sqrt(2 / 4000)).all()


def test_observations_among_the_new_data_are_ignored(exact, data):
    x, y = data
    torch.testing.assert_close(exact.predict(x, y, num_samples=3), exact.predict(x, y + 1000, num_samples=3))
    torch.testing.assert_close(exact.predict(num_samples=3), exact.predict(x, y, num_samples=3))


def test_log_likelihood_is_that_of_the_draws(data):
    posterior = guides.fit(regression, "mean_field", *data, **QUICK)
    x, y = data[0][:7], data[1][:7]
    draws = posterior.draws(4, x, y)
    for s in range(4):
        latents = {n: v[0, s] for n, v in draws.latents.items()}
        want = dist.Normal((x @ latents["w"]).squeeze(-1), latents["s"]).log_prob(y)
        torch.testing.assert_close(draws.log_likelihood["y"][0, s], want, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(posterior.log_likelihood(x, y, num_samples=4)["y"], draws.log_likelihood["y"][0])


@pytest.mark.parametrize("family", sorted(set(GENERAL) - {"dropout"}))
def test_local_latents_of_new_rows_come_from_their_prior(family):
    posterior = guides.fit(schools, family, *SCHOOLS, steps=150, lr=0.1)
    new = posterior.predict(torch.tensor([10.0, 1e-3, 1e-3]), num_samples=2000)["y"]
    assert new.shape == (2000, 3)
    latents = posterior.sample(2000)
    want = (latents["tau"] ** 2).mean() + latents["mu"].var()
    if family not in ("laplace", "full_rank", "low_rank"):  # where tau is far from normal the mean of tau^2 is too noisy
        assert float(new[:, 1].var() / want) == pytest.approx(1.0, abs=0.25)
    assert (new[:, 1] - new[:, 2]).std() > 0.01
    old = posterior.predict(torch.full((8,), 1e-3), num_samples=200)["y"]
    if family != "laplace":  # whose predictions are of the linearised model
        torch.testing.assert_close(old.mean(0), posterior.sample(200)["theta"].mean(0), rtol=0, atol=0.05)
    assert set(posterior.draws(2, torch.ones(3)).latents) == {"mu", "tau"}


def test_draws_differ_between_seeds_and_repeat_with_one(data):
    posterior = guides.fit(linear, "mean_field", *data, replicates=2, **QUICK)
    first, again, other = (posterior.draws(5, seed=s, predictive=True) for s in (1, 1, 2))
    torch.testing.assert_close(first.predictive, again.predictive, rtol=0, atol=0)
    assert not torch.equal(first.latents["w"], other.latents["w"])
    noise = (first.latents["w"] - posterior.parameters["MeanField.loc"][:, None]) / posterior.parameters["MeanField.scale"][
        :, None
    ]
    assert (noise[0] - noise[1]).abs().min() > 1e-6  # replicates do not share their noise


def test_draws_do_not_depend_on_how_many_are_vectorised(data, monkeypatch):
    posterior = guides.fit(network, "mean_field", *data, **QUICK)
    monkeypatch.setattr("guides.fitted.draws._ELEMENTS_PER_CHUNK", 1)
    assert posterior.sample(5)["w1"].std(0).min() > 0
    assert posterior.predict(data[0], num_samples=5)["f"].shape == (5, 30)


def branching(x, y=None):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    loc = z if z > 0 else -z
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(loc, 0.5), obs=y)


def test_a_model_that_cannot_be_vectorised_is_drawn_one_by_one(data):
    x, y = data
    posterior = guides.fit(branching, "mean_field", x, y, steps=20, compile="eager")
    with pytest.warns(errors.EagerFallbackWarning, match="cannot be vectorised over draws"):
        draws = posterior.draws(20)
    z = draws.latents["z"][0]
    want = dist.Normal(z.abs()[:, None], 0.5).log_prob(y)
    torch.testing.assert_close(draws.log_likelihood["y"][0], want, rtol=1e-4, atol=1e-4)


def test_two_plates_and_two_observed_sites():
    def model(a, b=None, c=None):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(a)):
            pyro.sample("b", dist.Normal(z, 1.0), obs=b)
            with pyro.plate("repeats", 2, dim=-2):
                pyro.sample("c", dist.Normal(z, 2.0), obs=c)

    a, b, c = torch.zeros(5), torch.randn(5), torch.randn(2, 5)
    posterior = guides.fit(model, "mean_field", a, b, model_kwargs={"c": c}, **QUICK)
    assert posterior.sites["c"].dims == ("repeats", "data")
    found = posterior.log_likelihood(num_samples=3)
    assert {n: v.shape for n, v in found.items()} == {"b": (3, 5), "c": (3, 2, 5)}
    predicted = posterior.predict(torch.zeros(9), num_samples=3, model_kwargs={})
    assert {n: v.shape for n, v in predicted.items()} == {"b": (3, 9), "c": (3, 2, 9)}


def test_the_guide_is_a_pyro_guide_with_the_fitted_parameters(data):
    posterior = guides.fit(linear, "full_rank", *data, **QUICK)
    guide = posterior.guide
    torch.testing.assert_close(guide.loc.detach(), posterior.parameters["FullRank.loc"])
    trace = poutine.trace(guide).get_trace(*data)
    value = trace.nodes["w"]["value"].detach()
    torch.testing.assert_close(posterior.log_prob({"w": value}), trace.log_prob_sum().detach(), rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def comparison(data):
    x, y = data
    cases = ["mean_field", "full_rank", "laplace", "map", ("low_rank", {"rank": 1}), "dropout"]
    return guides.compare(linear, cases, x, y, steps=500, lr=0.04, schedule="cosine", num_samples=300)


def test_a_table_of_guides_goes_on_after_a_failure(comparison, data):
    *_, evidence = linear_posterior(*data)
    rows = {r.guide: r for r in comparison.rows}
    assert set(rows) == {"mean_field", "full_rank", "laplace", "map", "low_rank(rank=1)", "dropout"}
    assert rows["dropout"].verdict == "failed"
    assert "UnsupportedModelError: dropout needs" in rows["dropout"].error
    assert "dropout" not in comparison.posteriors
    assert math.isnan(rows["map"].elbo)
    elbos = [r.elbo for r in comparison.rows if not math.isnan(r.elbo)]
    assert elbos == sorted(elbos, reverse=True)
    for name in ("full_rank", "laplace"):
        assert rows[name].elbo == pytest.approx(evidence, abs=0.1)
    assert rows["mean_field"].elbo < evidence - 0.3
    assert rows["mean_field"].elbo_se > 0
    assert comparison.best in ("full_rank", "laplace")
    assert all(r.seconds > 0 for n, r in rows.items() if n != "dropout")


def test_the_table_prints_and_converts_and_draws(comparison):
    text = str(comparison)
    assert text.splitlines()[0].split() == [
        "guide",
        "verdict",
        "ELBO",
        "(nats)",
        "k-hat",
        "elpd",
        "LOO",
        "(nats)",
        "seconds",
    ]
    assert len(text.splitlines()) == 8
    assert "failed: UnsupportedModelError" in text
    by_name = {r["guide"]: r for r in comparison.to_dict()}
    assert by_name["map"]["elbo"] is None
    assert by_name["laplace"]["elbo"] == pytest.approx(next(r.elbo for r in comparison.rows if r.guide == "laplace"))
    assert isinstance(comparison.plot(), Figure)
    assert isinstance(comparison.plot("w"), Figure)
    with pytest.raises(errors.OptionError, match="site='v' is not a latent site; the model has w"):
        comparison.plot("v")


def test_options_of_single_guides_and_labels(data):
    table = guides.compare(
        linear,
        ["map", ("mean_field", {"init_scale": 0.1})],
        *data,
        options={"map": {"steps": 3}},
        steps=5,
        num_samples=30,
    )
    assert table.posteriors["map"].steps == 3
    assert table.posteriors["mean_field(init_scale=0.1)"].steps == 5
