"""Mathematics of mixtures, over random ones in 1 to 50 dimensions: densities, bounds in their order, gradients."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import (
    Categorical,
    Independent,
    LowRankMultivariateNormal,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
)

from guides.distributions.mixtures import (
    BOUNDS,
    MixtureDensity,
    entropy_bound,
    log_density,
    pairs_of,
    pairwise_diagonal,
    siwae,
    weight_entropy,
    weighted_sum,
)
from guides.errors import OptionError

KINDS = ("diagonal", "low_rank", "full")
steady = settings(derandomize=True, deadline=None, max_examples=25)


def normals(kind, count, dim, apart, generator, batch=()):
    """Random normals of batch shape (*batch, count) whose means are about ``apart`` standard deviations from each other."""
    draw = lambda *shape: torch.randn(*batch, *shape, generator=generator, dtype=torch.float64)  # noqa: E731
    loc, scale = apart * draw(count, dim), (0.4 * draw(count, dim)).exp()
    if kind == "diagonal":
        return Independent(Normal(loc, scale), 1)
    if kind == "low_rank":
        return LowRankMultivariateNormal(loc, draw(count, dim, 2), scale.square())
    lower = torch.tril(0.3 * draw(count, dim, dim), -1)
    return MultivariateNormal(loc, scale_tril=lower + torch.diag_embed(scale))


@st.composite
def mixtures(draw):
    """Log weights (K,) and normals of every kind of covariance, from components in one place to components far apart."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    count, dim = draw(st.integers(1, 5)), draw(st.integers(1, 50))
    logits = draw(st.floats(0.0, 3.0)) * torch.randn(count, generator=generator, dtype=torch.float64)
    apart = draw(st.floats(0.0, 4.0))
    return logits.log_softmax(-1), normals(draw(st.sampled_from(KINDS)), count, dim, apart, generator)


def stratified(log_weights, components, count, seed=0):
    """Draws of every component, (count, K, D), and the log density of the mixture at them, (count, K)."""
    torch.manual_seed(seed)
    z = components.rsample((count,))
    return z, log_density(log_weights, components.log_prob(z.unsqueeze(-2)))


@steady
@given(mixtures())
def test_bounds_are_in_their_order(mixture):
    """Entropy bound <= SELBO <= log p(x), where x is seen with evidence e^-3 and the posterior is another mixture."""
    log_weights, components = mixture
    dim, evidence, count = components.event_shape[0], -3.0, 400
    generator = torch.Generator().manual_seed(dim)
    target = MixtureSameFamily(Categorical(torch.ones(2)), normals("diagonal", 2, dim, 1.0, generator))
    z, log_q = stratified(log_weights, components, count)
    log_joint = evidence + target.log_prob(z)
    energies, selbos = weighted_sum(log_weights, log_joint), weighted_sum(log_weights, log_joint - log_q)
    error = float((selbos - energies).std()) / math.sqrt(count)
    for bound in BOUNDS:
        found = energies.mean() + entropy_bound(log_weights, pairs_of(components), bound)
        assert found <= selbos.mean() + 4.5 * error + 1e-9
    assert selbos.mean() <= evidence + 4.5 * float(selbos.std()) / math.sqrt(count) + 1e-9


@steady
@given(mixtures(), st.integers(1, 4))
def test_siwae_never_decreases_in_the_number_of_draws(mixture, pairs):
    """The bound of 2T draws is at least the mean of the bounds of its two halves, and that of one draw of every component is
    at least the stratified ELBO, whatever the draws."""
    log_weights, components = mixture
    target = Independent(Normal(torch.zeros(components.event_shape[0], dtype=torch.float64), 1.5), 1)
    z, log_q = stratified(log_weights, components, 2 * pairs)
    ratios = target.log_prob(z) - log_q
    halves = siwae(log_weights, ratios[:pairs]), siwae(log_weights, ratios[pairs:])
    assert siwae(log_weights, ratios) >= sum(halves) / 2 - 1e-9
    for one in ratios:
        assert siwae(log_weights, one.unsqueeze(0)) >= weighted_sum(log_weights, one) - 1e-9


@steady
@given(mixtures())
def test_the_density_is_that_of_torch(mixture):
    log_weights, components = mixture
    z, log_q = stratified(log_weights, components, 3)
    want = MixtureSameFamily(Categorical(logits=log_weights), components).log_prob(z)
    torch.testing.assert_close(log_q, want)
    torch.testing.assert_close(log_weights.exp().sum(), torch.ones((), dtype=torch.float64))


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_are_what_the_densities_say(kind):
    components = normals(kind, 3, 6, 1.0, torch.Generator().manual_seed(0))
    pairs = pairs_of(components)
    loc, covariance = components.mean, dense(components)
    for k in range(3):
        torch.testing.assert_close(pairs.entropy[k], dense_normal(components, k).entropy())
        for j in range(3):
            together = MultivariateNormal(loc[j], covariance[k] + covariance[j])
            torch.testing.assert_close(pairs.log_overlap[k, j], together.log_prob(loc[k]))
            middle = 0.5 * (covariance[k] + covariance[j])
            apart = loc[k] - loc[j]
            distance = apart @ torch.linalg.solve(middle, apart) / 8 + 0.5 * torch.logdet(middle)
            distance = distance - 0.25 * (torch.logdet(covariance[k]) + torch.logdet(covariance[j]))
            torch.testing.assert_close(pairs.log_affinity[k, j], -distance)


def dense(components):
    if isinstance(components, Independent):
        return torch.diag_embed(components.variance)
    return components.covariance_matrix


def dense_normal(components, k):
    return MultivariateNormal(components.mean[k], dense(components)[k])


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_have_mixtures_of_their_own(kind, bound):
    """Batched weights and components, as an encoder gives them, are the rows one by one."""
    generator = torch.Generator().manual_seed(1)
    components = normals(kind, 3, 4, 1.0, generator, batch=(5,))
    log_weights = torch.randn(5, 3, generator=generator, dtype=torch.float64).log_softmax(-1)
    found = entropy_bound(log_weights, pairs_of(components), bound)
    assert found.shape == (5,)
    generator = torch.Generator().manual_seed(1)
    for n in range(5):
        row = type_of(components, n)
        torch.testing.assert_close(found[n], entropy_bound(log_weights[n], pairs_of(row), bound))


def type_of(components, n):
    if isinstance(components, Independent):
        return Independent(Normal(components.mean[n], components.stddev[n]), 1)
    if isinstance(components, LowRankMultivariateNormal):
        return LowRankMultivariateNormal(components.loc[n], components.cov_factor[n], components.cov_diag[n])
    return MultivariateNormal(components.loc[n], scale_tril=components.scale_tril[n])


@pytest.mark.parametrize("kind", KINDS)
def test_where_the_bounds_on_the_entropy_touch_it(kind):
    """One component, and two far apart: exact by Bhattacharyya's distance, by Jensen's inequality lower by a constant."""
    dim = 7
    lower = 0.5 * dim * (1 - math.log(2))
    one = normals(kind, 1, dim, 1.0, torch.Generator().manual_seed(3))
    entropy = dense_normal(one, 0).entropy()
    alone = torch.zeros(1, dtype=torch.float64)
    torch.testing.assert_close(entropy_bound(alone, pairs_of(one), "bhattacharyya"), entropy)
    torch.testing.assert_close(entropy_bound(alone, pairs_of(one), "jensen"), entropy - lower)
    two = normals(kind, 2, dim, 1e3, torch.Generator().manual_seed(4))
    log_weights = torch.tensor([0.3, 0.7], dtype=torch.float64).log()
    want = weight_entropy(log_weights) + 0.3 * dense_normal(two, 0).entropy() + 0.7 * dense_normal(two, 1).entropy()
    torch.testing.assert_close(entropy_bound(log_weights, pairs_of(two), "bhattacharyya"), want)
    torch.testing.assert_close(entropy_bound(log_weights, pairs_of(two), "jensen"), want - lower)


def test_small_scales_do_not_underflow():
    """In single precision the variance of a scale of 1e-25 is zero."""
    loc, scale = torch.zeros(2, 3), torch.full((2, 3), 1e-25)
    found = entropy_bound(torch.tensor([0.5, 0.5]).log(), pairwise_diagonal(loc, scale), "bhattacharyya")
    torch.testing.assert_close(found, Independent(Normal(loc[0].double(), 1e-25), 1).entropy())


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_match_finite_differences(kind):
    """With respect to weights, means and scales of every bound, at fixed noise."""
    generator = torch.Generator().manual_seed(5)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    count, dim, draws = 3, 3, 2
    noise = draw(draws, count, dim)

    def parts(logits, loc, raw, mixing):
        scale = raw.exp()
        if kind == "diagonal":
            components = Independent(Normal(loc, scale), 1)
            step = scale * noise
        elif kind == "low_rank":
            components = LowRankMultivariateNormal(loc, mixing[..., :1], scale.square())
            step = (mixing[..., :1] * noise[..., :1, None]).squeeze(-1) + scale * noise
        else:
            tril = torch.tril(mixing, -1) + torch.diag_embed(scale)
            components = MultivariateNormal(loc, scale_tril=tril)
            step = (tril @ noise.unsqueeze(-1)).squeeze(-1)
        log_weights = logits.log_softmax(-1)
        z = loc + step
        log_q = log_density(log_weights, components.log_prob(z.unsqueeze(-2)))
        log_joint = -(z**4).sum(-1) + z.sum(-1).sin()
        selbo = weighted_sum(log_weights, log_joint - log_q).mean(0)
        bounds = [entropy_bound(log_weights, pairs_of(components), bound) for bound in BOUNDS]
        return selbo, siwae(log_weights, log_joint - log_q), weight_entropy(log_weights), *bounds

    inputs = [draw(count), draw(count, dim), 0.3 * draw(count, dim), 0.5 * draw(count, dim, dim)]
    assert torch.autograd.gradcheck(parts, [i.requires_grad_() for i in inputs])


def test_a_weight_that_underflows_takes_its_component_out():
    log_weights = torch.tensor([0.0, -1e4], requires_grad=True)
    values = torch.tensor([1.5, math.inf], requires_grad=True)
    total = weighted_sum(log_weights.log_softmax(-1), values)
    total.backward()
    assert total.item() == 1.5
    assert log_weights.grad.isfinite().all()
    assert values.grad.tolist() == [1.0, 0.0]
    assert weight_entropy(log_weights.log_softmax(-1)).item() == 0.0


def test_a_mixture_density_draws_from_the_chosen_component():
    components = Independent(Normal(torch.tensor([[0.0], [100.0]]), 1.0), 1)
    chosen = Independent(Normal(torch.tensor([100.0]), 1.0), 1)
    log_weights = torch.tensor([0.25, 0.75]).log()
    density = MixtureDensity(log_weights, components, chosen)
    z = density.rsample((50,))
    assert z.shape == (50, 1)
    assert (z > 90).all()
    torch.testing.assert_close(density.log_prob(z), math.log(0.75) + chosen.log_prob(z))
    torch.testing.assert_close(density.log_excess(z[0]), torch.tensor(math.log(0.75)))


def test_bad_arguments_are_named():
    components = normals("diagonal", 2, 2, 1.0, torch.Generator().manual_seed(0))
    with pytest.raises(OptionError, match=r"bound='jenson' is not known.*'jensen'"):
        entropy_bound(torch.zeros(2), pairs_of(components), "jenson")
    with pytest.raises(OptionError, match=r"MixtureSameFamily.*no closed-form bound.*selbo"):
        pairs_of(MixtureSameFamily(Categorical(torch.ones(2)), components))
