"""What sites are and what they contribute, against stock Pyro and closed forms."""

from __future__ import annotations

import math

import arviz as az
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.reparam import DiscreteCosineReparam, HaarReparam, LocScaleReparam, TransformReparam

import guides
from guides import errors
from guides.program.sites import contribution, counted, density_sites, nodes, role

Y = torch.tensor([0.5, 1.5, -0.3, 2.0, 0.8, 1.1])
HALF = torch.tensor([True, False, True, True, False, True])


def normal(y):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def scaled_prior(y):
    with poutine.scale(scale=0.01):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def flat_prior(y):
    with poutine.mask(mask=False):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def masked_rows(y):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(y)), poutine.mask(mask=HALF):
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def masked_distribution(y):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(z, 1.0).expand([len(y)]).mask(HALF), obs=y)


def weighted_rows(y):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(y)), poutine.scale(scale=torch.linspace(0.5, 3.0, len(y))):
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def partly_masked_prior(y):
    with pyro.plate("columns", 3), poutine.scale(scale=2.5), poutine.mask(mask=torch.tensor([True, False, True])):
        w = pyro.sample("w", dist.Normal(torch.tensor([0.5, 0.0, -1.0]), 0.7))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(w.sum(-1), 1.0), obs=y)


def with_factor(y):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.factor("tilt", -0.5 * z.square())
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


tempered = poutine.scale(normal, 4.0)
HANDLED = [
    normal,
    tempered,
    scaled_prior,
    flat_prior,
    masked_rows,
    masked_distribution,
    weighted_rows,
    partly_masked_prior,
    with_factor,
]


@pytest.mark.parametrize("family", ["mean_field", "full_rank"])
@pytest.mark.parametrize("model", HANDLED, ids=lambda m: getattr(m, "__name__", "tempered"))
def test_the_objective_is_trace_elbo(model, family):
    guide = guides.families[family](model, init_scale=0.5)
    guide(Y)
    closed, drawn = guides.ELBO(), guides.ELBO(kl="monte_carlo")
    gaps = []
    for seed in range(60):
        pyro.set_rng_seed(seed)
        stock = -Trace_ELBO().loss(model, guide, Y)
        pyro.set_rng_seed(seed)
        assert float(drawn.estimate(model, guide, (Y,), {}).value) == pytest.approx(stock, rel=1e-5, abs=1e-5)
        pyro.set_rng_seed(seed)
        gaps.append(float(closed.estimate(model, guide, (Y,), {}).value) - stock)
    found = torch.tensor(gaps)  # zero on average: the closed form is the mean of what is drawn
    assert abs(float(found.mean())) <= 4 * float(found.std()) / math.sqrt(len(gaps)) + 1e-5


def exact_of_a_normal(prior, weights, rows):
    precision = prior + weights.sum()
    return float((weights * rows).sum() / precision), float(precision**-0.5)


@pytest.mark.parametrize(
    ("model", "prior", "weights"),
    [
        (tempered, 4.0, torch.full((6,), 4.0)),
        (scaled_prior, 0.01, torch.ones(6)),
        (flat_prior, 0.0, torch.ones(6)),
        (masked_rows, 1.0, HALF.float()),
        (weighted_rows, 1.0, torch.linspace(0.5, 3.0, 6)),
        (with_factor, 2.0, torch.ones(6)),
    ],
)
def test_fits_have_the_exact_moments(model, prior, weights):
    posterior = guides.fit(model, "mean_field", Y, steps=300, lr=0.05, schedule="cosine", compile="trace", num_particles=4)
    mean, sd = exact_of_a_normal(prior, weights, Y)
    draws = posterior.sample(4000)["z"]
    assert abs(float(draws.mean()) - mean) < 0.15 * sd
    assert 0.85 < float(draws.std()) / sd < 1.15


@pytest.mark.parametrize("model", HANDLED, ids=lambda m: getattr(m, "__name__", "tempered"))
def test_draws_score_as_pyros_traces_do(model):
    draws = guides.fit(model, "mean_field", Y, steps=2, compile="eager").draws(3)
    for k in range(3):
        values = {name: value[0, k] for name, value in draws.latents.items()}
        trace = poutine.trace(poutine.condition(model, data=values)).get_trace(Y)
        torch.testing.assert_close(draws.log_p[0, k], torch.as_tensor(trace.log_prob_sum()))
        torch.testing.assert_close(draws.log_likelihood["y"][0, k].sum(), trace.nodes["y"]["log_prob_sum"])


@pytest.mark.parametrize("model", [masked_rows, masked_distribution])
@pytest.mark.filterwarnings("ignore:Estimated shape parameter:UserWarning")
def test_masked_rows_are_no_points_of_an_elpd_and_are_predicted(model):
    posterior = guides.fit(model, "full_rank", torch.where(HALF, Y, -1e4), steps=300, lr=0.05, compile="trace")
    elpd = posterior.diagnose(only=["elpd_loo"]).elpd["y"]
    assert elpd.num_points == int(HALF.sum())
    assert elpd.elpd > -30
    tree = posterior.to_arviz(num_samples=50, coords={"rows": list("abcdef")})
    assert tree["log_likelihood"]["y"].dims == ("chain", "draw", "y_point")
    assert list(tree["log_likelihood"]["y_point"].values) == ["a", "c", "d", "f"]
    assert tree["posterior_predictive"]["y"].sizes["rows"] == 6
    assert math.isfinite(float(getattr(az.loo(tree), "elpd_loo", 0.0)))
    assert posterior.predict()["y"].abs().max() < 20


def test_a_score_of_held_out_rows_leaves_masked_ones_out():
    def model(y, there):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(y)), poutine.mask(mask=there):
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    settings = {"steps": 3, "compile": "eager", "seed": 1}
    held_out = torch.tensor([0.3, 0.1])
    fits = [
        guides.fit(model, "mean_field", Y, HALF, validation=(torch.cat([held_out, wild]), flags), **settings)
        for wild, flags in [
            (torch.tensor([1e3]), torch.tensor([True, True, False])),
            (torch.tensor([]), torch.tensor([True, True])),
        ]
    ]
    torch.testing.assert_close(fits[0].validation, fits[1].validation)


def test_roles_are_told_apart():
    def model(y):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        theta = pyro.sample("theta", dist.Normal(loc, 1.0))
        pyro.factor("f", -theta.square())
        pyro.sample("point", dist.Delta(theta), obs=theta)
        pyro.deterministic("twice", 2 * theta)
        with pyro.plate("rows", len(y), subsample_size=2) as i:
            pyro.sample("y", dist.Normal(theta, 1.0), obs=y[i])

    trace = poutine.trace(poutine.reparam(model, {"theta": LocScaleReparam(0.0)})).get_trace(Y)
    found = {name: role(site) for name, site in nodes(trace).items() if site["type"] == "sample"}
    assert found == {
        "loc": "latent",
        "theta_decentered": "latent",
        "theta": "deterministic",
        "f": "factor",
        "point": "factor",
        "twice": "deterministic",
        "rows": "subsample",
        "y": "observed",
    }
    trace.compute_log_prob()
    total = sum(contribution(site).sum() for site in density_sites(trace).values())
    torch.testing.assert_close(total, trace.log_prob_sum())


def test_points_of_a_distribution_that_allows_gaps_are_those_that_are_there():
    value = torch.tensor([[0.1, math.nan], [math.nan, math.nan], [0.2, 0.3]])
    fn = dist.NanMaskedMultivariateNormal(torch.zeros(3, 2), torch.eye(2))
    site = poutine.trace(lambda: pyro.sample("y", fn, obs=value)).get_trace().nodes["y"]
    assert counted(site).tolist() == [True, False, True]


def fixed(y):
    s = pyro.sample("s", dist.LogNormal(0.0, 0.1))
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(z, s), obs=y)


def unseen():
    s = pyro.sample("s", dist.LogNormal(0.0, 0.1))
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", 6):
        pyro.sample("y", dist.Normal(z, s))


@pytest.mark.parametrize(
    ("model", "args"),
    [
        (pyro.condition(fixed, {"s": torch.tensor(3.0)}), (3 * Y,)),
        (pyro.condition(unseen, {"s": torch.tensor(3.0), "y": 3 * Y}), ()),
    ],
)
def test_a_latent_that_is_conditioned_on_keeps_its_value(model, args):
    posterior = guides.fit(model, "mean_field", *args, steps=2, compile="eager")
    drawn = posterior.predict(num_samples=2000)["y"]
    centre = posterior.sample(2000)["z"]
    assert set(posterior.sample(2)) == {"z"}
    assert 2.7 < float((drawn - centre.mean()).std()) < 3.3
    assert {name: site.kind for name, site in posterior.sites.items()} == {
        "s": "conditioned",
        "z": "latent",
        "y": "observed",
    }
    tree = posterior.to_arviz(num_samples=10, prior_samples=10)
    assert set(tree["log_likelihood"].data_vars) == {"y"}
    assert float(tree["constant_data"]["s"]) == 3.0


def test_a_reparametrised_site_is_in_the_posterior():
    def model(y):
        with pyro.plate("groups", 2):
            pyro.sample("theta", dist.Normal(0.0, 2.0))
            t = pyro.sample("t", dist.LogNormal(0.0, 1.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(t.sum(-1), 1.0), obs=y)

    config = {"theta": LocScaleReparam(0.0), "t": TransformReparam()}
    posterior = guides.fit(poutine.reparam(model, config), "mean_field", Y, steps=3, compile="eager")
    assert set(posterior.sample(4)) == {"theta_decentered", "t_base"}
    tree = posterior.to_arviz(num_samples=10, prior_samples=0)
    assert {"theta", "t"} <= set(tree["posterior"].data_vars)
    assert tree["posterior"]["theta"].dims == ("chain", "draw", "groups")
    assert set(tree["observed_data"].data_vars) == {"y"}
    assert set(posterior.diagnose(only=["elpd_loo"]).elpd) == {"y"}


def test_deterministic_sites_of_the_data_and_of_predictions():
    def model(y):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(y)):
            seen = pyro.sample("y", dist.Normal(z, 1.0), obs=y)
        pyro.deterministic("residual", seen - z)

    for family in ("mean_field", "laplace"):
        posterior = guides.fit(model, family, Y, steps=50, compile="eager")
        tree = posterior.to_arviz(num_samples=20, prior_samples=0)
        z = torch.as_tensor(tree["posterior"]["z"].values)[0]
        torch.testing.assert_close(torch.as_tensor(tree["posterior"]["residual"].values)[0], Y - z[:, None])
        predicted = posterior.predict(num_samples=50)
        apart = predicted["y"] - predicted["residual"]
        assert (apart.std(1) < 1e-5).all()
        assert predicted["y"].std() > 0.5


def test_the_known_part_of_a_latent_stays_known():
    def model(y, there):
        mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y, obs_mask=there)

    settings = {"lr": 0.05, "schedule": "cosine", "compile": "trace"}
    posterior = guides.fit(model, "mean_field", Y, HALF, steps=800, num_particles=4, **settings)
    tree = posterior.to_arviz(num_samples=200, prior_samples=0)
    held = torch.as_tensor(tree["posterior"]["y"].values)[0][:, HALF]
    torch.testing.assert_close(held, Y[HALF].expand_as(held))
    assert tree["log_likelihood"]["y_observed"].sizes["y_observed_point"] == int(HALF.sum())
    # The unknown part does not inform the mean, and elements that are known anyway do not drift.
    mean, sd = exact_of_a_normal(1 / 9, HALF.float(), Y)
    draws = posterior.sample(4000)
    assert abs(float(draws["mu"].mean()) - mean) < 0.2 * sd
    assert 0.7 < float(draws["y_unobserved"][:, HALF].std(0).max()) < 1.4


def subsampled(y, index=None):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(y), subsample_size=2) as i:
        pyro.sample("y", dist.Normal(z, 1.0), obs=y[i])


def indexed(y):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    index = torch.randperm(len(y))[:2]
    with pyro.plate("rows", len(y), subsample=index):
        pyro.sample("y", dist.Normal(z, 1.0), obs=y[index])


def sequential(y):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    for i in pyro.plate("rows", len(y), subsample_size=2):
        pyro.sample(f"y{i}", dist.Normal(z, 1.0), obs=y[i])


@pytest.mark.parametrize("model", [subsampled, indexed, sequential])
@pytest.mark.filterwarnings("ignore::guides.errors.EagerFallbackWarning")
def test_a_model_that_subsamples_is_judged_on_all_rows(model):
    settings = {"lr": 0.05, "schedule": "cosine", "compile": "trace" if model is not sequential else "eager"}
    posterior = guides.fit(model, "full_rank", Y, steps=300, num_particles=4, **settings)
    draws = posterior.draws(200, predictive=True)
    for k in range(3):
        values = {"z": draws.latents["z"][0, k]}
        trace = poutine.trace(poutine.condition(normal, data=values)).get_trace(Y)
        torch.testing.assert_close(draws.log_p[0, k], trace.log_prob_sum())
    assert sum(e.num_points for e in posterior.diagnose(only=["elpd_loo"]).elpd.values()) == len(Y)
    assert sum(v[0].numel() for v in posterior.predict(num_samples=3).values()) == len(Y)
    mean, sd = exact_of_a_normal(1.0, torch.ones(6), Y)
    drawn = posterior.sample(4000)["z"]
    assert abs(float(drawn.mean()) - mean) < 0.5 * sd
    seen = posterior.to_arviz(num_samples=5, prior_samples=5)["observed_data"]
    assert sum(v.size for v in seen.data_vars.values()) == len(Y)


@pytest.mark.parametrize("family", ["mean_field", "full_rank", pyro.infer.autoguide.AutoNormal])
def test_latents_in_a_subsampled_plate_have_one_value_per_row(family):
    def model(y):
        with pyro.plate("rows", len(y), subsample_size=2) as i:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 0.5), obs=y[i])

    guide = family if isinstance(family, str) else family(model)
    posterior = guides.fit(model, guide, Y, steps=1200, lr=0.05, schedule="cosine", num_particles=8, compile="trace")
    draws = posterior.sample(2000)["z"]
    assert draws.shape == (2000, 6)
    assert float((draws.mean(0) - 0.8 * Y).abs().max()) < 0.15  # exact: 4 y / 5, sd 0.447
    assert float(draws.std(0).min()) > 0.35 and float(draws.std(0).max()) < 0.56


def test_a_plate_that_the_guide_alone_subsamples():
    def model(y):
        with pyro.plate("rows", len(y)) as i:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 0.5), obs=y[i])

    def guide(y):
        slope = pyro.param("slope", torch.tensor(0.0))
        with pyro.plate("rows", len(y), subsample_size=2) as i:
            pyro.sample("z", dist.Normal(slope * y[i], 0.45))

    posterior = guides.fit(model, guide, Y, steps=300, lr=0.05, schedule="cosine", compile="trace")
    assert abs(float(posterior.parameters["slope"]) - 0.8) < 0.1
    assert posterior.sample(3)["z"].shape == (3, 6)


def test_rows_that_nobody_can_steer_are_said():
    def model(y):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        index = torch.randint(len(y), (2,))
        with pyro.plate("rows", len(y), subsample=index):
            pyro.sample("y", dist.Normal(z, 1.0), obs=y[index])

    with pytest.warns(errors.FixedSubsampleWarning, match=r"plate 'rows'.*subsample_size"):
        guides.fit(model, "mean_field", Y, steps=2, compile="eager")


def test_a_part_that_knows_the_size_of_the_whole_is_no_choice_of_rows():
    def model(y):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 600, subsample_size=len(y)):
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    draws = guides.fit(model, "mean_field", Y, steps=2, compile="eager").draws(2)
    trace = poutine.trace(poutine.condition(model, data={"z": draws.latents["z"][0, 0]})).get_trace(Y)
    torch.testing.assert_close(draws.log_p[0, 0], trace.log_prob_sum())
    torch.testing.assert_close(100 * draws.log_likelihood["y"][0, 0].sum(), trace.nodes["y"]["log_prob_sum"])


def allows_gaps(y):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.NanMaskedNormal(z.expand(len(y)), torch.ones(len(y))), obs=y)


@pytest.mark.parametrize("model", [masked_rows, allows_gaps])
def test_missing_values_are_welcome_where_the_model_leaves_them_out(model):
    holes = torch.where(HALF, Y, math.nan)
    settings = {"lr": 0.05, "schedule": "cosine", "compile": "trace"}
    posterior = guides.fit(model, "full_rank", holes, steps=300, num_particles=4, **settings)
    mean, sd = exact_of_a_normal(1.0, HALF.float(), Y)
    drawn = posterior.sample(4000)["z"]
    assert abs(float(drawn.mean()) - mean) < 0.15 * sd
    assert posterior.diagnose(only=["elpd_loo"]).elpd["y"].num_points == int(HALF.sum())
    assert bool(torch.isfinite(posterior.predict(num_samples=5)["y"]).all())


@pytest.mark.parametrize("model", [normal, lambda y: masked_rows(y.cumsum(0))])
def test_missing_values_that_reach_the_density_are_refused_before_any_work(model):
    with pytest.raises(errors.DataError, match=r"argument 0 has 2 NaN.*poutine\.mask"):
        guides.fit(model, "mean_field", torch.where(HALF, Y, math.nan), steps=10**9)


def test_functions_of_the_latents_have_moments_as_latents_have():
    def model(y):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.deterministic("twice", 2 * z)
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    posterior = guides.fit(model, "full_rank", Y, steps=200, lr=0.05, compile="trace")
    moments = posterior.diagnose(only=["psis_moments"]).findings["psis_moments"].sites
    torch.testing.assert_close(moments["twice"].psis_mean, 2 * moments["z"].psis_mean)
    torch.testing.assert_close(moments["twice"].psis_sd, 2 * moments["z"].psis_sd)


@pytest.mark.parametrize("reparam", [HaarReparam(), DiscreteCosineReparam()])
def test_a_site_under_another_basis_is_in_the_posterior_too(reparam):
    def model(y):
        walk = pyro.sample("walk", dist.Normal(torch.zeros(4), 1.0).to_event(1))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(walk.sum(-1), 1.0), obs=y)

    reparametrised = poutine.reparam(model, {"walk": reparam})
    draws = guides.fit(reparametrised, "mean_field", Y, steps=2, compile="eager").draws(2)
    assert draws.deterministic["walk"].shape == (1, 2, 4)
    (auxiliary,) = draws.latents
    for k in range(2):
        values = {auxiliary: draws.latents[auxiliary][0, k]}
        trace = poutine.trace(poutine.condition(reparametrised, data=values)).get_trace(Y)
        torch.testing.assert_close(draws.deterministic["walk"][0, k], trace.nodes["walk"]["value"])
        torch.testing.assert_close(draws.log_p[0, k], trace.log_prob_sum())
