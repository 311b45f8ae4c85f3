"""The stick-breaking VAE: its prior, its decoder's input, its arguments."""

import pyro.poutine as poutine
import pytest
import torch

import zoo
from zoo.networks import mlp


def test_weights_are_a_broken_stick():
    vae, (x,) = zoo.StickBreakingVAE.example()
    nodes = poutine.trace(vae).get_trace(x).nodes
    sticks, weights = nodes["sticks"]["value"], nodes["weights"]["value"]
    assert sticks.shape == (24, 2) and weights.shape == (24, 3)
    torch.testing.assert_close(weights.sum(-1), torch.ones(24))
    torch.testing.assert_close(weights[:, 1], (1 - sticks[:, 0]) * sticks[:, 1])
    torch.testing.assert_close(nodes["x"]["fn"].base_dist.logits, vae.decoder(weights))


def test_the_prior_is_gem():
    vae = zoo.StickBreakingVAE(mlp((4, 5)), 4, concentration=3.0)
    sticks = vae.prior().sample((20_000,))
    assert sticks.mean(0) == pytest.approx([0.25] * 3, abs=0.01)
    uniform = 1 - (1 - sticks) ** 3.0
    assert uniform.var(0) == pytest.approx([1 / 12] * 3, abs=0.003), "Beta(1, alpha) inverts so"


def test_images_are_generated_without_touching_the_callers_seed():
    vae, _ = zoo.StickBreakingVAE.example()
    before = torch.get_rng_state()
    images = vae.generate(5, seed=1)
    assert torch.equal(before, torch.get_rng_state())
    assert images.shape == (5, 6) and torch.equal(images, vae.generate(5, seed=1))
    assert not torch.equal(images, vae.generate(5, seed=2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_components": 1}, "leaves no stick to break"),
        ({"concentration": 0.0}, "concentration must be a positive"),
        ({"likelihood": "bernouli"}, "Did you mean 'bernoulli'"),
    ],
)
def test_arguments_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        zoo.StickBreakingVAE(mlp((4, 5)), **({"num_components": 4} | options))


def test_a_decoder_that_does_not_fit_is_named():
    with pytest.raises((ValueError, RuntimeError), match=r"decoder|shapes"):
        zoo.StickBreakingVAE(mlp((3, 5)), 4)(torch.zeros(2, 5))
