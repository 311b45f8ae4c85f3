"""The stick-breaking network: sticks that stop, compaction against masking, the engine, what it refuses."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from amortized_models import PIXELS, encoder, evidence, pca, rows_of, skewed_loadings
from pyro.infer import SVI
from torch import nn

import guides
from guides import errors
from guides.objectives import Compacted
from guides.program.noise import Noise, NoiseTape
from guides.program.strata import Stratum

CLOSE = {"rtol": 2e-4, "atol": 2e-3}
SLOPES = skewed_loadings()
MODEL = pca(SLOPES)


def made(x, components=5, seed=1, by=0.0, **options):
    """A guide that is set up, its parameters moved by ``by``."""
    pyro.clear_param_store()
    torch.manual_seed(seed)
    guide = guides.StickBreakingRNN(MODEL, components=components, **{"hidden": 6, **options})
    guide(x)
    with torch.no_grad():
        for value in guide.parameters():
            value += by * torch.randn_like(value)
    return guide


def uneven(x, **options):
    """A guide under which rows differ in how many components they have: the first such of some."""
    for seed in range(100):
        guide = made(x, seed=seed, by=0.8, **{"epsilon": 0.15, **options})
        with torch.no_grad():
            guide.heads[0].weight.weight.mul_(3.0)
        if len(guide.components_run(x).unique()) >= 4:
            return guide
    raise AssertionError("no guide with rows of four sizes")


def estimate(objective, guide, x):
    """Value and gradients with the same noise for every row and draw."""
    guide.zero_grad()
    noise = Noise(torch.full((10_000,), 0.6), torch.full((10_000,), 0.5))
    with NoiseTape(noise):
        found = objective.estimate(MODEL, guide, (x,), {}, 3)
    found.surrogate.backward()
    return found.value, {n: p.grad.clone() for n, p in guide.named_parameters() if p.grad is not None}


OBJECTIVES = {
    "selbo": guides.SELBO(2),
    "entropy_bound": guides.EntropyBoundELBO(penalty=lambda step: 0.5 * step),
    "bhattacharyya": guides.EntropyBoundELBO(bound="bhattacharyya", kl="monte_carlo"),
    "siwae": guides.SIWAE(2),
}


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("covariance", ["diagonal", "low_rank", "full"])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("skip", [False, True])
def test_compaction_is_masking(cell, covariance, objective, skip):
    x = rows_of(SLOPES, 30)
    guide = uneven(x, cell=cell, covariance=covariance, encoder=encoder(), skip=skip)
    run = guide.components_run(x)
    assert 1 <= run.min() < run.max() and len(run.unique()) > 2
    compact = Compacted(OBJECTIVES[objective])
    value, gradients = estimate(compact, guide, x)
    want, wanted = estimate(OBJECTIVES[objective], guide, x)
    torch.testing.assert_close(value, want, rtol=1e-5, atol=1e-4)
    assert gradients.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(gradients[name], wanted[name], rtol=1e-4, atol=1e-3, msg=name)
    particles = OBJECTIVES[objective].num_particles
    assert compact.rows_run == particles * int(run.sum()) < compact.rows_asked == particles * 5 * 30
    assert any(g.abs().max() > 1e-3 for g in wanted.values())


def test_the_model_runs_on_active_rows_alone():
    x = rows_of(SLOPES, 30)
    guide, seen = uneven(x), []

    def counting(x):
        seen.append(len(x))
        MODEL(x)

    compact = Compacted(guides.EntropyBoundELBO())
    compact.estimate(counting, guide, (x,), {})
    run = guide.components_run(x)
    assert seen == [int((run > k).sum()) for k in range(5) if (run > k).any()]


@pytest.mark.parametrize("epsilon", [1e-30, 1e-3, 0.1, 0.5, 0.999])
@pytest.mark.parametrize("stretch", [1.0, 30.0])
def test_weights_sum_to_one_at_any_epsilon(epsilon, stretch):
    x = stretch * rows_of(SLOPES, 200)
    guide = made(x, components=7, by=0.8, epsilon=epsilon)
    for mixture in (guide.mixture(x), guide.compact_mixture(x)):
        weights = mixture.log_weights.exp()
        torch.testing.assert_close(weights.sum(-1), torch.ones(200), rtol=0.0, atol=1e-6)
        run = guide.components_run(x)
        assert torch.equal((weights > 0) | (mixture.log_weights > -math.inf), torch.arange(7) < run.unsqueeze(-1))
    # The rule itself, step by step: done when what remains falls below epsilon.
    before = 1 - weights.double().cumsum(-1)
    for row, count in enumerate(run.tolist()):
        assert (before[row, : count - 1] >= epsilon - 1e-6).all()


def test_all_rows_may_stop_at_the_first_step():
    x = rows_of(SLOPES, 20)
    guide = made(x, by=0.3)
    with torch.no_grad():
        guide.heads[0].weight.bias.fill_(40.0)
    assert (guide.components_run(x) == 1).all()
    for name, objective in OBJECTIVES.items():
        for one in (objective, Compacted(objective)):
            value, gradients = estimate(one, guide, x)
            assert torch.isfinite(value), name
            assert all(torch.isfinite(g).all() for g in gradients.values()), name
    mixture = guide.mixture(x)
    assert (mixture.log_weights[:, 0] == 0).all()
    first = torch.distributions.Normal(mixture.loc[:, 0], mixture.scale[:, 0])
    with Stratum(torch.tensor(0)):
        trace = pyro.poutine.trace(guide).get_trace(x)
    z = trace.nodes["z"]["value"]
    torch.testing.assert_close(guide.density(trace).log_prob(z), first.log_prob(z).sum(-1))


def test_sticks_start_at_the_same_fraction():
    x = rows_of(SLOPES, 20)
    guide = made(x, init_fraction=0.25)
    with torch.no_grad():
        guide.heads[0].weight.weight.zero_()
    left = 0.75 ** torch.arange(5)
    want = torch.cat([0.25 * left[:4], left[4:]])
    torch.testing.assert_close(guide.mixture(x).log_weights.exp(), want.expand(20, 5))


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_steps_are_those_of_torch_cells(cell):
    x = rows_of(SLOPES, 9)
    guide = made(x, components=4, cell=cell, by=0.5, epsilon=1e-9)
    reference = {"lstm": nn.LSTMCell, "gru": nn.GRUCell}[cell](PIXELS, 6)
    with torch.no_grad():
        reference.weight_ih.copy_(guide.from_row.weight)
        reference.weight_hh.copy_(guide.from_state.weight)
        reference.bias_ih.copy_(guide.from_row.bias)
        reference.bias_hh.copy_(guide.from_state.bias)
    state, mixture = None, guide.mixture(x)
    for k in range(4):
        state = reference(x, state)
        hidden = state[0] if cell == "lstm" else state
        torch.testing.assert_close(guide.heads[0].loc(hidden), mixture.loc[:, k])


def test_one_component_is_the_amortized_guide():
    """On an encoder that is the network's first step."""
    x = rows_of(SLOPES, 12)
    guide = made(x, components=1, by=0.4)

    class First(nn.Module):
        def forward(self, x):
            row = guide.from_row(x)
            return guide._step(row, guide._start(row))[0]

    alone = guides.Amortized(MODEL, First())
    alone(x)
    with torch.no_grad():
        for part in ("loc", "rho"):
            getattr(alone.heads[0], part).load_state_dict(getattr(guide.heads[0], part).state_dict())
    values = [estimate(guides.ELBO(2), g, x)[0] for g in (guide, alone)]
    torch.testing.assert_close(values[0], values[1], rtol=1e-5, atol=1e-4)
    assert (guide.components_run(x) == 1).all()


def test_heads_that_see_the_features_find_components_that_are_nearly_alike():
    x = rows_of(SLOPES, 20)
    apart = {}
    for skip in (False, True):
        guide = made(x, encoder=encoder(), hidden=2, skip=skip)
        loc = guide.mixture(x).loc.detach()
        apart[skip] = float(loc.std(1).mean() / loc.std(0).mean())  # between components, relative to between rows
    assert guide.heads[0].loc.in_features == 2 + encoder()(x).shape[1]
    assert apart[True] < 0.5 * apart[False]


@pytest.mark.parametrize(("cell", "objective"), [("lstm", "entropy_bound"), ("gru", "selbo"), ("lstm", "siwae")])
def test_traced_and_eager_steps_agree_in_minibatches_and_replicates(cell, objective):
    x, common = rows_of(SLOPES), {"steps": 6, "lr": 0.02, "batch_size": 20, "replicates": 2}
    options = {"components": 4, "hidden": 6, "cell": cell, "epsilon": 0.3}
    eager, traced = (
        guides.fit(MODEL, ("stick_breaking_rnn", options), x, objective=OBJECTIVES[objective], compile=mode, **common)
        for mode in ("eager", "trace")
    )
    torch.testing.assert_close(traced.losses, eager.losses, **CLOSE)
    torch.testing.assert_close(traced.flat, eager.flat, **CLOSE)


def test_fit_and_log_marginal():
    x, new = rows_of(SLOPES), rows_of(SLOPES, 8, seed=5)
    options = {"components": 3, "hidden": 16, "epsilon": 0.05, "init_scale": 0.5}
    posterior = guides.fit(
        MODEL, ("stick_breaking_rnn", options), x, objective="selbo", steps=600, lr=0.02, compile="trace", schedule="cosine"
    )
    found = guides.log_marginal(posterior, new, num_samples=2000, split="test")
    exact = evidence(SLOPES, new)
    assert ((found.values - exact).abs() < 4.5 * found.standard_error + 0.1).all()
    gap = evidence(SLOPES, x).sum() + posterior.losses[0, -50:].mean()
    assert 0 < gap / len(x) < 0.6
    assert posterior.guide.components_run(new).shape == (8,)


def test_a_penalty_uses_fewer_components_in_both_forms():
    """Compacted training by Pyro's own SVI, and the engine's, drop components that a Gaussian posterior does not need."""
    x = rows_of(SLOPES, 40)
    penalty = guides.EntropyBoundELBO(penalty=20.0)
    guide = made(x, components=4, hidden=8, epsilon=0.1)
    before = guide.components_run(x).float().mean()
    compact = Compacted(penalty)
    svi = SVI(MODEL, guide, pyro.optim.Adam({"lr": 0.05}), loss=compact)
    losses = [svi.step(x) for _ in range(100)]
    assert all(map(math.isfinite, losses)) and losses[-1] < losses[0]
    after = guide.components_run(x).float().mean()
    assert before > 3.5 and after < 2.0
    assert compact.rows_run < 0.5 * compact.rows_asked
    options = {"components": 4, "hidden": 8, "epsilon": 0.1}
    posterior = guides.fit(MODEL, ("stick_breaking_rnn", options), x, objective=penalty, steps=100, lr=0.05, compile="trace")
    assert posterior.guide.components_run(x).float().mean() < 2.0
    assert torch.isfinite(posterior.losses).all()


def test_what_it_refuses():
    for options, message in (
        ({"components": 0}, "components must be a whole number of 1 or more, not 0"),
        ({"epsilon": 0.0}, r"epsilon must be in \(0, 1\), not 0.0"),
        ({"epsilon": 1.0}, r"epsilon must be in \(0, 1\)"),
        ({"epsilon": math.nan}, r"epsilon must be in \(0, 1\)"),
        ({"epsilon": "small"}, r"epsilon must be in \(0, 1\)"),
        ({"cell": "rnn"}, "cell='rnn' is not known"),
        ({"init_fraction": 1.0}, r"init_fraction must be in \(0, 1\)"),
        ({"hidden": 0}, "hidden must be a whole number of at least 1"),
        ({"encoder": [encoder()]}, "encoder must be one torch.nn.Module, not list"),
    ):
        with pytest.raises(errors.OptionError, match=message):
            guides.StickBreakingRNN(MODEL, **options)
    with pytest.raises(errors.OptionError, match="Compacted takes an EntropyBoundELBO, SELBO or SIWAE, not ELBO"):
        Compacted(guides.ELBO())
    with pytest.raises(errors.OptionError, match="warmup=5 fits all components"):
        Compacted(guides.SELBO(warmup=5))
    with pytest.raises(errors.OptionError, match="warmup=5 fits all components"):
        Compacted(guides.EntropyBoundELBO(warmup=5))
    x = rows_of(SLOPES, 6)
    with pytest.raises(errors.UnsupportedModelError, match=r"rows differ in their number of components.*not Amortized"):
        Compacted(guides.SELBO()).estimate(MODEL, guides.Amortized(MODEL, encoder()), (x,), {})

    def whole(x):
        with pyro.plate("data", 60, subsample=torch.arange(len(x))):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).expand(list(x.shape)).to_event(1), obs=x)

    with pytest.raises(errors.UnsupportedModelError, match="plate 'data' is one of all the data"):
        Compacted(guides.SELBO()).estimate(whole, guides.StickBreakingRNN(whole, hidden=4), (x,), {})
    guide = made(x)
    with pytest.raises(errors.OptionError, match="encoder's inputs"):
        guide.components_run(None)
