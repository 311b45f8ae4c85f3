"""Around a fit: who owns the trained networks, copies, replicates, interruptions, memory, threads."""

import copy
import functools
import math
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from guide_models import SCHOOLS, line, linear, linear_posterior, network, schools
from pyro import poutine
from pyro.infer.autoguide import AutoNormal, init_to_value
from torch import nn

import guides
from guides import errors

QUICK = {"steps": 60, "lr": 0.05}

_PEAK = """
import resource, torch, guides
from guide_models import linear
torch.manual_seed(0)
x = torch.randn(20, 100_000)
posterior = guides.fit(linear, "mean_field", x, x[:, 0], steps=2, compile="eager")
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
posterior.predict(x, num_samples=20)
before = peak()
posterior.predict(x, num_samples=1000)
posterior.log_likelihood(num_samples=1000)
print(peak() - before)
"""


def test_predictions_do_not_hold_the_weights_of_all_draws():
    """100,000 weights: the draws of 1000 are 400 MB, which a prediction of 20 rows has no use for."""
    folder = Path(__file__).parent
    surroundings = {"PYTHONPATH": f"{folder.parents[1]}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", _PEAK], cwd=folder, capture_output=True, text=True, env=surroundings)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 150


def test_what_a_model_makes_on_the_way_bounds_the_chunk():
    """A deep network makes far more numbers than its rows and weights tell of; only a count of them bounds the memory."""
    data = line(rows=4)
    seen = []

    def wide(x, y=None):
        for _ in range(20):
            torch.ones(100_000) + x.sum()
        seen.append(1)
        return linear(x, y)

    posterior = guides.fit(wide, "mean_field", *data, steps=2, compile="eager")
    seen.clear()
    posterior.sample(100)
    few = len(seen)
    posterior.predict(num_samples=100)
    assert len(seen) - few > 5  # 4 million numbers a draw, 33 million a chunk


def test_all_draws_are_there_whatever_the_chunk(monkeypatch):
    posterior = guides.fit(network, "mean_field", *line(), replicates=2, **QUICK)
    monkeypatch.setattr("guides.fitted.draws._ELEMENTS_PER_CHUNK", 2000)
    draws = posterior.draws(30, predictive=True)
    whole = torch.cat([draws.latents["w1"].flatten(), draws.predictive["y"].flatten(), draws.log_p.flatten()])
    assert torch.isfinite(whole).all()
    assert len(draws.latents["w1"][:, :, 0, 0].unique()) == 60
    want = posterior.draws(30, predictive=True)
    torch.testing.assert_close(draws.log_likelihood["y"], want.log_likelihood["y"], rtol=0, atol=0)


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), nn.Tanh())

    def forward(self, x):
        return self.body(x)


class Decoder(nn.Module):
    """A model of rows that generates, as those of the zoo do."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(2, 4)

    def model(self, x):
        pyro.module("net", self.net)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            self.last = self.net(z)
            return pyro.sample("x", dist.Normal(self.last, 1.0).to_event(1), obs=x)

    def decode(self, z):
        return self.net(z)


ROWS = 3 + torch.randn(50, 4, generator=torch.Generator().manual_seed(0))


def amortised(replicates=1, **options):
    torch.manual_seed(1)
    made, encoder = Decoder(), Encoder()
    fit = {"steps": 60, "lr": 0.05, "compile": "eager", "replicates": replicates, **options}
    return made, encoder, guides.fit(made.model, ("amortized", {"encoder": encoder}), ROWS, **fit)


def trained_bias(module):
    """Whether a decoder's bias has moved to the mean of the data, 3."""
    return float(module.net.bias.detach().mean()) > 1


def test_the_model_of_a_posterior_is_the_trained_one():
    made, encoder, posterior = amortised()
    inside = posterior.model.__self__
    assert inside is not made
    assert trained_bias(inside)
    assert trained_bias(made)  # one fit: the caller's modules too
    torch.testing.assert_close(inside.decode(torch.ones(2)), made.decode(torch.ones(2)), rtol=0, atol=0)
    torch.testing.assert_close(posterior.guide.encoders[0].body[0].weight, encoder.body[0].weight, rtol=0, atol=0)
    assert posterior.options["encoder"] is posterior.guide.encoders[0]


def test_a_later_fit_of_the_same_modules_leaves_the_posterior_alone():
    made, encoder, posterior = amortised()
    before = {k: v.clone() for k, v in posterior.model.__self__.state_dict().items()}
    want = posterior.predict(num_samples=3)
    guides.fit(made.model, ("amortized", {"encoder": encoder}), -ROWS, steps=60, lr=0.05, compile="eager")
    assert not trained_bias(made)
    torch.testing.assert_close(posterior.model.__self__.state_dict(), before, rtol=0, atol=0)
    torch.testing.assert_close(posterior.predict(num_samples=3), want, rtol=0, atol=0)


def test_replicates_have_models_of_their_own():
    made, _, posterior = amortised(replicates=2)
    assert not trained_bias(made)  # which of the two should it be?
    parts = [posterior.replicate(r) for r in range(2)]
    for part in parts:
        assert trained_bias(part.model.__self__)
        torch.testing.assert_close(part.model.__self__.net.bias.detach(), part.parameters["net$$$bias"], rtol=0, atol=0)
    assert not torch.equal(parts[0].model.__self__.net.bias, parts[1].model.__self__.net.bias)
    best = min(range(2), key=lambda r: posterior.losses[r, -6:].mean())
    torch.testing.assert_close(posterior.model.__self__.net.bias, parts[best].model.__self__.net.bias, rtol=0, atol=0)


def test_loading_trains_the_callers_networks_and_those_of_the_posterior(tmp_path):
    _, _, posterior = amortised()
    posterior.save(tmp_path / "saved")
    new = Decoder()
    loaded = guides.Posterior.load(tmp_path / "saved", new.model, guide=("amortized", {"encoder": Encoder()}))
    for module in (new, loaded.model.__self__):
        torch.testing.assert_close(module.net.bias, posterior.model.__self__.net.bias, rtol=0, atol=0)
    torch.testing.assert_close(loaded.predict(num_samples=3), posterior.predict(num_samples=3), rtol=0, atol=0)


@pytest.mark.parametrize("replicates", [1, 3])
def test_a_fit_that_starts_from_a_posterior_leaves_it_alone(replicates):
    x, y = line()
    first = guides.fit(linear, "mean_field", x, y, steps=400, lr=0.05, replicates=replicates)
    held = first.guide.loc.detach().clone()
    draws = first.sample(3)
    again = guides.fit(linear, first.guide, x, y, steps=1, lr=1e-6, replicates=2)
    torch.testing.assert_close(again.parameters["MeanField.loc"], held.expand(2, -1), rtol=0, atol=1e-4)
    guides.fit(linear, first.guide, x, -y, steps=100, lr=0.05)
    torch.testing.assert_close(first.guide.loc.detach(), held, rtol=0, atol=0)
    torch.testing.assert_close(first.sample(3), draws, rtol=0, atol=0)
    assert first.guide.model is not None


def test_a_vae_goes_on_from_the_guide_of_a_posterior_with_new_networks():
    """The ladder's guide asks the model for its prior: it has to be that of the fit, not that of the posterior."""
    made, _, posterior = amortised()
    other = Decoder()
    again = guides.fit(other.model, posterior.guide, -ROWS, steps=60, lr=0.05, compile="eager")
    for fitted in (again, posterior):
        held = fitted.guide.model
        while isinstance(held, functools.partial):  # inside the handler of the initial values
            held = held.args[-1]
        assert held.__self__ is fitted.model.__self__
    assert float(other.net.bias.detach().mean()) < -1
    assert trained_bias(posterior.model.__self__)
    assert trained_bias(made)


CASES = {
    "plates": (schools, "mean_field", SCHOOLS),
    "full_rank": (network, "full_rank", line()),
    "laplace": (network, "laplace", line()),
    "mixture": (network, ("mixture", {"components": 2}), line()),
    "stock autoguide": (schools, AutoNormal(schools), SCHOOLS),
}


def same(a, b):
    torch.testing.assert_close(a.predict(num_samples=4), b.predict(num_samples=4), rtol=0, atol=0)
    torch.testing.assert_close(a.draws(4).log_p, b.draws(4).log_p, rtol=0, atol=0)


@pytest.mark.parametrize("name", CASES)
def test_a_posterior_is_pickled_and_copied(name):
    model, guide, data = CASES[name]
    posterior = guides.fit(model, guide, *data, **QUICK)
    posterior.diagnose(num_samples=30)  # leaves tensors of the draws' transforms behind
    for other in (copy.deepcopy(posterior), pickle.loads(pickle.dumps(posterior))):
        same(other, posterior)
        assert other.guide is not posterior.guide
        stock = poutine.trace(other.guide).get_trace(*data)
        assert set(posterior.sample(1)) <= set(stock.nodes)
        same(copy.deepcopy(other), posterior)
        guides.fit(model, other.guide, *data, steps=3)
    same(posterior, pickle.loads(pickle.dumps(posterior.replicate(0))))
    assert posterior.guide.model is not None


def test_a_posterior_with_networks_is_pickled_and_copied():
    _, _, posterior = amortised()
    posterior.predict(num_samples=3)
    assert torch._C._functorch.is_functorch_wrapped_tensor(posterior.model.__self__.last)
    for other in (copy.deepcopy(posterior), pickle.loads(pickle.dumps(posterior))):
        same(other, posterior)
        assert trained_bias(other.model.__self__)
        assert other.options["encoder"] is other.guide.encoders[0]
        (inside, _), *_ = other.program.parameters.owners["net$$$bias"]
        assert inside is other.model.__self__.net
    with torch.no_grad():
        posterior.model.__self__.net.bias.zero_()
    same(posterior, other)  # its methods go by the parameters, whatever becomes of the modules


def test_a_posterior_comes_back_from_a_worker():
    joblib = pytest.importorskip("joblib")
    x, y = line()
    scale = nn.Linear(1, 1)

    def local(x, y=None):  # a closure, which only cloudpickle can send
        pyro.module("scale", scale)
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ w, scale.weight.exp().squeeze()), obs=y)

    def work():
        return guides.fit(local, "mean_field", x, y, steps=30, compile="eager")

    (there,) = joblib.Parallel(n_jobs=2)([joblib.delayed(work)()])
    here = work()
    torch.testing.assert_close(there.flat, here.flat, rtol=1e-4, atol=1e-5)
    same(there, replace(here, flat=there.flat))


def test_what_cannot_be_copied_is_shared():
    x, y = line()

    class Held:
        def __init__(self):
            self.file = open(__file__)  # noqa: SIM115

        def __call__(self, x, y=None):
            return linear(x, y)

    model = Held()
    posterior = guides.fit(model, "mean_field", x, y, **QUICK)
    assert posterior.model is model
    model.file.close()


GRID = torch.linspace(0, 1, 12)


def process(x, y=None):
    """A Gaussian process whose covariance has no Cholesky factor, as far as float32 can tell, once the scale is long."""
    scale = pyro.sample("scale", dist.LogNormal(0.0, 3.0))
    covariance = torch.exp(-0.5 * ((x[:, None] - x) / scale) ** 2) + 1e-7 * torch.eye(len(x))
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(x)), covariance), obs=y)


def started(at):
    """A guide that starts at a lengthscale ``exp(at)`` and hardly varies."""

    def guide(x, y=None):
        loc = pyro.param("loc", torch.tensor(at))
        pyro.sample("scale", dist.LogNormal(loc, 0.001))

    return guide


@pytest.mark.parametrize("compile", ["eager", "auto"])
def test_a_cholesky_factor_that_fails_stops_the_replicate_as_a_nan_loss_does(compile):
    y = torch.ones(12)  # constant: the longer the scale the better
    with pytest.warns(errors.NonFiniteLossWarning, match=r"at step \d+.*'y'.*no Cholesky factor"):
        posterior = guides.fit(process, started(-3.0), GRID, y, steps=300, lr=0.05, compile=compile)
    assert "kept the last finite parameters" in posterior.stop_reasons[0]
    assert -3.0 < float(posterior.parameters["loc"]) < 2.0
    assert torch.isfinite(posterior.losses[0, : posterior.steps]).all()


def test_a_cholesky_factor_that_fails_costs_the_other_replicates_nothing():
    x = torch.linspace(0, 1, 12)

    def model(x, y=None):
        scale = pyro.sample("scale", dist.LogNormal(0.0, 3.0))
        covariance = torch.exp(-0.5 * ((x[:, None] - x) / scale) ** 2) + 1e-7 * torch.eye(len(x))
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(x)), covariance), obs=y)

    rough = torch.tensor([1.0, -1.0]).repeat(6)
    options = {"steps": 300, "lr": 0.05, "compile": "eager", "seeds": [0, 1]}
    with pytest.warns(errors.NonFiniteLossWarning, match="replicate 0"):
        smooth, good = guides.fit_many(model, started(-3.0), [(x, torch.ones(12)), (x, rough)], **options)
    assert "no Cholesky factor" in smooth.stop_reasons[0]
    assert good.stop_reasons == ("ran all 300 steps",)
    alone = guides.fit(model, started(-3.0), x, rough, steps=300, lr=0.05, compile="eager", seed=1)
    torch.testing.assert_close(good.flat, alone.flat, rtol=1e-3, atol=1e-3)


def test_a_cholesky_factor_that_fails_before_the_first_step_is_an_error():
    def indefinite(x, y=None):
        scale = pyro.sample("scale", dist.LogNormal(-2.0, 0.1))
        covariance = torch.exp(-0.5 * ((x[:, None] - x) / scale) ** 2) + (0.1 - (scale > 1).float()) * torch.eye(len(x))
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(x)), covariance), obs=y)

    with pytest.raises(errors.NonFiniteLossError, match=r"before the first step.*'y'.*no Cholesky factor"):
        guides.fit(indefinite, started(1.0), GRID, torch.ones(12), steps=30, compile="eager")


def test_a_draw_without_a_cholesky_factor_is_reported_and_has_no_density():
    def wide(x, y=None):
        loc = pyro.param("loc", torch.tensor(-2.0))
        pyro.sample("scale", dist.LogNormal(loc, 1.5))

    posterior = guides.fit(process, started(-3.0), GRID, torch.ones(12), steps=2, lr=1e-9, compile="eager")
    posterior = replace(posterior, program=replace(posterior.program, guide=wide))
    with pytest.warns(errors.FailedDrawsWarning, match=r"\d+ of 200 draws"):
        draws = posterior.draws(200)
    scale, log_p = draws.latents["scale"][0], draws.log_p[0]
    bad = log_p == -torch.inf
    assert 0 < bad.sum() < 100
    assert not log_p.isnan().any()
    assert scale[bad].min() > scale[~bad].median()
    for s in (~bad).nonzero().flatten()[:5].tolist():
        want = poutine.trace(poutine.condition(process, data={"scale": scale[s]})).get_trace(GRID, torch.ones(12))
        torch.testing.assert_close(log_p[s], want.log_prob_sum(), rtol=1e-3, atol=1e-2)
    with pytest.warns(errors.FailedDrawsWarning):
        found = posterior.diagnose(num_samples=200)
    assert str(found)
    with pytest.warns(errors.FailedDrawsWarning):
        assert posterior.predict(num_samples=200)["y"].shape == (200, 12)


@pytest.mark.parametrize(
    "options", [{}, {"batch_size": 8}, {"replicates": 2}, {"objective": "iwae", "optimizer": "sgd", "lr": 1e-4}]
)
def test_training_on_is_one_longer_fit(options, monkeypatch):
    monkeypatch.setattr("guides.optimise.loop._STEPS_PER_CHUNK", 30)
    x, y = line()
    options = {"lr": 0.01, "compile": "eager", **options}
    whole = guides.fit(linear, "mean_field", x, y, steps=60, **options)
    first = guides.fit(linear, "mean_field", x, y, steps=30, **options)
    held = first.flat.clone()
    longer = first.continue_(steps=30)
    torch.testing.assert_close(longer.flat, whole.flat, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(longer.losses, whole.losses, rtol=1e-5, atol=1e-3)
    assert longer.stop_reasons == whole.stop_reasons
    assert longer.steps == 60
    torch.testing.assert_close(first.flat, held, rtol=0, atol=0)
    torch.testing.assert_close(first.continue_(steps=30).flat, longer.flat, rtol=0, atol=0)
    part = pickle.loads(pickle.dumps(first)).continue_(10).continue_(20)
    assert part.steps == 60
    if "replicates" in options:
        alone = first.replicate(1).continue_(steps=30)
        torch.testing.assert_close(alone.flat[0], whole.flat[1], rtol=1e-4, atol=1e-5)


def test_training_on_with_a_schedule_runs_it_over_the_added_steps():
    x, y = line()
    first = guides.fit(linear, "mean_field", x, y, steps=100, lr=0.1, schedule="cosine")
    longer = first.continue_(steps=400, lr=0.05, schedule="cosine")
    mean, covariance, _ = linear_posterior(x, y)
    away = (longer.parameters["MeanField.loc"].double() - mean).abs()
    assert (away < 0.3 * covariance.diagonal().sqrt()).all()
    assert (first.parameters["MeanField.loc"].double() - mean).abs().max() > 2 * away.max()


def test_laplace_and_early_stopping_and_an_objective_with_a_network_train_on(tmp_path):
    x, y = line()
    laplace = guides.fit(network, "laplace", x, y, steps=20, lr=0.05)
    longer = laplace.continue_(steps=200)
    assert longer.losses[0, -10:].mean() < laplace.losses[0, -5:].mean()
    assert longer.family == "laplace"
    assert longer.sample(3)["w1"].shape == (3, 3, 5)
    stopped = guides.fit(linear, "mean_field", x, y, validation=0.2, patience=2, steps=400, lr=0.2)
    again = stopped.continue_(steps=10)
    assert again.validation.shape[1] > stopped.validation.shape[1]
    assert again.validation.max() >= stopped.validation.max()
    stopped.save(tmp_path / "saved")
    with pytest.raises(errors.OptionError, match=r"read from a file.*start a new fit from it"):
        guides.Posterior.load(tmp_path / "saved", linear).continue_(3)
    with pytest.raises(errors.OptionError, match="steps must be at least 1"):
        stopped.continue_(0)


def test_an_interrupted_fit_trains_on(monkeypatch):
    monkeypatch.setattr("guides.optimise.loop._STEPS_PER_CHUNK", 10)
    calls = []

    def model(x, y=None):
        calls.append(1)
        if len(calls) == 30:
            raise KeyboardInterrupt
        return linear(x, y)

    with pytest.warns(errors.InterruptedFitWarning):
        posterior = guides.fit(model, "mean_field", *line(), steps=100, lr=0.05, compile="eager")
    longer = posterior.continue_(steps=15)
    assert longer.steps == posterior.steps + 15
    assert longer.stop_reasons == (f"ran all {posterior.steps + 15} steps",)


def test_the_best_of_the_replicates():
    x, y = line()
    posterior = guides.fit(linear, "mean_field", x, y, steps=40, lr=0.05, replicates=3)
    best = posterior.best()
    want = min(range(3), key=lambda r: posterior.losses[r, -4:].mean())
    torch.testing.assert_close(best.flat[0], posterior.flat[want], rtol=0, atol=0)
    validated = guides.fit(linear, "mean_field", x, y, steps=40, lr=0.05, replicates=3, validation=0.2)
    want = int(validated.validation.amax(1).argmax())
    torch.testing.assert_close(validated.best().flat[0], validated.flat[want], rtol=0, atol=0)


def test_fits_in_threads_give_the_numbers_of_fits_one_after_the_other():
    x, y = line()

    def work(seed):
        posterior = guides.fit(schools, "mean_field", *SCHOOLS, steps=30, seed=seed, compile="eager")
        other = guides.fit(linear, "full_rank", x, y + seed, steps=30, seed=seed)
        return posterior.flat, other.flat, posterior.predict(num_samples=5)["y"], other.log_likelihood(num_samples=5)["y"]

    want = [work(seed) for seed in range(3)]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(work, range(3)))
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-4)


def test_a_fit_inside_a_model_is_refused():
    x, y = line()

    def model(x, y=None):
        guides.fit(linear, "mean_field", x, torch.zeros(len(x)), steps=3)
        return linear(x, y)

    with pytest.raises(errors.DataError, match=r"guides.fit was called while a model was being run"):
        guides.fit(model, "mean_field", x, y, steps=3)
    with poutine.scale(scale=2.0), pytest.raises(errors.UnsupportedModelError, match=r"handlers \(ScaleMessenger\)"):
        guides.fit(linear, "mean_field", x, y, steps=3)
    with poutine.trace(), pytest.raises(errors.UnsupportedModelError, match=r"guides.fit_many was called"):
        guides.fit_many(linear, "mean_field", [(x, y)], steps=3)


def bimodal(x, y=None):
    """Two modes of equal weight, at -3 and 3, far apart: a normal guide finds one of them."""
    z = pyro.sample("z", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(z.abs(), 1.0), obs=y)


@pytest.fixture(scope="module")
def two_modes():
    y = 3 + torch.zeros(10)
    options = {"steps": 300, "lr": 0.05, "schedule": "cosine"}
    inits = [init_to_value(values={"z": torch.tensor(start)}) for start in (-2.0, 2.0)]
    starts = [guides.fit(bimodal, ("mean_field", {"init_loc_fn": init}), y, y, **options) for init in inits]
    joined = {name: torch.cat([getattr(p, name) for p in starts]) for name in ("flat", "losses", "validation")}
    reasons, info = (sum((getattr(p, name) for p in starts), ()) for name in ("stop_reasons", "info"))
    return replace(starts[0], **joined, stop_reasons=reasons, info=info, run=None)


def test_pooled_replicates_are_one_mixture(two_modes):
    pooled = two_modes.pooled()
    z = pooled.sample(1001)["z"]
    assert z.shape == (1001,)
    assert abs(int((z > 0).sum()) - 500) <= 1
    assert float(z.abs().mean()) == pytest.approx(3.0, abs=0.05)
    assert (z[:100] > 0).float().mean() == pytest.approx(0.5, abs=0.2)  # shuffled
    draws = pooled.draws(200)
    sd = two_modes.parameters["MeanField.scale"].flatten()
    parts = dist.Normal(two_modes.parameters["MeanField.loc"].flatten(), sd)
    want = (parts.log_prob(draws.latents["z"][0][:, None]).logsumexp(1) - math.log(2))[None]
    torch.testing.assert_close(draws.log_q, want, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(pooled.log_prob({"z": draws.latents["z"][0, 0]}), draws.log_q[0, 0], rtol=1e-4, atol=1e-4)
    weights = (draws.log_p - draws.log_q)[0]
    y = torch.full((10,), 3.0)  # the evidence by quadrature: that of both modes
    grid = torch.linspace(-6, 6, 4001).double()
    joint = dist.Normal(0.0, 10.0).log_prob(grid) + dist.Normal(grid.abs(), 1.0).log_prob(y[:, None].double()).sum(0)
    evidence = float(joint.logsumexp(0)) + math.log(12 / 4000)
    assert float(weights.double().logsumexp(0)) - math.log(200) == pytest.approx(evidence, abs=0.05)
    assert pooled.predict(num_samples=50)["y"].shape == (50, 10)
    assert pooled.log_likelihood(num_samples=50)["y"].shape == (50, 10)
    assert pooled.diagnose(num_samples=200).verdict == "good"
    with pytest.raises(errors.UnsupportedModelError, match="no single vector of parameters"):
        guides.log_marginal(pooled)


def test_pooled_replicates_say_where_corrected_draws_are(two_modes):
    for take in ("draws", "predict", "log_likelihood", "sample"):
        with pytest.raises(errors.OptionError, match=r"pooled\.of\.sample\(corrected=True\)"):
            getattr(two_modes.pooled(), take)(corrected=True)
    with pytest.raises(errors.OptionError, match=r"pooled\.of\.sample\(corrected=True\)"):
        guides.to_arviz(two_modes.pooled(), corrected=True)


def test_pooled_replicates_in_arviz(two_modes):
    tree = two_modes.pooled().to_arviz(num_samples=20, prior_samples=3)
    assert tree["posterior"]["z"].shape == (1, 20)
    assert 0 < int((tree["posterior"]["z"] > 0).sum()) < 20
    assert tree["posterior_predictive"]["y"].dims == ("chain", "draw", "data")
    assert tree["prior"]["z"].shape == (1, 3)
    assert tree["observed_data"]["y"].shape == (10,)


def test_weights_of_pooled_replicates(two_modes):
    z = two_modes.pooled([3, 1]).sample(400)["z"]
    assert int((z < 0).sum()) == 300
    worse = replace(two_modes, losses=two_modes.losses + torch.tensor([[0.0], [math.log(4.0)]]))
    last = two_modes.losses[:, -30:].mean(1)
    odds = float((last[1] - last[0]).exp()) * 4
    z = worse.pooled("elbo").sample(1000)["z"]
    assert int((z < 0).sum()) == pytest.approx(1000 * odds / (1 + odds), abs=2)
    for wrong in ([1.0], [-1.0, 2.0], [0.0, 0.0], "best"):
        with pytest.raises(errors.OptionError, match="weights"):
            two_modes.pooled(wrong)


@pytest.mark.parametrize("replicates", [1, 2])
def test_quantiles_and_summary_have_the_names_and_shapes_of_pyros(replicates):
    posterior = guides.fit(network, "mean_field", *line(), replicates=replicates, **QUICK)
    lead = (2,) if replicates == 2 else ()
    drawn = posterior.sample(500, seed=1)["w1"]
    axis = len(lead)
    found = posterior.quantiles([0.1, 0.5, 0.9], 500, seed=1)
    assert set(found) == {"w1", "b1", "w2", "b2"}
    assert found["w1"].shape == (*lead, 3, 3, 5)
    want = torch.quantile(drawn, torch.tensor([0.1, 0.5, 0.9]), dim=axis).movedim(0, axis)
    torch.testing.assert_close(found["w1"], want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(posterior.median(500, seed=1)["w1"], want.select(axis, 1), rtol=1e-4, atol=1e-5)
    rows = posterior.summary(500, seed=1)["w1"]
    assert list(rows) == ["mean", "std", "median", "5.0%", "95.0%"]
    torch.testing.assert_close(rows["mean"], drawn.mean(axis))
    torch.testing.assert_close(rows["std"], drawn.std(axis))
    torch.testing.assert_close(rows["95.0%"], torch.quantile(drawn, 0.95, dim=axis), rtol=1e-4, atol=1e-5)
    with pytest.raises(errors.OptionError, match="between 0 and 1"):
        posterior.quantiles([50])
