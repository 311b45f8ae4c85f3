"""The amortised guide on models whose posterior is known, in all its forms, and what it refuses."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from amortized_models import (
    LATENT,
    NOISE,
    PIXELS,
    ExactEncoder,
    encoder,
    evidence,
    exact,
    global_posterior,
    loadings,
    pair,
    pca,
    rows_of,
    skewed_loadings,
    supports,
    with_global,
)
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO
from torch import nn

import guides
from guides import errors
from guides.compile.loops import has_compiler

CLOSE = {"rtol": 2e-4, "atol": 2e-3}
FORMS = {
    "diagonal": {},
    "low_rank": {"covariance": "low_rank", "rank": 1},
    "full": {"covariance": "full"},
    "iaf": {"flow": "iaf"},
    "spline": {"flow": "spline", "covariance": "full"},
}


def fit(model, x, options=None, **fit_options):
    options = {"encoder": encoder(), **(options or {})}
    return guides.fit(model, ("amortized", options), x, **{"steps": 5, "compile": "eager", **fit_options})


@pytest.mark.parametrize("objective", [guides.ELBO(), guides.ELBO(kl="monte_carlo")])
def test_the_exact_encoder_makes_the_elbo_the_evidence(objective):
    weights = loadings()
    x = rows_of(weights)
    options = {"encoder": ExactEncoder(weights)}
    posterior = fit(pca(weights), x, options, objective=objective, steps=1, lr=1e-9, batch_size=20, num_particles=None)
    draws = posterior.draws(3)
    torch.testing.assert_close(draws.log_p - draws.log_q, evidence(weights, x).sum().expand(1, 3), rtol=1e-4, atol=1e-2)
    value = posterior.replicate(0).program.objective.estimate(pca(weights), posterior.guide, (x,), {}).value
    expected = float(evidence(weights, x).sum())
    noise = 0.0 if objective.kl == "monte_carlo" else 4 * math.sqrt(len(x) * PIXELS)
    assert abs(float(value) - expected) <= noise + 1e-2


@pytest.mark.parametrize("compile", ["eager", "trace"])
def test_an_encoder_learns_the_exact_posterior(compile):
    """With a linear encoder the family contains the posterior, whose correlations a full covariance has."""
    weights = skewed_loadings()
    x = rows_of(weights)
    mean, covariance = exact(weights)
    options = {"encoder": nn.Linear(PIXELS, LATENT), "covariance": "full", "init_scale": 0.5}
    steps = {"steps": 1200, "lr": 0.03, "schedule": "cosine", "objective": guides.ELBO(kl="monte_carlo")}
    if compile == "eager":
        steps["steps"] = 60
    posterior = fit(pca(weights), x, options, compile=compile, **steps)
    gap = float(evidence(weights, x).mean() + posterior.losses[0, -20:].mean() / len(x))
    if compile == "eager":
        assert gap < 1.0
        return
    assert abs(gap) < 0.02
    new = rows_of(weights, 3, seed=5)
    draws = posterior.draws(2000, new).latents["z"][0]
    error = covariance.diagonal().sqrt() / math.sqrt(2000)
    assert (draws.mean(0) - new @ mean.T).abs().max() < 4 * error.max() + 0.06
    torch.testing.assert_close(torch.cov(draws[:, 0].T), covariance, atol=0.04, rtol=0.0)


@pytest.mark.parametrize("form", FORMS)
def test_traced_and_eager_steps_agree_in_minibatches_and_replicates(form):
    weights = skewed_loadings()
    x = rows_of(weights)
    options = {"steps": 7, "lr": 0.02, "batch_size": 20, "replicates": 2, "num_particles": 2}
    eager, traced = (fit(pca(weights), x, FORMS[form], compile=mode, **options) for mode in ("eager", "trace"))
    torch.testing.assert_close(traced.losses, eager.losses, **CLOSE)
    torch.testing.assert_close(traced.flat, eager.flat, **CLOSE)
    assert (eager.losses[0] - eager.losses[1]).abs().max() > 1e-3
    alone = fit(pca(weights), x, FORMS[form], **{**options, "replicates": 1, "seed": 1, "steps": 3})
    torch.testing.assert_close(alone.losses[0], eager.losses[1, :3], rtol=2e-3, atol=0.0)


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(), reason="no C++ compiler")
@pytest.mark.parametrize("form", FORMS)
def test_compiled_steps_agree(form, monkeypatch):
    monkeypatch.setattr("guides.optimise.loop._STEPS_PER_CHUNK", 5)
    weights = skewed_loadings()
    x = rows_of(weights)
    options = {"steps": 20, "lr": 0.02, "batch_size": 20}
    eager, compiled = (fit(pca(weights), x, FORMS[form], compile=mode, **options) for mode in ("eager", "native"))
    torch.testing.assert_close(compiled.losses, eager.losses, **CLOSE)


@pytest.mark.parametrize("form", FORMS)
def test_draws_have_the_density_that_log_q_claims(form, tmp_path):
    """Weights r / q average to one for any normalised r; here a normal of the draws' moments, narrower."""
    weights = skewed_loadings()
    x = rows_of(weights)[:1]
    posterior = fit(pca(weights), rows_of(weights), {**FORMS[form], "init_scale": 0.4}, steps=30, lr=0.02, compile="trace")
    draws = posterior.draws(4000, x)
    z = draws.latents["z"][0, :, 0]
    narrow = torch.distributions.MultivariateNormal(z.mean(0), 0.8 * torch.cov(z.T))
    ratio = (narrow.log_prob(z) - draws.log_q[0]).exp()
    assert abs(float(ratio.mean()) - 1) < 4 * float(ratio.std()) / math.sqrt(4000)
    whole = posterior.draws(1)
    assert float(posterior.log_prob({"z": whole.latents["z"][0, 0]})) == pytest.approx(float(whole.log_q), abs=0.05)
    posterior.save(tmp_path / "posterior")
    with pytest.raises(errors.OptionError, match=r"'encoder' of guide 'amortized' hold modules.*pass guide="):
        guides.Posterior.load(tmp_path / "posterior", pca(weights))
    spec = ("amortized", {**FORMS[form], "encoder": encoder(seed=9)})
    loaded = guides.Posterior.load(tmp_path / "posterior", pca(weights), guide=spec)
    torch.testing.assert_close(loaded.draws(3, x).latents["z"], posterior.draws(3, x).latents["z"])


@pytest.mark.parametrize("form", ["diagonal", "full", "iaf"])
def test_any_support_and_shape(form):
    x = rows_of(skewed_loadings())
    posterior = fit(supports, x, FORMS[form], steps=40, lr=0.03, batch_size=20, compile="trace", num_particles=2)
    assert posterior.losses[0, -5:].mean() < posterior.losses[0, :5].mean()
    draws = posterior.draws(5, x[:7])
    for name, site in posterior.sites.items():
        if site.kind == "latent":
            value = draws.latents[name]
            assert value.shape == (1, 5, 7, *site.shape[1:])
            assert site.support.check(value[0, :, :1]).all(), name
    torch.testing.assert_close(
        posterior.log_prob({n: v[0, 0] for n, v in posterior.draws(1).latents.items()}),
        posterior.draws(1).log_q[0, 0],
        rtol=1e-3,
        atol=0.1,
    )
    replayed = poutine.condition(supports, {n: v[0, 0] for n, v in draws.latents.items()})
    torch.testing.assert_close(draws.log_p[0, 0], poutine.trace(replayed).get_trace(x[:7]).log_prob_sum(), **CLOSE)


def test_latents_in_other_plates_beside_the_rows():
    def model(x):
        with pyro.plate("data", len(x), dim=-2), pyro.plate("pixels", PIXELS, dim=-1):
            rate = pyro.sample("rate", dist.Gamma(2.0, 2.0))
            pyro.sample("x", dist.Normal(0.0, rate.rsqrt()), obs=x)

    x = rows_of(skewed_loadings())
    posterior = fit(model, x, steps=20, batch_size=20, lr=0.05)
    assert posterior.sites["rate"].shape == (len(x), PIXELS)
    assert posterior.draws(3, x[:5]).latents["rate"].shape == (1, 3, 5, PIXELS)
    with pytest.raises(errors.OptionError, match="'rate' stands in other plates"):
        fit(model, x, {"covariance": "full"})


@pytest.mark.parametrize("order", ["bottom_up", "ladder"])
def test_two_layers(order):
    x = rows_of(skewed_loadings())
    encoders = [encoder(), encoder(LATENT if order == "bottom_up" else 8, seed=1)]
    options = {"encoder": encoders, "order": order}
    posterior = fit(pair, x, options, steps=300, lr=0.02, batch_size=30, compile="trace", num_particles=2)
    assert list(posterior.guide.layers) == [["z_1"], ["z_2"]]
    assert posterior.losses[0, -30:].mean() < posterior.losses[0, :10].mean() - 10
    draws = posterior.draws(200, x[:5])
    assert (draws.log_p - draws.log_q).isfinite().all()
    total = draws.latents["z_1"][0].sum(-1).mean(0)
    # The sum of z_1 has prior variance 2 * 1.25, and PIXELS observations of it.
    want = x[:5].mean(-1) * 2.5 / (2.5 + NOISE**2 / PIXELS)
    assert (total - want).abs().max() < 0.5
    eager = fit(pair, x, {**options, "encoder": [encoder(), encoder(8 if order == "ladder" else LATENT, seed=1)]}, steps=4)
    traced = fit(
        pair,
        x,
        {**options, "encoder": [encoder(), encoder(8 if order == "ladder" else LATENT, seed=1)]},
        steps=4,
        compile="trace",
    )
    torch.testing.assert_close(eager.losses, traced.losses, **CLOSE)


def test_a_ladder_weighs_the_prior_by_its_precision():
    """With an encoder that says N(0, 1) of everything, z_1 given z_2 is the product of N(0, 1) and N(z_2, 0.5)."""

    class Nothing(nn.Module):
        def forward(self, x):
            return torch.zeros(len(x), 3)

    x = rows_of(skewed_loadings())
    posterior = fit(pair, x, {"encoder": [Nothing(), Nothing()], "order": "ladder", "init_scale": 1.0}, steps=1, lr=1e-9)
    guide = posterior.guide
    for head in guide.heads:
        head.loc.bias.data.zero_()
    trace = poutine.trace(guide).get_trace(x)
    top, fn = trace.nodes["z_2"]["value"], trace.nodes["z_1"]["fn"].base_dist
    torch.testing.assert_close(fn.scale, torch.full_like(top, math.sqrt(1 / (1 + 1 / 0.25))))
    torch.testing.assert_close(fn.loc, top * (1 / 0.25) / (1 + 1 / 0.25))


def test_global_latents_go_to_another_family():
    x = rows_of(skewed_loadings()) + 1.0
    mean, sd = global_posterior(x)
    for rest in ("mean_field", ("full_rank", {"init_scale": 0.05})):
        options = {"encoder": nn.Linear(PIXELS, 4), "rest": rest}
        posterior = fit(with_global, x, options, steps=600, lr=0.03, batch_size=30, schedule="cosine", compile="trace")
        draws = posterior.draws(1000)
        assert abs(float(draws.latents["mean"].mean()) - mean) < 4 * sd
        assert float(draws.latents["mean"].std()) < 3 * sd
        assert posterior.sample(2)["z"].shape == (2, len(x))
        one = posterior.draws(1)
        value = posterior.log_prob({n: v[0, 0] for n, v in one.latents.items()})
        assert float(value) == pytest.approx(float(one.log_q), abs=0.05)
    validated = fit(with_global, x, {"encoder": nn.Linear(PIXELS, 4)}, epochs=2, steps=None, batch_size=30, validation=0.2)
    assert validated.validation.isfinite().all()
    with pytest.raises(errors.OptionError, match="rest='laplace' is finished"):
        fit(with_global, x, {"rest": "laplace"})


def test_inputs_that_are_missing_leave_latents_to_the_prior():
    def model(x, y=None):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x, 0.1))
            return pyro.sample("y", dist.Normal(z, 0.1), obs=y)

    class Both(nn.Module):
        def forward(self, x, y):
            return torch.stack([x, y], -1)

    x = torch.linspace(-2, 2, 50)
    options = {"encoder": Both(), "inputs": (0, 1)}
    posterior = guides.fit(model, ("amortized", options), x, x + 1.0, batch_size=10, epochs=5)
    predicted = posterior.predict(torch.tensor([10.0, -10.0, 3.0]), num_samples=500)["y"]
    torch.testing.assert_close(predicted.mean(0), torch.tensor([10.0, -10.0, 3.0]), atol=0.05, rtol=0.0)
    draws = posterior.draws(5, x[:3], x[:3] + 1.0)
    assert draws.log_q.isfinite().all()
    again = posterior.draws(5, x)
    assert again.log_q.isnan().all()
    assert "z" not in again.latents


@pytest.mark.parametrize("loss", [Trace_ELBO, guides.ELBO])
def test_it_is_a_guide_in_stock_svi(loss):
    weights = skewed_loadings()
    x, model = rows_of(weights), pca(weights)
    guide = guides.Amortized(model, encoder=encoder(), covariance="full")
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), loss=loss(num_particles=2))
    losses = torch.tensor([svi.step(x[20 * (k % 3) : 20 * (k % 3) + 20]) for k in range(60)])
    assert losses[-6:].mean() < losses[:6].mean() - 5
    draws = Predictive(model, guide=guide, num_samples=5)(x[:7])
    assert draws["z"].shape == (5, 7, LATENT)
    with pytest.raises(errors.DataError, match=r"argument 0 of the encoder has NaN.*in 1 of 20 rows, first in row 3"):
        svi.step(torch.where(torch.arange(20)[:, None] == 3, math.nan, x[:20]))


def test_a_plate_of_all_the_data_gets_its_rows_as_a_subsample():
    weights = skewed_loadings()
    x = rows_of(weights)

    def model(x):
        with pyro.plate("data", 60, subsample=torch.arange(len(x))):
            z = pyro.sample("z", dist.Normal(torch.zeros(LATENT), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weights.T, NOISE).to_event(1), obs=x)

    losses = [fit(m, x, batch_size=20, steps=5, seed=3).losses for m in (model, pca(weights))]
    torch.testing.assert_close(*losses, **CLOSE)


class Returns(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, x):
        return self.make(x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x: x.flatten(), r"features of shape \(240,\) for 60 rows.*\(60, F\)"),
        (lambda x: x[:5], r"features of shape \(5, 4\) for 60 rows"),
        (lambda x: x[:, :, None], r"features of shape \(60, 4, 1\)"),
        (lambda x: (x[:, :3], x[:, :3].exp()), r"loc of shape \(60, 3\) for latent site 'z', which needs \(60, 2\)"),
        (lambda x: (x[:, :2], x[:, :1].exp()), r"scale of shape \(60, 1\)"),
        (lambda x: (x, x, x), "a tuple of 3"),
        (lambda x: {"loc": x}, "encoder 1 returns dict"),
    ],
)
def test_an_encoder_that_does_not_fit(make, message):
    weights = skewed_loadings()
    with pytest.raises(errors.GuideMismatchError, match=message):
        fit(pca(weights), rows_of(weights), {"encoder": Returns(make)})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": 3}, "encoder must be a torch.nn.Module.*not int"),
        ({"encoder": []}, "not nothing"),
        ({"order": "top_down"}, "order='top_down' is not known; use one of 'bottom_up', 'ladder'"),
        ({"covariance": "banded"}, "covariance='banded'.*'low_rank'"),
        ({"flow": "glow"}, "flow='glow'.*'iaf' or 'spline'"),
        ({"rank": 2}, "rank=2 means something for covariance='low_rank' only"),
        ({"num_flows": 0, "flow": "iaf"}, "num_flows must be a whole number of at least 1"),
        ({"init_scale": 0.0}, "init_scale must be positive"),
        ({"inputs": "x"}, "inputs must be positions or names"),
        ({"order": "ladder", "covariance": "full"}, "covariance='full' does not go with it"),
        ({"encoder": [encoder(), encoder(8)]}, r"2 encoders for 1 local latent sites \(z\)"),
        ({"layers": [["y"]]}, "must name every local latent once; the model has z"),
        ({"layers": [["z"]], "encoder": [encoder(), encoder(8)]}, "1 layers and 2 encoders"),
        ({"inputs": (1,)}, "first called without the encoder's inputs"),
        ({"encoder": ExactEncoder(loadings()), "covariance": "full"}, "needs an encoder that returns features"),
        ({"rest": "mean_feild", "encoder": None}, "not NoneType"),
    ],
)
def test_options_that_do_not_fit(options, message):
    weights = skewed_loadings()
    with pytest.raises(ValueError, match=message):
        fit(pca(weights), rows_of(weights), options)


def test_models_that_cannot_be_amortised():
    x = rows_of(skewed_loadings())

    def only_global(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0).expand([len(x), PIXELS]).to_event(1), obs=x)

    def no_plate(x):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).expand([len(x), PIXELS]).to_event(2), obs=x)

    def moving(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Uniform(x[:, 0] - 1.0, x[:, 0] + 1.0))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).expand([len(x), PIXELS]).to_event(1), obs=x)

    def upside_down(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z_2", dist.LogNormal(torch.zeros(LATENT), 1.0).to_event(1))
            other = pyro.sample("z_1", dist.LogNormal(z, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(other.sum(-1, keepdim=True).expand(x.shape), 1.0).to_event(1), obs=x)

    with pytest.raises(errors.UnsupportedModelError, match=r"no latent with one value per row of the 60 rows.*'mean'"):
        fit(only_global, x)
    with pytest.raises(errors.UnsupportedModelError, match=r"'z' has shape .* stands in no plate"):
        fit(no_plate, x)
    with pytest.raises(errors.UnsupportedModelError, match="support of latent site 'z' depends on the row"):
        fit(moving, x)
    two = [encoder(), encoder(8)]
    with pytest.raises(errors.UnsupportedModelError, match="'z_1' is LogNormal below the top layer"):
        fit(upside_down, x, {"encoder": two, "order": "ladder"})
    with pytest.raises(errors.UnsupportedModelError, match="draws 'z_1' before 'z_2', the model after it"):
        fit(pair, x, {"encoder": two, "order": "ladder", "layers": [["z_2"], ["z_1"]]})


def test_the_rows_of_a_batch_can_be_one():
    weights = skewed_loadings()
    guide = guides.Amortized(pca(weights), encoder=encoder())
    x = rows_of(weights)
    for rows in (x[:1], x[:3]):
        assert poutine.trace(guide).get_trace(rows).nodes["z"]["value"].shape == (len(rows), LATENT)
    assert guide.amortized == {"z"}
