"""What holds for every registered objective: bounds that touch the evidence, gradients, and estimators of lower variance."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from estimates import encoder, factors, has_mean, replicate_estimates, rows, same_estimates, same_mean
from guide_models import line, linear, linear_posterior, network, regression
from torch import nn
from torch.distributions import MultivariateNormal, kl_divergence

import guides
from guides import errors
from guides.compile.loops import has_compiler
from guides.program.joint import frozen_guide_trace
from guides.program.rows import log_density


@pytest.fixture(scope="module")
def data():
    return line(rows=12)


def exact_guide(data, shift=0.0, widen=1.0):
    """The exact posterior of the linear model as a Pyro guide, moved and widened."""
    mean, covariance, _ = linear_posterior(*data)
    q = MultivariateNormal(mean + shift, widen * covariance)
    loc, tril = q.loc.float(), q.scale_tril.float()

    def guide(x, y=None):
        pyro.sample("w", dist.MultivariateNormal(loc, scale_tril=tril))

    return guide, q


def values(objective, guide, data, count=300):
    return replicate_estimates(objective, linear, guide, data, count)[0]


@pytest.mark.parametrize("name", guides.objectives)
def test_an_objective_is_the_log_evidence_at_the_exact_posterior(name, data):
    guide, _ = exact_guide(data)
    *_, evidence = linear_posterior(*data)
    found = values(guides.objectives[name](), guide, data, 20)
    torch.testing.assert_close(found, torch.full_like(found, evidence), rtol=0, atol=2e-3)  # every draw, not their mean


@pytest.mark.parametrize("name", guides.objectives)
def test_an_objective_is_below_the_evidence_elsewhere(name, data):
    guide, _ = exact_guide(data, shift=0.2, widen=1.5)
    *_, evidence = linear_posterior(*data)
    found = values(guides.objectives[name](), guide, data)
    assert found.mean() + 4 * found.std() / math.sqrt(len(found)) < evidence
    assert "evidence" in guides.objectives[name].bounds


def test_the_elbo_is_below_by_the_divergence(data):
    guide, q = exact_guide(data, shift=0.2, widen=1.5)
    mean, covariance, evidence = linear_posterior(*data)
    gap = float(kl_divergence(q, MultivariateNormal(mean, covariance)))
    found = values(guides.ELBO(), guide, data)
    assert gap > 0.5
    assert abs(float(found.mean()) - (evidence - gap)) < 4 * float(found.std()) / math.sqrt(len(found))


def test_particles_are_averaged(data):
    guide, _ = exact_guide(data, shift=0.3)
    one, many = values(guides.ELBO(), guide, data), values(guides.ELBO(num_particles=16), guide, data, 100)
    assert abs(float(one.mean() - many.mean())) < 4 * float(one.std()) / math.sqrt(100)
    assert float(many.std()) == pytest.approx(float(one.std()) / 4, rel=0.35)


def fixed_mean_field(model, data, scale=0.3):
    """A mean-field guide away from the posterior, so that estimators differ."""
    pyro.clear_param_store()
    guide = guides.MeanField(model, init_loc_fn=pyro.infer.autoguide.init_to_sample, init_scale=scale)
    pyro.set_rng_seed(5)
    guide(*data)
    return guide


def test_closed_form_and_monte_carlo_kl_agree_in_value_and_gradient(data):
    guide = fixed_mean_field(regression, data)
    closed = replicate_estimates(guides.ELBO(kl="closed_form"), regression, guide, data, 3000)
    drawn = replicate_estimates(guides.ELBO(kl="monte_carlo"), regression, guide, data, 3000)
    assert same_estimates(closed, drawn)


def masked_and_scaled(x, y=None):
    """A prior in a subsampled plate, under a mask and a scale: what a closed form must not forget."""
    with pyro.plate("columns", 3), pyro.poutine.scale(scale=2.5), pyro.poutine.mask(mask=torch.tensor([True, False, True])):
        w = pyro.sample("w", dist.Normal(torch.tensor([0.5, 0.0, -1.0]), 0.7))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)


def test_the_closed_form_gradient_of_a_conjugate_model(data):
    """With the likelihood's expectation known too, d ELBO / d loc and d sigma have closed forms for a factorised normal."""
    x, y = (d.double() for d in data)
    guide = fixed_mean_field(linear, data)
    _, gradients = replicate_estimates(guides.ELBO(), linear, guide, data, 3000)
    loc = guide.loc.detach().double()
    rho = guide.get_parameter("scale_unconstrained").detach().double()
    sigma = nn.functional.softplus(rho)
    precision = x.T @ x / 0.25 + torch.eye(3) / 4
    d_loc = x.T @ y / 0.25 - precision @ loc
    d_rho = (1 / sigma - precision.diagonal() * sigma) * torch.sigmoid(rho)
    for found, want in ((gradients["MeanField.loc"], d_loc), (gradients["MeanField.scale"], d_rho)):
        assert ((found.mean(0) - want).abs() < 4.5 * found.std(0) / math.sqrt(len(found))).all()


@pytest.mark.parametrize("family", ["mean_field", "full_rank", "low_rank", "laplace"])
@pytest.mark.parametrize("name", guides.objectives)
def test_gradients_match_finite_differences_at_the_same_noise(name, family, data):
    torch.set_default_dtype(torch.float64)
    try:
        x, y = (d.double() for d in data)
        objective = guides.objectives[name](num_particles=3)
        guide = guides.families[family](regression)
        guide(x, y)

        def value():
            pyro.set_rng_seed(2)
            return objective.estimate(regression, guide, (x, y), {})

        parameters = list(guide.parameters())
        gradients = torch.autograd.grad(value().surrogate, parameters)
        generator = torch.Generator().manual_seed(0)
        directions = [torch.randn(p.shape, generator=generator) for p in parameters]
        slope = sum((g * d).sum() for g, d in zip(gradients, directions))
        step, ends = 1e-5, []
        for sign in (1, -1):
            with torch.no_grad():
                for p, d in zip(parameters, directions):
                    p += sign * step * d
                ends.append(value().value)
                for p, d in zip(parameters, directions):
                    p -= sign * step * d
        torch.testing.assert_close((ends[0] - ends[1]) / (2 * step), slope, rtol=1e-6, atol=1e-6)
    finally:
        torch.set_default_dtype(torch.float32)


def test_stock_svi_sees_minus_the_value_and_minus_the_surrogates_gradient(data):
    guide = fixed_mean_field(regression, data)
    objective = guides.ELBO(num_particles=2)
    pyro.set_rng_seed(3)
    estimate = objective.estimate(regression, guide, data, {})
    (want,) = torch.autograd.grad(estimate.surrogate, guide.loc)
    pyro.set_rng_seed(3)
    assert objective.loss(regression, guide, *data) == pytest.approx(-float(estimate.value))
    pyro.set_rng_seed(3)
    guide.loc.grad = None
    assert objective.loss_and_grads(regression, guide, *data) == pytest.approx(-float(estimate.value))
    torch.testing.assert_close(guide.loc.grad, -want)
    pyro.set_rng_seed(3)
    torch.testing.assert_close(objective.differentiable_loss(regression, guide, *data), -estimate.surrogate)
    assert not estimate.value.requires_grad


def test_elbo_agrees_with_pyros(data):
    guide = fixed_mean_field(regression, data)
    for ours, pyros in (
        (guides.ELBO(kl="monte_carlo"), pyro.infer.Trace_ELBO()),
        (guides.ELBO(), pyro.infer.Trace_ELBO()),
    ):
        found = []
        for loss in (ours, pyros):
            pyro.set_rng_seed(1)
            found.append(torch.tensor([loss.loss(regression, guide, *data) for _ in range(400)]).double())
        assert same_mean(*found)
    pyro.set_rng_seed(1)
    once = guides.ELBO(kl="monte_carlo").loss(regression, guide, *data)
    pyro.set_rng_seed(1)
    assert once == pytest.approx(pyro.infer.Trace_ELBO().loss(regression, guide, *data), rel=1e-5)


PAIRS = {
    "normal": (dist.Normal(0.3, 0.8), dist.Normal(torch.tensor([0.1, -0.4]), 0.5)),
    "log-normal": (dist.LogNormal(0.3, 0.8), dist.LogNormal(torch.tensor([0.1, -0.4]), 0.5)),
    "gamma": (dist.Gamma(2.0, 1.5), dist.Gamma(torch.tensor([3.0, 1.2]), 2.0)),
    "exponential": (dist.Exponential(1.5), dist.Exponential(torch.tensor([3.0, 1.2]))),
    "laplace": (dist.Laplace(0.3, 0.8), dist.Laplace(torch.tensor([0.1, -0.4]), 0.5)),
    "uniform": (dist.Uniform(0.0, 3.0), dist.Uniform(torch.tensor([0.5, 1.0]), 2.0)),
    "exponential under gamma": (dist.Gamma(2.0, 1.5), dist.Exponential(torch.tensor([3.0, 1.2]))),
    "no closed form": (dist.StudentT(4.0, 0.3, 0.8), dist.Normal(torch.tensor([0.1, -0.4]), 0.5)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_divergences_of_registered_pairs_are_exact_and_others_drawn(name):
    prior, posterior = PAIRS[name]

    def model():
        pyro.sample("z", prior.expand([2]).to_event(1))

    def guide():
        pyro.param("idle", torch.tensor(0.0))
        pyro.sample("z", posterior.expand([2]).to_event(1))

    closed, _ = replicate_estimates(guides.ELBO(), model, guide, (), 4000)
    drawn, _ = replicate_estimates(guides.ELBO(kl="monte_carlo"), model, guide, (), 4000)
    assert same_mean(closed, drawn)
    assert drawn.std() > 0.01 or name == "uniform"
    if name == "no closed form":
        torch.testing.assert_close(closed, drawn)
    else:
        assert closed.std() < 1e-5


def two_layers(x):
    with pyro.plate("data", len(x)):
        top = pyro.sample("top", dist.Normal(0.0, 1.0))
        bottom = pyro.sample("bottom", dist.Normal(1.2 * top, 0.5))
        pyro.sample("x", dist.Normal(bottom, 0.5), obs=x)


def ladder(x):
    slope = pyro.param("slope", torch.tensor([0.5, 0.7, 0.8]))
    with pyro.plate("data", len(x)):
        top = pyro.sample("top", dist.Normal(slope[0] * x, 0.8))
        pyro.sample("bottom", dist.Normal(slope[1] * x + slope[2] * top, 0.4))


def bottom_up(x):
    slope = pyro.param("slope", torch.tensor([0.5, 0.7, 0.8]))
    with pyro.plate("data", len(x)):
        bottom = pyro.sample("bottom", dist.Normal(slope[1] * x, 0.4))
        pyro.sample("top", dist.Normal(slope[0] * x + slope[2] * bottom, 0.8))


@pytest.mark.parametrize("guide", [ladder, bottom_up])
def test_divergences_of_layers_are_in_closed_form_where_the_order_of_draws_allows_it(guide):
    """Bottom-up, the layer below is no longer distributed as its own factor once the layer above is drawn from it."""
    x = torch.linspace(-1.0, 2.0, 4)
    closed = replicate_estimates(guides.ELBO(), two_layers, guide, (x,), 20_000)
    drawn = replicate_estimates(guides.ELBO(kl="monte_carlo"), two_layers, guide, (x,), 20_000, seed=1)
    assert same_estimates(closed, drawn)
    at_the_same_draws, _ = replicate_estimates(guides.ELBO(kl="monte_carlo"), two_layers, guide, (x,), 20_000)
    assert (closed[0] - at_the_same_draws).std() > 0.5  # some site was taken in closed form


def test_sticking_the_landing_is_the_gradient_with_no_noise_at_the_optimum():
    x = rows()
    plain = guides.ELBO(kl="monte_carlo")
    sticky = guides.ELBO(estimator="stl")
    away = encoder(shift=0.3, widen=1.3)
    a = replicate_estimates(plain, factors, away, (x,), 4000, seed=1)
    b = replicate_estimates(sticky, factors, away, (x,), 4000, seed=2)
    assert same_estimates(a, b)
    assert not has_mean(a[1]["gain"], 0.0)
    a, b = (replicate_estimates(o, factors, encoder(), (x,), 100)[1] for o in (plain, sticky))
    for name in ("gain", "offset", "scale_tril"):
        assert b[name].abs().max() < 1e-4 * a[name].std()


@pytest.mark.parametrize("family", ["mean_field", "full_rank", "low_rank", "map"])
def test_sticking_the_landing_works_for_guides_of_a_flat_vector(family, data):
    pyro.set_rng_seed(0)
    guide = guides.families[family](regression)
    guide(*data)
    found = []
    for objective in (guides.ELBO(kl="monte_carlo"), guides.ELBO(estimator="stl")):
        found.append(replicate_estimates(objective, regression, guide, data, 2000, seed=len(found)))
    assert same_estimates(*found)


def two_layer_networks():
    """A guide whose second draw is made from its first by a network: the path through the first draw must stay."""
    net = nn.Linear(1, 1)

    def guide(x):
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            bottom = pyro.sample("bottom", dist.Normal(0.7 * x, 0.4))
            pyro.sample("top", dist.Normal(net(bottom.unsqueeze(-1)).squeeze(-1), 0.8))

    return guide


class ReadLate(dist.TorchDistribution):
    """A normal that runs its network when its density is asked for, as the density of a flow does."""

    arg_constraints, support, has_rsample = {}, dist.constraints.real, True

    def __init__(self, net, bottom):
        self.net, self.bottom = net, bottom
        super().__init__(bottom.shape, validate_args=False)

    def around(self):
        return dist.Normal(self.net(self.bottom.unsqueeze(-1)).squeeze(-1), 0.8)

    def expand(self, batch_shape, _instance=None):
        return self

    def rsample(self, sample_shape=()):
        return self.around().rsample(sample_shape)

    def log_prob(self, value):
        return self.around().log_prob(value)


def late_network():
    net = nn.Linear(1, 1)

    def guide(x):
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            bottom = pyro.sample("bottom", dist.Normal(0.7 * x, 0.4))
            pyro.sample("top", ReadLate(net, bottom))

    return guide


def test_sticking_the_landing_leaves_out_parameters_that_densities_read_late():
    x, guide = torch.linspace(-1.0, 2.0, 4), late_network()
    gradients = {}
    for estimator in ("pathwise", "stl"):
        pyro.set_rng_seed(0)
        guide_trace = pyro.poutine.trace(guide).get_trace(x)
        densities = guide_trace if estimator == "pathwise" else frozen_guide_trace(guide, guide_trace, (x,), {})
        log_q = log_density(densities.nodes["top"], None, scaled=True)
        (gradients[estimator],) = torch.autograd.grad(log_q, pyro.param("net$$$bias"))
    assert gradients["pathwise"].abs() < 1e-5  # the draw and the mean move together
    assert gradients["stl"].abs() > 0.1


@pytest.mark.parametrize("make", [lambda: bottom_up, lambda: ladder, two_layer_networks, late_network])
def test_sticking_the_landing_keeps_the_path_through_earlier_draws(make):
    x, guide = torch.linspace(-1.0, 2.0, 4), make()
    drawn = replicate_estimates(guides.ELBO(kl="monte_carlo"), two_layers, guide, (x,), 20_000)
    sticky = replicate_estimates(guides.ELBO(estimator="stl"), two_layers, guide, (x,), 20_000, seed=1)
    assert same_estimates(drawn, sticky)


VARIANTS = {
    **{name: guides.objectives[name] for name in guides.objectives},
    "dreg": lambda: guides.IWAE(num_particles=3, gradient="dreg"),
    "sticking the landing": lambda: guides.ELBO(estimator="stl"),
    "warm-up and free bits": lambda: guides.ELBO(kl_weight=guides.KLAnnealing(10), free_bits=0.1),
}


def fit_factors(objective, **options):
    settings = {"steps": 24, "lr": 0.02, "batch_size": 5, **options}
    return guides.fit(factors, encoder(shift=0.3, widen=1.3), rows(20), objective=objective(), **settings)


@pytest.mark.parametrize("name", VARIANTS)
def test_traced_and_replicated_fits_are_the_eager_ones(name):
    eager = [fit_factors(VARIANTS[name], seed=s, compile="eager") for s in (3, 4)]
    together = fit_factors(VARIANTS[name], seed=3, compile="trace", replicates=2)
    for r in (0, 1):
        torch.testing.assert_close(together.replicate(r).losses, eager[r].losses, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(together.replicate(r).flat, eager[r].flat, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(), reason="no C++ compiler")
@pytest.mark.parametrize("name", VARIANTS)
def test_compiled_fits_are_the_eager_ones(name, monkeypatch):
    monkeypatch.setattr("guides.optimise.loop._STEPS_PER_CHUNK", 8)
    eager = fit_factors(VARIANTS[name], seed=3, compile="eager")
    compiled = fit_factors(VARIANTS[name], seed=3, compile="native")
    torch.testing.assert_close(compiled.losses, eager.losses, rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(compiled.flat, eager.flat, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_objective_trains_in_stock_svi(name):
    x = rows(20)
    svi = pyro.infer.SVI(factors, encoder(shift=1.0, widen=2.0), pyro.optim.Adam({"lr": 0.05}), loss=VARIANTS[name]())
    losses = [svi.step(x) for _ in range(60)]
    assert sum(losses[-5:]) < sum(losses[:5]) - 10


@pytest.mark.parametrize("options", [{"kl": "closed"}, {"kl": None}])
def test_bad_options_are_named(options):
    with pytest.raises(errors.OptionError, match="kl must be 'closed_form' or 'monte_carlo'"):
        guides.ELBO(**options)


def with_weights_in(layer):
    """A network whose weights are stored (in, out), or transposed as torch.nn.Linear has them, with bias by keyword."""

    def model(x, y=None):
        if layer == "matmul":
            return network(x, y)
        w1 = pyro.sample("w1", dist.Normal(0.0, 1.0).expand([5, x.shape[-1]]).to_event(2))
        b1 = pyro.sample("b1", dist.Normal(0.0, 1.0).expand([5]).to_event(1))
        w2 = pyro.sample("w2", dist.Normal(0.0, 1.0).expand([1, 5]).to_event(2))
        h = torch.tanh(nn.functional.linear(x, w1, bias=b1))
        f = nn.functional.linear(h, w2, torch.ones(1)).squeeze(-1)
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(f, 0.3), obs=y)

    return model


@pytest.mark.parametrize("layer", ["matmul", "linear"])
@pytest.mark.parametrize("estimator", ["local", "flipout"])
def test_estimators_of_products_are_unbiased_and_less_noisy(estimator, layer, data):
    model = with_weights_in(layer)
    guide = fixed_mean_field(model, data)
    elbo = guides.ELBO()
    plain = replicate_estimates(elbo, model, guide, data, 3000)
    guide.estimator = estimator
    other = replicate_estimates(elbo, model, guide, data, 3000)
    assert same_estimates(plain, other)
    assert other[0].var() < 0.9 * plain[0].var()
    for name in ("MeanField.loc", "MeanField.scale"):
        assert other[1][name].var(0).sum() < 0.9 * plain[1][name].var(0).sum()


def test_products_are_drawn_row_by_row():
    """Four equal rows: one draw of the weights gives one product, local reparameterisation four, flipped signs a few."""
    x = torch.ones(4, 2)
    for estimator, counts in (("weights", {1}), ("local", {4}), ("flipout", {2, 3, 4})):
        pyro.clear_param_store()
        guide = guides.MeanField(recording, init_scale=1.0, estimator=estimator)
        pyro.set_rng_seed(0)
        trace = pyro.poutine.trace(guide).get_trace(x)
        with guide.around_model(trace):
            f = pyro.poutine.trace(pyro.poutine.replay(recording, trace=trace)).get_trace(x).nodes["f"]["value"]
        assert len(f.unique()) in counts


def recording(x):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2, 1]).to_event(2))
    f = pyro.deterministic("f", (x @ w).squeeze(-1))
    pyro.sample("y", dist.Normal(f.sum(), 1.0), obs=torch.tensor(0.0))


def positive_weights(x, y=None):
    w = pyro.sample("w", dist.LogNormal(2.0, 0.1).expand([3, 1]).to_event(2))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal((x @ w).squeeze(-1), 1.0), obs=y)


@pytest.mark.parametrize("estimator", ["local", "flipout"])
def test_constrained_weights_are_drawn_as_weights(estimator, data):
    """Their unconstrained mean and scale say nothing about the mean and scale of the product."""
    guide = fixed_mean_field(positive_weights, data)
    found = []
    for guide.estimator in ("weights", estimator):
        pyro.set_rng_seed(0)
        found.append(guides.ELBO().loss(positive_weights, guide, *data))
    assert found[0] == found[1]


def twice(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3, 3]).to_event(2))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(torch.tanh(x @ w).matmul(w).sum(-1), 1.0), obs=y)


@pytest.mark.parametrize("estimator", ["local", "flipout"])
def test_a_weight_used_twice_is_refused(estimator, data):
    with pytest.raises(errors.UnsupportedModelError, match=r"weight 'w' more than once.*estimator='weights'"):
        guides.fit(twice, ("mean_field", {"estimator": estimator}), *data, steps=2)
    guides.fit(twice, ("mean_field", {"estimator": "weights"}), *data, steps=2)
