"""What Pyro's own examples do: plates without a size, reparametrisation inside a plate, flows kept in a list."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.transforms import affine_autoregressive
from pyro.infer import config_enumerate
from pyro.infer.reparam import LocScaleReparam
from pyro.ops.special import safe_log
from torch import Tensor, nn

import guides
from guides import errors
from guides.program.functions import followable

X = torch.linspace(-2.0, 2.0, 8)


@pytest.mark.parametrize("guide", ["laplace", "full_rank", "mean_field"])
def test_a_reparametrisation_inside_a_plate_gives_each_element_its_own_latent(guide: str) -> None:
    def model(y: Tensor) -> None:
        with pyro.plate("rows", len(y)), poutine.reparam(config={"z": LocScaleReparam(0.0)}):
            z = pyro.sample("z", dist.Normal(torch.tensor(0.0), torch.tensor(2.0)))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    posterior = guides.fit(model, guide, X, steps=800, lr=0.05, schedule="cosine", compile="trace")
    drawn = posterior.sample(4000, seed=0)["z_decentered"]
    assert drawn.shape == (4000, 8)
    torch.testing.assert_close(2.0 * drawn.mean(0), 0.8 * X, atol=0.12, rtol=0.0)
    torch.testing.assert_close(2.0 * drawn.std(0), torch.full((8,), 0.8**0.5), atol=0.1, rtol=0.0)


def unsized(rows: int | None, marked: bool = False) -> Any:
    def model(y: Tensor) -> None:
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("rows", rows):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(y)), scale))
            if marked:
                z = z + 3.0 * pyro.sample("k", dist.Bernoulli(torch.full((len(y),), 0.3)))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    return config_enumerate(model) if marked else model


@pytest.mark.parametrize("marked", [False, True])
def test_a_plate_without_a_size_is_as_large_as_what_is_in_it(marked: bool) -> None:
    start = ("laplace", {"init_loc_fn": "feasible"})
    with_size, without = (guides.fit(unsized(n, marked), start, X, steps=20, compile="eager") for n in (8, None))
    torch.testing.assert_close(without.losses, with_size.losses)
    drawn = guides.fit(unsized(None, marked), "mean_field", X, steps=5, compile="eager")
    assert drawn.diagnose(num_samples=50).num_samples == 50
    assert drawn.log_likelihood(num_samples=20)["y"].shape == (20, 8)
    assert drawn.to_arviz(num_samples=10).posterior["z"].dims == ("chain", "draw", "rows")


def test_rows_of_a_plate_without_a_size_are_scaled_in_a_minibatch() -> None:
    def regression(sized: bool) -> Any:
        def model(y: Tensor) -> None:
            mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
            with pyro.plate("rows", len(y) if sized else None):
                pyro.sample("y", dist.Normal(mean + torch.zeros(len(y)), 1.0), obs=y)

        return model

    losses = [
        guides.fit(regression(s), "mean_field", X, steps=5, batch_size=4, compile="eager").losses for s in (True, False)
    ]
    torch.testing.assert_close(*losses)


def test_a_guide_may_keep_flows_in_a_list() -> None:
    class Guide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.flows = [affine_autoregressive(2, hidden_dims=[4])]
            self.registered = nn.ModuleList(self.flows)

        def forward(self, y: Tensor) -> None:
            pyro.module("flows", self)
            with pyro.plate("rows", len(y)):
                base = dist.Normal(torch.zeros(len(y), 2), 1.0)
                pyro.sample("z", dist.TransformedDistribution(base, self.flows))

    def model(y: Tensor) -> None:
        with pyro.plate("rows", len(y)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(z.sum(-1), 1.0), obs=y)

    posterior = guides.fit(model, Guide(), X, steps=5)
    assert posterior.sample(3)["z"].shape == (3, 8, 2)


def test_steps_that_depend_on_the_lengths_of_sequences_are_recorded() -> None:
    @config_enumerate
    def model(y: Tensor, lengths: Tensor) -> None:
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("series", len(y)):
            z: Any = 0
            for t in pyro.markov(range(lengths.max())):
                with poutine.mask(mask=t < lengths):
                    z = pyro.sample(f"z{t}", dist.Categorical(torch.tensor([[0.7, 0.3], [0.2, 0.8]])[z]))
                    pyro.sample(f"y{t}", dist.Normal(2.0 * z, scale), obs=y[:, t])

    y, lengths = torch.randn(4, 3), torch.tensor([3, 1, 2, 3])  # a warning that it runs eagerly would be an error
    fits = [guides.fit(model, "mean_field", y, lengths, steps=4, compile=c) for c in ("eager", "trace")]
    torch.testing.assert_close(fits[0].losses, fits[1].losses)
    with pytest.warns(errors.EagerFallbackWarning, match="cannot be traced"):  # other lengths at every step
        guides.fit(model, "mean_field", y, lengths, steps=3, batch_size=2, compile="trace")


def test_recorded_slices_and_ranges_may_end_at_a_length() -> None:
    def guide(y: Tensor, lengths: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.5))
        turned = torch.zeros_like(y)
        for row in range(len(y)):
            end = lengths[row]
            turned[row, 0:end] = y[row].index_select(0, torch.arange(end - 1, -1, -1))
        pyro.sample("z", dist.Normal(slope * turned[:, 0].mean(), 1.0))

    def model(y: Tensor, lengths: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0).expand(y.shape).to_event(2), obs=y)

    y, lengths = torch.randn(4, 3), torch.tensor([3, 1, 2, 3])
    fits = [guides.fit(model, guide, y, lengths, steps=4, compile=c) for c in ("eager", "trace")]
    torch.testing.assert_close(fits[0].losses, fits[1].losses)


def test_a_guide_that_draws_nothing_fits_the_parameters_of_a_model_without_latents() -> None:
    @config_enumerate
    def model(y: Tensor) -> None:
        share = pyro.param("share", torch.tensor(0.4), constraint=dist.constraints.unit_interval)
        with pyro.plate("rows", len(y)):
            k = pyro.sample("k", dist.Bernoulli(share))
            pyro.sample("y", dist.Normal(4.0 * k, 1.0), obs=y)

    y = torch.tensor([0.1, -0.4, 4.2, 3.7, 4.4, 0.3, 3.9, 4.1])
    posterior = guides.fit(model, lambda y: None, y, steps=150, lr=0.05, compile="eager")
    assert abs(float(posterior.parameters["share"]) - 5 / 8) < 0.01
    assert posterior.predict(num_samples=5)["y"].shape == (5, 8)
    assert posterior.diagnose(num_samples=30).num_samples == 30
    with pytest.raises(errors.GuideMismatchError, match="no latent sample site"):
        guides.fit(model, "mean_field", y, steps=2)


def test_gradients_that_torch_and_pyro_write_by_hand_are_followed() -> None:
    weights = torch.tensor([0.3, -1.0, 0.7])

    def value(a: Tensor) -> Tensor:
        drawn = dist.Dirichlet(a).rsample() @ weights + dist.Beta(a[0], a[1]).rsample()
        return drawn + safe_log(a - a.min()).clamp(min=-9.0).sum()

    a = torch.tensor([0.7, 2.0, 1.3], requires_grad=True)
    torch.manual_seed(0)
    wanted = torch.autograd.grad(value(a), a)[0]
    with followable():
        torch.manual_seed(0)
        found = torch.func.grad(value)(a.detach())
        many = torch.vmap(torch.func.grad(value), randomness="different")(a.detach().expand(2000, 3))
    torch.testing.assert_close(found, wanted)
    plain = torch.stack([torch.autograd.grad(value(a), a)[0] for _ in range(300)])
    error = (many.var(0) / 2000 + plain.var(0) / 300).sqrt()
    assert float(((many.mean(0) - plain.mean(0)).abs() / error.clamp(min=1e-6)).max()) < 4.0


def test_a_guide_that_draws_from_a_dirichlet_is_recorded_and_vectorised() -> None:
    def model(y: Tensor) -> None:
        shares = pyro.sample("shares", dist.Dirichlet(torch.ones(3)))
        rate = pyro.sample("rate", dist.Beta(2.0, 2.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(shares[0] + rate, 1.0), obs=y)

    def guide(y: Tensor) -> None:
        counts = pyro.param("counts", torch.ones(3), constraint=dist.constraints.positive)
        pyro.sample("shares", dist.Dirichlet(counts))
        pyro.sample("rate", dist.Beta(counts[0], counts[1]))

    fits = [guides.fit(model, guide, X, steps=4, compile=c, replicates=2) for c in ("eager", "trace")]  # without a warning
    torch.testing.assert_close(fits[0].losses, fits[1].losses)
    assert fits[1].sample(5)["shares"].shape == (2, 5, 3)
