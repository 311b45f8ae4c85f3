"""Latents per data point under a guide that computes them from the rows: minibatches, validation, new rows."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions import constraints

import guides
from guides import errors
from guides.optimise import scoring
from guides.program.checks import check_values
from guides.program.data import Data

NOISE = 0.5


class Pair(nn.Module):
    """z_n ~ N(0, 1), x_n ~ N(z_n, NOISE^2), and the encoder that contains the posterior N(0.8 x, 0.2)."""

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.1))
        self.rho = nn.Parameter(torch.tensor(0.0))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, NOISE), obs=x)

    def guide(self, x):
        pyro.module("pair", self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.slope * x, self.rho.exp()))

    guide.amortized = frozenset({"z"})


def evidence(x):
    """Mean log p(x_n)."""
    return float(dist.Normal(0.0, math.sqrt(1 + NOISE**2)).log_prob(x).mean())


@pytest.fixture(scope="module")
def rows():
    return torch.randn(200, generator=torch.Generator().manual_seed(1)) * math.sqrt(1 + NOISE**2)


@pytest.mark.parametrize("mode", ["eager", "trace"])
def test_the_score_of_held_out_rows_is_the_objective_per_row(rows, mode):
    """With divergences by the draw there is no noise at the optimum."""
    pair = Pair()
    options = {"batch_size": 20, "epochs": 60, "lr": 0.05, "compile": mode, "objective": guides.ELBO(kl="monte_carlo")}
    posterior = guides.fit(pair.model, pair.guide, rows[:150], validation=(rows[150:],), **options)
    assert posterior.validation.shape == (1, 60)
    best = float(posterior.validation.max())
    assert best == pytest.approx(evidence(rows[150:]), abs=0.03)
    assert best <= evidence(rows[150:]) + 0.02
    assert posterior.validation[0, 0] < best - 0.1


def test_pieces_of_the_held_out_rows_score_as_all_of_them(rows, monkeypatch):
    """With the exact posterior every draw gives the same weight, so that noise makes no difference."""
    pair = Pair()
    pair.slope.data.fill_(1 / (1 + NOISE**2))
    pair.rho.data.fill_(math.log(math.sqrt(NOISE**2 / (1 + NOISE**2))))
    options = {"steps": 1, "lr": 1e-9, "batch_size": 20, "replicates": 2, "validation": (rows[:47],)}
    for size in (2**22, 2 * 2 * 10):  # all rows at once; ten rows of two numbers each, for two replicates
        monkeypatch.setattr(scoring, "_ELEMENTS_PER_CHUNK", size)
        objective = guides.ELBO(kl="monte_carlo")
        posterior = guides.fit(pair.model, pair.guide, rows, objective=objective, **options)
        torch.testing.assert_close(posterior.validation, torch.full((2, 1), evidence(rows[:47])), rtol=1e-4, atol=1e-4)


def test_latents_of_new_rows_come_from_the_guide(rows):
    pair = Pair()
    posterior = guides.fit(pair.model, pair.guide, rows, batch_size=20, epochs=60, lr=0.05)
    draws = posterior.draws(500, torch.tensor([4.0, -4.0]))
    z = draws.latents["z"][0]
    torch.testing.assert_close(z.mean(0), torch.tensor([3.2, -3.2]), atol=0.2, rtol=0.0)
    assert draws.log_q.isfinite().all()
    assert posterior.sites["z"].shape == (200,)
    assert posterior.sample(3)["z"].shape == (3, 200)


def test_a_guide_that_keeps_a_value_per_row_is_told_what_to_do(rows):
    pair = Pair()

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pair.slope * x, 1.0))

    with pytest.raises(errors.MinibatchScaleError, match=r"'z' has one value .*\(shape \(200,\)\).*amortized ="):
        guides.fit(pair.model, guide, rows, batch_size=20)


def test_setting_up_for_batches_runs_the_model_on_few_rows_at_a_time():
    seen = []

    def model(x):
        seen.append(len(x))
        rate = pyro.sample("rate", dist.Beta(2.0, 2.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Bernoulli(rate), obs=x)

    x = torch.zeros(100_000)
    guides.fit(model, "mean_field", x, batch_size=100, steps=2)
    assert max(seen) <= 1000
    assert sum(seen) >= 100_000  # every row was looked at
    x[70_123] = 0.5
    with pytest.raises(errors.DataError, match="cannot be run on the data"):
        guides.fit(model, "mean_field", x, batch_size=100, steps=2)


@pytest.mark.parametrize(("size", "batch"), [(30, 7), (1000, 300), (3000, 1000), (2049, 2), (5, None)])
def test_every_row_is_checked(size, batch):
    seen = set()

    def model(x):
        seen.update(x.tolist())
        pyro.sample("x", dist.Normal(0.0, 1.0).expand([len(x)]).to_event(1), obs=x)

    check_values(model, Data.of((torch.arange(float(size)),)), batch)
    assert len(seen) == size


def test_a_model_without_latents_is_fitted_by_maximum_likelihood(rows, tmp_path):
    def model(x):
        loc = pyro.param("loc", torch.tensor(0.0))
        scale = pyro.param("scale", torch.tensor(2.0), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            return pyro.sample("x", dist.Normal(loc, scale), obs=x)

    for options in ({"steps": 600}, {"epochs": 100, "batch_size": 50, "schedule": "cosine", "validation": (rows,)}):
        posterior = guides.fit(model, "map", rows, lr=0.02, replicates=2, **options)
        torch.testing.assert_close(posterior.parameters["loc"], rows.mean().expand(2), atol=0.02, rtol=0.0)
        torch.testing.assert_close(posterior.parameters["scale"], rows.std().expand(2), atol=0.03, rtol=0.0)
    assert posterior.sample(5) == {}
    want = dist.Normal(rows.mean(), rows.std()).log_prob(rows)
    torch.testing.assert_close(posterior.log_likelihood(rows, num_samples=2)["x"][1, 0], want, atol=0.1, rtol=0.0)
    posterior.save(tmp_path / "posterior")
    loaded = guides.Posterior.load(tmp_path / "posterior", model)
    torch.testing.assert_close(loaded.parameters, posterior.parameters)
    with pytest.raises(errors.GuideMismatchError, match=r"no latent sample site.*maximum likelihood with the guide 'map'"):
        guides.fit(model, "mean_field", rows)
    with pytest.raises(errors.OptionError, match="parameters to optimise"):
        guides.fit(lambda x: pyro.sample("x", dist.Normal(0.0, 1.0).expand([len(x)]).to_event(1), obs=x), "map", rows)
