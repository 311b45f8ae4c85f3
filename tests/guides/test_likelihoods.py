"""Coordinates of observed distributions: Fisher information against the variance of the score, and the way back."""

import pyro.distributions as dist
import pytest
import torch

from guides import errors
from guides.families.laplace import likelihoods
from guides.families.laplace.likelihoods import coordinates

T = torch.tensor
CASES = {
    "Normal": dist.Normal(T([0.3, -1.0]), T([0.5, 2.0])),
    "StudentT": dist.StudentT(5.0, T([0.3, -1.0]), T([0.5, 2.0])),
    "LogNormal": dist.LogNormal(T([0.3, -1.0]), T([0.5, 0.2])),
    "Bernoulli": dist.Bernoulli(logits=T([0.3, -1.0])),
    "Binomial": dist.Binomial(7, logits=T([0.3, -1.0])),
    "Categorical": dist.Categorical(logits=T([[0.3, -1.0, 0.0], [1.0, 2.0, -1.0]])),
    "Poisson": dist.Poisson(T([0.3, 4.0])),
    "Exponential": dist.Exponential(T([0.3, 4.0])),
    "AsymmetricLaplace": dist.AsymmetricLaplace(T([0.3, -1.0]), T([0.5, 2.0]), T([0.8, 1.5])),
    "Laplace": dist.Laplace(T([0.3, -1.0]), T([0.5, 2.0])),
    "Beta": dist.Beta(T([2.0, 5.0]), T([3.0, 2.5])),
    "Dirichlet": dist.Dirichlet(T([[2.0, 3.0, 5.0], [4.0, 2.5, 3.0]])),
    "Gamma": dist.Gamma(T([2.0, 5.0]), T([0.3, 4.0])),
    "InverseGamma": dist.InverseGamma(T([3.0, 5.0]), T([0.3, 4.0])),
    "Weibull": dist.Weibull(T([0.3, 4.0]), T([1.5, 2.0])),
    "Geometric": dist.Geometric(logits=T([0.3, -1.0])),
    "NegativeBinomial": dist.NegativeBinomial(T([7.0, 3.0]), logits=T([0.3, -1.0])),
    "Multinomial": dist.Multinomial(7, logits=T([[0.3, -1.0, 0.0], [1.0, 2.0, -1.0]])),
    "OneHotCategorical": dist.OneHotCategorical(logits=T([[0.3, -1.0, 0.0], [1.0, 2.0, -1.0]])),
    "OneHotCategoricalStraightThrough": dist.OneHotCategoricalStraightThrough(logits=T([0.3, -1.0, 0.0]).expand(2, 3)),
    "MultivariateNormal": dist.MultivariateNormal(
        T([[0.3, -1.0], [1.0, 2.0]]), scale_tril=T([[[1.0, 0.0], [0.5, 2.0]], [[0.7, 0.0], [-0.3, 1.0]]])
    ),
}


def test_every_known_distribution_is_tested():
    assert set(CASES) == set(likelihoods._KNOWN)


@pytest.mark.parametrize("name", CASES)
def test_fisher_information_is_the_variance_of_the_score(name):
    fn = CASES[name]
    found = coordinates("y", fn)
    count = 20_000
    y = fn.sample((count,))

    value = found.value.detach()
    torch.testing.assert_close(found.rebuild(value).log_prob(y), fn.log_prob(y), rtol=1e-4, atol=1e-4)
    each = value.expand(count, *value.shape).clone().requires_grad_()
    (score,) = torch.autograd.grad(found.rebuild(each).log_prob(y).sum(), each)
    products = score.unsqueeze(-1) * score.unsqueeze(-2)
    error = products.std(0) / count**0.5
    assert ((products.mean(0) - found.fisher).abs() < 5 * error + 1e-5).all()


@pytest.mark.parametrize("name", CASES)
def test_events_are_unwrapped_and_wrapped_again(name):
    fn = CASES[name].to_event(1)
    found = coordinates("y", fn)
    rebuilt = found.rebuild(found.value)
    assert rebuilt.batch_shape == fn.batch_shape
    assert rebuilt.event_shape == fn.event_shape
    assert found.value.shape[:-1] == found.fisher.shape[:-2] == (2,)


def test_an_unknown_distribution_is_named():
    listed = r"observed site 'y' is Cauchy.*Bernoulli, .*predictive='sampled'"
    with pytest.raises(errors.UnsupportedModelError, match=listed):
        coordinates("y", dist.Cauchy(2.0, T([1.0])).to_event(1))


def test_masked_data_points_carry_no_information():
    mask = T([True, False])
    for fn in (dist.Normal(T([0.3, -1.0]), 0.5).mask(mask), dist.Normal(T([[0.3], [-1.0]]), 0.5).to_event(1).mask(mask)):
        found = coordinates("y", fn)
        plain = coordinates("y", fn.base_dist)
        torch.testing.assert_close(found.fisher[0], plain.fisher[0])
        assert found.fisher[1].abs().max() == 0
        y = torch.zeros(fn.shape())
        torch.testing.assert_close(found.rebuild(found.value).log_prob(y), fn.log_prob(y))
