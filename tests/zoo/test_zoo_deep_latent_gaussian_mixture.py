"""The deep latent Gaussian mixture: its priors against torch, its densities written out, what it generates, bad input."""

import math

import pyro.poutine as poutine
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import Beta, Dirichlet, Normal

import zoo
from zoo._sticks import log_stick_weights, stick_prior
from zoo.networks import GaussianNetwork, mlp

ROWS, PIXELS = 6, 9


def images():
    return torch.bernoulli(torch.full((ROWS, PIXELS), 0.4))


def two_layers(components=3, **options):
    below = GaussianNetwork(mlp((2, 7), output_activation="tanh"), 7, components * 4)
    return zoo.DeepLatentGaussianMixture(mlp((4, PIXELS)), (4, 2), components, layers=[below], **options)


@pytest.mark.parametrize("alpha", [0.3, 1.0, 4.0])
def test_sticks_have_the_density_of_dirichlet_and_gem_weights(alpha):
    like = torch.zeros((), dtype=torch.float64)
    sticks = torch.rand(3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = log_stick_weights(sticks).exp()
    jacobian = torch.func.jacrev(lambda v: log_stick_weights(v).exp()[:-1])(sticks)
    log_det = torch.linalg.slogdet(jacobian).logabsdet
    found = stick_prior("dirichlet", alpha, 4, like).log_prob(sticks) - log_det
    torch.testing.assert_close(found, Dirichlet(alpha * torch.ones(4).double()).log_prob(weights))
    gem = Beta(torch.ones(3).double(), alpha * torch.ones(3).double()).log_prob(sticks).sum()
    torch.testing.assert_close(stick_prior("gem", alpha, 4, like).log_prob(sticks), gem)


def test_weights_sum_to_one_and_have_finite_gradients_at_the_ends():
    sticks = torch.tensor([[0.0, 1.0, 0.5], [1.0, 0.0, 1e-38], [0.2, 0.3, 0.4]], requires_grad=True)
    log_weights = log_stick_weights(sticks)
    torch.testing.assert_close(log_weights.exp().sum(-1), torch.ones(3))
    (gradient,) = torch.autograd.grad(1e5 * log_weights.sum(), sticks)
    assert gradient.isfinite().all() and log_weights.isfinite().all()


def test_density_of_two_layers_written_out():
    model, x = two_layers(), images()
    latents = {n: s["value"] for n, s in poutine.trace(model).get_trace(x).nodes.items() if n in model.latent_sites}
    assert model.latent_sites == ("sticks_1", "z_1", "sticks_2", "z_2")

    def of_mixture(sticks, loc, scale, z):
        log_weights = log_stick_weights(sticks)
        each = [log_weights[:, k] + Normal(loc[:, k], scale[:, k]).log_prob(z).sum(-1) for k in range(3)]
        return torch.logsumexp(torch.stack(each), 0).sum()

    prior = stick_prior("dirichlet", 1.0, 3, x)
    loc, scale = (part.reshape(ROWS, 3, 4) for part in model.layers[0](latents["z_2"]))
    expected = (
        sum(prior.log_prob(latents[name]).sum() for name in ("sticks_1", "sticks_2"))
        + of_mixture(latents["sticks_2"], model.loc.expand(ROWS, 3, 2), model.scale.expand(ROWS, 3, 2), latents["z_2"])
        + of_mixture(latents["sticks_1"], loc, scale, latents["z_1"])
        - F.binary_cross_entropy_with_logits(model.decoder(latents["z_1"]), x, reduction="sum")
    )
    trace = poutine.trace(poutine.condition(model, latents)).get_trace(x)
    torch.testing.assert_close(trace.log_prob_sum(), expected)
    torch.testing.assert_close(trace.nodes["weights_2"]["value"], log_stick_weights(latents["sticks_2"]).exp())


def test_one_component_is_a_vae():
    decoder, x = mlp((2, PIXELS)), images()
    z = torch.randn(ROWS, 2)
    one, vae = zoo.DeepLatentGaussianMixture(decoder, 2, num_components=1), zoo.VAE(decoder, 2)
    assert one.latent_sites == ("z",)
    found, want = (poutine.trace(poutine.condition(m, {"z": z})).get_trace(x).log_prob_sum() for m in (one, vae))
    torch.testing.assert_close(found, want)


@pytest.mark.parametrize("weights", ["dirichlet", "gem"])
def test_generated_images_have_the_moments_of_the_prior(weights):
    model = zoo.DeepLatentGaussianMixture(nn.Identity(), 2, 3, weights, concentration=2.0, likelihood="gaussian")
    with torch.no_grad():
        model.raw_scale.normal_(generator=torch.Generator().manual_seed(1))
    before = torch.get_rng_state()
    z, prior = model.generate(20_000, seed=1), model.prior()
    assert torch.equal(before, torch.get_rng_state())
    error = prior.variance.sqrt() / math.sqrt(20_000)
    assert ((z.mean(0) - prior.mean).abs() < 4.5 * error).all()
    squares = (z - prior.mean).square()
    assert ((squares.mean(0) - prior.variance).abs() < 4.5 * squares.std(0) / math.sqrt(20_000)).all()
    means = [0.25 * 0.75**k for k in range(3)] if weights == "gem" else [1 / 3] * 3
    expected = torch.tensor([1 / 3, 2 / 9, 4 / 9] if weights == "gem" else means)
    torch.testing.assert_close(prior.mixture_distribution.probs.flatten(), expected)


def test_layers_are_generated_through_their_components():
    model = two_layers()
    with torch.no_grad():
        for part in (model.layers[0].loc, model.layers[0].raw_scale, model.decoder[0]):
            part.weight.zero_()
        model.layers[0].loc.bias.copy_(torch.arange(12.0))
        model.decoder[0].weight.copy_(torch.eye(PIXELS)[:, :4])
        model.decoder[0].bias.zero_()
    model.likelihood = zoo.pixels.GaussianPixels()
    drawn = model.generate(4000, seed=1)[:, :4]
    centres = torch.arange(12.0).reshape(3, 4)
    spread = (
        centres.var(0, correction=0) + F.softplus(model.layers[0].raw_scale.bias).reshape(3, 4).square().mean(0)
    ).sqrt()
    assert ((drawn.mean(0) - centres.mean(0)).abs() < 4.5 * spread / math.sqrt(4000)).all()


def test_scales_stay_within_bounds():
    model = two_layers()
    with torch.no_grad():
        model.raw_scale[0] = 1e9
        model.raw_scale[1] = -1e9
        model.layers[0].raw_scale.bias[:6] = 1e9
        model.layers[0].raw_scale.bias[6:] = -1e9
    assert model.scale.max() < 1001 and model.scale.min() > 0.99e-3
    trace = poutine.trace(model).get_trace(images())
    assert trace.log_prob_sum().isfinite()
    components = trace.nodes["z_1"]["fn"].component_distribution.base_dist
    assert components.scale.max() <= 1e3 and components.scale.min() >= 1e-3


BAD = {
    "no component": (
        lambda: zoo.DeepLatentGaussianMixture(mlp((2, 9)), 2, 0),
        "num_components=0 must be an integer of at l",
    ),
    "half of one": (lambda: zoo.DeepLatentGaussianMixture(mlp((2, 9)), 2, 2.5), "num_components=2.5 must be an integer"),
    "concentration": (
        lambda: zoo.DeepLatentGaussianMixture(mlp((2, 9)), 2, concentration=0.0),
        "concentration must be a positive finite number, got 0.0",
    ),
    "weights": (
        lambda: zoo.DeepLatentGaussianMixture(mlp((2, 9)), 2, weights="dirichet"),
        "weights='dirichet' is not known. Did you mean 'dirichlet'",
    ),
    "missing layer": (
        lambda: zoo.DeepLatentGaussianMixture(mlp((4, 9)), (4, 2)),
        "has 2 stochastic layers, so layers needs 1 networks",
    ),
    "layer of another size": (
        lambda: zoo.DeepLatentGaussianMixture(mlp((4, 9)), (4, 2), 3, layers=[GaussianNetwork(nn.Identity(), 2, 4)])(
            images()
        ),
        r"site 'z_1' returns \[\(6, 4\), \(6, 4\)\]; it must return \(loc, scale\), each \(6, 12\)",
    ),
    "layer that is no pair": (
        lambda: zoo.DeepLatentGaussianMixture(mlp((4, 9)), (4, 2), 3, layers=[mlp((2, 12))])(images()),
        r"site 'z_1' returns a tensor \(6, 12\); it must return \(loc, scale\)",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_arguments_that_make_no_sense(case):
    make, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        make()
