"""Variational autoencoders: densities against formulas, every variant under the engine's transforms, bad input."""

import math

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
import torch.nn.functional as F
from pyro.infer import SVI, Predictive, Trace_ELBO
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import zoo
from zoo import VAE, ConditionalRegressor, ConditionalVAE, ProbabilisticPCA
from zoo.datasets import digits_images, quadrants
from zoo.discretized_logistic import DiscretizedLogistic
from zoo.networks import GaussianNetwork, JointNetwork, convolutional, mlp
from zoo.pixels import CategoricalPixels, DiscretizedLogisticPixels, GaussianPixels

ROWS = 6


def black_and_white(*shape):
    return torch.bernoulli(torch.full((ROWS, *shape), 0.5))


def vae():
    return VAE(mlp((2, 8, 9), "tanh"), 2), black_and_white(9)


def deep():
    layers = [GaussianNetwork(mlp((2, 5), output_activation="tanh"), 5, 3), GaussianNetwork(nn.Identity(), 1, 2)]
    return VAE(mlp((3, 8, 9), "tanh"), (3, 2, 1), layers=layers), black_and_white(9)


def vamp():
    encoder = GaussianNetwork(mlp((9, 5), output_activation="tanh"), 5, 2)
    return VAE(
        mlp((2, 8, 9), "tanh"), 2, prior="vamp", encoder=encoder, pseudo_inputs=black_and_white(9)[:4]
    ), black_and_white(9)


def convolutions():
    _, decoder = convolutional(2, (1, 4, 4), channels=(3,), features=5, activation="tanh", flat=False)
    return VAE(decoder, 2), black_and_white(1, 4, 4)


def categorical():
    decoder = mlp((2, 8, 36), "tanh", out_shape=(9, 4))
    return VAE(decoder, 2, likelihood=CategoricalPixels(4)), torch.randint(4, (ROWS, 9))


def gaussian():
    return VAE(mlp((2, 8, 9), "tanh"), 2, likelihood="gaussian"), torch.randn(ROWS, 9)


def gaussian_of_the_decoder():
    return VAE(mlp((2, 18), out_shape=(9, 2)), 2, likelihood=GaussianPixels("decoder")), torch.randn(ROWS, 9)


def logistic():
    x = torch.randint(256, (ROWS, 9)) / 255
    x[0], x[1] = 0.0, 1.0
    return VAE(mlp((2, 8, 9), "tanh"), 2, likelihood="discretized_logistic"), x


VARIANTS = [vae, deep, vamp, convolutions, categorical, gaussian, gaussian_of_the_decoder, logistic]


@pytest.fixture(params=VARIANTS, ids=lambda variant: variant.__name__)
def variant(request):
    return request.param()


def latents_of(model, x):
    trace = poutine.trace(model).get_trace(x)
    return {name: trace.nodes[name]["value"].detach() for name in model.latent_sites}


def log_joint_of(model, *data):
    def log_joint(latents):
        trace = poutine.trace(poutine.condition(model, data=latents)).get_trace(*data)
        return trace.log_prob_sum()

    return log_joint


# -- densities ---------------------------------------------------------------------------------------------------------


def test_density_written_out():
    model, x = vae()
    z = torch.randn(ROWS, 2)
    logits = model.decoder(z)
    expected = -0.5 * z.square().sum() - z.numel() * 0.5 * math.log(2 * math.pi)
    expected = expected - F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
    torch.testing.assert_close(log_joint_of(model, x)({"z": z}), expected)


def test_density_of_three_layers_written_out():
    model, x = deep()
    z = {name: torch.randn(ROWS, size) for name, size in zip(model.latent_sites, model.latent_dims)}
    assert model.latent_sites == ("z_1", "z_2", "z_3")
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(z["z_3"]).sum()
    for below, above, network in (("z_2", "z_3", model.layers[1]), ("z_1", "z_2", model.layers[0])):
        expected = expected + torch.distributions.Normal(*network(z[above])).log_prob(z[below]).sum()
    expected = expected - F.binary_cross_entropy_with_logits(model.decoder(z["z_1"]), x, reduction="sum")
    torch.testing.assert_close(log_joint_of(model, x)(z), expected)


def test_vamp_prior_is_the_average_of_the_answers_to_pseudo_inputs():
    model, x = vamp()
    z = torch.randn(ROWS, 2)
    loc, scale = model.vamp_prior.encoder(model.vamp_prior.pseudo_inputs)
    expected = torch.distributions.Normal(loc, scale).log_prob(z.unsqueeze(1)).sum(-1).logsumexp(-1) - math.log(4)
    torch.testing.assert_close(model.prior().log_prob(z), expected)
    names = {name for name, _ in model.named_parameters()}
    assert {"vamp_prior.pseudo_inputs", "vamp_prior.encoder.loc.weight"} < names
    log_joint_of(model, x)({"z": z}).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


def test_a_linear_decoder_with_gaussian_noise_is_probabilistic_pca():
    exact, (x,) = ProbabilisticPCA.example()
    decoder = nn.Linear(2, 5)
    decoder.weight.data, decoder.bias.data = exact.weight.mT.clone(), exact.bias.clone()
    model = VAE(decoder, 2, likelihood=GaussianPixels(0.4))
    z = {"z": torch.randn(len(x), 2)}
    torch.testing.assert_close(log_joint_of(model, x)(z), log_joint_of(exact, x)(z))


def test_learned_scale_is_a_parameter_of_the_model():
    model, x = gaussian()
    assert float(model.likelihood.log_scale.detach().exp()) == pytest.approx(0.1)
    z = torch.zeros(ROWS, 2)
    expected = torch.distributions.Normal(model.decoder(z), 0.1).log_prob(x).sum(-1)
    torch.testing.assert_close(model.decode(z).log_prob(x), expected)
    trace = poutine.trace(model).get_trace(x)
    assert "vae$$$likelihood.log_scale" in trace.nodes


def test_scales_of_the_decoder_stay_above_their_floor():
    model, x = gaussian_of_the_decoder()
    outputs = model.decoder(torch.zeros(ROWS, 2))
    expected = torch.distributions.Normal(outputs[..., 0], F.softplus(outputs[..., 1]) + 0.01).log_prob(x).sum(-1)
    torch.testing.assert_close(model.decode(torch.zeros(ROWS, 2)).log_prob(x), expected)
    assert float(GaussianPixels("decoder", min_scale=0.3)(torch.full((1, 2), -50.0)).scale) == pytest.approx(0.3)


def test_mean_of_levels():
    logits = torch.tensor([[0.0, 0.0, math.log(2.0)]])
    assert float(CategoricalPixels(3)(logits).mean) == pytest.approx(0.25 * 1 + 0.5 * 2)


# -- grey levels -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize(("loc", "scale"), [(0.3, 0.05), (-2.0, 0.2), (0.5, 1e-3), (1.4, 30.0)])
def test_probabilities_of_levels_sum_to_one_and_are_differences(levels, loc, scale):
    grey = torch.arange(levels).double() / (levels - 1)
    fn = DiscretizedLogistic(torch.tensor(loc).double(), torch.tensor(scale).double(), levels)
    probabilities = fn.log_prob(grey).exp()
    assert float(probabilities.sum()) == pytest.approx(1.0, abs=1e-12)
    edges = torch.sigmoid((torch.arange(1, levels).double() - 0.5) / (levels - 1) / scale - loc / scale)
    edges = torch.cat([torch.zeros(1).double(), edges, torch.ones(1).double()])
    torch.testing.assert_close(probabilities, edges.diff(), atol=1e-12, rtol=1e-6)
    torch.testing.assert_close(fn.mean, (probabilities * grey).sum())


def test_far_levels_keep_their_digits_and_gradients():
    """A naive difference of sigmoids is 0 here, its logarithm minus infinity."""
    loc, scale = torch.tensor(0.0, requires_grad=True), torch.tensor(2e-3, requires_grad=True)
    log_prob = DiscretizedLogistic(loc, scale).log_prob(torch.tensor([0.0, 0.5019608, 0.9]))
    assert torch.isfinite(log_prob).all() and log_prob[2] < -400
    gradients = torch.autograd.grad(log_prob.sum(), [loc, scale])
    assert all(torch.isfinite(g) for g in gradients)


def test_draws_are_levels_with_their_probabilities():
    fn = DiscretizedLogistic(torch.tensor(0.7), torch.tensor(0.15), 5)
    draws = fn.sample((40_000,))
    levels, counts = draws.unique(return_counts=True)
    assert levels.tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]
    probabilities = fn.log_prob(levels).exp()
    assert ((counts / 40_000 - probabilities).abs() / (probabilities / 40_000).sqrt()).max() < 4
    expanded = fn.expand((3, 2))
    assert expanded.batch_shape == (3, 2) and expanded.sample().shape == (3, 2) and expanded.levels == 5


# -- every variant -----------------------------------------------------------------------------------------------------


def test_a_variant_under_the_engines_transforms(variant):
    model, x = variant
    draws = [latents_of(model, x) for _ in range(3)]
    stacked = {k: torch.stack([d[k] for d in draws]) for k in draws[0]}
    log_joint = log_joint_of(model, x)
    expected = torch.stack([log_joint(d) for d in draws])
    with pyro.validation_enabled(False):
        torch.testing.assert_close(torch.func.vmap(log_joint)(stacked), expected, rtol=1e-4, atol=1e-3)
        gradient, value = make_fx(torch.func.grad_and_value(log_joint))(draws[0])(draws[1])
        torch.testing.assert_close(value, expected[1], rtol=1e-4, atol=1e-3)
        reference = torch.func.grad(log_joint)(draws[1])
        assert all(torch.allclose(gradient[k], reference[k], rtol=1e-3, atol=1e-3) for k in reference)


def test_a_variant_with_vectorised_particles(variant):
    model, x = variant
    one = latents_of(model, x)
    stacked = {k: v.expand(4, *v.shape) for k, v in one.items()}
    with pyro.plate("particles", 4, dim=-2):
        trace = poutine.trace(poutine.condition(model, data=stacked)).get_trace(x)
    torch.testing.assert_close(trace.log_prob_sum(), 4 * log_joint_of(model, x)(one), rtol=1e-4, atol=1e-3)


def test_a_variant_generates(variant):
    model, x = variant
    before = torch.random.get_rng_state()
    one, same, other = (model.generate(5, seed=seed) for seed in (1, 1, 2))
    assert one.shape == (5, *x.shape[1:]) and torch.isfinite(one).all() and not one.requires_grad
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(before, torch.random.get_rng_state())
    drawn = poutine.uncondition(model)(x)
    model.likelihood.check("x", drawn)  # draws are of the kind of the data


def test_a_variant_decodes_codes_wherever_they_stand(variant):
    model, x = variant
    z = torch.randn(4, 3, model.latent_dims[0])
    many = model.decode(z)
    assert many.batch_shape == (4, 3) and many.event_shape == x.shape[1:]
    torch.testing.assert_close(many.mean[2, 1], model.decode(z[2, 1]).mean)
    torch.testing.assert_close(many.mean[2], model.decode(z[2]).mean)


@pytest.mark.parametrize("make", [vae, vamp, deep], ids=lambda make: make.__name__)
def test_minibatches_weigh_as_the_whole(make):
    model, x = make()
    model.data_size = ROWS
    whole = latents_of(model, x)
    total = log_joint_of(model, x)(whole)
    parts = [log_joint_of(model, x[i : i + 2])({k: v[i : i + 2] for k, v in whole.items()}) for i in (0, 2, 4)]
    torch.testing.assert_close(sum(parts) / 3, total, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="data_size=6 but this batch has 12 rows"):
        model(torch.cat([x, x]))


def test_stock_svi_trains_decoder_and_encoder_in_minibatches():
    data = digits_images().x[:400]
    model = VAE(mlp((4, 40, 64), "tanh"), 4, data_size=len(data))
    encoder = GaussianNetwork(mlp((64, 40), output_activation="tanh"), 40, 4)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(data), subsample=torch.arange(len(x))):
            pyro.sample("z", dist.Normal(*encoder(x)).to_event(1))

    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    losses = [svi.step(batch) / len(data) for _ in range(60) for batch in data.split(100)]
    independent = torch.distributions.Bernoulli(data.mean(0).clamp(1e-3, 1 - 1e-3)).log_prob(data).sum(-1).mean()
    assert sum(losses[-8:]) / 8 < -float(independent) - 3  # better than pixels that know nothing of each other


def test_convolutions_mirror_each_other():
    encoder, decoder = convolutional(5, (2, 8, 12), channels=(3, 4), features=7, levels=6)
    assert encoder(torch.rand(3, 192)).shape == (3, 7) and decoder(torch.randn(3, 5)).shape == (3, 192, 6)
    encoder, decoder = convolutional(5, (2, 8, 12), channels=(3,), features=7, levels=6, flat=False)
    outputs = decoder(torch.randn(3, 5))
    assert encoder(torch.rand(3, 2, 8, 12)).shape == (3, 7) and outputs.shape == (3, 2, 8, 12, 6)
    last = decoder[-2].register_forward_hook(
        lambda module, inputs, output: torch.arange(12.0).view(1, 12, 1, 1).expand(output.shape)
    )
    assert decoder(torch.randn(3, 5))[0, :, 0, 0].tolist() == [list(map(float, range(6))), list(map(float, range(6, 12)))]
    last.remove()


# -- conditional -------------------------------------------------------------------------------------------------------


def conditional(**options):
    prior = GaussianNetwork(mlp((9, 5), output_activation="tanh"), 5, 2)
    return ConditionalVAE(prior, JointNetwork(mlp((11, 8, 7), "tanh")), 2, **options), black_and_white(9), black_and_white(7)


def test_conditional_density_written_out():
    model, x, y = conditional()
    z = torch.randn(ROWS, 2)
    expected = torch.distributions.Normal(*model.prior_network(x)).log_prob(z).sum()
    expected = expected - F.binary_cross_entropy_with_logits(model.decoder(x, z), y, reduction="sum")
    torch.testing.assert_close(log_joint_of(model, x, y)({"z": z}), expected)


def test_conditional_model_repeats_inputs_for_draws_of_codes():
    model, x, y = conditional()
    z = torch.randn(4, ROWS, 2)
    torch.testing.assert_close(model.decode(x, z).mean[3], model.decode(x, z[3]).mean)
    drawn = Predictive(model, num_samples=10, parallel=True)(x)
    assert drawn["y"].shape == (10, ROWS, 7) and drawn["z"].shape == (10, ROWS, 2)
    with pyro.plate("particles", 4, dim=-2):
        trace = poutine.trace(poutine.condition(model, data={"z": z})).get_trace(x, y)
    parts = [log_joint_of(model, x, y)({"z": each}) for each in z]
    torch.testing.assert_close(trace.log_prob_sum(), sum(parts))


def test_a_first_guess_is_corrected():
    regressor = mlp((9, 7))
    model, x, _ = conditional(regressor=regressor)
    z = torch.randn(ROWS, 2)
    torch.testing.assert_close(model.decode(x, z).base_dist.logits, regressor(x) + model.decoder.decoder(x, z))
    assert any(name.startswith("decoder.regressor") for name, _ in model.named_parameters())
    wrong, x, y = conditional(regressor=mlp((9, 6)))
    with pytest.raises(ValueError, match=r"regressor and decoder return \(6, 6\) and \(6, 7\)"):
        wrong(x, y)


def test_regressor_is_the_likelihood_of_its_network():
    network = mlp((9, 8, 7))
    model = ConditionalRegressor(network)
    x, y = black_and_white(9), black_and_white(7)
    expected = -F.binary_cross_entropy_with_logits(network(x), y, reduction="sum")
    torch.testing.assert_close(log_joint_of(model, x, y)({}), expected)


def test_conditional_models_on_a_completion():
    """Three quarters of a digit given its bottom left one, in minibatches under stock SVI."""
    task = quadrants(digits_images().x[:300], given=1)
    model = ConditionalRegressor(mlp((64, 50, 48)), data_size=300)
    svi = SVI(model, lambda x, y: None, pyro.optim.Adam({"lr": 5e-3}), Trace_ELBO())
    batches = list(zip(task.inputs.split(100), task.targets.split(100)))
    losses = [svi.step(*batch) / 300 for _ in range(30) for batch in batches]
    assert losses[-1] < 0.8 * losses[0]
    assert task.assemble(model.decode(task.inputs).mean).shape == (300, 64)


@pytest.mark.parametrize("make", [conditional, lambda **o: (ConditionalRegressor(mlp((9, 7)), **o), *conditional()[1:])])
def test_predictions_may_have_more_rows_than_the_data_and_observations_not(make):
    model, x, y = make(data_size=4)
    assert model(x).shape == y.shape
    with pytest.raises(ValueError, match="data_size=4 but this batch has 6 rows"):
        model(x, y)
    latents = {"z": torch.zeros(2, 2)} if isinstance(model, ConditionalVAE) else {}
    doubled = log_joint_of(model, x[:2], y[:2])(latents)
    model.data_size = None
    torch.testing.assert_close(doubled, 2 * log_joint_of(model, x[:2], y[:2])(latents))


@pytest.mark.parametrize("model", [VAE, ConditionalVAE])
def test_without_an_encoder_there_is_no_natural_guide(model):
    made = vae()[0] if model is VAE else conditional()[0]
    assert not hasattr(made, "natural_guide")
    name, options = model.example()[0].natural_guide
    assert name == "amortized" and isinstance(options["encoder"], nn.Module)


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_grey_levels_under_a_bernoulli_are_explained():
    model, _ = vae()
    grey = torch.rand(ROWS, 9)
    with pytest.raises(ValueError) as error:
        model(grey)
    message = str(error.value)
    for part in ("'x' holds grey levels", "does not integrate to one", "binarized_mnist()", "mnist(binarize='dynamic')"):
        assert part in message
    with pyro.validation_enabled(False):
        model(grey)  # no look at values where there may be none to look at
    conditional_model, x, y = conditional()
    with pytest.raises(ValueError, match="'y' holds grey levels"):
        conditional_model(x, 0.5 * y)
    assert conditional_model(grey, y).shape == y.shape  # inputs may be anything


BAD_VALUES = {
    "bytes": (vae, lambda x: 255 * x, r"pixels from 0 to 255; .* \[0, 1\]: divide by the largest level"),
    "standardised": (vae, lambda x: x - 0.5, r"pixels from -0.5 to 0.5"),
    "integers": (vae, lambda x: x.long(), r"dtype torch.int64; pass x.float"),
    "not a number": (vae, lambda x: torch.where(x == 1, math.nan, x), r"NaN or infinite values, the first at \["),
    "infinite": (gaussian, lambda x: x / 0, r"54 NaN or infinite values, the first at \[0, 0\]"),
    "not a level": (logistic, lambda x: x * 0.999, r"between the levels k / 255.*levels=\.\.\."),
    "levels outside": (logistic, lambda x: 2 * x, r"pixels from 0 to 2; this likelihood takes pixels in \[0, 1\]"),
    "no level": (categorical, lambda x: x + 1, r"integers from 0 to 3; it holds values from 1 to 4"),
    "fractions": (categorical, lambda x: x / 4, r"integers from 0 to 3"),
    "no rows": (vae, lambda x: x[:0], r"'x' has shape \(0, 9\); it must be \(rows, \*image\) with at least one row"),
    "one image": (vae, lambda x: x[0], r"'x' has shape \(9,\).*unsqueeze\(0\)"),
    "another width": (vae, lambda x: x[:, :8], r"the decoder describes images of shape \(9,\), x has \(8,\)"),
}


@pytest.mark.parametrize("case", BAD_VALUES)
def test_bad_pixels(case):
    make, spoil, message = BAD_VALUES[case]
    model, x = make()
    with pytest.raises(ValueError, match=message):
        model(spoil(x))


ENCODER = GaussianNetwork(nn.Identity(), 9, 2)
BAD_MODELS = {
    "no dimension": (lambda: VAE(mlp((2, 9)), 0), "latent_dim=0 must be an integer of at least 1"),
    "no layers": (lambda: VAE(mlp((2, 9)), ()), r"latent_dim=\(\) must be"),
    "a network missing": (lambda: VAE(mlp((2, 9)), (2, 1)), "2 stochastic layers, so layers needs 1 networks .*, got 0"),
    "a likelihood unknown": (lambda: VAE(mlp((2, 9)), 2, likelihood="bernouli"), "Did you mean 'bernoulli'"),
    "a prior unknown": (lambda: VAE(mlp((2, 9)), 2, prior="vampire"), "Did you mean 'vamp'"),
    "vamp without encoder": (lambda: VAE(mlp((2, 9)), 2, prior="vamp"), "pass encoder=.*and pseudo_inputs="),
    "vamp of layers": (lambda: VAE(mlp((2, 9)), (2, 1), layers=[ENCODER], prior="vamp"), "is for one stochastic layer"),
    "conditional": (lambda: ConditionalVAE(ENCODER, mlp((2, 9)), 0), "latent_dim=0 must be at least 1"),
    "one level": (lambda: CategoricalPixels(1), "levels must be an integer of at least 2, got 1"),
    "a scale unknown": (lambda: GaussianPixels("learnt"), "Did you mean 'learned'"),
    "a scale of zero": (lambda: DiscretizedLogisticPixels(scale=0.0), "scale must be a positive finite number"),
    "one size": (lambda: mlp((3,)), "a network needs at least the widths"),
    "an empty layer": (lambda: mlp((3, 0, 2)), r"sizes must be integers of at least 1, got \(3, 0, 2\)"),
    "an activation unknown": (lambda: mlp((3, 2, 2), "rellu"), "Did you mean 'relu'"),
    "a shape of another size": (lambda: mlp((3, 8), out_shape=(3, 3)), r"out_shape=\(3, 3\) has 9 elements, .* 8"),
    "an odd image": (lambda: convolutional(2, (1, 6, 6)), "height and width divisible by 4"),
}


@pytest.mark.parametrize("case", BAD_MODELS)
def test_bad_models(case):
    make, message = BAD_MODELS[case]
    with pytest.raises(ValueError, match=message):
        make()


class Pair(nn.Module):
    def forward(self, z):
        return z, z


BAD_OUTPUTS = {
    "levels missing": (
        VAE(mlp((2, 36)), 2, likelihood=CategoricalPixels(4)),
        r"CategoricalPixels needs 4 numbers per pixel",
    ),
    "levels first": (
        VAE(mlp((2, 36), out_shape=(4, 9)), 2, likelihood=CategoricalPixels(4)),
        r"returns \(4, 9\) for an image.*Unflatten\(-1, \(pixels, 4\)\)",
    ),
    "no scales": (VAE(mlp((2, 9)), 2, likelihood=GaussianPixels("decoder")), "needs 2 numbers per pixel"),
    "rows mixed": (VAE(nn.Flatten(0), 2), r"the decoder returns \(12,\) for 6 rows; it must return \(6, \.\.\.\)"),
    "a pair": (VAE(Pair(), 2), "the decoder returns several tensors"),
    "no pair": (
        VAE(mlp((3, 9)), (3, 2), layers=[mlp((2, 3))]),
        r"site 'z_1' returns a tensor \(6, 3\); it must return \(loc, s",
    ),
    "another size": (
        VAE(mlp((3, 9)), (3, 2), layers=[GaussianNetwork(nn.Identity(), 2, 4)]),
        r"site 'z_1' returns \[\(6, 4\), \(6, 4\)\]; it must return \(loc, scale\), each \(6, 3\)",
    ),
    "features for a prior": (
        VAE(mlp((2, 9)), 2, prior="vamp", encoder=mlp((9, 2)), pseudo_inputs=torch.zeros(3, 9)),
        r"the encoder returns a tensor \(3, 2\); with prior='vamp' .* zoo.networks.GaussianNetwork",
    ),
}


@pytest.mark.parametrize("case", BAD_OUTPUTS)
def test_networks_that_do_not_fit(case):
    model, message = BAD_OUTPUTS[case]
    with pytest.raises(ValueError, match=message):
        model(torch.zeros(ROWS, 9))


def test_conditional_networks_and_outputs_that_do_not_fit():
    model, x, y = conditional()
    with pytest.raises(
        ValueError, match=r"site 'y': the observed values have shape \(6, 6\) but the model produces \(6, 7\)"
    ):
        model(x, y[:, :6])
    with pytest.raises(ValueError, match="'x' holds 6 NaN"):
        model(torch.where(torch.arange(9) == 3, math.nan, x), y)
    model.prior_network = mlp((9, 2))
    with pytest.raises(ValueError, match=r"the network of site 'z' returns a tensor \(6, 2\)"):
        model(x, y)


def test_public_names():
    assert zoo.networks.mlp is mlp and zoo.pixels.GaussianPixels is GaussianPixels
