"""Measures of distributions: closed forms where there are some, Monte Carlo within its error where there are none."""

from __future__ import annotations

import math
from typing import ClassVar

import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guides import information as info
from guides.errors import DataError, OptionError

T = torch.tensor


class Plain(torch.distributions.Distribution):
    """Another distribution without its closed forms, so that Monte Carlo has to answer, with a known answer to give."""

    arg_constraints: ClassVar = {}

    def __init__(self, base):
        self.base = base
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    @property
    def support(self):
        return self.base.support

    def expand(self, batch_shape, _instance=None):
        return Plain(self.base.expand(batch_shape))

    def sample(self, shape=()):
        return self.base.sample(shape)

    def log_prob(self, value):
        return self.base.log_prob(value)


PAIRS = {
    "normal": (dist.Normal(T([0.5, -1.0]), 1.0), dist.Normal(0.0, T([1.5, 2.0]))),
    "events": (dist.Normal(torch.ones(4, 3), 0.5).to_event(1), dist.MultivariateNormal(torch.zeros(3), torch.eye(3))),
    "gamma": (dist.Gamma(3.0, T([1.0, 2.0])), dist.Gamma(2.0, 1.0)),
    "beta": (dist.Beta(2.0, 3.0), dist.Beta(T([1.0, 2.0]), 1.0)),
    "categorical": (dist.Categorical(logits=T([0.3, -1.0, 0.0])), dist.Categorical(logits=torch.zeros(3))),
    "bernoulli": (dist.Bernoulli(T([0.1, 0.7])).to_event(1), dist.Bernoulli(T([0.3, 0.5])).to_event(1)),
    "dirichlet": (dist.Dirichlet(T([2.0, 3.0, 1.0])), dist.Dirichlet(torch.ones(3))),
}


def agrees(estimate, value):
    """Within five standard errors, which are themselves not empty words."""
    assert not estimate.exact and estimate.num_samples > 0
    assert (estimate.standard_error < 0.05).all()
    assert ((estimate.value - torch.as_tensor(value)).abs() < 5 * estimate.standard_error + 1e-5).all()


@pytest.mark.parametrize("name", PAIRS)
def test_closed_forms_are_taken_and_monte_carlo_agrees_with_them(name):
    p, q = PAIRS[name]
    for measure, arguments in ((info.entropy, (p,)), (info.kl_divergence, (p, q)), (info.cross_entropy, (p, q))):
        exact = measure(*arguments)
        assert exact.exact and exact.num_samples == 0 and not exact.standard_error.any()
        estimate = measure(*map(Plain, arguments), num_samples=20_000)
        assert estimate.value.shape == exact.value.shape
        agrees(estimate, exact.value)
    torch.testing.assert_close(info.entropy(p).value, p.entropy())
    total = info.entropy(p).value + info.kl_divergence(p, q).value
    torch.testing.assert_close(info.cross_entropy(p, q).value, total)


def test_the_standard_error_is_the_spread_of_estimates():
    p, q = Plain(dist.Normal(0.0, 1.0)), Plain(dist.Normal(1.0, 1.5))
    estimates = [info.kl_divergence(p, q, num_samples=400, seed=seed) for seed in range(200)]
    spread = torch.stack([e.value for e in estimates]).std()
    claimed = torch.stack([e.standard_error for e in estimates]).mean()
    assert abs(spread / claimed - 1) < 5 / math.sqrt(2 * 200)


def test_distributions_without_closed_forms():
    mixture = dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Normal(T([-20.0, 20.0]), 1.0))
    agrees(info.entropy(mixture), dist.Normal(0.0, 1.0).entropy() + math.log(2))
    flow = dist.TransformedDistribution(dist.Normal(0.0, 1.0), [dist.transforms.AffineTransform(1.0, 3.0)])
    agrees(info.entropy(flow), dist.Normal(1.0, 3.0).entropy())
    p = torch.arange(40.0)
    poisson = dist.Poisson(4.0)
    agrees(info.entropy(poisson), -(poisson.log_prob(p).exp() * poisson.log_prob(p)).sum())


def test_mass_outside_the_support_is_infinitely_surprising():
    wide, narrow = dist.Uniform(-1.0, 1.0), dist.Uniform(0.0, 1.0)
    for p, q in ((wide, narrow), (Plain(wide), Plain(narrow)), (dist.Normal(0.0, 1.0), Plain(dist.Gamma(2.0, 1.0)))):
        assert info.kl_divergence(p, q).value == math.inf
    agrees(info.kl_divergence(Plain(dist.Beta(2.0, 2.0)), Plain(wide)), math.log(2) - dist.Beta(2.0, 2.0).entropy())


# -- pairs of variables ------------------------------------------------------------------------------------------------


def test_a_normal_channel():
    """z ~ N(0, s²), x | z ~ N(z, 1): everything is known."""
    scale = T([0.5, 2.0])
    given_z, marginal = dist.Normal(0.0, scale), dist.Normal(0.0, (1 + scale**2).sqrt())
    truth = 0.5 * torch.log1p(scale**2)
    agrees(info.mutual_information(given_z, lambda z: dist.Normal(z, 1.0), marginal), truth)
    agrees(info.mutual_information(Plain(given_z), lambda z: Plain(dist.Normal(z, 1.0)), Plain(marginal)), truth)
    noise = dist.Normal(torch.zeros(2), 1.0).entropy()
    assert torch.allclose(info.conditional_entropy(given_z, lambda z: dist.Normal(z, 1.0)).value, noise)
    agrees(info.conditional_entropy(given_z, lambda z: Plain(dist.Normal(z, 1.0))), noise)
    joint = dist.MultivariateNormal(torch.zeros(2), T([[4.0, 4.0], [4.0, 5.0]])).entropy()
    estimate = info.joint_entropy(Plain(given_z), lambda z: Plain(dist.Normal(z, 1.0)))
    assert abs(estimate.value[1] - joint) < 5 * estimate.standard_error[1]


def test_a_discrete_channel_agrees_with_its_table():
    p_z, rows = T([0.2, 0.8]), T([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]])
    table = info.Table(p_z[:, None] * rows, "z", "x")
    channel = lambda z: dist.Categorical(rows[z])  # noqa: E731
    z = dist.Categorical(p_z)
    agrees(info.mutual_information(z, channel, dist.Categorical(p_z @ rows)), table.mutual_information("x", "z"))
    agrees(info.conditional_entropy(z, channel), table.entropy("x", given="z"))
    agrees(info.joint_entropy(z, channel), table.entropy())


def test_a_wrong_marginal_makes_mutual_information_too_large():
    wrong = dist.Normal(1.0, 2.0)
    excess = info.kl_divergence(dist.Normal(0.0, 2**0.5), wrong).value
    estimate = info.mutual_information(dist.Normal(0.0, 1.0), lambda z: dist.Normal(z, 1.0), wrong)
    agrees(estimate, 0.5 * math.log(2) + excess)


@settings(derandomize=True, deadline=None)
@given(st.integers(0, 10_000))
def test_gaussian_blocks(seed):
    factor = torch.randn(5, 8, generator=torch.Generator().manual_seed(seed)).double()
    covariance = factor @ factor.T
    information = lambda *blocks: info.gaussian_mutual_information(covariance, *blocks).value  # noqa: E731
    close = lambda a, b: torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-7)  # noqa: E731
    close(information([0, 1], [2]), information([2], [1, 0]))
    close(information([0, 1], [2]), information([0], [2]) + information([1], [2], [0]))
    assert information([0], [3]) <= information([0], [3, 4]) + 1e-10
    p, q = (
        dist.MultivariateNormal(torch.zeros(n).double(), m) for n, m in ((2, covariance[:2, :2]), (3, covariance[2:, 2:]))
    )
    whole = dist.MultivariateNormal(torch.zeros(5).double(), covariance)
    close(information([0, 1], [2, 3, 4]), p.entropy() + q.entropy() - whole.entropy())


def test_a_gaussian_chain_loses_information():
    """x -> y -> z, each with fresh noise: z knows less of x than y, and nothing that y does not know."""
    covariance = T([[1.0, 1.0, 1.0], [1.0, 1.5, 1.5], [1.0, 1.5, 2.5]])
    known = info.gaussian_mutual_information(covariance, [0], [1])
    assert float(info.gaussian_mutual_information(covariance, [0], [2])) < float(known)
    assert float(info.gaussian_mutual_information(covariance, [0], [2], given=[1])) < 1e-12
    batch = torch.stack([covariance, 2 * covariance])
    assert torch.allclose(info.gaussian_mutual_information(batch, [0], [1]).value, known.value.expand(2))


# -- units, seeds, words -----------------------------------------------------------------------------------------------


def test_bits_are_nats_by_log_2():
    p = dist.Bernoulli(0.5)
    assert float(info.entropy(p, unit="bits")) == pytest.approx(1.0)
    estimate = info.entropy(Plain(dist.Normal(0.0, 1.0)))
    in_bits = info.entropy(Plain(dist.Normal(0.0, 1.0)), unit="bits")
    torch.testing.assert_close(in_bits.value, estimate.to("bits").value)
    torch.testing.assert_close(in_bits.to("nats").standard_error, estimate.standard_error)
    assert in_bits.unit == "bits"


def test_seeds_and_memory(monkeypatch):
    p = Plain(dist.Normal(torch.zeros(7), 1.0))
    state = torch.get_rng_state()
    first = info.entropy(p, num_samples=1000, seed=3)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first.value, info.entropy(p, num_samples=1000, seed=3).value)
    assert not torch.equal(first.value, info.entropy(p, num_samples=1000, seed=4).value)
    monkeypatch.setattr(info.distributions, "_ELEMENTS_AT_ONCE", 70)
    pieces = info.entropy(p, num_samples=1000, seed=3)
    assert pieces.num_samples == 1000
    agrees(pieces, dist.Normal(torch.zeros(7), 1.0).entropy())


def test_measures_say_what_they_are():
    assert str(info.kl_divergence(dist.Normal(1.0, 1.0), dist.Normal(0.0, 1.0))) == "0.500 nats"
    assert str(info.entropy(dist.Normal(torch.zeros(3), 1.0))) == "(3,) values, mean 1.419 nats (exact)"
    estimate = info.entropy(Plain(dist.Normal(0.0, 1.0)), num_samples=500)
    assert str(estimate) == f"{float(estimate.value):.3f} ± {float(estimate.standard_error):.3f} nats (500 draws)"
    found = estimate.to_dict()
    assert found["num_samples"] == 500 and found["exact"] is False and found["value"] == float(estimate)


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_what_cannot_be_compared_is_refused():
    normal = dist.Normal(0.0, 1.0)
    with pytest.raises(DataError, match=r"events of shape \(3,\), q of \(\).*to_event"):
        info.kl_divergence(dist.Normal(torch.zeros(3), 1.0).to_event(1), normal)
    with pytest.raises(DataError, match=r"p \(Poisson\) is discrete and q \(Normal\) is continuous"):
        info.cross_entropy(dist.Poisson(1.0), normal)
    with pytest.raises(DataError, match=r"batch shapes \(2,\) and \(3,\)"):
        info.kl_divergence(dist.Normal(torch.zeros(2), 1.0), dist.Normal(torch.zeros(3), 1.0))
    with pytest.raises(OptionError, match="at least 2 draws"):
        info.entropy(Plain(normal), num_samples=1)
    with pytest.raises(OptionError, match="'nats'"):
        info.entropy(normal, unit="nat")


def test_what_is_no_conditional_is_refused():
    normal = dist.Normal(0.0, 1.0)
    with pytest.raises(DataError, match=r"returned Tensor; it must return a distribution of batch shape \(100,\)"):
        info.mutual_information(normal, lambda z: z, normal, num_samples=100)
    with pytest.raises(DataError, match=r"returned batch shape \(\)"):
        info.conditional_entropy(normal, lambda z: normal)


def test_what_is_no_covariance_is_refused():
    good = torch.eye(3)
    with pytest.raises(DataError, match="must be square"):
        info.gaussian_mutual_information(torch.ones(2, 3), [0], [1])
    with pytest.raises(DataError, match="not symmetric"):
        info.gaussian_mutual_information(T([[1.0, 0.5], [0.0, 1.0]]), [0], [1])
    with pytest.raises(DataError, match="not positive definite"):
        info.gaussian_mutual_information(torch.ones(2, 2), [0], [1])
    for blocks in (([0], []), ([0], [0]), ([0], [3]), ([0], [1], [1])):
        with pytest.raises(OptionError, match="disjoint"):
            info.gaussian_mutual_information(good, *blocks)
