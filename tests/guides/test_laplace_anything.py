"""Laplace's approximation of whatever a Pyro model may be, against second derivatives taken without it."""

import inspect
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoLaplaceApproximation, init_to_value
from pyro.infer.reparam import LocScaleReparam
from torch import nn
from torch.distributions import transforms

import guides
import zoo
from guides import errors
from guides.families.laplace.likelihoods import coordinates

ROWS = 30
EYE = torch.eye(3)
ONES = torch.ones(3)


def softmax_of(a):
    return torch.stack([a, torch.zeros_like(a), -a], -1)


def positive(a):
    return torch.exp(0.5 * a)


def folded(a):
    return dist.FoldedDistribution(dist.Normal(2 + a, 1.0))


def mixture(a):
    return dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Normal(torch.stack([a, a + 3.0], -1), torch.ones(2)))


def markov(a):
    rows = softmax_of(a).unsqueeze(-2).expand(3, 3)
    return dist.DiscreteHMM(torch.zeros(3), rows, dist.Normal(torch.arange(3.0), 1.0), duration=5)


LIKELIHOODS = {
    "AVFMultivariateNormal": lambda a: dist.AVFMultivariateNormal(a * ONES, EYE, 0.1 * torch.ones(2, 1, 3)),
    "AffineBeta": lambda a: dist.AffineBeta(positive(a), 2.0, torch.tensor(-1.0), torch.tensor(2.0)),
    "AsymmetricLaplace": lambda a: dist.AsymmetricLaplace(torch.tensor(0.0), positive(a), 1.5),
    "Bernoulli": lambda a: dist.Bernoulli(logits=a),
    "Beta": lambda a: dist.Beta(positive(a), 2.0),
    "BetaBinomial": lambda a: dist.BetaBinomial(positive(a), torch.tensor(2.0), total_count=10),
    "Binomial": lambda a: dist.Binomial(10, logits=a),
    "Categorical": lambda a: dist.Categorical(logits=softmax_of(a)),
    "Cauchy": lambda a: dist.Cauchy(a, 1.0),
    "Chi2": lambda a: dist.Chi2(2 * positive(a)),
    "ContinuousBernoulli": lambda a: dist.ContinuousBernoulli(logits=a + 1),
    "Dirichlet": lambda a: dist.Dirichlet(positive(a).unsqueeze(-1) * torch.tensor([1.0, 2.0, 3.0])),
    "DirichletMultinomial": lambda a: dist.DirichletMultinomial(
        positive(a).unsqueeze(-1) * torch.tensor([1.0, 2.0, 3.0]), total_count=torch.tensor(8)
    ),
    "Exponential": lambda a: dist.Exponential(positive(a)),
    "ExtendedBetaBinomial": lambda a: dist.ExtendedBetaBinomial(positive(a), torch.tensor(2.0), total_count=10),
    "ExtendedBinomial": lambda a: dist.ExtendedBinomial(10, logits=a),
    "FisherSnedecor": lambda a: dist.FisherSnedecor(2 * positive(a), torch.tensor(6.0)),
    "FoldedDistribution": folded,
    "Gamma": lambda a: dist.Gamma(2 * positive(a), 1.5),
    "GammaPoisson": lambda a: dist.GammaPoisson(2 * positive(a), 1.5),
    "GeneralizedPareto": lambda a: dist.GeneralizedPareto(torch.tensor(0.0), positive(a), torch.tensor(0.2)),
    "Geometric": lambda a: dist.Geometric(logits=a),
    "Gumbel": lambda a: dist.Gumbel(a, 1.0),
    "HalfCauchy": lambda a: dist.HalfCauchy(positive(a)),
    "HalfNormal": lambda a: dist.HalfNormal(positive(a)),
    "InverseGamma": lambda a: dist.InverseGamma(3 * positive(a), torch.tensor(2.0)),
    "Kumaraswamy": lambda a: dist.Kumaraswamy(positive(a), torch.tensor(2.0)),
    "LKJCholesky": lambda a: dist.LKJCholesky(3, positive(a)),
    "Laplace": lambda a: dist.Laplace(0.5, positive(a)),
    "LogNormal": lambda a: dist.LogNormal(a, 0.7),
    "LogNormalNegativeBinomial": lambda a: dist.LogNormalNegativeBinomial(
        torch.tensor(3.0), logits=a, multiplicative_noise_scale=torch.tensor(0.3)
    ),
    "Logistic": lambda a: dist.Logistic(a, 1.0),
    "LogisticNormal": lambda a: dist.LogisticNormal(a.unsqueeze(-1).expand(*a.shape, 2), torch.ones(2)),
    "LowRankMultivariateNormal": lambda a: dist.LowRankMultivariateNormal(
        a.unsqueeze(-1) * ONES, 0.5 * torch.ones(3, 1), positive(a).unsqueeze(-1) * ONES
    ),
    "MaskedMixture": lambda a: dist.MaskedMixture(
        torch.arange(ROWS) < 10, dist.Normal(a, 1.0).expand([ROWS]), dist.Normal(-a, 2.0).expand([ROWS])
    ),
    "MixtureOfDiagNormals": lambda a: dist.MixtureOfDiagNormals(
        a + torch.tensor([[0.0, 0.0], [3.0, 1.0]]), torch.ones(2, 2), torch.zeros(2)
    ),
    "MixtureOfDiagNormalsSharedCovariance": lambda a: dist.MixtureOfDiagNormalsSharedCovariance(
        a + torch.tensor([[0.0, 0.0], [3.0, 1.0]]), torch.ones(2), torch.zeros(2)
    ),
    "MixtureSameFamily": mixture,
    "Multinomial": lambda a: dist.Multinomial(8, logits=softmax_of(a)),
    "MultivariateNormal": lambda a: dist.MultivariateNormal(
        a.unsqueeze(-1) * ONES, covariance_matrix=EYE * positive(a)[..., None, None] + 0.3
    ),
    "MultivariateStudentT": lambda a: dist.MultivariateStudentT(torch.tensor(5.0), a.unsqueeze(-1) * ONES, EYE),
    "NanMaskedMultivariateNormal": lambda a: dist.NanMaskedMultivariateNormal(a.unsqueeze(-1) * ONES, EYE + 0.3),
    "NanMaskedNormal": lambda a: dist.NanMaskedNormal(a, torch.tensor(1.0)),
    "NegativeBinomial": lambda a: dist.NegativeBinomial(3.0, logits=a),
    "Normal": lambda a: dist.Normal(a, 1.0),
    "OMTMultivariateNormal": lambda a: dist.OMTMultivariateNormal(a * ONES, EYE),
    "OneHotCategorical": lambda a: dist.OneHotCategorical(logits=softmax_of(a)),
    "OneHotCategoricalStraightThrough": lambda a: dist.OneHotCategoricalStraightThrough(logits=softmax_of(a)),
    "OrderedLogistic": lambda a: dist.OrderedLogistic(a, torch.tensor([-1.0, 0.5])),
    "Pareto": lambda a: dist.Pareto(torch.tensor(1.0), positive(a)),
    "Poisson": lambda a: dist.Poisson(positive(a)),
    "ProjectedNormal": lambda a: dist.ProjectedNormal(a.unsqueeze(-1) * torch.ones(2)),
    "RelaxedBernoulli": lambda a: dist.RelaxedBernoulli(torch.tensor(0.7), logits=a),
    "RelaxedOneHotCategorical": lambda a: dist.RelaxedOneHotCategorical(torch.tensor(0.7), logits=softmax_of(a)),
    "SineBivariateVonMises": lambda a: dist.SineBivariateVonMises(
        a, a, torch.tensor(2.0), torch.tensor(3.0), correlation=torch.tensor(0.5)
    ),
    "SineSkewed": lambda a: dist.SineSkewed(dist.VonMises(a, 3.0).expand([ROWS, 1]).to_event(1), torch.tensor([0.3])),
    "SkewLogistic": lambda a: dist.SkewLogistic(a, torch.tensor(1.0), torch.tensor(2.0)),
    "SoftAsymmetricLaplace": lambda a: dist.SoftAsymmetricLaplace(a.expand(ROWS), 1.0, 1.5, 0.8),
    "SoftLaplace": lambda a: dist.SoftLaplace(a, 1.0),
    "StableWithLogProb": lambda a: dist.StableWithLogProb(torch.tensor(1.5), torch.tensor(0.0), torch.tensor(1.0), a),
    "StudentT": lambda a: dist.StudentT(4 * positive(a), 0.0, 1.0),
    "TransformedDistribution": lambda a: dist.TransformedDistribution(dist.Normal(a, 1.0), [transforms.SigmoidTransform()]),
    "VonMises": lambda a: dist.VonMises(a, 3.0),
    "Weibull": lambda a: dist.Weibull(positive(a), torch.tensor(1.5)),
    "Wishart": lambda a: dist.Wishart(4 + positive(a), EYE.to(a)),
    "ZeroInflatedDistribution": lambda a: dist.ZeroInflatedDistribution(dist.Poisson(3.0), gate_logits=a),
    "ZeroInflatedNegativeBinomial": lambda a: dist.ZeroInflatedNegativeBinomial(3.0, logits=a, gate=torch.tensor(0.2)),
    "ZeroInflatedPoisson": lambda a: dist.ZeroInflatedPoisson(3 * positive(a), gate=torch.tensor(0.2)),
    "DiscreteHMM": markov,
}
SAMPLED_BY = {"LogNormalNegativeBinomial": lambda a: dist.NegativeBinomial(3.0, logits=a)}
FISHER = {"AsymmetricLaplace", "Beta", "Dirichlet", "Exponential", "Gamma"}
FISHER |= {"Geometric", "InverseGamma", "Laplace", "Weibull"}
"""Those whose Fisher information at the mode is their curvature but for the prior's pull."""
ROUGH = {"StableWithLogProb"}
"""A numerical integral, whose second derivative jumps."""

NO_LIKELIHOOD = {
    "CoalescentTimes": "needs the times of leaves, and no continuous parameter",
    "CoalescentTimesWithRate": "as above",
    "Delta": "a point mass: no observation",
    "Distribution": "abstract",
    "Empirical": "no continuous parameter",
    "ExpandedDistribution": "a wrapper",
    "ExponentialFamily": "abstract",
    "GammaGaussianHMM": "a series, not a row",
    "GaussianHMM": "a series, not a row",
    "GaussianMRF": "a series, not a row",
    "GaussianScaleMixture": "Pyro's density changes its logarithms in place, so it has no gradient",
    "GroupedNormalNormal": "its values have the shape of all groups",
    "ImproperUniform": "no density",
    "Independent": "a wrapper",
    "IndependentHMM": "a series, not a row",
    "LKJ": "its values are drawn through a numerical inverse, LKJCholesky has the density",
    "LKJCorrCholesky": "the old name of LKJCholesky",
    "LinearHMM": "no density",
    "MaskedDistribution": "a wrapper",
    "OneOneMatching": "combinatorial",
    "OneTwoMatching": "combinatorial",
    "Rejector": "a sampler",
    "RelaxedBernoulliStraightThrough": "RelaxedBernoulli",
    "RelaxedOneHotCategoricalStraightThrough": "RelaxedOneHotCategorical",
    "SpanningTree": "combinatorial",
    "Stable": "no density",
    "TorchDistribution": "abstract",
    "TruncatedPolyaGamma": "no parameter",
    "Uniform": "its support moves with its parameters",
    "Unit": "no observation",
    "VonMises3D": "no sampler, and a constant that the concentration is needed for only",
}


def rows_of(fn):
    """The distribution with one batch dimension of rows where it can have one."""
    try:
        return fn if fn.batch_shape else fn.expand([ROWS])
    except NotImplementedError:
        return fn


def likelihood(name):
    """A model of one latent, its data, and minus the exact second derivative at its mode."""
    make = LIKELIHOODS[name]
    torch.manual_seed(1)
    with torch.no_grad():
        y = rows_of(SAMPLED_BY.get(name, make)(torch.tensor(0.4))).sample()

    def model(y=None):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("y", rows_of(make(a)).to_event(len(rows_of(make(a)).batch_shape)), obs=y)

    def slope(at):
        value = torch.tensor(at, dtype=torch.float64, requires_grad=True)
        with pyro.validation_enabled(False):
            data = y.double() if y.is_floating_point() else y
            joint = rows_of(make(value)).log_prob(data).sum() - 0.5 * value**2
        return torch.autograd.grad(joint, value)[0].item()

    torch.set_default_dtype(torch.float64)
    try:
        low, high = -4.0, 4.0
        for _ in range(40):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if slope(middle) > 0 else (low, middle)
        width = 0.03 if name in ROUGH else 1e-3
        curvature = -(slope(low + width) - slope(low - width)) / (2 * width)
    finally:
        torch.set_default_dtype(torch.float32)
    return model, y, low, curvature


def test_every_distribution_of_pyro_is_tried_or_cannot_be():
    found = {n for n in dir(dist) if inspect.isclass(getattr(dist, n)) and issubclass(getattr(dist, n), dist.Distribution)}
    assert found == set(LIKELIHOODS) | set(NO_LIKELIHOOD)


@pytest.mark.filterwarnings("ignore:Singular sample detected")  # torch says so of samples that are not
@pytest.mark.parametrize("name", sorted(LIKELIHOODS))
def test_the_curvature_of_every_likelihood_is_the_second_derivative_at_the_mode(name):
    model, y, mode, exact = likelihood(name)
    start = init_to_value(values={"a": torch.tensor(mode)})
    posterior = guides.fit(model, ("laplace", {"init_loc_fn": start}), y, steps=0)
    precision = 1 / float(posterior.guide.get_posterior().variance.detach())
    assert precision == pytest.approx(exact, rel=0.3 if name in ROUGH else 0.15 if name in FISHER else 0.01)
    assert posterior.info[0]["repaired"] == 0


KNOWN = [
    dist.AsymmetricLaplace(0.3, 0.8, 1.5),
    dist.Bernoulli(logits=torch.tensor(0.7)),
    dist.Beta(1.5, 2.5),
    dist.Binomial(6, logits=torch.tensor(0.7)),
    dist.Categorical(logits=torch.tensor([0.1, 0.7, -0.5])),
    dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0])),
    dist.Exponential(1.7),
    dist.Gamma(2.5, 1.5),
    dist.Geometric(logits=torch.tensor(0.4)),
    dist.InverseGamma(torch.tensor(2.5), torch.tensor(1.5)),
    dist.Laplace(0.3, 0.8),
    dist.LogNormal(0.3, 0.8),
    dist.Multinomial(5, logits=torch.tensor([0.1, 0.7, -0.5])),
    dist.MultivariateNormal(torch.tensor([0.5, 1.0]), torch.tensor([[1.0, 0.4], [0.4, 0.7]])),
    dist.NegativeBinomial(3.0, logits=torch.tensor(0.4)),
    dist.Normal(0.3, 0.8),
    dist.OneHotCategorical(logits=torch.tensor([0.1, 0.7, -0.5])),
    dist.Poisson(2.5),
    dist.StudentT(5.0, 0.3, 0.8),
    dist.Weibull(torch.tensor(1.5), torch.tensor(2.5)),
]


@pytest.mark.parametrize("fn", KNOWN, ids=lambda fn: type(fn).__name__)
def test_the_fisher_information_is_the_variance_of_the_score(fn):
    torch.manual_seed(0)
    at = coordinates("y", fn)
    y = fn.sample((40000,))
    with pyro.validation_enabled(False):
        scores = torch.func.jacfwd(lambda value: at.rebuild(value).log_prob(y))(at.value)
    products = scores[:, :, None] * scores[:, None, :]
    error = products.std(0) / math.sqrt(len(y))
    assert ((products.mean(0) - at.fisher).abs() <= 5 * error + 1e-5).all()
    torch.testing.assert_close(at.rebuild(at.value).log_prob(y), fn.log_prob(y), rtol=1e-4, atol=1e-4)


def precision_of(model, *data, options=None, **values):
    start = init_to_value(values={n: torch.as_tensor(v) for n, v in values.items()})
    posterior = guides.fit(model, ("laplace", {"init_loc_fn": start, **(options or {})}), *data, steps=0)
    return torch.linalg.inv(posterior.guide.get_posterior().covariance_matrix.detach().double())


def stocks(model, *data, **values):
    """The precision that Pyro's own Laplace approximation finds at these latents."""
    pyro.clear_param_store()
    start = init_to_value(values={n: torch.as_tensor(v) for n, v in values.items()})
    guide = AutoLaplaceApproximation(model, init_loc_fn=start)
    guide(*data)
    normal = guide.laplace_approximation(*data)
    return torch.linalg.inv(normal.get_posterior(*data).covariance_matrix.detach().double())


def unobserved():
    a = pyro.sample("a", dist.Normal(1.0, 2.0))
    b = pyro.sample("b", dist.Normal(a, 0.5))
    pyro.sample("c", dist.LogNormal(b, 0.3))


def factored(y):
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    s = pyro.sample("s", dist.LogNormal(0.0, 0.5))
    pyro.factor("likelihood", -0.5 * ((y - a) / s).square().sum() - len(y) * s.log())


def both_kinds(y):
    """A likelihood with a Fisher information, one without, and a factor."""
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.Normal(a, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(a, 1.0), obs=y)
        pyro.sample("z", dist.Logistic(b, 1.0), obs=y)
    pyro.factor("tie", -((a - b) ** 2))


@pytest.mark.parametrize("model", [unobserved, factored, both_kinds])
def test_what_stock_pyro_takes_is_taken_and_gives_its_precision(model):
    data = () if model is unobserved else (torch.tensor([0.5, -1.0, 2.0, 0.3]),)
    values = {"a": 0.8, "b": 0.9, "c": 2.3, "s": 1.2}
    values = {n: v for n, v in values.items() if n in pyro.poutine.trace(model).get_trace(*data)}
    torch.testing.assert_close(precision_of(model, *data, **values), stocks(model, *data, **values), rtol=1e-4, atol=1e-4)


def test_predictions_without_the_likelihoods_fisher_information_are_sampled():
    y = torch.randn(10)

    def model(rows, y=None):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(rows)):
            pyro.sample("y", dist.Logistic(a, 1.0), obs=y)

    posterior = guides.fit(model, "laplace", y, y, steps=20)
    assert not posterior.guide.linearised
    assert posterior.predict(y[:4], num_samples=5)["y"].shape == (5, 4)
    assert posterior.log_likelihood(num_samples=3)["y"].shape == (3, 10)


def test_binomial_counts_are_predicted_where_none_are_given():
    def model(n, y=None):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(n)):
            pyro.sample("y", dist.Binomial(n, logits=a), obs=y)

    posterior = guides.fit(model, "laplace", torch.full((50,), 5.0), torch.arange(50.0) % 5, steps=200, lr=0.05)
    drawn = posterior.predict(torch.full((4,), 5.0), num_samples=500)["y"]
    assert drawn.shape == (500, 4)
    assert drawn.mean().item() == pytest.approx(2.0, abs=0.15)


def test_a_function_of_an_observation_is_one_of_that_draw():
    def model(x, y=None):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Normal(a * x, 1.0), obs=y)
            pyro.deterministic("residual", y - a * x)
            pyro.deterministic("twice", 2 * y)

    x = torch.randn(8)
    draws = guides.fit(model, "laplace", x, x, steps=20).predict(x, num_samples=50)
    torch.testing.assert_close(draws["twice"], 2 * draws["y"])


def broadcast(y):
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(a, 1.0), obs=y)


def weighted(handler):
    def model(y):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)), handler:
            pyro.sample("y", dist.Normal(a, 1.0), obs=y)

    return model


def weighted_logistic(handler):
    def model(y):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)), handler:
            pyro.sample("y", dist.Logistic(a, 1.0), obs=y)

    return model


HANDLERS = {
    "scale": pyro.poutine.scale(scale=4.0),
    "weights": pyro.poutine.scale(scale=torch.arange(20) + 1.0),
    "mask": pyro.poutine.mask(mask=torch.arange(20) < 5),
    "masked out": pyro.poutine.mask(mask=False),
}


def test_data_that_broadcast_against_their_distribution_all_count():
    with pyro.validation_enabled(False):
        assert precision_of(broadcast, torch.randn(20)).item() == pytest.approx(21.0, rel=1e-4)


@pytest.mark.parametrize("handler", HANDLERS.values(), ids=HANDLERS)
@pytest.mark.parametrize("make", [weighted, weighted_logistic])
def test_scales_and_masks_enter_the_curvature_as_they_enter_the_density(make, handler):
    y = torch.linspace(-1.0, 2.0, 20)
    model = make(handler)
    torch.testing.assert_close(precision_of(model, y, a=0.4), stocks(model, y, a=0.4), rtol=1e-4, atol=1e-4)


def test_a_reparametrised_site_is_no_likelihood():
    def model(y):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            t = pyro.sample("t", dist.Normal(a, 0.5))
            pyro.sample("y", dist.Normal(t, 1.0), obs=y)

    y = torch.randn(6)
    moved = pyro.poutine.reparam(model, {"t": LocScaleReparam(0.0)})
    values = {"a": 0.3, "t_decentered": torch.randn(6)}
    want = 1.25 * torch.eye(7, dtype=torch.float64)
    want[0, 0], want[0, 1:], want[1:, 0] = 7.0, 0.5, 0.5
    torch.testing.assert_close(precision_of(moved, y, **values), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_the_latents_may_have_any_scale(scale):
    def model(y):
        a = pyro.sample("a", dist.Normal(0.0, 10.0 * scale))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(a, scale), obs=y)

    y = scale * torch.randn(20)
    assert precision_of(model, y, a=0.0).item() * scale**2 == pytest.approx(20.01, rel=1e-4)


@pytest.fixture
def no_work(monkeypatch):
    def train(*args, **kwargs):
        raise AssertionError("the optimisation began")

    monkeypatch.setattr("guides.fitting.train", train)


def logistic_rows(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3, 1]).to_event(2))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Logistic((x @ w).squeeze(-1), 1.0), obs=y)


def kinked(x, y):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    pyro.factor("absolute", -(y - w).abs().sum())


def no_weights(x, y):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(w, 1.0), obs=y)


REFUSED = [
    (logistic_rows, {"curvature": "kron"}, r"site 'y' is Logistic.*curvature='ggn'"),
    (logistic_rows, {"predictive": "linearised"}, r"'y' \(Logistic\).*predictive='sampled'"),
    (logistic_rows, {"sites": ["v"]}, r"'v', not a latent site; the model has w"),
    (logistic_rows, {"marginal_likelihood": 2}, r"no pyro.param hyperparameters"),
    (no_weights, {"sites": "last_layer"}, r"multiplies data by no latent weight matrix"),
    (kinked, {}, r"'absolute' has kinks"),
]


@pytest.mark.parametrize(("model", "options", "message"), REFUSED)
def test_what_cannot_be_is_refused_before_the_optimisation(model, options, message, no_work):
    with pytest.raises((errors.UnsupportedModelError, errors.OptionError), match=message):
        guides.fit(model, ("laplace", options), torch.randn(10, 3), torch.randn(10))


def test_a_curvature_that_is_not_finite_is_refused_in_words():
    def model(y):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.factor("root", torch.sqrt(a.clamp(min=0.0)) + 0.0 * y.sum())

    with pytest.raises(errors.UnsupportedModelError, match="'a' at the optimum is not finite"):
        precision_of(model, torch.ones(3), a=0.0)


def trained(steps=300, outputs=3):
    """A small network, trained or not, and the data it is for."""
    torch.manual_seed(0)
    x = torch.randn(150, 4)
    y = (x[:, 0] > 0.3).long() + (x[:, 1] > 0).long()
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, outputs))
    optimiser = torch.optim.Adam(net.parameters(), 0.03)
    for _ in range(steps):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimiser.step()
    return net, x, y


@pytest.mark.parametrize("guide", ["map", "laplace", "mean_field", "full_rank"])
def test_guides_start_at_the_weights_of_the_network(guide):
    net, x, y = trained()
    posterior = guides.fit(zoo.bayesianize(net, likelihood="multiclass"), guide, x, y, steps=1, lr=1e-12)
    draws = posterior.sample(400)
    for name, value in net.state_dict().items():
        spread = draws[name].std(0) / 20 + 1e-6
        assert ((draws[name].mean(0) - value).abs() <= 5 * spread).all()


def test_the_last_layer_around_a_trained_network_needs_no_training():
    net, x, y = trained()
    posterior = guides.fit(
        zoo.bayesianize(net, prior=1.0, likelihood="multiclass"), ("laplace", {"sites": "last_layer"}), x, y
    )
    assert posterior.steps == 0
    draws = posterior.sample(10)
    assert torch.equal(draws["0.weight"], net[0].weight.detach().expand(10, 6, 4))
    assert draws["2.weight"].std(0).min() > 0
    torch.testing.assert_close(posterior.guide.get_posterior().mean[30:48], net[2].weight.detach().flatten())
    features = net[:2](x).detach().double()
    logits = net(x).detach().double()
    p = logits.softmax(-1)
    fisher = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    wide = torch.cat([features, torch.ones(len(x), 1)], -1)
    precision = torch.einsum("nab,ni,nj->aibj", fisher, wide, wide).reshape(21, 21) + torch.eye(21)
    weights = torch.cat([net[2].weight, net[2].bias[:, None]], -1).detach().double()
    fit = torch.distributions.Categorical(logits=logits).log_prob(y).sum()
    evidence = fit - 0.5 * weights.square().sum() - 0.5 * torch.logdet(precision)
    assert posterior.info[0]["log_evidence"] == pytest.approx(float(evidence), abs=0.01)
    assert posterior.info[0]["log_evidence"] < 0
    score = posterior.log_likelihood(num_samples=200)["y"].logsumexp(0).sub(math.log(200)).sum()
    assert score > fit - 15


def test_a_trained_network_keeps_its_layers_through_explicit_steps_too():
    net, x, y = trained()
    guide = ("laplace", {"sites": "last_layer"})
    posterior = guides.fit(zoo.bayesianize(net, likelihood="multiclass"), guide, x, y, steps=30, lr=0.05)
    draw = posterior.sample(1)
    assert torch.equal(draw["0.weight"][0], net[0].weight)
    assert not torch.allclose(posterior.guide.get_posterior().mean[30:48], net[2].weight.flatten(), atol=0.02)


def test_an_untrained_network_is_trained():
    net, x, y = trained(steps=0)
    guide = ("laplace", {"sites": "last_layer"})
    posterior = guides.fit(zoo.bayesianize(net, likelihood="multiclass"), guide, x, y, steps=30, lr=0.05)
    assert not torch.allclose(posterior.sample(1)["0.weight"][0], net[0].weight, atol=0.02)


def test_noise_that_is_to_be_learned_is_learned_around_layers_that_are_kept():
    torch.manual_seed(0)
    x = torch.randn(100, 3)
    y = x[:, 0] + 0.3 * torch.randn(100)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    optimiser = torch.optim.Adam(net.parameters(), 0.03)
    for _ in range(300):
        optimiser.zero_grad()
        (net(x).squeeze(-1) - y).square().mean().backward()
        optimiser.step()
    guide = ("laplace", {"sites": "last_layer"})
    posterior = guides.fit(zoo.bayesianize(net), guide, x, y, steps=400, lr=0.03)
    draw = posterior.sample(1)
    assert torch.equal(draw["0.weight"][0], net[0].weight)
    assert draw["sigma"].item() == pytest.approx((net(x).squeeze(-1) - y).std().item(), rel=0.15)


def test_no_steps_are_a_fit_like_any_other(tmp_path):
    net, x, y = trained()
    model = zoo.bayesianize(net, likelihood="multiclass")
    posterior = guides.fit(model, ("laplace", {"sites": "last_layer"}), x, y)
    assert posterior.losses.shape == (1, 0)
    assert posterior.stop_reasons == ("ran all 0 steps",)
    assert "k-hat" in str(posterior.diagnose(num_samples=50))
    posterior.save(tmp_path / "posterior.pt")
    again = guides.Posterior.load(tmp_path / "posterior.pt", model)
    for name, value in posterior.sample(5, seed=1).items():
        torch.testing.assert_close(again.sample(5, seed=1)[name], value)
    assert again.guide.linearised


def test_a_layer_that_is_not_integrated_costs_nothing_per_direction():
    """The body runs once for all directions of a derivative, or the Hessian of 20 weights costs as much as that of all."""
    net, x, y = trained()
    rows = []

    class Counting(nn.Module):
        def forward(self, value):
            rows.append(value.dim() if not torch._C._functorch.is_batchedtensor(value) else -1)
            return torch.tanh(value)

    net[1] = Counting()
    guides.fit(zoo.bayesianize(net, likelihood="multiclass"), ("laplace", {"sites": "last_layer"}), x, y)
    assert rows
    assert -1 not in rows


def test_a_shoulder_of_the_prior_is_no_wider_than_its_draws():
    prior = dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Normal(torch.zeros(2), torch.tensor([0.1, 1.5])))

    def model(x):
        pyro.sample("w", prior)
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(a, 1.0), obs=x)

    start = init_to_value(values={"w": torch.tensor(0.25), "a": torch.tensor(0.0)})  # where the prior is not concave
    fit = guides.fit(model, ("laplace", {"init_loc_fn": start}), torch.zeros(5), steps=1, lr=1e-6)
    assert fit.info[0]["prior_repaired"] == 1
    widths = torch.tensor([fit.sample(2000, seed=s)["w"].std() for s in range(2)])
    assert (widths < 2.0).all() and (widths > 0.5).all()


def test_an_optimisation_that_did_not_reach_the_mode_is_told():
    def model(x):
        z = pyro.sample("z", dist.Normal(0.0, 1e8))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    start = ("laplace", {"init_loc_fn": init_to_value(values={"z": torch.tensor(0.0)})})
    with pytest.warns(errors.NotAtTheModeWarning, match="'z' by 4.47e\\+08 posterior standard deviations"):
        guides.fit(model, start, torch.full((20,), 1e8), steps=20)
    near = guides.fit(model, start, torch.full((20,), 1.0), steps=20)
    assert near.info[0]["from_mode"] == pytest.approx(0.8 * 20**0.5, rel=0.05)  # 20 steps go 0.2 of the way


@pytest.mark.parametrize("curvature", ["ggn", "diagonal", "kron"])
def test_the_step_to_the_mode_is_that_of_the_whole_covariance(curvature):
    torch.manual_seed(0)
    x = torch.randn(20, 3)
    model = zoo.bayesianize(nn.Linear(3, 2), noise=1.0)
    fit = guides.fit(model, ("laplace", {"curvature": curvature}), x, x[:, :2], steps=1, lr=1e-6)
    normal = fit.guide.get_posterior()
    vector = torch.randn(len(normal.loc))
    torch.testing.assert_close(normal.covariance_times(vector), normal.covariance_matrix @ vector, rtol=1e-4, atol=1e-6)


def test_priors_without_a_sampler_are_taken():
    def model(x):
        a = pyro.sample("a", dist.ImproperUniform(dist.constraints.real, (), ()))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(a, 1.0), obs=x)

    guide = ("laplace", {"init_loc_fn": init_to_value(values={"a": torch.tensor(2.0)})})
    fit = guides.fit(model, guide, torch.full((25,), 2.0), steps=2, lr=1e-6, compile="eager")
    normal = fit.guide.get_posterior()
    torch.testing.assert_close(normal.variance, torch.tensor([1 / 25]))
