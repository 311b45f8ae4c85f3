"""Every distribution of Pyro as prior and as likelihood, against what stock Pyro says of the same draws."""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from distribution_table import LEFT_OUT, TABLE, VALUES
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import Tensor

import guides
from guides import errors

ONE = torch.tensor(1.0)
SHAPES: dict[str, tuple[int, ...]] = {"alone": (), "a plate": (3,), "two plates": (2, 3), "an event": (3,)}

# No density, no map to the support, or one point: refused before the first step. Discrete priors are refused too.
REFUSED_PRIORS = {
    "CoalescentTimes": errors.UnsupportedModelError,
    "CoalescentTimesWithRate": errors.UnsupportedModelError,
    "Delta": errors.UnsupportedModelError,
    "Empirical": errors.UnsupportedModelError,
    "GammaGaussianHMM": errors.UnsupportedModelError,
    "GaussianMRF": errors.UnsupportedModelError,
    "GaussianScaleMixture": errors.UnsupportedModelError,
    "GroupedNormalNormal": errors.UnsupportedModelError,
    "LinearHMM": errors.UnsupportedModelError,
    "LogNormalNegativeBinomial": errors.UnsupportedModelError,
    "OneOneMatching": errors.UnsupportedModelError,
    "OneTwoMatching": errors.UnsupportedModelError,
    "ProjectedNormal": errors.UnsupportedModelError,
    "VonMises3D": errors.UnsupportedModelError,
}
# No density, or some shapes that Pyro cannot expand or evaluate: right, or refused before the first step.
REFUSED_LIKELIHOODS = {
    "AVFMultivariateNormal",
    "Empirical",
    "GaussianScaleMixture",
    "GroupedNormalNormal",
    "LKJ",
    "LinearHMM",
    "MixtureOfDiagNormals",
    "OMTMultivariateNormal",
    "SoftAsymmetricLaplace",
    "SpanningTree",
}
# Observing a point is a deterministic site; Unit is pyro.factor, which has tests of its own.
NO_LIKELIHOODS = {"Delta", "Unit"}
ODD_SHAPES = ["GaussianHMM", "DiscreteHMM", "IndependentHMM", "GaussianMRF", "GammaGaussianHMM", "MixtureSameFamily"]


def as_prior(make: Callable[[Tensor], Any]) -> tuple[Callable[[Tensor], None], Tensor]:
    def model(y: Tensor) -> None:
        z = pyro.sample("z", make(ONE))
        with pyro.plate("d", len(y)):
            pyro.sample("y", dist.Normal(torch.tanh(z.float()).sum(), 1.0), obs=y)

    return model, torch.randn(3)


def as_likelihood(name: str, where: str) -> tuple[Callable[[Tensor], None], Tensor]:
    make = TABLE[name]

    def model(y: Tensor) -> None:
        a = pyro.sample("a", dist.LogNormal(0.0, 0.1))
        with contextlib.ExitStack() as plates:
            for depth, size in enumerate(reversed(SHAPES[where] if "plate" in where else ())):
                plates.enter_context(pyro.plate(f"p{depth}", size, dim=-1 - depth))
            fn = make(a)
            if where == "an event":
                fn = fn.expand(torch.Size((3, *fn.batch_shape))).to_event(1 + len(fn.batch_shape))
            pyro.sample("y", fn, obs=y)

    return model, observed(name, SHAPES[where])


def observed(name: str, shape: tuple[int, ...]) -> Tensor:
    fn = TABLE[name](ONE)
    if name in VALUES:
        value = torch.tensor(VALUES[name])
        return value.expand(shape + value.shape).clone()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Singular sample detected")
        drawn: Tensor = (fn.expand(torch.Size(shape + tuple(fn.batch_shape))) if shape else fn).sample()
    return drawn


def fitted(model: Callable[..., Any], y: Tensor, **options: Any) -> guides.Posterior:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the model (cannot be vectorised|runs without)")
        return guides.fit(model, "mean_field", y, **{"steps": 1, "compile": "eager", **options})


def assert_like_pyro(model: Callable[..., Any], y: Tensor, posterior: guides.Posterior, drawn: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        draws = posterior.draws(2)
        for k in range(2):
            latents = {name: value[0, k] for name, value in draws.latents.items()}
            trace = poutine.trace(poutine.condition(model, latents)).get_trace(y)
            torch.testing.assert_close(draws.log_p[0, k], torch.as_tensor(trace.log_prob_sum()), rtol=1e-4, atol=1e-3)
            site = trace.nodes["y"]
            torch.testing.assert_close(
                draws.log_likelihood["y"][0, k], site["fn"].log_prob(site["value"]), rtol=1e-4, atol=1e-4
            )
        for guide in (guides.MeanField(model), guides.FullRank(model)):
            guide(y)
            losses = []
            for loss in (guides.ELBO(kl="monte_carlo"), Trace_ELBO()):
                pyro.set_rng_seed(0)
                losses.append(loss.loss(model, guide, y))
            assert losses[0] == pytest.approx(losses[1], rel=1e-4, abs=1e-3)
        if drawn:
            assert posterior.predict(num_samples=2)["y"].shape == (2, *y.shape)
        else:
            with pytest.raises(errors.UnsupportedModelError, match="'y'"):
                posterior.predict(num_samples=2)


def test_table_has_every_distribution_of_pyro() -> None:
    classes = {n for n in dir(dist) if inspect.isclass(getattr(dist, n))}
    every = {n for n in classes if issubclass(getattr(dist, n), torch.distributions.Distribution)}
    assert every == set(TABLE) | set(LEFT_OUT)


@pytest.mark.parametrize("name", TABLE)
def test_prior_gives_the_numbers_of_pyro(name: str) -> None:
    model, y = as_prior(TABLE[name])
    if name == "Unit":  # pyro.factor, which is no latent
        return
    fn = TABLE[name](ONE)
    refused = REFUSED_PRIORS.get(name)
    if refused is None and getattr(getattr(fn, "support", None), "is_discrete", False):
        refused = errors.DiscreteLatentError
    if refused is not None:
        with pytest.raises(refused, match="'z'"):
            fitted(model, y)
        return
    posterior = fitted(model, y)
    assert_like_pyro(model, y, posterior, drawn=True)
    z = posterior.sample(20)["z"]
    assert z.shape[1:] == torch.Size(fn.batch_shape) + torch.Size(fn.event_shape)
    assert bool(torch.isfinite(z).all())


@pytest.mark.parametrize(("name", "where"), [(n, list(SHAPES)[k % 4]) for k, n in enumerate(TABLE)])
def test_likelihood_gives_the_numbers_of_pyro(name: str, where: str) -> None:
    if name in NO_LIKELIHOODS:
        return
    if name in REFUSED_LIKELIHOODS:
        try:
            model, y = as_likelihood(name, where)
        except NotImplementedError:  # neither can Pyro
            return
        with contextlib.suppress(errors.UnsupportedModelError, errors.DataError):
            assert_like_pyro(model, y, fitted(model, y), drawn=name not in VALUES)
        return
    model, y = as_likelihood(name, where)
    assert_like_pyro(model, y, fitted(model, y), drawn=name not in VALUES)


@pytest.mark.parametrize("where", SHAPES)
@pytest.mark.parametrize("name", ODD_SHAPES)
def test_likelihood_of_odd_shape_gives_the_numbers_of_pyro_in_every_plate(name: str, where: str) -> None:
    model, y = as_likelihood(name, where)
    assert_like_pyro(model, y, fitted(model, y), drawn=name not in VALUES)


@pytest.mark.parametrize("name", ["DiscreteHMM", "GaussianHMM", "GaussianMRF"])
def test_likelihood_of_odd_shape_is_traced(name: str) -> None:
    model, y = as_likelihood(name, "a plate")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        guides.fit(model, "full_rank", y, steps=4, compile="trace")


@pytest.mark.parametrize("name", ["Gamma", "GaussianMRF", "ImproperUniform", "LogNormalNegativeBinomial"])
def test_arviz_leaves_out_what_cannot_be_drawn(name: str) -> None:
    model, y = as_prior(TABLE[name]) if name == "ImproperUniform" else as_likelihood(name, "a plate")
    posterior = fitted(model, y)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tree = posterior.to_arviz(num_samples=3, prior_samples=3)
    said = [str(w.message) for w in caught if "there is no group" in str(w.message)]
    assert bool(said) == (name != "Gamma")
    assert tree["posterior"]["z" if name == "ImproperUniform" else "a"].shape == (1, 3)
    assert tree["log_likelihood"]["y"].shape[:2] == (1, 3)
