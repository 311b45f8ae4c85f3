"""Importance-weighted and Renyi bounds: order, limits, rows and scales, and the doubly reparameterised gradient."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from estimates import (
    WEIGHT,
    encoder,
    factors,
    has_mean,
    log_evidence,
    replicate_estimates,
    rows,
    same_estimates,
    same_mean,
)
from guide_models import line, linear, linear_posterior

import guides
from guides import errors
from guides.program.rows import row_log_weights


def traces(model, guide, *data):
    guide_trace = pyro.poutine.trace(guide).get_trace(*data)
    return pyro.poutine.trace(pyro.poutine.replay(model, trace=guide_trace)).get_trace(*data), guide_trace


def test_weights_of_local_latents_are_those_of_the_rows():
    x = rows()
    model_trace, guide_trace = traces(factors, encoder(shift=0.3), x)
    found, scale = row_log_weights(model_trace, guide_trace)
    z, q = (guide_trace.nodes["z"][key] for key in ("value", "fn"))
    mean = model_trace.nodes["x"]["fn"].base_dist.loc
    want = dist.Normal(0.0, 1.0).log_prob(z).sum(-1) + dist.Normal(mean, 0.5).log_prob(x).sum(-1) - q.log_prob(z)
    torch.testing.assert_close(found, want)
    assert found.shape == (6,)
    assert scale == 1.0


def test_at_the_exact_posterior_every_row_weighs_its_evidence():
    x = rows()
    found, _ = row_log_weights(*traces(factors, encoder(), x))
    torch.testing.assert_close(found.double(), log_evidence(x), rtol=0, atol=1e-4)


def test_a_common_scale_stays_outside_and_others_go_inside():
    x = rows()
    pyro.set_rng_seed(0)
    plain, _ = row_log_weights(*traces(factors, encoder(shift=0.3), x))
    with pyro.poutine.scale(scale=7.0):
        pyro.set_rng_seed(0)
        scaled, scale = row_log_weights(*traces(factors, encoder(shift=0.3), x))
    torch.testing.assert_close(scaled, plain)
    assert scale == 7.0

    def tempered(x):
        with pyro.poutine.scale(scale=7.0):
            factors(x)

    pyro.set_rng_seed(0)
    model_trace, guide_trace = traces(tempered, encoder(shift=0.3), x)
    inside, scale = row_log_weights(model_trace, guide_trace)
    log_q = guide_trace.nodes["z"]["fn"].log_prob(guide_trace.nodes["z"]["value"])
    torch.testing.assert_close(inside, 7 * (plain + log_q) - log_q)
    assert scale == 1.0


def test_masked_rows_weigh_nothing():
    x, mask = rows(), torch.tensor([True, False, True, True, False, True])
    with pyro.poutine.mask(mask=mask):
        found, _ = row_log_weights(*traces(factors, encoder(shift=0.3), x))
    assert (found[~mask] == 0).all()
    assert (found[mask] != 0).all()


def shared_weights(x, y=None):
    w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.deterministic("f", x @ w + z)
        pyro.sample("y", dist.Normal(x @ w + z, 0.5), obs=y)


def test_a_latent_shared_by_rows_leaves_one_weight():
    x, y = line(rows=5)

    def guide(x, y):
        pyro.sample("w", dist.Normal(torch.zeros(3), 0.4).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 0.5))

    model_trace, guide_trace = traces(shared_weights, guide, x, y)
    found, scale = row_log_weights(model_trace, guide_trace)
    torch.testing.assert_close(found, (model_trace.log_prob_sum() - guide_trace.log_prob_sum()).reshape(1))
    assert scale == 1.0


def test_of_nested_plates_the_outer_one_has_the_rows():
    x = torch.randn(4, 3)

    def model(x):
        with pyro.plate("data", 4, dim=-2), pyro.plate("pixels", 3, dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", 4, dim=-2), pyro.plate("pixels", 3, dim=-1):
            pyro.sample("z", dist.Normal(0.5 * x, 0.7))

    model_trace, guide_trace = traces(model, guide, x)
    model_trace.compute_log_prob()
    guide_trace.compute_log_prob()
    terms = [model_trace.nodes[n]["log_prob"] for n in ("z", "x")] + [-guide_trace.nodes["z"]["log_prob"]]
    torch.testing.assert_close(row_log_weights(model_trace, guide_trace)[0], sum(terms).sum(-1))


OBJECTIVES = {
    "iwae": guides.IWAE(num_particles=3),
    "dreg": guides.IWAE(num_particles=3, gradient="dreg"),
    "renyi 0.5": guides.Renyi(num_particles=3),
    "renyi -1": guides.Renyi(num_particles=3, alpha=-1.0),
    "renyi 1": guides.Renyi(num_particles=3, alpha=1),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_at_the_exact_posterior_every_draw_is_the_evidence_of_all_rows(name):
    x = rows()
    found, _ = replicate_estimates(OBJECTIVES[name], factors, encoder(), (x,), 20, factor=3.0)
    torch.testing.assert_close(found, 3 * log_evidence(x).sum().expand(20), rtol=0, atol=5e-3)


@pytest.mark.parametrize("model", ["local", "shared"])
def test_the_bound_grows_with_the_particles_and_stays_below_the_evidence(model):
    if model == "local":
        data = (rows(),)
        program, guide, evidence = factors, encoder(shift=0.4, widen=1.5), float(log_evidence(*data).sum())
    else:
        data = line(rows=12)
        mean, covariance, evidence = linear_posterior(*data)
        loc, tril = (mean + 0.2).float(), torch.linalg.cholesky(1.5 * covariance).float()
        program = linear

        def guide(x, y):
            loc_ = pyro.param("loc", loc)
            pyro.sample("w", dist.MultivariateNormal(loc_, scale_tril=tril))

    bounds = [replicate_estimates(guides.IWAE(k), program, guide, data, 3000, seed=k)[0] for k in (1, 2, 5, 20)]
    elbo = replicate_estimates(guides.ELBO(), program, guide, data, 3000, seed=99)[0]
    assert same_mean(bounds[0], elbo)
    for lower, upper in itertools.pairwise(bounds):
        error = (lower.var() / len(lower) + upper.var() / len(upper)).sqrt()
        assert upper.mean() - lower.mean() > 4 * error
    last = bounds[-1]
    assert last.mean() + 4 * last.std() / math.sqrt(len(last)) < evidence


def test_renyi_is_the_elbo_at_one_and_the_importance_weighted_bound_at_zero():
    x, guide = rows(), encoder(shift=0.4, widen=1.5)

    def values(objective):
        return replicate_estimates(objective, factors, guide, (x,), 50)

    for renyi, other in (
        (guides.Renyi(4, alpha=0.0), guides.IWAE(4)),
        (guides.Renyi(4, alpha=1.0), guides.ELBO(4, kl="monte_carlo")),
    ):
        a, b = values(renyi), values(other)
        torch.testing.assert_close(a[0], b[0], rtol=1e-5, atol=1e-4)
        for name in a[1]:
            torch.testing.assert_close(a[1][name], b[1][name], rtol=1e-4, atol=1e-3)
    near, at = values(guides.Renyi(4, alpha=1 - 1e-3))[0], values(guides.Renyi(4, alpha=1.0))[0]
    torch.testing.assert_close(near, at, rtol=0, atol=0.1)
    by_alpha = [values(guides.Renyi(4, alpha=a))[0] for a in (-1.0, 0.0, 0.5, 1.0, 3.0)]
    for larger, smaller in itertools.pairwise(by_alpha):
        assert (larger > smaller).all()  # of power means, for every set of draws


def test_the_doubly_reparameterised_gradient_is_the_gradient_with_less_noise():
    x, guide = rows(), encoder(shift=0.4, widen=1.5)
    plain = replicate_estimates(guides.IWAE(8), factors, guide, (x,), 6000, seed=1)
    doubly = replicate_estimates(guides.IWAE(8, gradient="dreg"), factors, guide, (x,), 6000, seed=2)
    assert same_estimates(plain, doubly)
    for name in ("gain", "offset", "scale_tril"):
        assert doubly[1][name].var(0).sum() < 0.7 * plain[1][name].var(0).sum()
        assert not has_mean(plain[1][name], 0.0)  # or the comparison of means would be one of zeros
    assert not has_mean(plain[1]["weight"], 0.0)


def test_at_the_exact_posterior_only_the_doubly_reparameterised_gradient_has_no_noise():
    x = rows()
    plain = replicate_estimates(guides.IWAE(4), factors, encoder(), (x,), 200)[1]
    doubly = replicate_estimates(guides.IWAE(4, gradient="dreg"), factors, encoder(), (x,), 200)[1]
    for name in ("gain", "offset", "scale_tril"):
        assert doubly[name].abs().max() < 1e-4 * plain[name].std()
    weight = WEIGHT.double().requires_grad_()
    (want,) = torch.autograd.grad(log_evidence(x, weight).sum(), weight)
    for found in (plain["weight"], doubly["weight"]):  # Fisher's identity
        assert has_mean(found, want)


def test_minibatches_scale_the_rows_bounds_and_have_the_right_mean():
    x, guide = rows(), encoder(shift=0.4, widen=1.5)
    full = replicate_estimates(guides.IWAE(3), factors, guide, (x,), 4000)
    halves = [replicate_estimates(guides.IWAE(3), factors, guide, (h,), 4000, factor=2.0, seed=5) for h in (x[:3], x[3:])]
    assert same_mean(full[0], (halves[0][0] + halves[1][0]) / 2)
    for name in full[1]:
        assert same_mean(full[1][name], (halves[0][1][name] + halves[1][1][name]) / 2)


def test_products_are_not_reparameterised_inside_importance_weights():
    """Local reparameterisation draws a weight per row: the mean of such 'weights' is not the evidence."""
    data = line(rows=12)
    losses = []
    for estimator in ("weights", "local"):
        pyro.clear_param_store()
        pyro.set_rng_seed(2)
        guide = guides.MeanField(matrix, init_scale=0.5, estimator=estimator)
        guide(*data)
        pyro.set_rng_seed(3)
        losses.append(guides.IWAE(4).loss(matrix, guide, *data))
    assert losses[0] == losses[1]


def matrix(x, y):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3, 1]).to_event(2))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal((x @ w).squeeze(-1), 0.5), obs=y)


def test_a_fit_finds_the_posterior_and_the_loadings_evidence():
    x = rows(40)
    start = encoder(shift=0.5, widen=2.0)
    posterior = guides.fit(factors, start, x, objective=guides.IWAE(8, gradient="dreg"), steps=600, lr=0.02)
    weight = posterior.parameters["weight"].squeeze(0)
    best = WEIGHT.double().requires_grad_()
    optimiser = torch.optim.LBFGS([best], max_iter=200)
    optimiser.step(lambda: loss_of(optimiser, best, x))
    assert log_evidence(x, weight).sum() > log_evidence(x, best.detach()).sum() - 0.5
    assert -posterior.losses[0, -50:].mean() == pytest.approx(float(log_evidence(x, weight).sum()), abs=0.5)


def loss_of(optimiser, weight, x):
    optimiser.zero_grad()
    loss = -log_evidence(x, weight).sum()
    loss.backward()
    return loss


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: guides.IWAE(gradient="plain"), "gradient must be 'reparameterised' or 'dreg', not 'plain'"),
        (lambda: guides.Renyi(alpha=math.inf), "alpha must be a finite number, not inf"),
        (lambda: guides.Renyi(alpha=math.nan), "alpha must be a finite number, not nan"),
        (lambda: guides.Renyi(alpha="max"), "alpha must be a finite number, not 'max'"),
    ],
)
def test_bad_options_are_named(make, message):
    with pytest.raises(errors.OptionError, match=message):
        make()
