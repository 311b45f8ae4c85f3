"""Every diagnostic on a guide that is right, one that is wrong, and one that is wrong in its blind spot."""

import json
import math

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal

import guides.diagnostics as D
from _posterior_zoo_registry import UnknownNameError


def normal(mean=0.0, sd=1.0, dim=2):
    return Independent(Normal(torch.full((dim,), float(mean)), torch.full((dim,), float(sd))), 1)


def pointwise(z):
    """Log-likelihood of five observations at -1 .. 1 around the first coordinate."""
    return Normal(z[..., :1], 1.0).log_prob(torch.linspace(-1, 1, 5))


# -- Pareto k-hat ----------------------------------------------------------------------------------------------------


def test_k_hat_of_an_exact_guide_is_near_zero(known_fit):
    diagnosis = D.diagnose(known_fit(normal(), [normal()]), num_samples=1000)
    assert abs(diagnosis.k_hat) < 0.1
    assert diagnosis.verdict == "good"
    assert diagnosis.ess[0] == pytest.approx(1000, rel=1e-3)


def test_k_hat_of_a_wrong_guide_is_above_its_limit(known_fit):
    diagnosis = D.diagnose(known_fit(normal(), [normal(sd=0.3)]), num_samples=1000)
    assert diagnosis.k_hat > diagnosis.k_threshold
    assert diagnosis.verdict == "unreliable"
    assert "1000 draws" in diagnosis.summary
    assert "full_rank" in diagnosis.summary
    assert "at most" in diagnosis.findings["importance_ess"].text
    assert not diagnosis.findings["psis_moments"].trustworthy


def test_k_hat_between_its_limits_is_corrected_by_weights(known_fit):
    fit = known_fit(normal(dim=1), [normal(sd=0.7, dim=1)])  # in the limit k is 1 - sd^2 = 0.51
    diagnosis = D.diagnose(fit, num_samples=20_000)
    assert 0.5 < diagnosis.k_hat < 0.7
    assert diagnosis.findings["pareto_k"].standard_error == pytest.approx((1 + diagnosis.k_hat) / math.sqrt(425), rel=0.01)
    assert diagnosis.findings["pareto_k"].level == "corrected"
    diagnosis = D.diagnose(fit)
    assert diagnosis.num_samples > 1000  # as many as it takes to tell
    assert diagnosis.verdict == "corrected"
    assert "corrected=True" in diagnosis.summary


def test_k_hat_is_blind_to_a_mode_that_q_never_visits(known_fit):
    """The blind spot: half of the posterior is far away, no draw falls there, and k-hat reports a perfect guide."""
    modes = MixtureSameFamily(Categorical(torch.ones(2)), Normal(torch.tensor([-20.0, 20.0]), torch.ones(2)))
    two_modes = Independent(modes.expand((1,)), 1)
    fit = known_fit(two_modes, [Independent(Normal(torch.tensor([-20.0]), torch.ones(1)), 1)])
    diagnosis = D.diagnose(fit)
    assert abs(diagnosis.k_hat) < 0.1
    assert diagnosis.verdict == "good"  # and it is not
    assert "cannot see a mode" in D.pareto_k.__doc__


def test_restarts_uncover_the_mode_that_k_hat_cannot_see(known_fit):
    modes = MixtureSameFamily(Categorical(torch.ones(2)), Normal(torch.tensor([-20.0, 20.0]), torch.ones(2)))
    guides = [Independent(Normal(torch.tensor([mean]), torch.ones(1)), 1) for mean in (-20.0, 20.0)]
    diagnosis = D.diagnose(known_fit(Independent(modes.expand((1,)), 1), guides, losses=torch.randn(2, 3000)))
    assert max(abs(k) for k in diagnosis.findings["pareto_k"].k_hats) < 0.1
    assert diagnosis.r_hat > 1.5
    assert diagnosis.verdict == "unreliable"
    assert "several modes" in diagnosis.summary


def test_k_hat_is_per_chain_and_the_worst_counts(known_fit):
    diagnosis = D.diagnose(known_fit(normal(), [normal(), normal(sd=0.3)]))
    good, bad = diagnosis.findings["pareto_k"].k_hats
    assert good < 0.1 < diagnosis.k_threshold < bad
    assert diagnosis.k_hat == bad


def test_non_finite_weights_are_named(known_fit):
    def spoil(log_p):
        log_p = log_p.clone()
        log_p[0, :3] = math.nan
        return log_p

    diagnosis = D.diagnose(known_fit(normal(), [normal()], break_log_p=spoil))
    assert math.isnan(diagnosis.k_hat)
    assert diagnosis.verdict == "unreliable"
    assert "3 of 1000 importance weights are not finite" in diagnosis.summary
    assert "log p of 3" in diagnosis.summary
    assert diagnosis.ess is None
    json.dumps(diagnosis.to_dict(), allow_nan=False)


def test_draws_outside_the_support_have_weight_zero(known_fit):
    fit = known_fit(normal(), [normal()], break_log_p=lambda p: p.masked_fill(torch.rand(p.shape) < 0.2, -math.inf))
    diagnosis = D.diagnose(fit, num_samples=1000)
    assert diagnosis.ess[0] == pytest.approx(800, abs=4 * math.sqrt(1000 * 0.2 * 0.8))


def test_a_point_mass_gets_words_instead_of_a_number(known_fit):
    fit = known_fit(normal(), [normal(sd=1e-30)], point_mass=True, family="map", likelihood=pointwise)
    fit.guide_density[0].base_dist.loc += 1  # so that 1e-30 is lost in rounding
    diagnosis = D.diagnose(fit)
    assert diagnosis.k_hat is None
    assert diagnosis.ess is None
    assert diagnosis.moments == {}
    assert diagnosis.verdict == "unreliable"
    assert "'map' is a point mass" in diagnosis.summary
    assert diagnosis.elpd == {}
    assert "held-out" in diagnosis.findings["elpd_loo"].text
    assert "for uncertainty fit 'laplace'" in diagnosis.summary


def test_an_ensemble_of_point_masses_is_usable_at_best(known_fit):
    diagnosis = D.diagnose(known_fit(normal(), [normal()], point_mass=True, family="ensemble"))
    assert diagnosis.k_hat is None
    assert diagnosis.verdict == "usable"
    assert "judge it by held-out log-likelihood" in diagnosis.summary


# -- corrected moments -----------------------------------------------------------------------------------------------


def test_psis_widens_a_mean_field_guide_to_the_posterior(known_fit):
    correlation = 0.8
    target = MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, correlation], [correlation, 1.0]]))
    fit = known_fit(target, [normal(sd=math.sqrt(1 - correlation**2))])  # the KL-optimal factorised guide
    diagnosis = D.diagnose(fit, num_samples=20_000)
    moments = diagnosis.moments["z"]
    assert moments.mean.shape == moments.psis_sd.shape == (1, 2)
    torch.testing.assert_close(moments.sd, torch.full((1, 2), 0.6).double(), rtol=0.03, atol=0)
    assert ((moments.psis_sd - 1).abs() < (moments.sd - 1).abs() / 2).all()  # k-hat is about 0.6 here: most of the way


def test_psis_moves_a_biased_guide_to_the_posterior(known_fit):
    diagnosis = D.diagnose(known_fit(normal(), [normal(mean=0.5, sd=1.2)]), num_samples=10_000)
    moments, ess = diagnosis.moments["z"], diagnosis.ess[0]
    assert diagnosis.findings["psis_moments"].trustworthy
    assert (moments.psis_mean.abs() < 4 / math.sqrt(ess)).all()
    assert ((moments.psis_sd - 1).abs() < 4 / math.sqrt(ess)).all()
    assert moments.shift == pytest.approx(0.5 / 1.2, abs=0.06)


def test_psis_cannot_move_draws_to_a_missed_mode(known_fit):
    """The blind spot of the corrected moments: the true mean is 0, and raw and corrected agree on -20."""
    modes = MixtureSameFamily(Categorical(torch.ones(2)), Normal(torch.tensor([-20.0, 20.0]), torch.ones(2)))
    fit = known_fit(Independent(modes.expand((1,)), 1), [Independent(Normal(torch.tensor([-20.0]), torch.ones(1)), 1)])
    moments = D.diagnose(fit).moments["z"]
    assert moments.psis_mean.item() == pytest.approx(-20, abs=0.2)


# -- R-hat -----------------------------------------------------------------------------------------------------------


def test_r_hat_of_agreeing_restarts_is_one(known_fit):
    diagnosis = D.diagnose(known_fit(normal(), [normal(), normal()], losses=torch.randn(2, 3000)))
    assert diagnosis.r_hat == pytest.approx(1, abs=0.01)
    assert diagnosis.verdict == "good"


def test_r_hat_needs_restarts_and_says_how(known_fit):
    diagnosis = D.diagnose(known_fit(normal(), [normal()]))
    assert diagnosis.r_hat is None
    assert "replicates=4" in str(diagnosis)


def test_r_hat_is_blind_to_an_error_that_all_restarts_share(known_fit):
    """The blind spot: restarts that are all far too narrow, and in the wrong place, agree with each other."""
    wrong = [normal(mean=3.0, sd=0.1), normal(mean=3.0, sd=0.1)]
    diagnosis = D.diagnose(known_fit(normal(), wrong, losses=torch.randn(2, 3000)))
    assert diagnosis.r_hat == pytest.approx(1, abs=0.01)
    assert diagnosis.k_hat > 0.7  # k-hat sees it


def test_r_hat_leaves_out_elements_that_do_not_vary(known_fit):
    fit = known_fit(normal(), [normal(), normal()])
    draws = fit.draws(500, seed=0)
    draws.latents["corner"] = torch.ones(2, 500)
    draws.latents["half"] = torch.stack([torch.ones(2, 500), torch.randn(2, 500)], -1)
    finding = D.r_hat(fit, draws)
    assert set(finding.sites) == {"z", "half"}
    draws.latents = {"corner": torch.ones(2, 500)}
    assert isinstance(D.r_hat(fit, draws), D.Undefined)


# -- elpd ------------------------------------------------------------------------------------------------------------


def conjugate(num_points=30):
    """Return data, the posterior of a Normal mean under a N(0, 10) prior and unit noise, and the exact LOO elpd."""
    torch.manual_seed(5)
    y = torch.randn(num_points) + 1.0

    def posterior(values):
        precision = 1 / 100 + len(values)
        return values.sum() / precision, precision**-0.5

    exact = 0.0
    for i in range(num_points):
        mean, sd = posterior(torch.cat([y[:i], y[i + 1 :]]))
        exact += float(Normal(mean, math.sqrt(1 + sd**2)).log_prob(y[i]))
    mean, sd = posterior(y)
    return y, Independent(Normal(mean.reshape(1), torch.tensor([sd])), 1), exact


def test_elpd_of_the_exact_posterior_is_leave_one_out_in_closed_form(known_fit):
    y, posterior, exact = conjugate()
    fit = known_fit(posterior, [posterior], likelihood=lambda z: Normal(z, 1.0).log_prob(y))
    elpd = D.diagnose(fit, num_samples=4000).elpd["y"]
    assert elpd.num_points == 30
    assert elpd.bad_k == 0
    assert elpd.elpd == pytest.approx(exact, abs=0.05)  # Monte Carlo error of 4000 draws, p_loo = 1
    assert elpd.corrected == pytest.approx(exact, abs=0.05)
    assert elpd.p_loo == pytest.approx(1, abs=0.4)


def test_corrected_elpd_repairs_what_a_shifted_guide_costs(known_fit):
    y, posterior, exact = conjugate()
    shifted = Independent(Normal(posterior.base_dist.loc + 0.2, 1.3 * posterior.base_dist.scale), 1)
    fit = known_fit(posterior, [shifted], likelihood=lambda z: Normal(z, 1.0).log_prob(y))
    elpd = D.diagnose(fit, num_samples=4000).elpd["y"]
    assert abs(elpd.elpd - exact) > 0.2
    assert elpd.corrected_bad_k == 0
    assert elpd.corrected == pytest.approx(exact, abs=0.1)


def test_elpd_of_an_overconfident_guide_is_optimistic(known_fit):
    """The blind spot: a guide of almost no width hides that each point pulled on it, and k does not object."""
    y, posterior, exact = conjugate()
    narrow = Independent(Normal(posterior.base_dist.loc, 0.01 * posterior.base_dist.scale), 1)
    fit = known_fit(posterior, [narrow], likelihood=lambda z: Normal(z, 1.0).log_prob(y))
    elpd = D.diagnose(fit).elpd["y"]
    assert elpd.bad_k == 0
    assert elpd.elpd > exact + 0.3


def test_elpd_says_why_there_is_none(known_fit):
    assert "no observed site" in D.diagnose(known_fit(normal(), [normal()])).findings["elpd_loo"].text
    finding = D.diagnose(known_fit(normal(), [normal()], likelihood=lambda z: z.sum(-1))).findings["elpd_loo"]
    assert "one number for all data" in finding.text
    assert "pyro.plate" in finding.advice


# -- the whole -------------------------------------------------------------------------------------------------------


def test_diagnosis_prints_serialises_and_draws(known_fit):
    fit = known_fit(normal(), [normal(), normal()], likelihood=pointwise, losses=torch.randn(2, 3000))
    diagnosis = D.diagnose(fit, num_samples=500)
    text = str(diagnosis)
    for word in ("GOOD", "500 draws", "2 restarts", "Pareto k-hat", "importance ESS", "R-hat", "loss trace", "elpd", "z"):
        assert word in text
    assert all(len(line) < 200 for line in text.splitlines())
    decoded = json.loads(json.dumps(diagnosis.to_dict(), allow_nan=False))
    assert decoded["findings"]["pareto_k"]["k_hat"] == pytest.approx(diagnosis.k_hat)
    assert decoded["findings"]["psis_moments"]["sites"]["z"]["mean"] == diagnosis.moments["z"].mean.tolist()
    figure = diagnosis.plot()
    assert [axes.get_xlabel() for axes in figure.axes] == ["rank of the draw", "step", "observation"]
    figure.canvas.draw()


def test_every_registered_diagnostic_is_run_and_documented(known_fit):
    fit = known_fit(normal(), [normal()], likelihood=pointwise)
    assert set(D.diagnose(fit).findings) == set(D.diagnostics_registry) - {"chains"}  # which are a sampler's
    for name, function in D.diagnostics_registry.items():
        assert "lind spot" in function.__doc__, f"{name} does not name its blind spot"
        assert function.__name__ in D.__all__


def test_a_registered_diagnostic_joins_the_table_and_the_verdict(known_fit, monkeypatch):
    entries = {**D.diagnostics_registry._entries, "mine": lambda p, d: D.Finding(level="unreliable", text="mine says no")}
    monkeypatch.setattr(D.diagnostics_registry, "_entries", entries)
    diagnosis = D.diagnose(known_fit(normal(), [normal()]))
    assert diagnosis.verdict == "unreliable"
    assert diagnosis.summary.startswith("Mine says no")


def test_diagnose_can_run_a_part_and_rejects_nonsense(known_fit):
    fit = known_fit(normal(), [normal()])
    assert list(D.diagnose(fit, only=["convergence", "pareto_k"]).findings) == ["pareto_k", "convergence"]
    with pytest.raises(UnknownNameError, match="pareto_k"):
        D.diagnose(fit, only=["pareto"])
    with pytest.raises(ValueError, match=r"num_samples is 10.*at least 25"):
        D.diagnose(fit, num_samples=10)


def test_diagnose_is_repeatable_and_leaves_the_random_state_alone(known_fit):
    fit = known_fit(normal(), [normal(sd=0.8)])
    state = torch.get_rng_state()
    assert D.diagnose(fit, seed=1).k_hat == D.diagnose(fit, seed=1).k_hat != D.diagnose(fit, seed=2).k_hat
    assert torch.equal(state, torch.get_rng_state())
