"""Weights of the divergence by step, and free bits: what is optimised, never what is reported."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from estimates import encoder, factors, replicate_estimates, rows
from guide_models import line, regression

import guides
from guides import errors


def test_warmup_grows_linearly_from_the_first_step_on():
    weight = guides.KLAnnealing(steps=4, start=0.2)
    steps = torch.tensor([1.0, 2.0, 3.0, 5.0, 6.0, math.inf])
    torch.testing.assert_close(weight(steps), torch.tensor([0.2, 0.4, 0.6, 1.0, 1.0, 1.0]))


def test_cycles_start_again_and_end_at_one():
    weight = guides.KLAnnealing(steps=20, cycles=2, ramp=0.8)
    steps = torch.tensor([1.0, 5.0, 9.0, 10.0, 11.0, 15.0, 20.0, 21.0, 1000.0, math.inf])
    torch.testing.assert_close(weight(steps), torch.tensor([0.0, 0.5, 1.0, 1.0, 0.0, 0.5, 1.0, 1.0, 1.0, 1.0]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: guides.KLAnnealing(0), "steps must be at least 1, not 0"),
        (lambda: guides.KLAnnealing(5, start=-1.0), "start must be a finite number of at least 0, not -1.0"),
        (lambda: guides.KLAnnealing(3, cycles=4), "cycles must be 1 to steps=3, not 4"),
        (lambda: guides.KLAnnealing(30, ramp=0.0), r"ramp must be in \(0, 1\], not 0.0"),
        (lambda: guides.ELBO(kl_weight=math.nan), "kl_weight must be a finite number of at least 0, not nan"),
        (lambda: guides.ELBO(kl_weight="warmup"), "kl_weight must be a finite number of at least 0, not 'warmup'"),
        (lambda: guides.ELBO(free_bits=-0.1), "free_bits must be a finite number of at least 0, not -0.1"),
        (lambda: guides.ELBO(estimator="sticky"), "estimator must be 'pathwise' or 'stl', not 'sticky'"),
    ],
)
def test_bad_options_are_named(make, message):
    with pytest.raises(errors.OptionError, match=message):
        make()


def normal_encoder(x):
    loc = pyro.param("loc", torch.tensor([[0.5, -0.2, 0.1], [0.01, 0.02, -0.01]]))
    scale = pyro.param("scale", torch.tensor([0.4, 0.99]), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x @ loc.T, scale).to_event(1))


normal_encoder.amortized = frozenset({"z"})


def kl_of(x):
    """KL per row and dimension of :func:`normal_encoder`, and its gradient for the scales."""
    loc = x @ torch.tensor([[0.5, -0.2, 0.1], [0.01, 0.02, -0.01]]).T
    scale = torch.tensor([0.4, 0.99])
    return 0.5 * (scale**2 + loc**2 - 1) - scale.log()


@pytest.mark.parametrize("step", [1.0, 3.0, 5.0, 50.0])
def test_the_weight_scales_the_gradient_of_the_divergence_and_not_the_value(step):
    x, schedule = rows(), guides.KLAnnealing(4)

    def estimates(weight):
        return replicate_estimates(guides.ELBO(kl_weight=weight), factors, normal_encoder, (x,), 5, step=step)

    plain, without, found = estimates(1.0), estimates(0.0), estimates(schedule)
    torch.testing.assert_close(found[0], plain[0])
    torch.testing.assert_close(without[0], plain[0])
    beta = min(1.0, (step - 1) / 4)
    for name in ("loc", "scale"):
        want = beta * plain[1][name] + (1 - beta) * without[1][name]
        torch.testing.assert_close(found[1][name], want, rtol=1e-3, atol=1e-3)


def test_free_bits_bound_the_average_divergence_of_each_dimension_and_not_the_value():
    """The first dimension has 0.5 nats on average, the second hardly any: only the second is below 0.1."""
    x, factor = rows(), 3.0
    kl = kl_of(x).mean(0)
    assert kl[0] > 0.2
    assert kl[1] < 0.01

    def surrogate(free_bits):
        objective = guides.ELBO(free_bits=free_bits)
        with pyro.poutine.scale(scale=factor):
            pyro.set_rng_seed(0)
            return objective.estimate(factors, normal_encoder, (x,), {})

    plain = surrogate(0.0)
    for free_bits in (1e-6, 0.1, 10.0):
        found = surrogate(free_bits)
        torch.testing.assert_close(found.value, plain.value)
        below = factor * len(x) * (kl.clamp(min=free_bits) - kl).sum()
        torch.testing.assert_close(found.surrogate, plain.surrogate - below, rtol=1e-5, atol=1e-4)
    gradients = replicate_estimates(guides.ELBO(free_bits=0.1), factors, normal_encoder, (x,), 3)[1]["scale"]
    free = replicate_estimates(guides.ELBO(kl_weight=0.0), factors, normal_encoder, (x,), 3)[1]["scale"]
    paid = replicate_estimates(guides.ELBO(), factors, normal_encoder, (x,), 3)[1]["scale"]
    torch.testing.assert_close(gradients[:, 0], paid[:, 0])
    torch.testing.assert_close(gradients[:, 1], free[:, 1])


def test_free_bits_of_a_site_without_closed_form_count_its_dimensions():
    x = rows()
    objective = guides.ELBO(num_particles=3, free_bits=0.3)
    pyro.set_rng_seed(0)
    found = objective.estimate(factors, encoder(shift=0.2), (x,), {})
    pyro.set_rng_seed(0)
    likelihood = guides.ELBO(num_particles=3, kl_weight=0.0).estimate(factors, encoder(shift=0.2), (x,), {})
    kl = likelihood.surrogate - likelihood.value
    floor = 0.3 * 2 * len(x)
    assert kl.item() > floor  # so that the next assertion is about the other side
    torch.testing.assert_close(found.surrogate, found.value)
    pyro.set_rng_seed(0)
    high = guides.ELBO(num_particles=3, free_bits=5.0).estimate(factors, encoder(shift=0.2), (x,), {})
    torch.testing.assert_close(high.surrogate, likelihood.surrogate - 5.0 * 2 * len(x))
    torch.testing.assert_close(high.value, likelihood.value)


def test_free_bits_of_masked_rows_are_not_counted():
    x, mask = rows(), torch.tensor([True, False, True, True, False, True])
    with pyro.poutine.mask(mask=mask):
        pyro.set_rng_seed(0)
        high = guides.ELBO(free_bits=5.0).estimate(factors, normal_encoder, (x,), {})
        pyro.set_rng_seed(0)
        likelihood = guides.ELBO(kl_weight=0.0).estimate(factors, normal_encoder, (x,), {}).surrogate
    torch.testing.assert_close(high.surrogate, likelihood - 5.0 * 2 * 4)


def test_jointly_drawn_sites_share_their_free_bits():
    data = line(rows=8)
    pyro.set_rng_seed(0)
    guide = guides.FullRank(regression)
    guide(*data)
    found = []
    for objective in (guides.ELBO(free_bits=100.0), guides.ELBO(kl_weight=0.0)):
        pyro.set_rng_seed(1)
        found.append(objective.estimate(regression, guide, data, {}).surrogate)
    torch.testing.assert_close(found[0], found[1] - 100.0 * 4)  # three weights and a noise scale


class Recorded:
    def __init__(self):
        self.steps = []

    def __call__(self, step):
        self.steps.append(float(step))
        return 1.0 + 0.0 * step


def test_steps_count_from_one_in_fits_and_in_stock_svi():
    x = rows()
    seen = Recorded()
    guides.fit(factors, normal_encoder, x, objective=guides.ELBO(kl_weight=seen), steps=5, compile="eager")
    assert seen.steps == [1.0, 2.0, 3.0, 4.0, 5.0]
    seen = Recorded()
    objective = guides.ELBO(kl_weight=seen)
    svi = pyro.infer.SVI(factors, normal_encoder, pyro.optim.Adam({"lr": 0.01}), loss=objective)
    for _ in range(3):
        svi.step(x)
    svi.evaluate_loss(x)
    assert seen.steps == [1.0, 2.0, 3.0, math.inf]


def test_a_schedule_acts_in_traced_fits_as_in_eager_ones():
    x = rows()
    objective = guides.ELBO(kl_weight=guides.KLAnnealing(steps=20, cycles=2, ramp=0.5), free_bits=0.05)
    runs = [
        guides.fit(factors, normal_encoder, x, objective=objective, steps=40, lr=0.02, compile=mode)
        for mode in ("eager", "trace")
    ]
    constant = guides.fit(factors, normal_encoder, x, steps=40, lr=0.02, compile="eager")
    torch.testing.assert_close(runs[0].losses, runs[1].losses)
    assert (runs[0].losses - constant.losses).abs().max() > 0.1


def test_a_checkpoint_of_another_schedule_is_refused(tmp_path):
    x = rows()

    def fit(objective):
        return guides.fit(factors, normal_encoder, x, objective=objective, steps=10, checkpoint=tmp_path / "state")

    fit(guides.ELBO(kl_weight=guides.KLAnnealing(5)))
    fit(guides.ELBO(kl_weight=guides.KLAnnealing(5)))
    with pytest.raises(errors.OptionError, match="belongs to a fit with other options"):
        fit(guides.ELBO(kl_weight=guides.KLAnnealing(6)))
