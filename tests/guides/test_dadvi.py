"""DADVI: closed forms on normal targets, derivatives, what it survives, what is refused, and that it is a posterior."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from guide_models import SCHOOLS, linear, linear_posterior, network, schools

import guides
from guides.density.density import log_density
from guides.solvers.dadvi import DADVI
from guides.solvers.fixed_draws import FixedDraws, standard_draws

YEARS = torch.linspace(1990.0, 2020.0, 31)
RAW = (torch.stack([torch.ones(31), YEARS], 1), 0.1 * (YEARS - 2000) + torch.sin(YEARS))


def raw_line(x, y=None):
    """Coefficients of years since nought, which are correlated to .99999."""
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 100.0).to_event(1))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)


def curved(y):
    """Two latents, one of them positive, of a posterior that is not normal."""
    scale = pyro.sample("scale", dist.HalfNormal(2.0))
    mean = pyro.sample("mean", dist.StudentT(3.0, 0.0, 1.0))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(mean, scale), obs=y)


Y = torch.tensor([0.3, 1.2, -0.4, 2.0, 0.7])


@pytest.fixture(scope="module")
def posterior():
    return guides.fit(linear, "dadvi", *_linear_data(), compile="trace")


def _linear_data():
    source = torch.Generator().manual_seed(0)
    x = torch.randn(40, 3, generator=source) @ torch.tensor([[1.0, 0.9, 0.0], [0.0, 0.3, 0.0], [0.0, 0.0, 5.0]])
    return x, x @ torch.tensor([1.0, -1.0, 0.2]) + 0.5 * torch.randn(40, generator=source)


def test_normal_posteriors_are_exact_for_any_number_of_matched_draws():
    mean, covariance, _ = linear_posterior(*RAW, prior=100.0)
    density = log_density(raw_line, *RAW, compile="trace")
    for draws in (2, 8):
        found = DADVI(num_draws=draws).run(density, density.start.numpy(), seed=3)
        assert np.abs((found.loc - mean.numpy()) / covariance.diagonal().sqrt().numpy()).max() < 1e-3 and found.converged
        assert np.allclose(found.root @ found.root.T, covariance, rtol=1e-6)
        assert found.info["sampling_error"] < 1e-6
    # mean field: every latent as wide as it is given the other
    assert np.allclose(np.array(found.info["mean_field_sd"]) ** -2, np.linalg.inv(covariance).diagonal(), rtol=0.5)


def test_unmatched_draws_find_the_minimum_that_they_have():
    """Where the log density is quadratic, the bound at fixed draws has equations that the minimum solves."""
    x, y = _linear_data()
    mean, covariance, _ = linear_posterior(x, y)
    density = log_density(linear, x, y, compile="trace")
    solver = DADVI(num_draws=31, matched=False, covariance="mean_field")
    found = solver.run(density, density.start.numpy(), seed=1)
    z, precision = standard_draws(31, 3, False, 1), np.linalg.inv(covariance.numpy())
    assert np.allclose(found.loc, mean.numpy() - found.root * z.mean(0), atol=1e-3 * found.root.min())
    spread = np.cov(z.T, bias=True)  # as the means take up what the draws have in common
    assert np.allclose(found.root * ((precision * spread) @ found.root), 1.0, atol=2e-3)


@pytest.fixture(scope="module")
def density():
    return log_density(curved, Y, compile="trace")


def test_derivatives_are_those_of_differences(density):
    bound = FixedDraws(density, standard_draws(6, 2, True, 0))
    eta, small = np.array([0.1, 0.4, -0.5, -1.0]), 1e-5
    hessian, gradient = bound.hessian(eta), bound.value_and_gradient(eta)[1]
    for i, step in enumerate(small * np.eye(4)):
        (up, slope_up), (down, slope_down) = (bound.value_and_gradient(eta + s) for s in (step, -step))
        assert abs((up - down) / (2 * small) - gradient[i]) < 1e-6
        assert np.allclose((slope_up - slope_down) / (2 * small), hessian[i], atol=1e-5)
        assert np.allclose(bound.product(eta, np.eye(4)[i]), hessian[i])
    assert np.allclose(bound.by_draw(eta).mean(0), gradient)
    # draws at eta, and for each of four directions up, down, and eta again; two axes of the Hessian, and four products
    assert bound.gradients == 6 * (1 + 4 * 3) and bound.products == 6 * (2 + 4)


def test_linear_response_is_nearer_to_the_truth_than_mean_field(posterior):
    _, covariance, _ = linear_posterior(*_linear_data())
    sd = covariance.diagonal().sqrt()
    alone = guides.fit(linear, "dadvi", *_linear_data(), covariance="mean_field", compile="trace")
    assert torch.allclose(posterior.sample(20_000)["w"].std(0).double() / sd, torch.ones(3).double(), atol=0.03)
    assert float((alone.sample(20_000)["w"].std(0).double() / sd).min()) < 0.5
    assert alone.diagnose().k_hat > posterior.diagnose().k_hat


def test_is_a_posterior_with_everything_that_one_has(posterior, tmp_path):
    assert posterior.diagnose().verdict == "good" and posterior.diagnose().k_hat < 0.3
    assert posterior.sample(7)["w"].shape == (7, 3) and posterior.predict(num_samples=5)["y"].shape == (5, 40)
    assert posterior.sample(50, corrected=True)["w"].shape == (50, 3)
    mean, covariance, evidence = linear_posterior(*_linear_data())
    exact = torch.distributions.MultivariateNormal(mean, covariance)
    assert abs(float(posterior.log_prob({"w": mean.float()}) - exact.log_prob(mean))) < 1e-3
    draws = posterior.draws(100)
    assert torch.allclose((draws.log_p - draws.log_q).double(), torch.tensor(evidence).double(), atol=0.01)
    assert posterior.evaluations == posterior.gradients + posterior.products > 30
    assert posterior.stop_reasons[0].startswith("stopped at the minimum")
    posterior.save(tmp_path / "p.pt")
    again = guides.Posterior.load(tmp_path / "p.pt", linear)
    assert torch.equal(again.sample(5)["w"], posterior.sample(5)["w"]) and again.evaluations == posterior.evaluations
    assert (again.family, again.info, again.options) == ("dadvi", posterior.info, posterior.options)
    with pytest.raises(guides.errors.DataError, match=r"latent sites.*'w'.*this model has.*'w1'"):
        guides.Posterior.load(tmp_path / "p.pt", network)
    with pytest.raises(guides.errors.OptionError, match="stops by itself"):
        posterior.continue_(10)


def test_means_differ_between_seeds_by_the_error_that_is_told(density):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    found = [DADVI(num_draws=20).run(density, density.start.numpy(), seed) for seed in range(8)]
    again = DADVI(num_draws=20).run(density, density.start.numpy(), 7)
    seen = np.std([f.loc / np.sqrt(np.square(f.root).sum(1)) for f in found], 0, ddof=1).max()
    assert 0.5 < np.mean([f.info["sampling_error"] for f in found]) / seen < 2.0
    assert np.array_equal(again.loc, found[7].loc)
    assert torch.equal(torch.get_rng_state(), state) and len(pyro.get_param_store()) == 0


def test_survives_hierarchies_and_densities_that_end():
    """A centred hierarchy, whose density has no mode; one that is not finite beyond a wall near the start."""

    def walled(y):
        rate = pyro.sample("rate", dist.Normal(0.0, 1.0))
        pyro.factor("wall", torch.where(rate < 1.5, torch.log1p(-rate / 1.5), torch.full_like(rate, -math.inf)))
        with pyro.plate("row", len(y)):
            pyro.sample("y", dist.Normal(rate, 1.0), obs=y)

    found = guides.fit(schools, "dadvi", *SCHOOLS, compile="trace")
    assert found.info[0]["converged"] and 0.5 < float(found.sample(4000)["mu"].mean()) < 9.0
    walled_in = guides.fit(walled, "dadvi", Y, num_draws=8, compile="trace")
    assert walled_in.info[0]["converged"] and 0.0 < float(walled_in.sample()["rate"].mean()) < 1.0


def test_what_has_no_minimum_is_told():
    def flat(y):
        z = pyro.sample("level", dist.Normal(0.0, 1.0))
        pyro.factor("undone", 0.5 * z**2)
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=y.sum())

    with pytest.raises(guides.errors.UnsupportedModelError, match=r"ended before the minimum.*'level'"):
        guides.fit(flat, "dadvi", Y, compile="trace", max_iterations=40)
    with pytest.warns(guides.errors.NotAtTheModeWarning, match="raise max_iterations"):
        short = guides.fit(curved, "dadvi", Y, compile="trace", max_iterations=1)
    assert not short.info[0]["converged"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 10}, "say max_iterations="),
        ({"lr": 0.1}, "lr=0.1 means nothing"),
        ({"replicates": 2}, "seed= in several fits"),
        ({"batch_size": 2}, "batch_size=2 means nothing"),
        ({"num_draw": 10}, "did you mean num_draws"),
        ({"num_draws": 7}, "must be even"),
        ({"num_draws": 0}, "num_draws must be at least"),
        ({"covariance": "full"}, "covariance='full'"),
        ({"device": "cuda"}, "run on the CPU"),
        ({"compile": "inductor"}, "compile='inductor'"),
    ],
)
def test_bad_options_are_refused_before_any_work(options, words):
    def never(y):
        raise AssertionError("the model was run")

    with pytest.raises(guides.errors.OptionError, match=words):
        guides.fit(never, "dadvi", Y, **options)


def test_models_that_it_cannot_do_are_refused():
    def trained(y):
        scale = pyro.param("scale", torch.tensor(1.0))
        pyro.sample("y", dist.Normal(pyro.sample("mean", dist.Normal(0.0, 1.0)), scale), obs=y.sum())

    def discrete(y):
        k = pyro.sample("k", dist.Bernoulli(0.5))
        pyro.sample("y", dist.Normal(k, 1.0), obs=y.sum())

    def large(y):
        w = pyro.sample("w", dist.Normal(torch.zeros(1001), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(w.sum(), 1.0), obs=y.sum())

    with pytest.raises(guides.errors.UnsupportedModelError, match=r"parameters to be trained.*guide 'dadvi'"):
        guides.fit(trained, "dadvi", Y)
    with pytest.raises(guides.errors.DiscreteLatentError, match="'k'"):
        guides.fit(discrete, "dadvi", Y)
    with pytest.raises(guides.errors.OptionError, match=r"1,001 latent numbers.*covariance='mean_field'"):
        guides.fit(large, "dadvi", Y, compile="trace")
    with pytest.raises(guides.errors.OptionError, match="'dadvi' is a solver"):
        guides.fit_many(linear, "dadvi", [_linear_data()])


def test_stands_in_a_table_with_guides_that_take_steps():
    table = guides.compare(linear, ["dadvi", "mean_field"], *_linear_data(), steps=10, num_samples=200, compile="eager")
    assert [row.error for row in table.rows] == ["", ""] and table.best == "dadvi"
