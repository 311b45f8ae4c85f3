"""Discrete draws that a guide marks are summed out: against TraceEnum_ELBO, and refused where they cannot be."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch import Tensor, nn

import guides
from guides import errors
from guides.program.discrete.enumeration import Enumerated
from guides.program.discrete.guide_sums import GuideSums

WEIGHTS, CENTRES = torch.tensor([0.2, 0.3, 0.5]), torch.tensor([-2.0, 0.0, 3.0])
X = torch.tensor([-1.0, 0.5, 2.0, 1.5])


def labelled(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        k = pyro.sample("k", dist.Categorical(WEIGHTS))
        b = pyro.sample("b", dist.Bernoulli(0.3 + 0.1 * k))
        pyro.sample("x", dist.Normal(CENTRES[k] + z + b, 0.5), obs=x)


@config_enumerate
def labels(x: Tensor) -> None:
    logits = pyro.param("logits", 0.1 * torch.arange(3.0).repeat(len(x), 1))
    slope = pyro.param("slope", torch.tensor(0.3))
    with pyro.plate("data", len(x)), poutine.scale(scale=1.5), poutine.mask(mask=x > -1):
        k = pyro.sample("k", dist.Categorical(logits=logits))
        b = pyro.sample("b", dist.Bernoulli(0.2 + 0.2 * k))
        pyro.sample("z", dist.Normal((x - CENTRES[k] + 0.1 * b) * slope, 0.4))


def series(x: Tensor) -> None:
    shift, z = pyro.sample("shift", dist.Normal(0.0, 1.0)), torch.tensor(0)
    for t in pyro.markov(range(len(x))):
        z = pyro.sample(f"z{t}", dist.Bernoulli(torch.tensor([0.3, 0.8])[z])).long()
        pyro.sample(f"x{t}", dist.Normal(z + shift, 1.0), obs=x[t])


def states(x: Tensor) -> None:
    pyro.sample("shift", dist.Normal(pyro.param("loc", torch.tensor(0.2)), 0.3))
    z = torch.tensor(0)
    for t in pyro.markov(range(len(x))):
        each = pyro.param(f"each{t}", torch.tensor([0.3, 0.6]))
        z = pyro.sample(f"z{t}", dist.Bernoulli(each[z]), infer={"enumerate": "parallel"}).long()


def part_of_the_labels(x: Tensor) -> None:
    logits = pyro.param("logits", 0.1 * torch.arange(3.0).repeat(len(x), 1))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.2 * x, 0.4))
        pyro.sample("k", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})


@pytest.mark.parametrize(
    ("model", "guide"), [(labelled, labels), (series, states), (config_enumerate(labelled), part_of_the_labels)]
)
def test_draws_that_a_guide_marks_are_summed_out_as_by_traceenum_elbo(model, guide):
    torch.manual_seed(1)
    stock = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(model, guide, X)
    weights = list(pyro.get_param_store()._params.values())
    known = poutine.trace(guide).get_trace(X)
    shown = poutine.trace(model).get_trace(X)
    summed = Enumerated.of(model, shown, known).beside(1) if guide is part_of_the_labels else model
    torch.manual_seed(1)
    ours = -guides.ELBO().summing(GuideSums.of(shown, known)).estimate(summed, guide, (X,), {}).surrogate
    torch.testing.assert_close(ours, stock, atol=1e-4, rtol=1e-5)
    for one, other in zip(torch.autograd.grad(ours, weights), torch.autograd.grad(stock, weights)):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


class SemiSupervised(nn.Module):
    """Codes and classes of rows, both from encoders, in the manner of Kingma et al. (2014)."""

    def __init__(self) -> None:
        super().__init__()
        self.classes, self.codes, self.decoder = nn.Linear(5, 3), nn.Linear(8, 4), nn.Linear(5, 5)

    def model(self, x: Tensor, y: Tensor | None = None) -> None:
        pyro.module("whole", self)
        with pyro.plate("data"):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))
            y = pyro.sample("y", dist.OneHotCategorical(x.new_ones(len(x), 3) / 3), obs=y)
            logits = self.decoder(torch.cat(torch.broadcast_tensors(z[..., :1], z[..., 1:], *y.split(1, -1)), -1))
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        with pyro.plate("data"):
            if y is None:
                y = pyro.sample("y", dist.OneHotCategorical(logits=self.classes(x)))
            loc, scale = self.codes(torch.cat([x.expand(*y.shape[:-1], 5), y], -1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))


def test_a_semi_supervised_autoencoder_learns_from_rows_without_labels():
    torch.manual_seed(0)
    x, net = (torch.rand(12, 5) < 0.4).float(), SemiSupervised()
    marked = config_enumerate(net.guide, "parallel", expand=True)
    posterior = guides.fit(net.model, marked, x, steps=30, lr=0.02, compile="eager", replicates=2)
    assert float(posterior.losses[:, -10:].mean()) < float(posterior.losses[:, :5].mean())
    assert posterior.best().sample(6)["y"].shape == (6, 12, 3)
    assert torch.isfinite(posterior.log_likelihood(num_samples=5)["x"]).all()


def test_refusals_of_discrete_draws_say_where_to_mark_them():
    net = SemiSupervised()
    x = torch.zeros(4, 5)
    with pytest.raises(errors.DiscreteLatentError, match=r"'y'.*guide 'guide' draws it.*over the guide.*score_function"):
        guides.fit(net.model, net.guide, x, steps=2)
    with pytest.raises(errors.OptionError, match=r"'y'.*IWAE.*'elbo'"):
        guides.fit(net.model, config_enumerate(net.guide, expand=True), x, steps=2, objective="iwae")

    def model(x: Tensor) -> None:
        shown = pyro.sample("shown", dist.Bernoulli(torch.full((2,), 0.5)).to_event(1))
        pyro.sample("x", dist.Normal(shown.sum(), 1.0), obs=x)

    with pytest.raises(errors.DiscreteLatentError, match=r"'shown'.*Bernoulli.to_event\(1\).*without .to_event"):
        guides.fit(model, "mean_field", torch.tensor(1.0), steps=2)

    def guide(*_: Any) -> None:
        scale = pyro.param("rate", torch.tensor(0.3))
        with pyro.plate("inside", 2):
            pyro.sample("k", dist.Bernoulli(scale), infer={"enumerate": "parallel"})

    def summed(of: Any) -> Any:
        def model(x: Tensor) -> None:
            with pyro.plate("inside", 2):
                k = pyro.sample("k", dist.Bernoulli(0.4))
            pyro.sample("x", dist.Normal(of(k), 1.0), obs=x)

        return model

    for of, found in ((lambda k: k.sum(-1, keepdim=True), "'x'.*'k'.*'inside'"), (lambda k: k.sum(), "'x'.*'k'.*not that")):
        with pytest.raises(errors.UnsupportedModelError, match=found):
            guides.fit(summed(of), guide, torch.ones(1), steps=2)
