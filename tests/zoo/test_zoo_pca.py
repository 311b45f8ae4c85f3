"""Probabilistic PCA against Bayes' rule, calculus and Monte Carlo: what other tests take for the truth."""

import pyro.poutine as poutine
import pytest
import torch
from torch.distributions import kl_divergence

from zoo import ProbabilisticPCA


@pytest.fixture
def general():
    """Loadings that are not orthogonal, so that the posterior is correlated; float64."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(3, 6, generator=generator).double()
    model = ProbabilisticPCA(weight, bias=torch.randn(6, generator=generator).double(), noise=0.7)
    x = model.bias + 2 * torch.randn(20, 6, generator=generator).double()
    return model, x


def log_joint(model, x, z):
    trace = poutine.trace(poutine.condition(model, data={"z": z})).get_trace(x)
    trace.compute_log_prob()
    return trace.nodes["z"]["log_prob"] + trace.nodes["x"]["log_prob"]


def test_bayes_rule_at_any_code(general):
    model, x = general
    z = torch.randn(20, 3).double()
    torch.testing.assert_close(log_joint(model, x, z) - model.exact_posterior(x).log_prob(z), model.log_marginal(x))


def test_posterior_is_the_curvature_at_the_mode(general):
    model, x = general
    posterior = model.exact_posterior(x)
    row = x[:1]
    f = lambda z: log_joint(model, row, z.unsqueeze(0)).sum()  # noqa: E731
    mode = posterior.mean[0]
    torch.testing.assert_close(torch.func.grad(f)(mode), torch.zeros_like(mode), atol=1e-9, rtol=0)
    torch.testing.assert_close(torch.linalg.inv(-torch.func.hessian(f)(mode)), posterior.covariance_matrix[0])


def test_mutual_information_is_the_mean_kl_to_the_prior(general):
    model, _ = general
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(20_000, 3, generator=generator).double()
    x = model.decode(z).mean + 0.7 * torch.randn(20_000, 6, generator=generator).double()
    prior = torch.distributions.MultivariateNormal(torch.zeros(3).double(), torch.eye(3).double())
    posterior = model.exact_posterior(x)
    for values in (kl_divergence(posterior, prior), model.decode(z).log_prob(x) - model.log_marginal(x)):
        error = values.std() / len(values) ** 0.5
        assert abs(values.mean() - model.mutual_information()) < 4 * error < 0.1


def test_orthogonal_loadings_have_independent_coordinates():
    model, (x,) = ProbabilisticPCA.example()
    covariance = model.exact_posterior(x).covariance_matrix
    torch.testing.assert_close(covariance, torch.diag_embed(covariance.diagonal(dim1=-2, dim2=-1)), atol=1e-6, rtol=0)


def test_maximum_likelihood_is_a_maximum(general):
    _, x = general
    best = ProbabilisticPCA.maximum_likelihood(x, 2)
    learned = ProbabilisticPCA(best.weight, best.bias, float(best.log_noise.exp()), learned=True)
    total = learned.log_marginal(x).sum()
    for name, gradient in zip(("weight", "bias", "log_noise"), torch.autograd.grad(total, list(learned.parameters()))):
        assert gradient.abs().max() < 1e-8, name
    assert best.weight[0].norm() > best.weight[1].norm()
    for scale in (0.9, 1.1):
        assert ProbabilisticPCA(scale * best.weight, best.bias, float(best.log_noise.exp())).log_marginal(x).sum() < total
        assert ProbabilisticPCA(best.weight, best.bias, scale * float(best.log_noise.exp())).log_marginal(x).sum() < total


def test_loadings_are_found_again():
    model, _ = ProbabilisticPCA.example()
    z, noise = torch.randn(50_000, 2), torch.randn(50_000, 5)
    found = ProbabilisticPCA.maximum_likelihood(model.decode(z).mean + 0.4 * noise, 2)
    torch.testing.assert_close(found.weight.mT @ found.weight, model.weight.mT @ model.weight, atol=0.08, rtol=0)
    assert float(found.log_noise.exp()) == pytest.approx(0.4, abs=0.01)


def test_learned_and_fixed():
    model, (x,) = ProbabilisticPCA.example()
    assert not list(model.parameters()) and len(list(model.buffers())) == 3
    learned = ProbabilisticPCA(model.weight, model.bias, 0.4, learned=True)
    assert len(list(learned.parameters())) == 3
    params = [n for n, s in poutine.trace(learned).get_trace(x).nodes.items() if s["type"] == "param"]
    assert params == [f"probabilistic_pca$$${name}" for name in ("weight", "bias", "log_noise")]


def test_minibatches_weigh_as_the_whole(general):
    model, x = general
    whole = ProbabilisticPCA(model.weight, model.bias, 0.7, data_size=20)
    z = torch.zeros(5, 3).double()
    trace = poutine.trace(poutine.condition(whole, data={"z": z})).get_trace(x[:5])
    torch.testing.assert_close(trace.log_prob_sum(), 4 * log_joint(model, x[:5], z).sum())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight": torch.ones(3)}, "weight has shape"),
        ({"weight": torch.ones(2, 3, dtype=torch.int64)}, "must be a float matrix"),
        ({"weight": torch.ones(2, 3), "bias": torch.ones(2)}, "bias has shape"),
        ({"weight": torch.ones(2, 3), "noise": 0.0}, "noise must be a positive finite number"),
    ],
)
def test_impossible_models(arguments, message):
    with pytest.raises(ValueError, match=message):
        ProbabilisticPCA(**arguments)


def test_impossible_data(general):
    model, x = general
    with pytest.raises(ValueError, match=r"this model takes \(rows, 6\)"):
        model(x[:, :4])
    with pytest.raises(ValueError, match="latent_dim=6 must be from 1 to 5"):
        ProbabilisticPCA.maximum_likelihood(x, 6)
    flat = x[:, :1] * torch.ones(6).double()
    with pytest.raises(ValueError, match="x lies in 2 dimensions"):
        ProbabilisticPCA.maximum_likelihood(flat, 2)
