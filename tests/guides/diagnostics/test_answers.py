"""The verdict about answers, on targets and guides whose errors are known, and draws corrected by weights."""

import math

import pyro
import pyro.distributions as pd
import pytest
import torch
from torch.distributions import (
    Categorical,
    Cauchy,
    Gamma,
    Independent,
    LogNormal,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    StudentT,
)

import guides
import guides.diagnostics as D
from guides.diagnostics import diagnosis as diagnosis_module


def normal(mean=0.0, sd=1.0, dim=1):
    return Independent(Normal(torch.full((dim,), float(mean)), torch.full((dim,), float(sd))), 1)


def mixture(weights, means, sds):
    parts = Normal(torch.tensor(means), torch.tensor(sds))
    return Independent(MixtureSameFamily(Categorical(torch.tensor(weights)), parts).expand((1,)), 1)


def correlated(rho):
    return MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, rho], [rho, 1.0]]))


ONE = torch.ones(1)
KNOWN = {
    "exact": (normal(dim=5), normal(dim=5), "good"),
    "mean off by a twentieth": (normal(), normal(mean=0.05), "good"),
    "sd off by a tenth": (normal(dim=5), normal(sd=0.9, dim=5), "good"),
    "a light tail too few": (Independent(StudentT(30.0 * ONE), 1), normal(sd=1.02), "good"),
    "another shape of the same moments": (
        Independent(Gamma(25 * ONE, 25 * ONE), 1),
        Independent(LogNormal(-0.02 * ONE, 0.2 * ONE), 1),
        "good",
    ),
    "mean off": (normal(), normal(mean=0.3), "corrected"),
    "three times too wide": (normal(), normal(sd=3.0), "corrected"),
    "ten times too wide": (normal(), normal(sd=10.0), "corrected"),
    "weights of modes off": (
        mixture([0.3, 0.7], [-2.0, 2.0], [0.7, 0.7]),
        mixture([0.5, 0.5], [-2.0, 2.0], [0.7, 0.7]),
        "corrected",
    ),
    "a dead component far away": (normal(), mixture([0.984, 0.016], [0.0, 20.0], [1.0, 1.0]), "corrected"),
    "far too narrow": (normal(dim=2), normal(sd=0.3, dim=2), "unreliable"),
    "correlation missed": (correlated(0.95), normal(sd=math.sqrt(1 - 0.95**2), dim=2), "unreliable"),
    "no variance": (Independent(Cauchy(torch.zeros(1), ONE), 1), normal(sd=1.5), "unreliable"),
    "elsewhere": (normal(dim=5), normal(mean=3.0, dim=5), "unreliable"),
}


@pytest.mark.parametrize("name", KNOWN)
def test_the_verdict_is_true_and_the_same_for_every_seed(known_fit, name):
    target, guide, verdict = KNOWN[name]
    found = [D.diagnose(known_fit(target, [guide]), seed=seed, only=["answers", "pareto_k"]) for seed in range(4)]
    assert [d.verdict for d in found] == [verdict] * 4, [str(d) for d in found]


def test_errors_are_those_of_the_draws(known_fit):
    fit = known_fit(normal(), [normal(mean=0.3, sd=1.3)])
    errors = D.diagnose(fit, num_samples=20_000).findings["answers"].sites["z"]
    assert errors.bias.item() == pytest.approx(0.3, abs=4 * errors.bias_error.item() + 0.02)
    assert errors.ratio.item() == pytest.approx(1.3, abs=0.05)
    assert 0 < errors.bias_error.item() < 0.02


def test_a_large_k_hat_is_no_verdict_where_the_answers_do_not_feel_it(known_fit):
    target, guide, _ = KNOWN["another shape of the same moments"]
    diagnosis = D.diagnose(known_fit(target, [guide]))
    assert diagnosis.k_hat > 1
    assert diagnosis.verdict == "good"


def test_impossible_draws_are_never_good(known_fit):
    fit = known_fit(normal(), [normal()], break_log_p=lambda p: p.masked_fill(torch.rand(p.shape) < 0.03, -math.inf))
    diagnosis = D.diagnose(fit)
    assert diagnosis.verdict == "corrected"
    assert "3% of them are impossible" in diagnosis.summary or "impossible under the model" in diagnosis.summary


def test_a_bad_restart_among_good_ones_costs_correction_only(known_fit):
    losses = torch.randn(4, 3000)
    same = [normal() for _ in range(3)]
    both = D.diagnose(known_fit(normal(), [*same, normal(sd=0.5)], losses=losses))
    assert both.verdict in ("good", "corrected")
    assert D.diagnose(known_fit(normal(), [*same, normal(mean=3.0)], losses=losses)).verdict == "unreliable"  # R-hat


def test_draws_are_added_until_the_verdict_is_settled_or_as_asked(known_fit):
    assert D.diagnose(known_fit(normal(), [normal()])).num_samples == 1000
    hard = known_fit(normal(), [normal(sd=0.65)])
    assert D.diagnose(hard).num_samples == 64_000
    assert D.diagnose(hard, num_samples=500).num_samples == 500


def regression(x, y=None):
    a = pyro.sample("a", pd.Normal(0.0, 5.0))
    pyro.deterministic("twice", 2 * a)
    with pyro.plate("rows", len(x)):
        return pyro.sample("y", pd.Normal(a + x, 1.0), obs=y)


X = torch.linspace(-1, 1, 20)
Y = X + 0.7 + torch.randn(20, generator=torch.Generator().manual_seed(0))
MEAN, SD = float((Y - X).sum() / (20 + 1 / 25)), (20 + 1 / 25) ** -0.5


def wide(x, y=None):
    pyro.sample("a", pd.Normal(pyro.param("loc", torch.tensor(MEAN + 0.5 * SD)), 2 * SD))


@pytest.fixture(scope="module")
def wide_fit():
    return guides.fit(regression, wide, X, Y, steps=1, lr=1e-6, compile="eager", progress=False)


def test_corrected_draws_are_draws_from_the_posterior(wide_fit):
    raw, corrected = wide_fit.sample(4000), wide_fit.sample(4000, corrected=True)
    assert float(raw["a"].std()) == pytest.approx(2 * SD, rel=0.1)
    assert float(corrected["a"].mean()) == pytest.approx(MEAN, abs=5 * SD / 4000**0.5)
    assert float(corrected["a"].std()) == pytest.approx(SD, rel=0.05)
    assert torch.equal(corrected["a"], wide_fit.sample(4000, corrected=True)["a"])
    assert len(corrected["a"].unique()) == 4000  # as no weight reaches 1 / 4000


def test_predictions_scores_and_arviz_take_corrected_draws(wide_fit):
    predicted = wide_fit.predict(torch.zeros(3), num_samples=2000, corrected=True)
    assert predicted["y"].shape == (2000, 3)
    assert float(predicted["twice"].std()) == pytest.approx(2 * SD, rel=0.1)
    draws = wide_fit.draws(500, corrected=True)
    exact = pd.Normal(MEAN + 0.5 * SD, 2 * SD).log_prob(draws.latents["a"])
    torch.testing.assert_close(draws.log_q, exact, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(draws.deterministic["twice"], 2 * draws.latents["a"])
    likelihood = wide_fit.log_likelihood(num_samples=500, corrected=True)["y"]
    torch.testing.assert_close(likelihood, draws.log_likelihood["y"][0])
    tree = wide_fit.to_arviz(num_samples=500, corrected=True, groups=["posterior", "sample_stats"])
    assert float(tree["posterior"]["a"].std()) == pytest.approx(SD, rel=0.15)


def test_restarts_are_pooled_by_what_their_draws_are_worth():
    def narrow(x, y=None):
        start = torch.tensor(MEAN) + 3 * SD * torch.randn(())  # far off in most restarts
        pyro.sample("a", pd.Normal(pyro.param("loc", start), SD))

    posterior = guides.fit(regression, narrow, X, Y, steps=1, lr=1e-6, replicates=4, compile="eager", progress=False)
    corrected = posterior.sample(500, corrected=True)["a"]
    assert corrected.shape == (4, 500)
    assert posterior.sample(500)["a"].mean(1).std() > 1 * SD
    assert corrected.mean(1).std() < 0.3 * SD


def test_corrected_draws_are_refused_where_there_are_no_weights():
    posterior = guides.fit(regression, "map", X, Y, steps=2, compile="eager", progress=False)
    with pytest.raises(guides.errors.OptionError, match="'map' is made of point masses"):
        posterior.sample(corrected=True)


def test_corrected_draws_bring_the_discrete_latents_along():
    def clusters(x):
        mean = pyro.sample("mean", pd.Normal(0.0, 5.0))
        with pyro.plate("rows", len(x)):
            k = pyro.sample("k", pd.Bernoulli(0.5), infer={"enumerate": "parallel"})
            pyro.sample("x", pd.Normal(mean + 4 * k, 1.0), obs=x)

    x = torch.tensor([0.1, -0.2, 4.1, 3.9])
    posterior = guides.fit(clusters, "mean_field", x, steps=50, lr=0.05, compile="eager", progress=False)
    drawn = posterior.sample(200, corrected=True)
    assert drawn["k"].shape == (200, 4)
    assert drawn["k"].float().mean(0).round().tolist() == [0, 0, 1, 1]


def test_observations_that_would_fill_the_memory_are_scored_when_asked_for(wide_fit, monkeypatch):
    kept = []
    draws = type(wide_fit).draws

    def counting(self, *args, **options):
        found = draws(self, *args, **options)
        kept.append(sum(value.numel() for value in found.log_likelihood.values()))
        return found

    monkeypatch.setattr(type(wide_fit), "draws", counting)
    monkeypatch.setattr(diagnosis_module, "_MOST_SCORES", 20 * 500)
    diagnosis = wide_fit.diagnose(num_samples=501)
    assert "501 draws of 20 observations" in diagnosis.findings["elpd_loo"].text
    assert kept == [0] and diagnosis.elpd == {} and diagnosis.k_hat is not None
    assert wide_fit.diagnose(num_samples=501, only=["elpd_loo"]).elpd["y"].num_points == 20
    assert wide_fit.diagnose(num_samples=500).elpd["y"].num_points == 20


def test_answers_alone_say_why_there_are_none(known_fit):
    diagnosis = D.diagnose(known_fit(normal(), [normal()], point_mass=True, family="map"), only=["answers"])
    assert diagnosis.verdict == "usable" and "ot defined for a point mass" in diagnosis.summary


def test_elements_that_are_not_finite_are_named():
    def model(y):
        z = pyro.sample("z", pd.Normal(0.0, 1.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", pd.Normal(z, 1.0), obs=y)
        pyro.deterministic("odds", torch.stack([z, z.sign() * torch.inf, z.log()]))

    posterior = guides.fit(model, "full_rank", torch.ones(3), steps=5, compile="eager")
    found = guides.diagnose(posterior, num_samples=100, only=["answers"])
    assert found.findings["answers"].infinite == {"odds": 2}
    assert "not judged, as not finite at some draws: 'odds' (2 elements)" in str(found)


def test_a_latent_without_elements_has_no_moments():
    def model(y):
        none = pyro.sample("none", pd.Normal(torch.zeros(0), 1.0).to_event(1))
        z = pyro.sample("z", pd.Normal(0.0, 1.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", pd.Normal(z + none.sum(), 1.0), obs=y)

    posterior = guides.fit(model, "full_rank", torch.ones(3), steps=5, compile="eager")
    found = guides.diagnose(posterior, num_samples=100, only=["answers", "psis_moments"])
    assert set(found.findings["answers"].sites) == set(found.findings["psis_moments"].sites) == {"z"}
    assert posterior.summary(20)["none"]["std"].shape == (0,)
