"""What latents say about data: against linear-Gaussian closed forms, against sums over all pairs, and in words."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import guides
import zoo
from guides.errors import OptionError, UnsupportedModelError
from guides.information import aggregate as aggregation
from guides.information import latent_information

T = torch.tensor


class LinearGuide(nn.Module):
    """q(z | x) = N(x A + b, covariance), drawn as ``draw`` says."""

    amortized = frozenset({"z"})

    def __init__(self, slope, offset, tril, draw="multivariate"):
        super().__init__()
        self.slope, self.offset, self.tril = nn.Parameter(slope), nn.Parameter(offset), nn.Parameter(tril)
        self.draw = draw

    def forward(self, x):
        pyro.module("guide", self)
        mean, scale = x @ self.slope + self.offset, self.tril.diagonal()
        with pyro.plate("data", len(x)):
            if self.draw == "multivariate":
                fn = dist.MultivariateNormal(mean, scale_tril=self.tril)
            elif self.draw == "normal":
                fn = dist.Normal(mean, scale).to_event(1)
            else:
                transforms = [dist.transforms.AffineTransform(mean, scale, event_dim=1)]
                fn = dist.TransformedDistribution(dist.Normal(torch.zeros_like(mean), 1.0).to_event(1), transforms)
            pyro.sample("z", fn)


class Scalar(nn.Module):
    """z ~ N(0, I), x ~ N(sum z, 1): enough for guides whose every measure is known."""

    def __init__(self, units):
        super().__init__()
        self.units = units

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(self.units), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), 1.0).to_event(1), obs=x)


def held(model, guide, *data):
    """A posterior at the guide's own parameters."""
    return guides.fit(model, guide, *data, steps=1, lr=1e-12, compile="eager")


def exact(model, x, **options):
    """PPCA with its own posterior as guide."""
    weight, noise = model.weight.double(), float(model.log_noise.exp())
    covariance = torch.linalg.inv(torch.eye(len(weight)).double() + weight @ weight.T / noise**2)
    slope = weight.T @ covariance / noise**2
    tril = torch.linalg.cholesky(covariance)
    return held(model, LinearGuide(slope.float(), (-model.bias.double() @ slope).float(), tril.float(), **options), x)


@pytest.fixture(scope="module")
def pca():
    """Probabilistic PCA and 2000 rows of its own."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(3, 6, generator=generator)
    z, noise = torch.randn(2000, 3, generator=generator), torch.randn(2000, 6, generator=generator)
    return zoo.ProbabilisticPCA(weight), z @ weight + noise


def scalar_rows(count=3000):
    return torch.randn(count, 1, generator=torch.Generator().manual_seed(2))


def within(measure, value, errors=4.0):
    assert not measure.exact
    assert 0 < float(measure.standard_error) < 0.1
    assert abs(float(measure) - float(value)) < errors * float(measure.standard_error)


# -- closed forms ------------------------------------------------------------------------------------------------------


def test_probabilistic_pca_with_its_exact_posterior(pca):
    model, x = pca
    found = latent_information(exact(model, x), max_drawn=2000)
    truth = float(model.mutual_information())
    within(found.mutual_information, truth)
    within(found.mutual_information_upper, truth)
    assert float(found.mutual_information) < float(found.mutual_information_upper)
    within(found.rate, truth)  # the aggregated posterior is the prior
    assert abs(float(found.marginal_kl)) < 0.05
    assert abs(float(found.total_correlation)) < 0.05
    assert found.active_units == found.units == 3
    elbo = -(float(found.rate) + float(found.distortion))
    assert elbo == pytest.approx(float(model.log_marginal(x).mean()), abs=1e-4), (
        "log p(x) at every draw of the exact posterior"
    )


def test_rate_is_information_plus_marginal_divergence_draw_by_draw(pca):
    model, x = pca
    found = latent_information(exact(model, x), max_drawn=100)
    total = float(found.mutual_information) + float(found.marginal_kl)
    assert float(found.rate) == pytest.approx(total, abs=1e-5)


@pytest.mark.parametrize("draw", ["multivariate", "normal", "flow"])
def test_a_linear_guide_on_standard_normal_rows(draw):
    """q(z) is N(0, a a' + S): every measure has a formula."""
    slope, tril = T([[0.9, 0.9]]), torch.diag(T([0.5, 0.5]))
    x = scalar_rows()
    found = latent_information(held(Scalar(2), LinearGuide(slope, torch.zeros(2), tril, draw), x), num_samples=4)
    covariance = (slope.T @ slope + tril @ tril.T).double()
    gaussian = dist.MultivariateNormal(torch.zeros(2).double(), covariance)
    prior = dist.MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double())
    within(found.marginal_kl, torch.distributions.kl_divergence(gaussian, prior))
    noise = dist.MultivariateNormal(torch.zeros(2), scale_tril=tril).entropy()
    within(found.mutual_information, gaussian.entropy() - noise)
    variance = found.unit_variance["z"]
    assert ((variance.value - 0.81).abs() < 4 * variance.standard_error).all()
    if draw == "flow":
        assert found.total_correlation is None, "the densities of single units are not known"
    else:
        within(found.total_correlation, -0.5 * torch.log1p(-((covariance[0, 1] / covariance[0, 0]) ** 2)))


def test_total_correlation_of_a_guide_with_correlated_noise():
    tril = T([[1.0, 0.0], [0.8, 0.6]])
    found = latent_information(held(Scalar(2), LinearGuide(torch.zeros(1, 2), torch.zeros(2), tril), scalar_rows(500)))
    within(found.total_correlation, -0.5 * math.log(1 - 0.64))
    assert abs(float(found.mutual_information)) < 1e-5
    assert found.active_units == 0


def test_active_units_are_those_whose_mean_moves():
    slope, x = T([[0.0, 0.05, 0.1, 0.2, 1.0]]), scalar_rows(1000)
    x = x / x.std()
    found = latent_information(held(Scalar(5), LinearGuide(slope, torch.ones(5), torch.eye(5), "normal"), x))
    assert found.active["z"].tolist()[:2] == [False, False] and found.active["z"].tolist()[3:] == [True, True]
    assert found.undecided["z"].tolist() == [False, False, True, False, False], "0.1 squared is the limit"
    assert "5" in str(found) and "1 within two standard errors" in str(found)
    sampled = latent_information(held(Scalar(5), LinearGuide(slope, torch.ones(5), torch.eye(5), "flow"), x))
    error = sampled.unit_variance["z"].standard_error
    assert ((sampled.unit_variance["z"].value - slope[0] ** 2).abs() < 4 * error).all(), "noise of the means is subtracted"


def test_bits():
    posterior = held(Scalar(1), LinearGuide(torch.ones(1, 1), torch.zeros(1), torch.eye(1)), scalar_rows(300))
    nats, bits = latent_information(posterior), latent_information(posterior, unit="bits")
    for name in ("rate", "distortion", "mutual_information", "marginal_kl"):
        assert float(getattr(bits, name)) * math.log(2) == pytest.approx(float(getattr(nats, name)), rel=1e-5)
    assert bits.limit == pytest.approx(math.log2(300))
    assert "bits" in str(bits)


def test_information_cannot_exceed_the_logarithm_of_the_rows():
    sharp = held(Scalar(1), LinearGuide(torch.ones(1, 1), torch.zeros(1), torch.full((1, 1), 1e-5)), scalar_rows(50))
    found = latent_information(sharp, num_samples=20)
    assert math.log(50) - 1e-3 < float(found.mutual_information) <= found.limit + 1e-6
    assert float(found.mutual_information_upper) > 2 * found.limit


# -- estimation --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draw", ["multivariate", "normal", "flow"])
def test_blocks_do_not_change_the_sums(pca, draw, monkeypatch):
    model, x = pca
    posterior = exact(model, x[:90], draw=draw)
    whole = latent_information(posterior, num_samples=2)
    monkeypatch.setattr(aggregation, "_ROWS_AT_ONCE", 7)
    monkeypatch.setattr(aggregation, "_ELEMENTS_AT_ONCE", 100)
    pieces = latent_information(posterior, num_samples=2)
    for name in ("mutual_information", "mutual_information_upper", "marginal_kl"):
        assert float(getattr(whole, name)) == pytest.approx(float(getattr(pieces, name)), abs=1e-5)


def test_standard_errors_are_the_spread_over_seeds(pca):
    model, x = pca
    posterior = exact(model, x)
    runs = [latent_information(posterior, max_drawn=100, seed=seed) for seed in range(40)]
    for name in ("rate", "distortion", "mutual_information"):
        values = T([float(getattr(run, name)) for run in runs])
        claimed = T([float(getattr(run, name).standard_error) for run in runs])
        assert abs(values.std() / claimed.mean() - 1) < 4 / math.sqrt(2 * 39), name


def test_seeds_and_the_callers_state(pca):
    model, x = pca
    posterior = exact(model, x[:200])
    state = torch.get_rng_state()
    first = latent_information(posterior, max_drawn=50, seed=1)
    assert torch.equal(state, torch.get_rng_state()) and not len(pyro.get_param_store())
    assert str(first) == str(latent_information(posterior, max_drawn=50, seed=1))
    assert str(first) != str(latent_information(posterior, max_drawn=50, seed=2))
    assert (first.num_rows, first.num_drawn, first.num_samples) == (200, 50, 1)


def test_other_rows_than_those_of_the_fit(pca):
    model, x = pca
    found = latent_information(exact(model, x[:50]), x[50:1050])
    assert found.num_rows == 1000
    within(found.rate, model.mutual_information())


@pytest.mark.parametrize(
    "options",
    [{}, {"covariance": "low_rank"}, {"covariance": "full"}, {"flow": "iaf"}, {"covariance": "full", "flow": "spline"}],
    ids=str,
)
def test_densities_of_the_amortized_family_at_other_rows_draws(pca, options):
    """What the distributions of all rows say of all draws is what the guide says when it is run on every pair."""
    model, x = pca
    encoder = nn.Sequential(nn.Linear(6, 5), nn.Tanh())
    posterior = held(model, ("amortized", {"encoder": encoder, "init_scale": 0.5, **options}), x[:9])
    found = latent_information(posterior)
    assert float(found.rate) == pytest.approx(float(found.mutual_information) + float(found.marginal_kl), abs=1e-5)
    assert (found.total_correlation is None) == ("flow" in options)
    with torch.no_grad(), guides.program.program.quiet(), guides.program.parameters.isolated_store():
        guide = posterior.guide
        site = pyro.poutine.trace(guide).get_trace(x[:9]).nodes["z"]
        values = site["value"][:4]
        joint, units = aggregation._at_all(site["fn"], values, 9)
        pairs = aggregation._at_pairs(guide, posterior.training, ["z"], {"z": values})
    torch.testing.assert_close(joint.double(), pairs, atol=1e-3, rtol=1e-4)
    own = site["fn"].log_prob(site["value"])[:4]
    torch.testing.assert_close(joint.diagonal(), own, atol=1e-3, rtol=1e-4)
    if units is not None and not options:
        torch.testing.assert_close(units.sum(-1), joint)


def test_a_positive_latent_in_its_own_plate():
    """Sites need not be real vectors: densities of transformed and batched sites are told apart by row all the same."""

    def model(x):
        with pyro.plate("unit", 2, dim=-1), pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.LogNormal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z.log(), 0.5), obs=x)

    class Guide(nn.Module):
        amortized = frozenset({"z"})

        def forward(self, x):
            with pyro.plate("unit", 2, dim=-1), pyro.plate("data", len(x), dim=-2):
                pyro.sample("z", dist.LogNormal(0.8 * x + pyro.param("shift", T(0.0)), 0.2**0.5))

    # The rows' own numbers must not come back as the noise of their codes, at equal seeds and shapes.
    x = torch.randn(800, 2, generator=torch.Generator().manual_seed(0)) * 1.25**0.5
    found = latent_information(held(model, Guide(), x), num_samples=2)
    within(found.mutual_information, math.log(5))  # two units of log(1 + 1 / 0.25) / 2
    assert abs(float(found.total_correlation)) < 0.05
    assert found.units == 2


# -- other models ------------------------------------------------------------------------------------------------------


class TwoLayers(nn.Module):
    """p(z_2) p(z_1 | z_2) p(x | z_1)."""

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z_2", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            z1 = pyro.sample("z_1", dist.Normal(torch.cat([z2, -z2], -1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z1.sum(-1, keepdim=True), 1.0).to_event(1), obs=x)


class BottomUp(nn.Module):
    """q(z_1 | x) q(z_2 | z_1): all that z_2 knows of x it has from z_1."""

    amortized = frozenset({"z_1", "z_2"})

    def __init__(self, gain):
        super().__init__()
        self.gain = nn.Parameter(T(gain))

    def forward(self, x):
        pyro.module("guide", self)
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z_1", dist.Normal(torch.cat([x, -x], -1), 0.7).to_event(1))
            pyro.sample("z_2", dist.Normal(self.gain * z1[..., :1], 0.5).to_event(1))


def test_two_layers_know_together_what_the_lower_one_knows():
    x = scalar_rows(400)
    posterior = held(TwoLayers(), BottomUp(0.4), x)
    found = latent_information(posterior, num_samples=2)
    gaussian = torch.eye(2) * 0.49 + T([[1.0, -1.0], [-1.0, 1.0]])
    truth = 0.5 * (torch.logdet(gaussian) - 2 * math.log(0.49))
    within(found.mutual_information, truth)
    assert float(found.rate) == pytest.approx(float(found.mutual_information) + float(found.marginal_kl), abs=1e-5)
    assert found.total_correlation is None
    assert list(found.unit_variance) == ["z_2", "z_1"] and found.units == 3
    upper = found.unit_variance["z_2"]
    assert abs(float(upper.value - 0.16 * x.var())) < 4 * float(upper.standard_error), "E[z_2 | x] = 0.4 x"
    silent = latent_information(held(TwoLayers(), BottomUp(0.0), x))
    assert [int(active.sum()) for active in silent.active.values()] == [0, 2]
    assert "active units, z_2" in str(silent)


def test_a_shared_latent_beside_the_local_ones():
    def model(x):
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + shift, 1.0), obs=x)

    class Guide(nn.Module):
        amortized = frozenset({"z"})

        def forward(self, x):
            pyro.sample("shift", dist.Normal(pyro.param("loc", T(0.0)), 0.1))
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    found = latent_information(held(model, Guide(), 2**0.5 * scalar_rows(1000)[:, 0]))
    within(found.mutual_information, 0.5 * math.log(2))
    assert found.units == 1


def test_a_prior_that_depends_on_the_row_has_no_marginal_divergence():
    def model(x, y):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x, 1.0).to_event(1))
            pyro.sample("y", dist.Normal(z, 1.0).to_event(1), obs=y)

    class Guide(nn.Module):
        amortized = frozenset({"z"})

        def forward(self, x, y):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal((x + y) / 2 + pyro.param("shift", T(0.0)), 0.5**0.5).to_event(1))

    x = scalar_rows(300)
    found = latent_information(held(model, Guide(), x, x + 1.0))
    assert found.marginal_kl is None
    assert "marginal KL" not in str(found) and found.to_dict()["marginal_kl"] is None
    within(found.rate, 0.5 * (math.log(2) - 0.5 + 0.25))


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_guides_and_counts_that_make_no_sense_are_refused(pca):
    model, x = pca
    with pytest.raises(UnsupportedModelError, match=r"'mean_field' has no amortised site.*guide\.amortized"):
        latent_information(guides.fit(model, "mean_field", x[:5], steps=1, compile="eager"))
    posterior = exact(model, x[:20])
    with pytest.raises(OptionError, match="max_drawn is 0; at least 1"):
        latent_information(posterior, max_drawn=0)
    with pytest.raises(OptionError, match="num_samples is 0; at least 1"):
        latent_information(posterior, num_samples=0)
    with pytest.raises(OptionError, match="the data have 1 rows"):
        latent_information(posterior, x[:1])
    with pytest.raises(OptionError, match="'nats'"):
        latent_information(posterior, unit="shannons")


def test_sites_outside_the_plate_of_the_rows_are_refused():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    class Guide(nn.Module):
        amortized = frozenset({"z"})

        def forward(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x / 2 + pyro.param("shift", T(0.0)), 1.0))

    with pytest.raises(UnsupportedModelError, match=r"'z', 'x' do not stand in one plate of the 30 rows"):
        latent_information(held(model, Guide(), scalar_rows(30)[:, 0]))
