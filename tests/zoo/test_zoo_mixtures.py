"""Mixtures: their densities against sums and integrals written out, and their conjugate structure against itself."""

import math

import pyro
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import Predictive
from torch.distributions import MultivariateNormal, Wishart

import zoo
from zoo.conjugate_normal import bartlett_degrees, bartlett_factor, bartlett_index

MODELS = [zoo.GaussianMixture, zoo.DirichletProcessMixture]
COVARIANCES = ["diagonal", "full"]
every = pytest.mark.parametrize("covariance", COVARIANCES)
each = pytest.mark.parametrize("cls", MODELS)


def data(rows=12, columns=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64) + torch.arange(columns)


def latent_values(model, x):
    nodes = poutine.trace(model).get_trace(x).iter_stochastic_nodes()
    return {name: site["value"] for name, site in nodes if name != "data"}


def soft(restarts, components, rows):
    return torch.rand(restarts, components, rows, dtype=torch.float64).softmax(1)


def updated(structure, rows, responsibilities):
    statistics = structure.statistics(rows, responsibilities)
    return {name: value + statistics[name] for name, value in structure.prior.items()}


def build(cls, covariance, components=3, columns=3, **options):
    a = torch.randn(columns, columns, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    scatter = a @ a.mT + torch.eye(columns) if covariance == "full" else a.square().sum(0)
    options = {"concentration": 0.7, "mean": 0.3, "mean_precision": 0.8, "degrees_of_freedom": columns + 1.5} | options
    return cls(components, columns, covariance, scatter=scatter, **options)


# -- the Pyro model ----------------------------------------------------------------------------------------------------


def test_bartletts_factors_are_a_wishart():
    """Their density, changed to the entries of the precision matrix, is the Wishart's."""
    dimension, dof = 3, torch.tensor(4.5, dtype=torch.float64)
    scale = torch.tensor([[1.0, 0.4, 0.1], [0.4, 2.0, -0.3], [0.1, -0.3, 0.7]], dtype=torch.float64)
    upper = torch.linalg.cholesky(scale.flip(0, 1)).flip(0, 1)
    degrees, index = bartlett_degrees(dof, dimension), bartlett_index(dimension)
    i, j = torch.tril_indices(dimension, dimension)

    def precision(flat):
        factor = upper @ bartlett_factor(flat[:dimension], flat[dimension:], index)
        return factor @ factor.mT

    for _ in range(5):
        chi2, normals = torch.distributions.Chi2(degrees).sample(), torch.randn(3, dtype=torch.float64)
        flat = torch.cat([chi2, normals])
        jacobian = torch.func.jacrev(lambda v: precision(v)[i, j])(flat)
        ours = torch.distributions.Chi2(degrees).log_prob(chi2).sum()
        ours = ours + torch.distributions.Normal(0.0, 1.0).log_prob(normals).sum() - torch.linalg.slogdet(jacobian).logabsdet
        torch.testing.assert_close(ours, Wishart(dof, scale).log_prob(precision(flat)))


@each
@every
def test_the_likelihood_is_the_sum_over_assignments(cls, covariance):
    model, x = build(cls, covariance), data()
    trace = poutine.trace(model).get_trace(x)
    trace.compute_log_prob()
    nodes = trace.nodes
    precision = nodes["precision"]["value"]
    precision = precision if covariance == "full" else torch.diag_embed(precision)
    if cls is zoo.GaussianMixture:
        weights = nodes["weights"]["value"]
    else:
        sticks, weights, left = nodes["sticks"]["value"].tolist(), [], 1.0
        for stick in [*sticks, 1.0]:
            weights.append(left * stick)
            left *= 1 - stick
        assert sum(weights) == pytest.approx(1)
        assert nodes["weights"]["value"].tolist() == pytest.approx(weights)
    parts = [
        math.log(weights[k]) + MultivariateNormal(nodes["loc"]["value"][k], precision_matrix=precision[k]).log_prob(x)
        for k in range(3)
    ]
    torch.testing.assert_close(nodes["x"]["log_prob"], torch.stack(parts).logsumexp(0))


@each
@every
def test_means_have_the_precision_of_their_component(cls, covariance):
    model, x = build(cls, covariance), data()
    nodes = poutine.trace(model).get_trace(x).nodes
    precision = nodes["precision"]["value"]
    precision = precision if covariance == "full" else torch.diag_embed(precision)
    expected = MultivariateNormal(torch.full((3,), 0.3, dtype=torch.float64), precision_matrix=0.8 * precision)
    found = nodes["loc"]["fn"].log_prob(nodes["loc"]["value"])
    torch.testing.assert_close(found, expected.log_prob(nodes["loc"]["value"]).sum())


@each
@every
@pytest.mark.parametrize("columns", [1, 2])
def test_vectorised_draws_agree_with_draws_one_by_one(cls, covariance, columns):
    model, x = build(cls, covariance, columns=columns), data(columns=columns)
    guide = pyro.infer.autoguide.AutoNormal(model, init_scale=0.1)
    guide(x)
    draws = Predictive(guide, num_samples=4)(x)
    latents = {k: v for k, v in draws.items() if k in ("weights", "sticks", "loc", "precision") or k.startswith("bartlett")}
    one, many = (
        Predictive(model, posterior_samples=latents, return_sites=("x", "precision"), parallel=parallel)(x)
        for parallel in (False, True)
    )
    assert one["x"].shape == many["x"].shape == (4, 12, columns)
    torch.testing.assert_close(one["precision"], many["precision"].reshape(one["precision"].shape))
    vectorised = pyro.infer.Trace_ELBO(num_particles=200, vectorize_particles=True, max_plate_nesting=1)
    by_one = pyro.infer.Trace_ELBO(num_particles=200, max_plate_nesting=1)
    assert vectorised.loss(model, guide, x) == pytest.approx(by_one.loss(model, guide, x), rel=0.1)


def test_minibatches_are_scaled_to_the_data():
    model = build(zoo.GaussianMixture, "full", data_size=12)
    conditioned = poutine.condition(model, data=latent_values(model, data()))

    def log_likelihood(x):
        trace = poutine.trace(conditioned).get_trace(x)
        trace.compute_log_prob()
        return trace.nodes["x"]["log_prob_sum"]

    halves = [log_likelihood(part) for part in data().split(6)]
    torch.testing.assert_close(sum(halves) / 2, log_likelihood(data()))


def test_one_component_is_one_gaussian():
    model = zoo.GaussianMixture(1, 3)
    trace = poutine.trace(model).get_trace(data())
    assert "weights" not in trace.nodes
    assert trace.nodes["x"]["fn"].log_prob(data()).isfinite().all()


# -- the conjugate structure -------------------------------------------------------------------------------------------


@each
@every
def test_expectations_are_gradients_of_the_log_normaliser(cls, covariance):
    """For an exponential family the mean of the statistics is the gradient of A; all methods have to agree on it."""
    structure = build(cls, covariance).conjugate(data())
    rows, responsibilities = structure.rows(data()), soft(2, 3, 12)
    natural = {k: v.requires_grad_() for k, v in updated(structure, rows, soft(2, 3, 12)).items()}
    means = torch.autograd.grad(structure.log_normaliser(natural).sum(), list(natural.values()))
    statistics = structure.statistics(rows, responsibilities)
    by_gradient = sum((statistics[k] * mean).flatten(1).sum(1) for k, mean in zip(natural, means))
    direct = (responsibilities * structure.expected_log_joint(rows, natural)).sum((-2, -1))
    torch.testing.assert_close(by_gradient + structure.log_base(rows), direct)


@every
def test_evidence_is_the_product_of_one_step_predictions(covariance):
    model, x = build(zoo.GaussianMixture, covariance, components=1), data()
    structure = model.conjugate(x)
    rows, one = structure.rows(x), torch.ones(1, 1, 12, dtype=torch.float64)
    posterior = updated(structure, rows, one)
    evidence = structure.log_normaliser(posterior) - structure.log_normaliser(structure.prior) + structure.log_base(rows)
    steps = 0.0
    for n in range(12):
        before = updated(structure, rows[:, :n], one[..., :n])
        steps = steps + structure.log_predictive(rows[:, n : n + 1], before).squeeze()
    torch.testing.assert_close(evidence.squeeze(), steps)


@each
def test_evidence_of_labels_is_the_product_of_expected_weights(cls):
    """Labels alone: their probability under the weights' prior, one after the other."""
    weights = build(cls, "diagonal").conjugate(data()).weights
    labels = torch.nn.functional.one_hot(torch.tensor([0, 0, 2, 1, 0, 2]), 3).double()
    natural, total = weights.prior, torch.zeros(1, dtype=torch.float64)
    for label in labels:
        total = total + (weights.expected(natural) * label).sum(-1).log()
        statistics = weights.statistics(label.unsqueeze(0))
        natural = {k: v + statistics[k] for k, v in natural.items()}
    torch.testing.assert_close(weights.log_normaliser(natural) - weights.log_normaliser(weights.prior), total)


@each
def test_expected_log_weights_against_draws(cls):
    weights = build(cls, "diagonal").conjugate(data()).weights
    statistics = weights.statistics(torch.tensor([[3.0, 1.0, 5.0]], dtype=torch.float64))
    natural = {k: v + statistics[k] for k, v in weights.prior.items()}
    drawn = weights.sample({k: v.expand(20_000, *v.shape[1:]) for k, v in natural.items()})
    if "sticks" in drawn:
        rest = torch.cat([torch.ones(20_000, 1), (1 - drawn["sticks"]).cumprod(-1)], -1)
        drawn["weights"] = rest * torch.cat([drawn["sticks"], torch.ones(20_000, 1)], -1)
    logs = drawn["weights"].log()
    error = logs.std(0) / math.sqrt(20_000)
    assert ((logs.mean(0) - weights.expected_log(natural)[0]).abs() < 4.5 * error).all()
    assert ((drawn["weights"].mean(0) - weights.expected(natural)[0]).abs() < 4.5 / math.sqrt(20_000)).all()


@each
@every
@pytest.mark.parametrize("columns", [1, 3])
def test_draws_are_the_models_sites(cls, covariance, columns):
    """The closed-form expectation of log p(x, z | theta) is the average over draws handed to the Pyro model."""
    model, x = build(cls, covariance, columns=columns), data(columns=columns)
    structure, count = model.conjugate(x), 3000
    natural = updated(structure, structure.rows(x), soft(1, 3, 12))
    draws = structure.sample({k: v.expand(count, *v.shape[1:]) for k, v in natural.items()})
    assert {k: v.shape[1:] for k, v in draws.items()} == {k: v.shape for k, v in latent_values(model, x).items()}

    def log_components(latents):
        trace = poutine.trace(poutine.condition(model, data=latents)).get_trace(x)
        fn = trace.nodes["x"]["fn"]
        return (fn.component_distribution.log_prob(x.unsqueeze(1)) + fn.mixture_distribution.logits).mT

    with pyro.validation_enabled(False):
        values = torch.func.vmap(log_components)(draws)
    error = values.std(0) / math.sqrt(count)
    assert ((values.mean(0) - structure.expected_log_joint(structure.rows(x), natural)[0]).abs() < 5 * error).all()


@every
def test_moving_and_scaling_the_data_changes_nothing_else(covariance):
    x, responsibilities = data(), soft(1, 3, 12)
    found = []
    for shift, scale in ((0.0, 1.0), (1e6, 1.0), (-1e3, 1e-4)):
        model = zoo.GaussianMixture(3, 3, covariance, mean=shift, scatter=scale**2, degrees_of_freedom=4.0)
        moved = x * scale + shift
        structure = model.conjugate(moved)
        rows = structure.rows(moved)
        natural = updated(structure, rows, responsibilities)
        described = structure.describe(natural)
        log_joint = structure.expected_log_joint(rows, natural) + 3 * math.log(scale)
        found.append((log_joint, (described["mean"] - shift) / scale, described["scatter"] / scale**2))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-6, atol=1e-6)


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_components": 0}, "num_components must be a whole number of at least 1, got 0"),
        ({"num_components": 2.0}, "num_components must be a whole number"),
        ({"in_features": 0}, "in_features must be a whole number"),
        ({"covariance": "diag"}, "Did you mean 'diagonal'"),
        ({"concentration": 0.0}, "concentration must be a positive finite number"),
        ({"mean": [0.0, 1.0]}, "mean must be a finite number or 3 of them"),
        ({"mean": math.nan}, "mean must be a finite number"),
        ({"mean_precision": -1.0}, "mean_precision must be a positive"),
        ({"degrees_of_freedom": 2.0}, "no proper Wishart in 3 dimensions; use more than 2"),
        ({"scatter": 0.0}, "scatter must be positive, got 0.0; a constant column has none"),
        ({"scatter": torch.ones(3, 3)}, "symmetric positive definite"),
        ({"scatter": torch.eye(2)}, "symmetric positive definite"),
    ],
)
def test_a_prior_that_is_none_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        zoo.GaussianMixture(**({"num_components": 2, "in_features": 3} | options))


def test_a_truncation_without_a_stick_is_refused():
    with pytest.raises(ValueError, match="num_components=1 leaves no stick to break"):
        zoo.DirichletProcessMixture(1, 2)


@each
def test_data_of_another_shape_are_refused(cls):
    model = cls(2, 3)
    for wrong in (torch.zeros(5, 2), torch.zeros(5), torch.zeros(0, 3), torch.zeros(5, 3, dtype=torch.long)):
        with pytest.raises(ValueError, match="x has"):
            model(wrong)
    with pytest.raises(ValueError, match="NaN or infinite"):
        model.conjugate(torch.full((5, 3), math.nan))


@every
def test_scatters_that_rounding_has_eaten_are_an_error(covariance):
    """Two clusters 2e7 apart, each a point: float64 has no digits left for a scatter of 1e-3."""
    model = zoo.GaussianMixture(2, 2, covariance, mean_precision=1e-20, scatter=1e-3, degrees_of_freedom=3.0)
    x = torch.tensor([[-1.0, 1.0], [1.0, 3.0]], dtype=torch.float64).repeat_interleave(5, 0) * 1e7
    structure = model.conjugate(x)
    hot = torch.nn.functional.one_hot(torch.arange(2).repeat_interleave(5), 2).double().mT.unsqueeze(0)
    natural = updated(structure, structure.rows(x), hot)
    with pytest.raises(ValueError, match="lost its digits in float64"):
        structure.log_normaliser(natural)
