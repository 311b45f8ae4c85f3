"""Randomness as an input: torch's own functions, served from a tape, with every way to pass their arguments."""

import pyro.distributions as dist
import pytest
import torch

from guides.program.noise import Noise, NoiseLayout, NoiseTape

NORMALS, UNIFORMS = torch.randn(50), torch.rand(50)
N, U = NORMALS[:6].view(2, 3), UNIFORMS[:6].view(2, 3)
PROBS = torch.tensor([[2.0, 0.0, 6.0], [1.0, 1.0, 0.0]])  # not normalised, as torch allows
INVERSE = torch.stack([torch.where(U[0] < 0.25, 0, 2), torch.where(U[1] < 0.5, 0, 1)])

CALLS = {
    "randn(2, 3)": (lambda: torch.randn(2, 3), N),
    "randn((2, 3))": (lambda: torch.randn((2, 3)), N),
    "randn(size=)": (lambda: torch.randn(size=(2, 3)), N),
    "randn dtype": (lambda: torch.randn(2, 3, dtype=torch.float64), N.double()),
    "randn_like": (lambda: torch.randn_like(torch.zeros(2, 3)), N),
    "normal of tensors": (lambda: torch.normal(torch.ones(2, 3), torch.full((2, 3), 2.0)), 1 + 2 * N),
    "normal, std by keyword": (lambda: torch.normal(torch.ones(2, 3), std=torch.full((2, 3), 2.0)), 1 + 2 * N),
    "normal, mean a number": (lambda: torch.normal(1.0, torch.full((2, 3), 2.0)), 1 + 2 * N),
    "normal of numbers": (lambda: torch.normal(1.0, 2.0, (2, 3)), 1 + 2 * N),
    "normal of numbers, size=": (lambda: torch.normal(1.0, 2.0, size=(2, 3)), 1 + 2 * N),
    "normal_": (lambda: torch.empty(2, 3).normal_(), N),
    "normal_(1, 2)": (lambda: torch.empty(2, 3).normal_(1.0, 2.0), 1 + 2 * N),
    "normal_(1, std=2)": (lambda: torch.empty(2, 3).normal_(1.0, std=2.0), 1 + 2 * N),
    "rand": (lambda: torch.rand(2, 3), U),
    "rand_like": (lambda: torch.rand_like(torch.zeros(2, 3)), U),
    "uniform_": (lambda: torch.empty(2, 3).uniform_(), U),
    "uniform_(1, 3)": (lambda: torch.empty(2, 3).uniform_(1.0, 3.0), 1 + 2 * U),
    "uniform_(1, to=3)": (lambda: torch.empty(2, 3).uniform_(1.0, to=3.0), 1 + 2 * U),
    "bernoulli": (lambda: torch.bernoulli(torch.full((2, 3), 0.3)), (U < 0.3).float()),
    "bernoulli with p": (lambda: torch.bernoulli(torch.zeros(2, 3), 0.3), (U < 0.3).float()),
    "multinomial": (lambda: torch.multinomial(PROBS, 3, replacement=True), INVERSE),
    "multinomial as a method": (lambda: PROBS.multinomial(3, True), INVERSE),
    "multinomial, by keyword": (lambda: torch.multinomial(input=PROBS, num_samples=3, replacement=True), INVERSE),
    "exponential_": (lambda: torch.empty(2, 3).exponential_(2.0), -torch.log1p(-U) / 2),
}


@pytest.mark.parametrize("name", CALLS)
def test_draws_come_from_the_tape(name):
    call, want = CALLS[name]
    with NoiseTape(Noise(NORMALS, UNIFORMS)) as tape:
        found = call()
        used = tape.used
    torch.testing.assert_close(found, want)
    assert used.normals + used.uniforms == 6
    with NoiseTape() as recording:
        assert call().shape == (2, 3)
    assert recording.used == used


def test_a_tape_is_read_on_and_the_caller_keeps_its_generator():
    with NoiseTape(Noise(NORMALS, UNIFORMS)):
        first, second = torch.randn(2), torch.randn(3)
        mine = torch.randn(2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(torch.cat([first, second]), NORMALS[:5])
    torch.testing.assert_close(mine, torch.randn(2, generator=torch.Generator().manual_seed(0)))


def test_a_statement_that_fills_a_tensor_fills_it():
    target = torch.empty(4)
    with NoiseTape(Noise(NORMALS, UNIFORMS)):
        target.normal_()
    torch.testing.assert_close(target, NORMALS[:4])


def test_under_vmap_a_filled_tensor_is_nan_and_a_returned_draw_right():
    rows = torch.randn(3, 4)

    def filled(row):
        target = torch.empty(4)
        with NoiseTape(Noise(row, row)):
            returned = target.normal_()
        return returned, target

    returned, target = torch.vmap(filled, out_dims=(0, 0))(rows)
    torch.testing.assert_close(returned, rows)
    assert target.isnan().all()


@pytest.mark.parametrize(
    "law",
    [
        dist.Normal(1.0, 2.0),
        dist.Uniform(-1.0, 3.0),
        dist.Exponential(2.0),
        dist.Laplace(1.0, 2.0),
        dist.Gumbel(1.0, 2.0),
        dist.Cauchy(1.0, 2.0),
        dist.HalfCauchy(2.0),
        dist.HalfNormal(2.0),
        dist.LogNormal(0.0, 0.5),
        dist.Weibull(2.0, 1.5),
        dist.Bernoulli(0.3),
        dist.Categorical(torch.tensor([0.1, 0.6, 0.3])),
    ],
    ids=lambda law: type(law).__name__,
)
def test_a_distribution_drawn_from_the_tape_is_that_distribution(law):
    count = 20_000
    with NoiseTape(Noise(torch.randn(count), torch.rand(count))) as tape:
        draws = law.sample((count,))
    assert tape.used.normals + tape.used.uniforms == count
    torch.manual_seed(1)
    plain = law.sample((count,))
    for level in (0.05, 0.25, 0.5, 0.75, 0.95):
        point = plain.float().quantile(level)
        share = (draws <= point).float().mean() - (plain <= point).float().mean()
        assert abs(share) < 4.5 * (2 * level * (1 - level) / count) ** 0.5


def test_noise_of_several_generators_is_that_of_each():
    layout = NoiseLayout(normals=5, uniforms=3)
    each = layout.draw_each((7, 2), [torch.Generator().manual_seed(s) for s in (4, 5)])
    for r, seed in enumerate((4, 5)):
        alone = layout.draw((7, 2), torch.Generator().manual_seed(seed))
        assert torch.equal(each.normals[r], alone.normals) and torch.equal(each.uniforms[r], alone.uniforms)


def test_binomials_are_drawn_under_vmap_whichever_of_their_arguments_is_mapped():
    for mapped in (0, 1):
        values = [torch.full((5,), 9.0), torch.full((5,), 0.5)]

        def draw(value, mapped=mapped, values=values):
            with NoiseTape():
                return torch.binomial(*(value if k == mapped else other for k, other in enumerate(values)))

        drawn = torch.vmap(draw, randomness="different")(values[mapped].expand(200, 5))
        assert drawn.shape == (200, 5)
        assert bool((drawn.std(0) > 1).all())
