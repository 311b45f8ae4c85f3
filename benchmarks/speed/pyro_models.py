"""Small models in the manner of Pyro's examples and tutorials, to try on them what compiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.infer.reparam import LocScaleReparam
from pyro.nn import PyroModule, PyroSample
from pyro.ops.indexing import Vindex
from torch import Tensor, nn

__all__ = ["MODELS"]

Example = tuple[Callable[..., Any], tuple[Any, ...]]


def _regression() -> Example:
    class Regression(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            layer: Any = PyroModule[nn.Linear]
            self.linear = layer(3, 1)
            self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 3]).to_event(2))
            self.linear.bias = PyroSample(dist.Normal(0.0, 10.0).expand([1]).to_event(1))

        def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
            scale = pyro.sample("scale", dist.Uniform(0.0, 10.0))
            mean = self.linear(x).squeeze(-1)
            with pyro.plate("data", len(x)):
                return pyro.sample("y", dist.Normal(mean, scale), obs=y)

    x = torch.randn(20, 3)
    return Regression(), (x, x.sum(-1))


def _baseball() -> Example:
    def model(at_bats: Tensor, hits: Tensor) -> None:
        mean = pyro.sample("mean", dist.Uniform(0.0, 1.0))
        size = pyro.sample("size", dist.Pareto(torch.tensor(1.0), torch.tensor(1.5)))
        with pyro.plate("players", len(at_bats)):
            rate = pyro.sample("rate", dist.Beta(mean * size, (1.0 - mean) * size))
            pyro.sample("hits", dist.Binomial(at_bats, rate), obs=hits)

    return model, (torch.full((6,), 45.0), torch.tensor([18.0, 17.0, 16.0, 15.0, 9.0, 7.0]))


def _eight_schools_reparametrised() -> Example:
    def model(sigma: Tensor, y: Tensor) -> None:
        mean, scale = pyro.sample("mean", dist.Normal(0.0, 5.0)), pyro.sample("scale", dist.HalfCauchy(5.0))
        with pyro.plate("schools", len(y)), poutine.reparam(config={"effect": LocScaleReparam(0.0)}):
            effect = pyro.sample("effect", dist.Normal(mean, scale))
            pyro.sample("y", dist.Normal(effect, sigma), obs=y)

    return model, (torch.full((8,), 12.0), torch.randn(8) * 10.0)


def _mixture() -> Example:
    @config_enumerate
    def model(x: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(0.5 * torch.ones(2)))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 2.0))
        with pyro.plate("components", 2):
            locations = pyro.sample("locations", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):
            component = pyro.sample("component", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(locations[component], scale), obs=x)

    return model, (torch.cat([torch.randn(10), 8.0 + torch.randn(10)]),)


def _hidden_markov() -> Example:
    def model(sequences: Tensor) -> None:
        rows = pyro.sample("rows", dist.Dirichlet(0.9 * torch.eye(3) + 0.1).to_event(1))
        tones = pyro.sample("tones", dist.Beta(1.0, 9.0).expand([3, 4]).to_event(2))
        each = pyro.plate("tone", 4, dim=-1)
        with pyro.plate("sequences", len(sequences), dim=-2):
            state: Any = 0
            for t in pyro.markov(range(sequences.shape[1])):
                state = pyro.sample(f"state_{t}", dist.Categorical(rows[state]), infer={"enumerate": "parallel"})
                with each:
                    pyro.sample(f"y_{t}", dist.Bernoulli(tones[state.squeeze(-1)]), obs=sequences[:, t])

    return model, ((torch.rand(5, 4, 4) < 0.3).float(),)


def _capture_recapture() -> Example:
    def model(history: Any) -> None:
        survival, capture = pyro.sample("survival", dist.Uniform(0.0, 1.0)), pyro.sample("capture", dist.Uniform(0.0, 1.0))
        with pyro.plate("animals", len(history)):
            alive = torch.ones(len(history))
            for t in pyro.markov(range(1, history.shape[1])):
                with poutine.mask(mask=history[:, :t].sum(-1) > 0):
                    alive = pyro.sample(f"z_{t}", dist.Bernoulli(survival * alive), infer={"enumerate": "parallel"})
                    pyro.sample(f"y_{t}", dist.Bernoulli(capture * alive), obs=history[:, t])

    return model, ((torch.rand(12, 4) < 0.6).float(),)


def _topics() -> Example:
    def model(words: Tensor) -> None:
        with pyro.plate("topics", 2):
            weights = pyro.sample("weights", dist.Gamma(0.5, 1.0))
            topics = pyro.sample("topic_words", dist.Dirichlet(torch.ones(6) / 6))
        with pyro.plate("documents", words.shape[1]):
            shares = pyro.sample("shares", dist.Dirichlet(weights))
            with pyro.plate("words", words.shape[0]):
                topic = pyro.sample("topic", dist.Categorical(shares), infer={"enumerate": "parallel"})
                pyro.sample("word", dist.Categorical(topics[topic]), obs=words)

    return model, (torch.randint(6, (5, 8)),)


def _naive_bayes() -> Example:
    @config_enumerate
    def model(x: Tensor) -> None:
        features, rows = pyro.plate("features", 5, dim=-2), pyro.plate("data", x.shape[1], dim=-1)
        with features, pyro.plate("components", 3, dim=-1):
            rates = pyro.sample("rates", dist.Dirichlet(torch.ones(4)))
        with rows:
            component = pyro.sample("component", dist.Categorical(torch.ones(3)))
            with features:
                each = torch.arange(5)[:, None]
                pyro.sample("x", dist.Categorical(Vindex(rates)[each, component, :]), obs=x)

    return model, (torch.randint(4, (5, 12)),)


def _gamma_factors() -> Example:
    def model(x: Tensor) -> None:
        with pyro.plate("weights", 2 * 5):
            weights = pyro.sample("w", dist.Gamma(torch.tensor(0.1), torch.tensor(0.3)))
        with pyro.plate("data", len(x)):
            factors = pyro.sample("z", dist.Gamma(0.1 * torch.ones(2), 0.1).to_event(1))
            pyro.sample("x", dist.Poisson(factors @ weights.reshape(2, 5) + 1e-3).to_event(1), obs=x)

    return model, (torch.randint(5, (8, 5)).float(),)


def _correlations() -> Example:
    def model(y: Tensor) -> None:
        scales = pyro.sample("scales", dist.HalfCauchy(torch.ones(3)).to_event(1))
        factor = pyro.sample("factor", dist.LKJCholesky(3, torch.tensor(1.0)))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.MultivariateNormal(torch.zeros(3), scale_tril=scales.sqrt()[:, None] * factor), obs=y)

    return model, (torch.randn(20, 3),)


def _horseshoe() -> Example:
    def model(x: Tensor, y: Tensor) -> None:
        overall = pyro.sample("overall", dist.HalfCauchy(0.1))
        with pyro.plate("features", x.shape[1]):
            local = pyro.sample("local", dist.HalfCauchy(1.0))
            weights = pyro.sample("weights", dist.Normal(0.0, overall * local))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Poisson((x @ weights).clamp(max=5.0).exp()), obs=y)

    return model, (torch.randn(20, 4), torch.randint(5, (20,)).float())


def _gaussian_process() -> Example:
    def model(x: Tensor, y: Tensor) -> None:
        length, noise = pyro.sample("length", dist.LogNormal(0.0, 1.0)), pyro.sample("noise", dist.HalfNormal(1.0))
        covariance = torch.exp(-0.5 * ((x[:, None] - x) / length) ** 2) + (noise**2 + 1e-3) * torch.eye(len(x))
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(x)), covariance_matrix=covariance), obs=y)

    x = torch.linspace(0.0, 5.0, 12)
    return model, (x, x.sin())


def _forecasting() -> Example:
    def model(y: Tensor) -> None:
        step, noise = pyro.sample("step", dist.LogNormal(-1.0, 1.0)), pyro.sample("noise", dist.LogNormal(-1.0, 1.0))
        one, zero = torch.eye(1), torch.zeros(1)
        start, moves = dist.Normal(zero, 10.0).to_event(1), dist.Normal(zero, step).to_event(1)
        observed = dist.Normal(zero, noise).to_event(1)
        pyro.sample("y", dist.GaussianHMM(start, one, moves, one, observed, duration=len(y)), obs=y)

    return model, (torch.randn(12, 1).cumsum(0),)


def _local_trend() -> Example:
    def model(y: Tensor) -> None:
        scale = pyro.sample("scale", dist.LogNormal(-1.0, 1.0))
        with pyro.plate("time", len(y)):
            drift = pyro.sample("drift", dist.Normal(0.0, scale))
        level = pyro.deterministic("level", drift.cumsum(-1))
        with pyro.plate("times", len(y)):
            pyro.sample("y", dist.StudentT(4.0, level, 0.5), obs=y)

    return model, (torch.randn(15).cumsum(0),)


def _deep_markov() -> Example:
    transition, emission = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2)), nn.Linear(2, 5)

    def model(x: Tensor, mask: Any) -> None:
        pyro.module("transition", transition)
        pyro.module("emission", emission)
        with pyro.plate("sequences", len(x)):
            z = torch.zeros(len(x), 2)
            for t in range(x.shape[1]):
                with poutine.mask(mask=mask[:, t]):
                    z = pyro.sample(f"z_{t}", dist.Normal(transition(z), 1.0).to_event(1))
                    pyro.sample(f"x_{t}", dist.Bernoulli(logits=emission(z)).to_event(1), obs=x[:, t])

    return model, ((torch.rand(6, 3, 5) < 0.4).float(), torch.arange(3) < torch.tensor([[3], [3], [2], [2], [1], [1]]))


def _tempered_missing() -> Example:
    def model(y: Tensor, seen: Any) -> None:
        mean, scale = pyro.sample("mean", dist.Normal(0.0, 5.0)), pyro.sample("scale", dist.InverseGamma(3.0, 2.0))
        with pyro.plate("data", len(y)), poutine.scale(scale=0.5), poutine.mask(mask=seen):
            pyro.sample("y", dist.Normal(mean, scale), obs=y)

    return model, (torch.randn(20), torch.rand(20) < 0.7)


MODELS: dict[str, Callable[[], Example]] = {
    "regression of a PyroModule": _regression,
    "baseball, partially pooled": _baseball,
    "eight schools, reparametrised": _eight_schools_reparametrised,
    "Gaussian mixture, enumerated": _mixture,
    "hidden Markov model, enumerated": _hidden_markov,
    "Cormack-Jolly-Seber, enumerated": _capture_recapture,
    "latent Dirichlet allocation, enumerated": _topics,
    "naive Bayes mixture, enumerated": _naive_bayes,
    "sparse gamma factors": _gamma_factors,
    "LKJ correlations": _correlations,
    "horseshoe Poisson regression": _horseshoe,
    "Gaussian process": _gaussian_process,
    "forecasting by a GaussianHMM": _forecasting,
    "local trend, Student": _local_trend,
    "deep Markov model, masked": _deep_markov,
    "tempered and masked": _tempered_missing,
}
