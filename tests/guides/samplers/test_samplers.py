"""Samplers beside the guides: exact draws, the same methods, options refused before any work."""

import math
import sys

import pyro
import pyro.distributions as dist
import pytest
import torch

import guides
from guides import errors
from guides.diagnostics.chains import figures_of

Y = torch.tensor([1.2, 0.4, 2.0, 1.1, -0.3, 0.9])


def conjugate(y=None):
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    pyro.deterministic("double", 2 * mean)
    with pyro.plate("row", 6):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


MEAN, SD = float(Y.sum() / 6.25), 1 / math.sqrt(6.25)


def clusters(y):
    with pyro.plate("component", 2):
        means = pyro.sample("means", dist.Normal(torch.tensor([-5.0, 5.0]), 1.0))
    with pyro.plate("row", len(y)):
        k = pyro.sample("k", dist.Categorical(torch.ones(2) / 2), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(means[k], 1.0), obs=y)


@pytest.fixture(scope="module")
def posterior():
    return guides.fit(conjugate, "nuts", Y, draws=500, tune=300)


def test_nuts_draws_from_a_conjugate_posterior(posterior):
    draws = posterior.points[..., 0]
    error = SD / math.sqrt(posterior.diagnose().findings["chains"].ess_bulk)
    assert abs(float(draws.mean()) - MEAN) < 4 * error
    assert abs(float(draws.std()) / SD - 1) < 4 * error / SD
    assert posterior.diagnose().verdict == "good"
    assert posterior.gradients > 4 * 800 and not bool(posterior.statistics["diverging"].any())


def test_the_same_seed_draws_the_same_and_leaves_no_trace(posterior):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    again = guides.fit(conjugate, "nuts", Y, draws=500, tune=300, cores=1)
    other = guides.fit(conjugate, "nuts", Y, draws=500, tune=300, seed=1)
    assert torch.equal(again.points, posterior.points) and not torch.equal(other.points, posterior.points)
    assert torch.equal(torch.get_rng_state(), state) and torch.get_default_dtype() is torch.float32
    assert len(pyro.get_param_store()) == 0


def test_chains_side_by_side_draw_the_same_again():
    """Eight chains in eight threads, which ask for their starts in any order."""
    again = [guides.fit(conjugate, "nuts", Y, draws=20, tune=20, chains=8, cores=8).points for _ in range(6)]
    assert all(torch.equal(points, again[0]) for points in again)


def test_has_the_methods_of_a_posterior(posterior):
    assert posterior.sample()["mean"].shape == (2000,) and posterior.sample(10)["mean"].shape == (10,)
    predicted = posterior.predict(num_samples=7)
    assert predicted["y"].shape == (7, 6) and predicted["double"].shape == (7,)
    assert posterior.log_likelihood(num_samples=7)["y"].shape == (7, 6)
    draws = posterior.draws()
    assert draws.latents["mean"].shape == (4, 500) and draws.log_p.shape == (4, 500)
    assert torch.equal(draws.deterministic["double"], 2 * draws.latents["mean"])
    assert abs(float(posterior.summary()["mean"]["mean"]) - MEAN) < 0.1
    assert posterior.replicate(2).sample()["mean"].shape == (500,)
    assert (posterior.family, posterior.options["draws"], posterior.chains) == ("nuts", 500, 4)


def test_arviz_keeps_chains_and_what_the_sampler_says(posterior):
    found = posterior.to_arviz(prior_samples=5)
    assert found["posterior"]["mean"].shape == (4, 500) and found["log_likelihood"]["y"].dims == ("chain", "draw", "row")
    assert {"lp", "diverging", "energy", "tree_depth", "step_size"} <= set(found["sample_stats"].data_vars)
    assert posterior.to_arviz(num_samples=10, groups=["sample_stats"])["sample_stats"]["energy"].shape == (4, 10)


def test_is_saved_and_read(posterior, tmp_path):
    posterior.save(tmp_path / "p.pt")
    again = guides.Posterior.load(tmp_path / "p.pt", conjugate)
    assert torch.equal(again.points, posterior.points) and again.gradients == posterior.gradients
    assert torch.equal(again.predict(num_samples=3)["y"], posterior.predict(num_samples=3)["y"])
    with pytest.raises(errors.DataError, match="'mean'"):
        guides.Posterior.load(tmp_path / "p.pt", clusters)


def test_what_only_optimised_guides_have_is_refused(posterior):
    with pytest.raises(errors.OptionError, match="nothing to correct"):
        posterior.sample(corrected=True)
    with pytest.raises(errors.OptionError, match="draws=100 or more"):
        posterior.continue_(100)
    with pytest.raises(errors.OptionError, match="no density of their own"):
        posterior.log_prob({"mean": torch.tensor(0.0)})
    with pytest.raises(errors.OptionError, match="across its chains"):
        posterior.pooled()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 10}, "say draws= and tune="),
        ({"lr": 0.1}, "lr=0.1 means nothing"),
        ({"replicates": 2}, "say chains="),
        ({"batch_size": 2}, "batch_size=2 means nothing"),
        ({"drawz": 10}, "did you mean draws"),
        ({"draws": 0}, "draws must be at least"),
        ({"target_accept": 1.5}, "between 0 and 1"),
        ({"compile": "inductor"}, "compile='inductor'"),
        ({"device": "cuda"}, "run on the CPU"),
    ],
)
def test_bad_options_are_refused_before_any_work(options, words):
    def never(y):
        raise AssertionError("the model was run")

    with pytest.raises(errors.OptionError, match=words):
        guides.fit(never, "nuts", Y, **options)


def test_models_that_no_sampler_can_do_are_refused():
    def trained(y):
        scale = pyro.param("scale", torch.tensor(1.0))
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mean, scale), obs=y.sum())

    def nowhere(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        pyro.factor("never", mean * math.inf)
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y.sum())

    with pytest.raises(errors.UnsupportedModelError, match="parameters to be trained"):
        guides.fit(trained, "nuts", Y)
    with pytest.raises(errors.OptionError, match="'nuts' is a sampler"):
        guides.fit_many(conjugate, "nuts", [(Y,)])
    with pytest.raises((errors.NonFiniteLossError, errors.DataError)):
        guides.fit(nowhere, "nuts", Y, compile="trace")


def test_discrete_latents_are_drawn_beside():
    y = torch.tensor([-5.0, 5.0, 4.0])
    draws = guides.fit(clusters, "nuts", y, draws=60, tune=200, chains=2).draws()
    assert draws.latents["k"].shape == (2, 60, 3)
    assert draws.latents["k"].double().mean((0, 1)).round().tolist() == [0.0, 1.0, 1.0]


def test_hmc_draws_from_a_conjugate_posterior():
    posterior = guides.fit(conjugate, "hmc", Y, draws=150, tune=100, chains=2, trajectory_length=1.0)
    figures = posterior.diagnose().findings["chains"]
    assert abs(float(posterior.points.mean()) - MEAN) < 4 * SD / math.sqrt(figures.ess_bulk)
    assert math.isfinite(figures.e_bfmi)


def test_without_nutpie_pyros_own_sampler_runs(monkeypatch):
    monkeypatch.setattr(sys.modules["guides.samplers.nuts"], "find_spec", lambda name: None)
    with pytest.warns(errors.EagerFallbackWarning, match="nutpie is not installed"):
        posterior = guides.fit(conjugate, "nuts", Y, draws=100, tune=60, chains=1)
    assert abs(float(posterior.points.mean()) - MEAN) < 0.25
    assert posterior.statistics["energy"].isfinite().all()


def test_compare_takes_samplers_among_the_guides():
    table = guides.compare(
        conjugate, ["mean_field", ("nuts", {"draws": 100})], Y, steps=300, lr=0.05, num_samples=100, seed=3
    )
    rows = {row.guide: row for row in table.rows}
    assert rows["nuts(draws=100)"].error == "" and math.isnan(rows["nuts(draws=100)"].elbo)
    assert abs(rows["nuts(draws=100)"].elpd + 7.844) < 0.15  # exact


def test_chains_are_judged_by_the_worst_of_them():
    source = torch.Generator().manual_seed(0)
    good = torch.randn(4, 500, 1, generator=source)
    level = lambda x, **stats: figures_of({"x": x}, stats, frozenset({"x"})).level  # noqa: E731
    assert level(good) == "good"
    assert level(torch.cat([good[:3], good[3:] + 1.0])) == "unreliable"
    assert level(torch.cat([good[:3], torch.zeros(1, 500, 1)])) == "unreliable"
    assert level(good[:1]) == "usable"
    assert level(good.cumsum(1)) == "unreliable"
    some = torch.zeros(4, 500, dtype=torch.bool)
    some[0, :3] = True
    assert level(good, diverging=some) == "usable"
    some[0, :100] = True
    assert level(good, diverging=some) == "unreliable"
    slow = figures_of({"x": good}, {"energy": torch.randn(4, 500, generator=source).cumsum(1)}, frozenset({"x"}))
    assert slow.level == "usable" and slow.e_bfmi < 0.3


def test_machine_code_at_its_address_gives_what_its_function_gives(monkeypatch, posterior):
    """Draws by the address, and through Python as with another release of nutpie, of the same density and seed."""
    assert guides.log_density(conjugate, Y, compile="native").machine_code() is not None
    monkeypatch.setattr(sys.modules["guides.samplers.address"], "_RELEASE", "another")
    through_python = guides.fit(conjugate, "nuts", Y, draws=500, tune=300)
    assert torch.equal(through_python.points, posterior.points)


def test_a_latent_that_the_density_does_not_depend_on_is_named() -> None:
    def flat() -> None:
        pyro.sample("w", dist.ImproperUniform(dist.constraints.real, (), ()))
        pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(errors.UnsupportedModelError, match=r"does not depend on latent 'w'.*give it a proper prior"):
        guides.fit(flat, "nuts", draws=20, tune=20, chains=2, progress=False)
