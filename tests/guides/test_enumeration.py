"""Discrete latents that a model marks are summed out exactly: against sums written out, and against TraceEnum_ELBO."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch import Tensor

import guides
from guides import errors
from guides.program.discrete.enumeration import Enumerated

W, LOCS = torch.tensor([0.2, 0.3, 0.5]), torch.tensor([-2.0, 0.0, 3.0])
MOVES, MEANS = torch.tensor([[0.7, 0.3], [0.2, 0.8]]), torch.tensor([-1.0, 1.0])


@config_enumerate
def gmm(x: Tensor) -> None:
    shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(W))
        pyro.sample("x", dist.Normal(LOCS[k] + shift, 0.5), obs=x)


@config_enumerate
def hmm(y: Tensor) -> None:
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    z = 0
    for t in pyro.markov(range(len(y))):
        z = pyro.sample(f"z{t}", dist.Categorical(MOVES[z]))
        pyro.sample(f"y{t}", dist.Normal(MEANS[z], scale), obs=y[t])


def fixed(**values: Tensor) -> Any:
    def guide(*args: Any) -> None:
        for name, value in values.items():
            pyro.sample(name, dist.Delta(torch.as_tensor(value)))

    return guide


def at(model: Any, guide: Any, *args: Any) -> Any:
    """Return the trace of the model with its discrete latents summed out at the guide's draws, and the guide's trace."""
    known = poutine.trace(guide).get_trace(*args)
    summed = Enumerated.of(model, poutine.trace(model).get_trace(*args), known)
    return poutine.trace(poutine.replay(summed, trace=known)).get_trace(*args), known, summed


def gmm_rows(x: Tensor, shift: Any) -> Tensor:
    return (W.log() + dist.Normal(LOCS + torch.as_tensor(shift)[..., None, None], 0.5).log_prob(x[:, None])).logsumexp(-1)


def hmm_paths(y: Tensor, scale: Any) -> tuple[Tensor, Tensor]:
    paths, total = torch.tensor(list(itertools.product(range(2), repeat=len(y)))), []
    for path in paths:
        before = torch.cat([torch.tensor([0]), path[:-1]])
        total.append(MOVES[before, path].log().sum() + dist.Normal(MEANS[path], scale).log_prob(y).sum())
    return paths, torch.stack(total)


def test_density_of_a_mixture_is_the_sum_over_components_row_by_row():
    x = torch.tensor([-2.1, 0.4, 2.0, 7.0])
    trace, _, _ = at(gmm, fixed(shift=torch.tensor(0.3)), x)
    assert "k" not in trace
    torch.testing.assert_close(trace.nodes["x"]["fn"].log_prob(x), gmm_rows(x, 0.3), atol=1e-5, rtol=0)


def test_density_of_a_hidden_markov_model_is_the_sum_over_all_paths():
    y = torch.tensor([-1.2, 0.3, 0.9, 1.4, -0.2, 0.1, 2.0])
    trace, _, _ = at(hmm, fixed(scale=torch.tensor(0.8)), y)
    exact = hmm_paths(y, 0.8)[1].logsumexp(0) + dist.LogNormal(0.0, 1.0).log_prob(torch.tensor(0.8))
    torch.testing.assert_close(trace.log_prob_sum(), exact, atol=1e-5, rtol=0)


def two_plates(x: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("outer", x.shape[1], dim=-1):
        a = pyro.sample("a", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
        with pyro.plate("inner", x.shape[0], dim=-2):
            b = pyro.sample("b", dist.Categorical(W), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(LOCS[b] + 2 * a + mean, 1.0), obs=x)


def local_code(x: Tensor) -> None:
    """A continuous latent of each row whose prior is a mixture."""
    width = pyro.sample("mean", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(W), infer={"enumerate": "parallel"})
        z = pyro.sample("z", dist.Normal(LOCS[k], width))
        pyro.sample("x", dist.Normal(z, 0.5 + 0.1 * k), obs=x)


def masked_and_scaled(x: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)), poutine.scale(scale=2.5):
        k = pyro.sample("k", dist.Categorical(W), infer={"enumerate": "parallel"})
        with poutine.mask(mask=x > 0):
            pyro.sample("x", dist.Normal(LOCS[k] + mean, 1.0), obs=x)


def one_for_all(x: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    k = pyro.sample("k", dist.Categorical(W), infer={"enumerate": "sequential"})
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(LOCS[k] + mean, 1.0), obs=x)
    pyro.factor("pull", -(mean**2) * (1 + k))


@pytest.mark.parametrize("model", [gmm, hmm, two_plates, local_code, masked_and_scaled])
@pytest.mark.parametrize("family", [guides.MeanField, guides.FullRank, guides.MAP, guides.LowRank])
def test_elbo_is_that_of_traceenum_elbo_at_the_same_draws(model, family):
    x = torch.randn(4, 3).exp() if model is two_plates else torch.tensor([-1.0, 0.5, 2.0, 1.5])
    guide = family(model)
    guide(x)
    shown = config_enumerate(model)
    torch.manual_seed(3)
    stock = -TraceEnum_ELBO(max_plate_nesting=2 if model is two_plates else 1).loss(shown, guide, x)
    summed = at(model, guide, x)[2]
    torch.manual_seed(3)
    ours = guides.ELBO(kl="monte_carlo").estimate(summed, guide, (x,), {}).value
    torch.testing.assert_close(float(ours), stock, atol=2e-4, rtol=1e-5)


def test_a_latent_that_all_rows_share_is_summed_over_the_product_of_the_rows():
    x, mean = torch.tensor([0.1, 0.6, -0.4]), torch.tensor(0.2)
    trace, _, _ = at(one_for_all, fixed(mean=mean), x)
    each = W.log() + dist.Normal(LOCS + mean, 1.0).log_prob(x[:, None]).sum(0) - mean**2 * (1 + torch.arange(3))
    exact = each.logsumexp(0) + dist.Normal(0.0, 1.0).log_prob(mean)
    torch.testing.assert_close(trace.log_prob_sum(), exact, atol=1e-5, rtol=0)


def test_prior_and_likelihood_of_a_code_are_kept_apart():
    x, z = torch.tensor([-1.0, 2.0]), torch.tensor([0.4, 2.5])
    trace, _, _ = at(local_code, fixed(mean=torch.tensor(0.7), z=z), x)
    prior = W.log() + dist.Normal(LOCS, 0.7).log_prob(z[:, None])
    joint = prior + dist.Normal(z[:, None], 0.5 + 0.1 * torch.arange(3)).log_prob(x[:, None])
    torch.testing.assert_close(trace.nodes["z"]["fn"].log_prob(z), prior.logsumexp(-1), atol=1e-5, rtol=0)
    likelihood = joint.logsumexp(-1) - prior.logsumexp(-1)
    torch.testing.assert_close(trace.nodes["x"]["fn"].log_prob(x), likelihood, atol=1e-5, rtol=0)


def test_paths_are_drawn_from_their_distribution_given_the_data():
    y = torch.tensor([-1.2, 0.3, 0.9, -0.4])
    _, known, summed = at(hmm, fixed(scale=torch.tensor(1.5)), y)
    torch.manual_seed(0)
    draw = torch.vmap(lambda _: torch.stack(list(summed.draw((y,), {}, known).values())), randomness="different")
    with pyro.validation_enabled(False):
        drawn = draw(torch.zeros(40_000))
    paths, weights = hmm_paths(y, 1.5)
    found = (drawn[:, None] == paths).all(-1).double().mean(0)
    assert float((found - weights.softmax(0)).abs().max()) < 0.01


def test_a_fitted_mixture_says_which_component_each_row_is_from():
    torch.manual_seed(0)
    x = torch.cat([torch.randn(3) * 0.5 - 2, torch.randn(4) * 0.5, torch.tensor([1.6])])
    posterior = guides.fit(gmm, "mean_field", x, steps=300, lr=0.05)
    latents = posterior.sample(4000)
    assert latents["k"].shape == (4000, 8)
    each = (W.log() + dist.Normal(LOCS + latents["shift"][:, None, None], 0.5).log_prob(x[:, None])).softmax(-1).mean(0)
    found = torch.nn.functional.one_hot(latents["k"], 3).double().mean(0)
    assert float((found - each).abs().max()) < 0.04
    rows = posterior.log_likelihood(num_samples=50, seed=1)["x"]
    shift = posterior.sample(50, seed=1)["shift"]
    torch.testing.assert_close(rows, gmm_rows(x, shift), atol=1e-4, rtol=1e-4)
    assert posterior.sites["k"].dims == ("data",)


def test_predictions_of_seen_rows_keep_their_component_and_those_of_unseen_rows_have_the_prior():
    @config_enumerate
    def model(x: Tensor | None, size: int) -> None:
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        with pyro.plate("data", size):
            k = pyro.sample("k", dist.Categorical(W))
            pyro.deterministic("label", 10 * k)
            pyro.sample("x", dist.Normal(10 * k + shift, 0.1), obs=x)

    x = torch.tensor([20.0, 0.0, 0.1, 10.0, 20.1])
    posterior = guides.fit(model, "mean_field", x, 5, steps=400, lr=0.05)
    seen = posterior.predict(num_samples=200)
    assert float((seen["x"] - x).abs().max()) < 3
    assert torch.equal(seen["label"][0], torch.tensor([20, 0, 0, 10, 20]))
    new = posterior.predict(None, 400, num_samples=50)["label"]
    assert new.shape == (50, 400)
    shares = torch.stack([(new == v).double().mean() for v in (0, 10, 20)])
    assert float((shares - W).abs().max()) < 0.02


def test_a_latent_that_all_rows_share_is_predicted_as_the_fitted_rows_have_it():
    @config_enumerate
    def model(x: Tensor | None, size: int) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 0.1))
        k = pyro.sample("k", dist.Categorical(W))
        with pyro.plate("data", size):
            pyro.sample("x", dist.Normal(10.0 * k + mean, 1.0), obs=x)

    posterior = guides.fit(model, "mean_field", torch.tensor([9.5, 10.2, 10.4]), 3, steps=200, lr=0.05)
    assert abs(float(posterior.predict(None, 7, num_samples=100)["x"].mean()) - 10) < 0.5


def test_minibatches_see_the_same_bound():
    torch.manual_seed(1)
    x = torch.cat([torch.randn(150) * 0.5 - 2, torch.randn(350) * 0.5 + 3])
    whole = guides.fit(gmm, "mean_field", x, steps=400, lr=0.05, schedule="cosine")
    parts = guides.fit(gmm, "mean_field", x, steps=2000, lr=0.05, batch_size=50, schedule="cosine")
    a, b = whole.sample(2000)["shift"], parts.sample(2000)["shift"]
    assert abs(float(a.mean() - b.mean())) < 0.02
    assert abs(float(a.std() / b.std()) - 1) < 0.15
    assert abs(float(parts.losses[0, -200:].mean() - whole.losses[0, -50:].mean())) < 3


@pytest.mark.parametrize("name", ["mean_field", "full_rank", "low_rank", "map", "mixture", "ensemble", "laplace"])
@pytest.mark.parametrize("model", [gmm, hmm])
def test_every_family_takes_a_model_with_marked_latents(name, model):
    y = torch.tensor([-1.2, 0.3, 0.9, 1.4])
    posterior = guides.fit(model, name, y, steps=20)
    assert torch.isfinite(posterior.losses).all()
    latents = posterior.sample(5)
    assert ("k" in latents) == (model is gmm)
    assert not latents["k" if model is gmm else "z2"].is_floating_point()


@pytest.mark.parametrize("objective", sorted(guides.objectives))
def test_every_objective_takes_a_model_with_marked_latents(objective):
    y = torch.tensor([-1.2, 0.3, 0.9, 1.4])
    assert torch.isfinite(guides.fit(hmm, "mean_field", y, steps=5, objective=objective).losses).all()


def test_stock_guides_of_the_rest_of_the_model_work():
    from pyro.infer.autoguide import AutoNormal

    guide = AutoNormal(poutine.block(gmm, hide=["k"]))
    posterior = guides.fit(gmm, guide, torch.tensor([-2.0, 0.4]), steps=20)
    assert posterior.sample(3)["k"].shape == (3, 2)
    with pytest.raises(errors.DiscreteLatentError, match="block"):
        guides.fit(gmm, AutoNormal(gmm), torch.tensor([-2.0, 0.4]), steps=20)


def test_an_unmarked_discrete_latent_is_refused_with_the_way_out():
    def model(x: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(W))
            pyro.sample("x", dist.Normal(LOCS[k] + mean, 1.0), obs=x)

    with pytest.raises(errors.DiscreteLatentError, match=r"'k'.*infer=\{\"enumerate\": \"parallel\"\}"):
        guides.fit(model, "mean_field", torch.zeros(3), steps=5)


def test_a_shared_discrete_latent_is_refused_under_minibatches():
    @config_enumerate
    def model(x: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        k = pyro.sample("k", dist.Categorical(W))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(LOCS[k] + mean, 1.0), obs=x)

    with pytest.raises(errors.MinibatchScaleError, match="'k'"):
        guides.fit(model, "mean_field", torch.randn(20), batch_size=5, steps=5)


@pytest.mark.parametrize("reduce", [lambda v: v.sum(-1), lambda v: v.sum(), lambda v: v.max(-1).values])
def test_a_site_outside_the_plate_of_a_discrete_latent_is_refused(reduce):
    @config_enumerate
    def model(x: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 3):
            k = pyro.sample("k", dist.Categorical(W))
        pyro.sample("x", dist.Normal(reduce(LOCS[k]) + mean, 1.0), obs=x)

    with pytest.raises(errors.UnsupportedModelError, match="'k'"):
        guides.fit(model, "mean_field", torch.tensor(1.0), steps=5)


def test_the_example_of_the_page_runs():
    page = (Path(__file__).parents[2] / "docs" / "enumeration.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    torch.manual_seed(0)
    exec(page.split("```python\n")[1].split("```")[0], names)
    assert names["draws"]["label"].shape == (100, 90)
    assert float((names["draws"]["means"].mean(0) - torch.tensor([-2.0, 1.0])).abs().max()) < 0.3


def test_laplace_takes_the_curvature_of_the_sum():
    x = torch.tensor([-2.1, 0.4, 2.0, 3.3])
    posterior = guides.fit(gmm, "laplace", x, steps=400, lr=0.05)
    mode = torch.tensor(float(posterior.parameters[next(n for n in posterior.parameters if n.endswith("loc"))]))
    joint = lambda s: gmm_rows(x, s).sum() + dist.Normal(0.0, 1.0).log_prob(s)  # noqa: E731
    exact = (-torch.func.hessian(joint)(mode)) ** -0.5
    torch.testing.assert_close(posterior.sample(20_000)["shift"].std(), exact, rtol=0.03, atol=0)


def test_capture_and_recapture_with_masked_discrete_latents():
    """Animals count from their first capture on; before it their state is masked out."""

    @config_enumerate
    def model(seen: Tensor) -> None:
        survival = pyro.sample("survival", dist.Uniform(0.0, 1.0))
        with pyro.plate("animals", len(seen)):
            alive, known = torch.ones(len(seen)), torch.zeros(len(seen), dtype=torch.bool)
            for t in pyro.markov(range(seen.shape[1])):
                with poutine.mask(mask=known):
                    alive = pyro.sample(f"alive{t}", dist.Bernoulli(known * survival * alive + (~known).float()))
                    pyro.sample(f"seen{t}", dist.Bernoulli(0.6 * alive), obs=seen[:, t])
                known = known | seen[:, t].bool()

    seen = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    posterior = guides.fit(model, "mean_field", seen, steps=30)
    rows = posterior.log_likelihood(num_samples=4, seed=1)
    p = posterior.sample(4, seed=1)["survival"]
    gone = 1 - p * 0.6
    exact = torch.stack([(p * 0.6 * gone).log(), gone.log(), (1 - p + p * 0.4 * gone).log()], -1)
    torch.testing.assert_close(sum(rows.values()), exact, atol=1e-4, rtol=1e-4)


def test_draws_of_effects_around_chains_have_their_exact_probabilities():
    """Effects of groups, and in them of individuals, whose chains they share: several indices are known at once."""
    generator = torch.Generator().manual_seed(3)
    steps, people, groups = 3, 2, 2
    x = torch.randn(steps, people, groups, generator=generator)
    share, effect = torch.tensor([0.2, 0.3, 0.5]), torch.tensor([-1.0, 0.0, 1.5])
    move, level = torch.tensor([[0.8, 0.2], [0.4, 0.6]]), torch.tensor([-0.7, 0.9])

    def model(x):
        pyro.sample("aside", dist.Normal(0.0, 1.0))
        with pyro.plate("group", groups, dim=-1):
            v = pyro.sample("v", dist.Categorical(share), infer={"enumerate": "parallel"})
            with pyro.plate("person", people, dim=-2):
                w = pyro.sample("w", dist.Categorical(share), infer={"enumerate": "parallel"})
                y: Any = 0
                for t in pyro.markov(range(steps)):
                    y = pyro.sample(f"y_{t}", dist.Categorical(move[y]), infer={"enumerate": "parallel"})
                    pyro.sample(f"x_{t}", dist.Normal(effect[v] + effect[w] + level[y], 1.0), obs=x[t])

    def of_person(series, v, w):
        """The density of one person's series, summed over the chain by hand."""
        ahead = torch.zeros(2)
        ahead[0] = 1.0
        for value in series:
            ahead = (ahead @ move) * torch.exp(-0.5 * (value - effect[v] - effect[w] - level) ** 2)
        return ahead.sum()

    posterior = guides.fit(model, "mean_field", x, steps=1, compile="eager", progress=False)
    drawn = posterior.sample(4000)
    for g in range(groups):
        table = torch.stack([torch.stack([share[w] * of_person(x[:, 0, g], v, w) for w in range(3)]) for v in range(3)])
        others = torch.stack([sum(share[w] * of_person(x[:, 1, g], v, w) for w in range(3)) for v in range(3)])
        exact = share[:, None] * table * others[:, None]
        exact = exact / exact.sum()
        pairs = torch.nn.functional.one_hot(3 * drawn["v"][:, g] + drawn["w"][:, 0, g], 9).float()
        error = (exact * (1 - exact) / 4000).sqrt()
        assert ((pairs.mean(0).reshape(3, 3) - exact).abs() < 4 * error + 1e-6).all()
