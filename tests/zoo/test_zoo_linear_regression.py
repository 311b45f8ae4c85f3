"""The oracle has an oracle of its own: numpy's formulas and a dense Gaussian."""

import numpy as np
import pyro
import pytest
import torch
from sklearn.linear_model import BayesianRidge, Ridge

import zoo


@pytest.fixture
def problem():
    return zoo.BayesianLinearRegression.example()


def numpy_design(model, x):
    x = x.double().numpy()
    return np.column_stack([x, np.ones(len(x))]) if model.bias else x


@pytest.mark.parametrize("bias", [True, False])
def test_posterior_evidence_and_predictive_against_numpy(problem, bias):
    _, (x, y) = problem
    s, sigma = 1.5, 0.5
    model = zoo.BayesianLinearRegression(3, s, sigma, bias=bias)
    phi, target = numpy_design(model, x), y.double().numpy()
    covariance = np.linalg.inv(phi.T @ phi / sigma**2 + np.eye(phi.shape[1]) / s**2)
    mean = covariance @ phi.T @ target / sigma**2
    posterior = model.exact_posterior(x, y)
    assert posterior.mean.dtype == torch.float32
    np.testing.assert_allclose(posterior.mean, mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(posterior.covariance_matrix, covariance, rtol=1e-4, atol=1e-7)

    marginal = sigma**2 * np.eye(len(phi)) + s**2 * phi @ phi.T
    dense = torch.distributions.MultivariateNormal(torch.zeros(len(phi)).double(), torch.from_numpy(marginal))
    torch.testing.assert_close(model.log_evidence(x, y), dense.log_prob(y.double()), rtol=1e-10, atol=1e-9)

    x_new = torch.randn(5, 3)
    predictive, phi_new = model.exact_predictive(x_new, x, y), numpy_design(model, x_new)
    np.testing.assert_allclose(predictive.mean, phi_new @ mean, rtol=1e-4, atol=1e-5)
    variance = np.einsum("nd,de,ne->n", phi_new, covariance, phi_new) + sigma**2
    np.testing.assert_allclose(predictive.variance, variance, rtol=1e-4)


def test_map_is_ridge_regression(problem):
    _, (x, y) = problem
    model = zoo.BayesianLinearRegression(3, prior_scale=0.7, noise_scale=0.4, bias=False)
    ridge = Ridge(alpha=0.4**2 / 0.7**2, fit_intercept=False).fit(x.double(), y.double())
    np.testing.assert_allclose(model.exact_posterior(x, y).mean, ridge.coef_, rtol=1e-5)


def test_log_joint_is_posterior_times_evidence(problem):
    """Bayes' rule at any weight: the model that Pyro sees and the closed forms are one model."""
    model, (x, y) = problem
    w = torch.randn(4)
    trace = pyro.poutine.trace(pyro.condition(model, data={"w": w})).get_trace(x, y)
    expected = model.log_evidence(x, y) + model.exact_posterior(x, y).log_prob(w)
    torch.testing.assert_close(trace.log_prob_sum(), expected.float(), rtol=1e-4, atol=1e-3)


def test_maximum_of_the_evidence(problem):
    _, (x, y) = problem
    model = zoo.BayesianLinearRegression(3, "param", "param", bias=False)
    best = model.maximise_evidence(x, y)
    reference = BayesianRidge(alpha_1=0, alpha_2=0, lambda_1=0, lambda_2=0, fit_intercept=False, tol=1e-12, max_iter=1000)
    reference.fit(x.double(), y.double())
    assert best.noise_scale == pytest.approx(reference.alpha_**-0.5, rel=1e-5)
    assert best.prior_scale == pytest.approx(reference.lambda_**-0.5, rel=1e-5)
    for ds, dn in ((1.01, 1), (0.99, 1), (1, 1.01), (1, 0.99)):
        shifted = model.log_evidence(x, y, prior_scale=best.prior_scale * ds, noise_scale=best.noise_scale * dn)
        assert float(shifted) < best.log_evidence


def test_a_scale_given_as_a_number_stays(problem):
    _, (x, y) = problem
    best = zoo.BayesianLinearRegression(3, "param", 0.5).maximise_evidence(x, y)
    assert best.noise_scale == 0.5
    assert zoo.BayesianLinearRegression(3, 2.0, "param").maximise_evidence(x, y).prior_scale == 2.0


def test_evidence_without_interior_maximum():
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    with pytest.raises(RuntimeError, match="no maximum inside"):
        zoo.BayesianLinearRegression(2, "param", 1.0).maximise_evidence(x, torch.zeros(20))


def test_learned_scales_are_positive_parameters(problem):
    _, (x, y) = problem
    pyro.clear_param_store()
    zoo.BayesianLinearRegression(3, "param", "param")(x, y)
    store = pyro.get_param_store()
    assert sorted(store.keys()) == ["noise_scale", "prior_scale"]
    assert all(store[name] == 1.0 for name in store)


def test_latent_noise(problem):
    _, (x, y) = problem
    model = zoo.BayesianLinearRegression(3, noise_scale="learned")
    assert "sigma" in pyro.poutine.trace(model).get_trace(x, y)
    with pytest.raises(ValueError, match=r"known noise_scale.*latent"):
        model.log_evidence(x, y)
    assert torch.isfinite(model.log_evidence(x, y, noise_scale=0.5))


def test_errors_name_the_argument(problem):
    model, (x, y) = problem
    with pytest.raises(ValueError, match="prior_scale must be a positive"):
        zoo.BayesianLinearRegression(3, prior_scale=-1.0)
    with pytest.raises(ValueError, match=r"noise_scale='lerned'"):
        zoo.BayesianLinearRegression(3, noise_scale="lerned")
    with pytest.raises(ValueError, match=r"known prior_scale.*learned parameter"):
        zoo.BayesianLinearRegression(3, "param").exact_posterior(x, y)
    with pytest.raises(ValueError, match="optimises scales that are 'param'"):
        model.maximise_evidence(x, y)
    with pytest.raises(ValueError, match="in_features=2"):
        model(x[:, :2])
    with pytest.raises(ValueError, match=r"dtype torch.int64; pass x.float\(\)"):
        model(x.long())
    with pytest.raises(ValueError, match="no rows"):
        model(x[:0])
    with pytest.raises(ValueError, match="y holds NaN"):
        model.exact_posterior(x, torch.full_like(y, float("nan")))


def test_minibatches_under_stock_svi_are_scaled(problem):
    _, (x, y) = problem
    model = zoo.BayesianLinearRegression(3, data_size=30)
    condition = pyro.condition(model, data={"w": torch.randn(4)})

    def likelihood(rows):
        trace = pyro.poutine.trace(condition).get_trace(x[rows], y[rows])
        trace.compute_log_prob()
        return trace.nodes["y"]["log_prob_sum"]

    parts = [likelihood(slice(i, i + 10)) for i in (0, 10, 20)]
    torch.testing.assert_close(sum(parts) / 3, likelihood(slice(0, 30)))
    assert model(torch.randn(50, 3)).shape == (50,)
    with pytest.raises(ValueError, match="data_size=30 but this batch has 40"):
        model(torch.randn(40, 3), torch.randn(40))
