"""Models and guides meet: what a model calls its natural guide fits it, and the model's parameters with it."""

import pytest
import torch
from torch import nn

import guides
import zoo
from guides import errors
from zoo import VAE, ConditionalRegressor, ConditionalVAE, ProbabilisticPCA
from zoo.datasets import digits, digits_images, quadrants
from zoo.networks import GaussianNetwork, JointNetwork, convolutional, mlp


def encoder(features=64, hidden=30):
    return mlp((features, hidden), output_activation="tanh")


@pytest.fixture(scope="module")
def images():
    return digits_images().x[:300]


@pytest.mark.parametrize("name", list(zoo.models))
def test_natural_guides_fit(name):
    model, data = zoo.models[name].example()
    posterior = guides.fit(model, *data, steps=40, lr=0.03, progress=False)
    assert posterior.family == model.natural_guide[0]
    assert torch.isfinite(posterior.losses).all()
    assert posterior.losses[0, -10:].mean() < posterior.losses[0, :10].mean()


def test_probabilistic_pca_reaches_its_evidence():
    """The bound is tight: the family holds the exact posterior, and the optimum is found."""
    model, (x,) = ProbabilisticPCA.example()
    posterior = guides.fit(model, x, steps=1200, lr=0.03, schedule="cosine", progress=False)
    exact = float(model.log_marginal(x).sum())
    assert -float(posterior.losses[0, -100:].mean()) == pytest.approx(exact, abs=0.2)  # of 40 rows
    draws = posterior.draws(4000, x).latents["z"][0]
    truth = model.exact_posterior(x)
    error = truth.stddev / 4000**0.5
    assert ((draws.mean(0) - truth.mean).abs() / error).max() < 12  # trained at random steps, so not to the last digit
    torch.testing.assert_close(draws.std(0), truth.stddev, rtol=0.1, atol=0)


@pytest.mark.parametrize("order", ["bottom_up", "ladder"])
def test_several_layers(images, order):
    layers = [GaussianNetwork(mlp((2, 10), output_activation="tanh"), 10, 5)]
    model = VAE(mlp((5, 30, 64), "tanh"), (5, 2), layers=layers)
    upper = mlp((5 if order == "bottom_up" else 30, 10), output_activation="tanh")
    guide = ("amortized", {"encoder": [encoder(), upper], "order": order})
    posterior = guides.fit(model, guide, images, epochs=15, batch_size=50, progress=False)
    assert posterior.losses[0, -20:].mean() < 0.75 * posterior.losses[0, :5].mean()
    assert posterior.guide.amortized == {"z_1", "z_2"}


def test_vamp_prior_shares_the_guides_encoder(images):
    shared = GaussianNetwork(encoder(), 30, 3)
    model = VAE(mlp((3, 30, 64), "tanh"), 3, prior="vamp", encoder=shared, pseudo_inputs=images[:10])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    posterior = guides.fit(model, images, epochs=15, batch_size=50, progress=False)
    assert posterior.losses[0, -20:].mean() < 0.75 * posterior.losses[0, :5].mean()
    assert model.vamp_prior.encoder is shared
    assert posterior.guide.encoders[0] is posterior.model.vamp_prior.encoder
    after = dict(model.named_parameters())
    assert all(not torch.equal(after[name], value) for name, value in before.items())
    # The guide's answers and the components of the prior come from one network, also inside the fit.
    loc, _ = shared(images[:10])
    drawn = posterior.draws(2000, images[:10]).latents["z"][0].mean(0)
    torch.testing.assert_close(drawn, loc.detach(), atol=0.15, rtol=0)


def test_convolutions_in_replicates(images):
    down, up = convolutional(3, (1, 8, 8), channels=(4, 8), features=20)
    model = VAE(up, 3, encoder=down)
    posterior = guides.fit(model, images, epochs=15, batch_size=50, replicates=2, progress=False)
    assert (posterior.losses[:, -20:].mean(1) < 0.8 * posterior.losses[:, :5].mean(1)).all()


@pytest.mark.parametrize(
    "likelihood", [zoo.pixels.DiscretizedLogisticPixels(17), zoo.pixels.GaussianPixels()], ids=lambda p: p._get_name()
)
def test_learned_scales_are_fitted(likelihood):
    start = float(likelihood.log_scale.detach())
    model = VAE(mlp((4, 30, 64), "tanh"), 4, likelihood=likelihood, encoder=encoder())
    guides.fit(model, digits().x[:300], epochs=15, batch_size=50, progress=False)
    assert abs(float(likelihood.log_scale.detach()) - start) > 0.2


def test_conditional_model_and_regressor(images):
    task = quadrants(images, given=1)
    recognition = JointNetwork(encoder(64 + 48))
    prior = GaussianNetwork(encoder(), 30, 3)
    model = ConditionalVAE(prior, JointNetwork(mlp((67, 30, 48), "tanh")), 3, encoder=recognition)
    posterior = guides.fit(model, task.inputs, task.targets, epochs=15, batch_size=50, validation=0.1, progress=False)
    drawn = posterior.predict(task.inputs[:7], None, num_samples=20)["y"]
    assert drawn.shape == (20, 7, 48) and set(drawn.unique().tolist()) <= {0.0, 1.0}

    plain = ConditionalRegressor(mlp((64, 30, 48), "tanh"))
    fitted = guides.fit(plain, task.inputs, task.targets, epochs=15, batch_size=50, validation=0.1, progress=False)
    assert fitted.losses[0, -5:].mean() < 0.75 * fitted.losses[0, :5].mean()
    rows = fitted.log_likelihood(task.inputs[:5], task.targets[:5])["y"]
    torch.testing.assert_close(rows[0], plain.decode(task.inputs[:5]).log_prob(task.targets[:5]).detach())


def test_a_regressor_is_fitted_by_maximum_likelihood():
    """Without an input that matters the best logits are those of the frequencies."""
    generator = torch.Generator().manual_seed(0)
    y = torch.bernoulli(torch.tensor([0.2, 0.5, 0.7]).expand(200, 3), generator=generator)
    plain = ConditionalRegressor(nn.Linear(1, 3))
    guides.fit(plain, torch.zeros(200, 1), y, steps=800, lr=0.05, progress=False)
    torch.testing.assert_close(torch.sigmoid(plain.network.bias.detach()), y.mean(0), atol=1e-3, rtol=0)


def test_grey_levels_are_refused_before_the_fit():
    model = VAE(mlp((2, 64)), 2, encoder=encoder())
    with pytest.raises(errors.DataError, match=r"grey levels.*binarized_mnist.*mnist\(binarize='dynamic'\)"):
        guides.fit(model, digits().x[:50], steps=1)


def test_a_model_without_its_encoder_asks_for_a_guide(images):
    with pytest.raises(errors.OptionError, match="the model has no natural_guide; pass one of amortized"):
        guides.fit(VAE(mlp((2, 64)), 2), images, steps=1)
