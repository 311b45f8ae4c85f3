"""Our families in the place of Pyro's autoguides: arguments, medians, vectorised particles, subsampled plates."""

from __future__ import annotations

import functools
from inspect import signature
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoDiagonalNormal, AutoGuideList, AutoNormal, init_to_feasible
from pyro.nn import PyroModule
from torch import Tensor

import guides
from guides import errors
from guides.errors import OptionError

FLAT = {
    "mean_field": guides.MeanField,
    "full_rank": guides.FullRank,
    "low_rank": guides.LowRank,
    "mixture": guides.Mixture,
    "ensemble": guides.Ensemble,
    "laplace": guides.Laplace,
}
ALL = {**FLAT, "map": guides.MAP}
WITH_SCALE = {n: FLAT[n] for n in ("mean_field", "full_rank", "low_rank", "mixture")}


def supports() -> None:
    pyro.sample("x", dist.Normal(0.0, 1.0))
    with pyro.plate("plate", 3):
        pyro.sample("y", dist.LogNormal(0.0, 1.0))
    pyro.sample("z", dist.MultivariateNormal(torch.zeros(2), torch.eye(2)))
    pyro.sample("p", dist.Dirichlet(torch.ones(3)))


STARTS = {"x": torch.tensor(0.3), "y": torch.tensor([0.5, 1.0, 2.0]), "z": torch.tensor([-1.0, 1.0])}
STARTS["p"] = torch.tensor([0.2, 0.3, 0.5])


def at_starts(site: dict) -> Tensor:
    return STARTS[site["name"]]


@pytest.mark.parametrize("family", ALL)
def test_a_function_of_pyros_says_where_to_start_and_the_median_is_there(family: str) -> None:
    guide = ALL[family](supports, init_loc_fn=at_starts)
    guide()
    median = guide.median()
    for name, start in STARTS.items():
        torch.testing.assert_close(median[name], start, msg=f"{family}: {name}")
        assert not median[name].requires_grad


@pytest.mark.parametrize("family", ["mean_field", "full_rank", "low_rank", "laplace", "map"])
def test_the_start_is_the_second_argument_as_in_pyro(family: str) -> None:
    guide = ALL[family](supports, at_starts)
    guide()
    torch.testing.assert_close(guide.median()["y"], STARTS["y"])


@pytest.mark.parametrize("family", ALL)
def test_a_start_by_name_is_known_or_refused(family: str) -> None:
    ALL[family](supports, init_loc_fn="feasible")()
    with pytest.raises(OptionError, match=r"init_loc_fn='medain'.*'median'"):
        ALL[family](supports, init_loc_fn="medain")


@pytest.mark.parametrize("family", WITH_SCALE)
@pytest.mark.parametrize("scale", [0.5, 1e-4])
def test_every_family_with_a_scale_takes_init_scale(family: str, scale: float) -> None:
    guide = WITH_SCALE[family](supports, init_loc_fn=init_to_feasible, init_scale=scale)
    torch.manual_seed(0)
    with pyro.plate("draws", 1000, dim=-2):
        x = guide()["x"].detach()
    assert 0.6 * scale < float(x.std()) < 1.6 * scale
    with pytest.raises(OptionError, match="init_scale must be positive"):
        WITH_SCALE[family](supports, init_scale=-1.0)


def test_a_scale_given_twice_is_refused() -> None:
    with pytest.raises(OptionError, match="init_scale is given twice"):
        guides.Mixture(supports, init_scale=0.1, options={"init_scale": 0.1})


@pytest.mark.parametrize("family", ALL)
def test_quantiles_are_those_of_draws(family: str) -> None:
    torch.manual_seed(1)
    guide = ALL[family](supports, **({"init_scale": 0.4} if family in WITH_SCALE else {}))
    guide()
    found = guide.quantiles([0.1, 0.5, 0.9])
    with pyro.plate("draws", 4000, dim=-2):
        draws = guide()
    for name, shape in {"x": (), "y": (3,), "z": (2,)}.items():
        assert found[name].shape == (3, *shape)
        assert not found[name].requires_grad
        torch.testing.assert_close(guide.median()[name], found[name][1])
        several = draws[name].expand(4000, *draws[name].shape[1:]).reshape(4000, *shape)
        below = (several.unsqueeze(0) <= found[name].unsqueeze(1) + 1e-5).float().mean(1)
        wanted = torch.tensor([0.1, 0.5, 0.9]).reshape(-1, *[1] * len(shape))
        if family in WITH_SCALE:
            torch.testing.assert_close(below, wanted.expand_as(below), atol=0.03, rtol=0)
        else:
            assert (below > wanted - 0.03).all()


def test_quantiles_of_a_mixture_are_roots_of_its_distribution_function() -> None:
    def model() -> None:
        pyro.sample("z", dist.Normal(0.0, 1.0))

    guide = guides.Mixture(model, components=2)
    guide()
    with torch.no_grad():
        guide.loc.copy_(torch.tensor([[-3.0], [4.0]]))
        guide.scale = torch.tensor([[0.5], [0.1]])
        guide.logits.copy_(torch.tensor([0.3, 0.7]).log())
    probabilities = [0.01, 0.2, 0.5, 0.99]
    z = guide.quantiles(probabilities)["z"].double()
    cdf = 0.3 * dist.Normal(-3.0, 0.5).cdf(z) + 0.7 * dist.Normal(4.0, 0.1).cdf(z)
    torch.testing.assert_close(cdf, torch.tensor(probabilities).double(), atol=1e-5, rtol=0)


def test_quantiles_of_an_ensemble_are_members() -> None:
    guide = guides.Ensemble(supports, members=4)
    guide()
    with torch.no_grad():
        guide.locs[:, 0] = torch.tensor([3.0, 1.0, 2.0, 4.0])
    torch.testing.assert_close(guide.quantiles([0.1, 0.25, 0.5, 0.51, 1.0])["x"], torch.tensor([1.0, 1.0, 2.0, 3.0, 4.0]))


def test_quantiles_of_an_encoder_are_those_of_the_rows_it_is_given() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x[:, 0])

    class Encoder(torch.nn.Linear):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return super().forward(x)[:, 0], torch.full((len(x),), 0.1)

    torch.manual_seed(0)
    x = torch.randn(7, 1)
    guide = guides.Amortized(model, Encoder(1, 1))
    found = guide.quantiles([0.5, 0.9], x)["z"] if guide(x) else None
    assert found is not None
    assert found.shape == (2, 7)
    torch.testing.assert_close((found[1] - found[0]).mean(), torch.tensor(0.128), atol=0.02, rtol=0)


def regression(x: Tensor, y: Tensor | None = None) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    sigma = pyro.sample("sigma", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal((x * w).sum(-1), sigma), obs=y)


@pytest.mark.parametrize("family", WITH_SCALE)
def test_every_particle_has_the_density_of_its_own_draw(family: str) -> None:
    guide = WITH_SCALE[family](supports)
    guide()
    with pyro.plate("particles", 50, dim=-2):
        trace = poutine.trace(guide).get_trace()
    trace.compute_log_prob()
    site = trace.nodes[guide.latent_site]
    assert site["log_prob"].shape == (50, 1)
    assert len(site["value"].squeeze(1).unique(dim=0)) == 50
    torch.testing.assert_close(site["log_prob"], guide.get_posterior().log_prob(site["value"]))


@pytest.mark.parametrize("family", FLAT)
def test_particles_stand_left_of_the_models_plates(family: str) -> None:
    guide = ALL[family](supports)
    guide()
    with pyro.plate_stack("particles", (5, 4), rightmost_dim=-2):
        trace = poutine.trace(guide).get_trace()
        values = guide()
    trace.compute_log_prob()
    lead = {"x": (5, 4, 1), "y": (5, 4, 3), "z": (5, 4, 1, 2), "p": (5, 4, 1, 3)}
    assert {n: tuple(v.shape) for n, v in values.items()} == lead


@pytest.mark.parametrize("family", ["mixture", "ensemble"])
def test_parallel_predictions_come_from_all_components(family: str) -> None:
    def line(x: Tensor, y: Tensor | None = None) -> None:
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(slope * x, 0.1), obs=y)

    torch.manual_seed(0)
    guide = FLAT[family](line)
    x = torch.randn(6)
    guide(x, x)
    found = Predictive(line, guide=guide, num_samples=400, parallel=True)(x)
    assert found["y"].shape == (400, 6)
    nearest = (guide.locs if family == "ensemble" else guide.loc).detach().flatten()
    which = (found["slope"].reshape(-1, 1) - nearest).abs().argmin(-1)
    assert (which.bincount(minlength=5) > 40).all()


def test_the_weights_of_a_mixture_learn_from_vectorised_particles() -> None:
    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 10.0))
        two = dist.MixtureSameFamily(dist.Categorical(torch.tensor([0.2, 0.8])), dist.Normal(torch.tensor([-3.0, 3.0]), 1.0))
        pyro.factor("two", two.log_prob(z) - dist.Normal(0.0, 10.0).log_prob(z))

    def start(site: dict) -> Tensor:
        return torch.randn(()).sign() * 3.0

    torch.manual_seed(0)
    guide = guides.Mixture(model, components=2, init_loc_fn=start, init_scale=1.0)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO(num_particles=200, vectorize_particles=True))
    for _ in range(100):
        svi.step()
    assert float(guide.quantiles([0.5])["z"]) > 2.0
    with pyro.plate("draws", 4000):
        assert float((guide()["z"] > 0).double().mean()) == pytest.approx(0.8, abs=0.06)


def rows_of_its_own(x: Tensor, size: int | None = None) -> None:
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("rows", len(x), subsample_size=size) as index:
        z = pyro.sample("z", dist.Normal(0.0, scale))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x[index])


@pytest.mark.parametrize("family", ALL)
def test_a_subsampled_plate_has_one_value_per_row_of_the_full_one(family: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(12)
    guide = ALL[family](rows_of_its_own)
    svi = SVI(rows_of_its_own, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    for _ in range(3):
        svi.step(x, size=4)
    assert guide(x, size=4)["z"].shape == (4,)
    assert guide.quantiles([0.5], x, size=4)["z"].shape[-1] == (12 if family != "map" else 4)


@pytest.mark.parametrize("family", ["mean_field", "mixture"])
def test_a_subsampled_plate_is_fitted_to_all_of_its_rows(family: str) -> None:
    def model(x: Tensor, size: int | None = None) -> None:
        with pyro.plate("rows", len(x), subsample_size=size) as index:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x[index])

    torch.manual_seed(0)
    x = 2 * torch.randn(6)
    guide = ALL[family](model, init_scale=0.3)
    loss = Trace_ELBO(num_particles=20, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 0.1, "lrd": 0.99}), loss)
    for _ in range(300):
        svi.step(x, size=3)
    torch.testing.assert_close(guide.median(x)["z"], 0.8 * x, atol=0.25, rtol=0)


@pytest.mark.parametrize("family", ALL)
def test_create_plates_gives_the_rows_that_a_step_sees(family: str) -> None:
    def model(batch: Tensor, rows: Tensor, size: int) -> None:
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", size, subsample=rows):
            z = pyro.sample("z", dist.Normal(0.0, scale))
            pyro.sample("x", dist.Normal(z, 0.5), obs=batch)

    def create_plates(batch: Tensor, rows: Tensor, size: int) -> pyro.plate:
        return pyro.plate("data", size, subsample=rows)

    guide = ALL[family](model, create_plates=create_plates, init_loc_fn=init_to_feasible)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
    x = torch.randn(10)
    for rows in (torch.arange(4), torch.arange(4, 8), torch.arange(8, 10)):  # the last one is smaller
        svi.step(x[rows], rows, size=10)
    svi.guide(x[:2], torch.tensor([7, 1]), size=10)
    assert svi.guide.plates["data"].size == 10


def test_a_guide_of_plates_alone_is_one_and_a_guide_of_nothing_is_refused() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=pyro.subsample(x, event_dim=0))

    def create_plates(x: Tensor) -> pyro.plate:
        return pyro.plate("data", len(x), subsample_size=3, dim=-1)

    guide = guides.MeanField(model, create_plates=create_plates)
    svi = SVI(model, guide, pyro.optim.Adam({}), Trace_ELBO())
    assert svi.step(torch.zeros(9)) == pytest.approx(9 * 0.9189, abs=1e-3)
    assert svi.step(torch.zeros(9)) == pytest.approx(9 * 0.9189, abs=1e-3)
    with pytest.raises(RuntimeError, match="no latent"):
        guides.MeanField(model)(torch.zeros(9))


def test_options_of_a_subclass_are_remembered_by_name() -> None:
    class Wide(guides.LowRank):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **kwargs, rank=2)

    assert Wide(supports, init_scale=0.3).constructor_options == {"init_scale": 0.3}
    assert functools.partial(guides.LowRank, rank=2)(supports).constructor_options == {"rank": 2}


def two_means(y: Tensor) -> None:
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    with pyro.plate("r", 20):
        pyro.sample("y", dist.Normal(a, 0.3), obs=y)
        pyro.sample("v", dist.Normal(b, 1.0), obs=y)


def exact(y: Tensor, scale: float) -> tuple[float, float]:
    precision = 1 + len(y) / scale**2
    return float(y.sum() / scale**2 / precision), precision**-0.5


def listed(first: object, second: object) -> AutoGuideList:
    guide = AutoGuideList(two_means)
    guide.append(first(poutine.block(two_means, expose=["a"])))
    guide.append(second(poutine.block(two_means, expose=["b"])))
    return guide


def called(first: object, second: object) -> object:
    parts = [first(poutine.block(two_means, expose=["a"])), second(poutine.block(two_means, expose=["b"]))]

    class Both(PyroModule):  # which gives every part a name of its own
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = parts

        def forward(self, y: Tensor) -> None:
            self.first(y)
            self.second(y)

    return Both()


Y = torch.tensor([1.3, 0.9, 1.6, 1.1, 1.5, 1.2, 1.4, 1.0, 1.7, 1.3] * 2)
Two = functools.partial(guides.Mixture, components=2)
QUICK = {"steps": 500, "lr": 0.05, "schedule": "cosine", "compile": "trace"}


@pytest.mark.parametrize(
    "pair", [(Two, AutoNormal), (guides.MeanField, guides.FullRank), (Two, Two)], ids=["one", "none", "two"]
)
def test_parts_of_a_list_are_fitted_as_they_are_alone(pair: tuple) -> None:
    draws = guides.fit(two_means, listed(*pair), Y, **QUICK).sample(2000)
    for name, scale in (("a", 0.3), ("b", 1.0)):
        mean, sd = exact(Y, scale)
        assert float(draws[name].mean()) == pytest.approx(mean, abs=0.3 * sd)
        assert float(draws[name].std()) == pytest.approx(sd, rel=0.3)


def by_hand(first: object, second: object) -> object:
    """Return a plain function that calls both."""
    a, b = first(poutine.block(two_means, expose=["a"])), second(poutine.block(two_means, expose=["b"]))
    a._pyro_name, b._pyro_name = "for_a", "for_b"  # by their classes' names, two of a kind would share parameters

    def guide(y: Tensor) -> None:
        a(y)
        b(y)

    return guide


@pytest.mark.parametrize(
    ("made", "pair"),
    [(called, (guides.MeanField, guides.FullRank)), (called, (Two, AutoNormal)), (by_hand, (Two, Two))],
    ids=["none", "one", "two"],
)
def test_parts_of_a_guide_written_by_hand_are_fitted_as_they_are_alone(made: object, pair: tuple) -> None:
    draws = guides.fit(two_means, made(*pair), Y, **QUICK).sample(2000)
    for name, scale in (("a", 0.3), ("b", 1.0)):
        mean, sd = exact(Y, scale)
        assert float(draws[name].mean()) == pytest.approx(mean, abs=0.3 * sd)
        assert float(draws[name].std()) == pytest.approx(sd, rel=0.3)


def bimodal() -> None:
    for name in ("a", "b"):
        z = pyro.sample(name, dist.Normal(0.0, 10.0))
        two = dist.MixtureSameFamily(dist.Categorical(torch.tensor([0.2, 0.8])), dist.Normal(torch.tensor([-3.0, 3.0]), 1.0))
        pyro.factor(f"two_{name}", two.log_prob(z) - dist.Normal(0.0, 10.0).log_prob(z))


def test_mixtures_inside_a_list_learn_their_weights() -> None:
    def start(site: dict) -> Tensor:
        return torch.randn(()).sign() * 3.0

    mixture = ("mixture", {"components": 2, "init_scale": 1.0, "init_loc_fn": start})
    apart = {"a": mixture, "b": mixture}
    torch.manual_seed(0)
    draws = guides.fit(bimodal, apart, steps=600, lr=0.05, schedule="cosine", compile="trace", num_particles=4).sample(4000)
    for name in ("a", "b"):
        assert float((draws[name] > 0).double().mean()) == pytest.approx(0.8, abs=0.08)


def test_what_cannot_be_a_part_is_refused_before_any_step() -> None:
    with pytest.raises(errors.UnsupportedModelError, match="Laplace is a point until it is finished"):
        guides.fit(two_means, listed(guides.Laplace, guides.MeanField), Y, steps=1)
    with pytest.raises(OptionError, match="mixture among its parts"):
        guides.fit(two_means, listed(Two, guides.MeanField), Y, steps=1, objective="iwae")
    with pytest.raises(OptionError, match="family 'laplace' cannot be a group"):
        guides.fit(two_means, {"a": "laplace"}, Y, steps=1)


def test_a_pattern_that_matches_no_site_is_refused_with_what_is_near() -> None:
    with pytest.raises(OptionError, match=r"'aa' matches no latent site of the model; near it: 'a'"):
        guides.fit(two_means, {"aa": "mean_field"}, Y, steps=1)
    with pytest.raises(OptionError, match=r"'a' comes after patterns that take all it matches"):
        guides.fit(two_means, {".*": "mean_field", "a": "full_rank"}, Y, steps=1)
    with pytest.raises(OptionError, match="no regular expression"):
        guides.fit(two_means, {"(": "mean_field"}, Y, steps=1)


def test_families_by_site_are_saved_scored_and_diagnosed(tmp_path: Path) -> None:
    posterior = guides.fit(two_means, {"a": "full_rank"}, Y, **QUICK)
    assert posterior.family == "structured"
    for name, scale in (("a", 0.3), ("b", 1.0)):
        mean, sd = exact(Y, scale)
        draws = posterior.sample(2000)[name]
        assert (float(draws.mean()), float(draws.std())) == pytest.approx((mean, sd), rel=0.2)
    wanted = sum(dist.Normal(*exact(Y, s)).log_prob(torch.tensor(1.2)) for s in (0.3, 1.0))
    at = {"a": torch.tensor(1.2), "b": torch.tensor(1.2)}
    assert float(posterior.log_prob(at)) == pytest.approx(float(wanted), abs=0.4)
    posterior.save(tmp_path / "p.pt")
    again = guides.Posterior.load(tmp_path / "p.pt", two_means)
    torch.testing.assert_close(again.sample(5), posterior.sample(5))
    assert posterior.diagnose(num_samples=500).verdict in ("good", "corrected")


def test_families_by_site_run_in_stock_svi() -> None:
    guide = guides.Structured(two_means, {"a": ("mixture", {"components": 2})})
    svi = SVI(two_means, guide, pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.99}), guides.ELBO())
    for _ in range(200):
        svi.step(Y)
    mean, sd = exact(Y, 0.3)
    assert float(guide.median()["a"]) == pytest.approx(mean, abs=sd)
    assert guide.quantiles([0.1, 0.9])["b"].shape == (2,)


class Coder(torch.nn.Module):
    """The model and the guide of Pyro's VAE example are methods of one module."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = torch.nn.Linear(1, 2)

    def model(self, x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        loc, scale = self.encoder(x.unsqueeze(-1)).unbind(-1)
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(loc, scale.exp()))


class Marked(Coder):
    def guide(self, x: Tensor) -> None:
        super().guide(x)


Marked.guide.amortized = frozenset({"z"})


class Owner(Coder):
    amortized = frozenset({"z"})


def partially() -> object:
    return functools.partial(Marked().guide)


@pytest.mark.parametrize(
    "made", [lambda: Marked().guide, lambda: Owner().guide, partially], ids=["method", "object", "partial"]
)
def test_a_method_that_is_a_guide_says_what_it_computes_from_rows(made: object) -> None:
    guide = made()
    owner = getattr(guide, "func", guide).__self__
    rows = torch.linspace(-2.0, 2.0, 40)
    posterior = guides.fit(owner.model, guide, rows, batch_size=10, steps=300, lr=0.05, compile="eager")
    assert posterior.program.amortized == {"z"}
    exact_means = 0.8 * rows
    found = posterior.sample(400)["z"].mean(0)
    assert float((found - exact_means).abs().max()) < 0.25
    assert posterior.diagnose(num_samples=100).findings["row_weights"].level != "unknown"


def test_a_method_that_does_not_is_told_how() -> None:
    coder = Coder()
    with pytest.raises(errors.MinibatchScaleError, match=r"below the class: Coder\.guide\.amortized = frozenset\(\{'z'\}\)"):
        guides.fit(coder.model, coder.guide, torch.randn(40), batch_size=10, steps=1)


def test_scales_start_where_pyros_do() -> None:
    """Our defaults by name are those of the class of Pyro that a family stands for."""
    for ours in (guides.MeanField, guides.FullRank, guides.LowRank):
        theirs = next(c for c in ours.__mro__ if c.__module__.startswith("pyro") and "init_scale" in signature(c).parameters)
        assert signature(ours).parameters["init_scale"].default == signature(theirs).parameters["init_scale"].default


def positive(y: Tensor) -> None:
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.LogNormal(0.0, 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(a, b), obs=y)


def parted(first: object, second: object, listed: bool) -> object:
    a, b = first(poutine.block(positive, expose=["a"])), second(poutine.block(positive, expose=["b"]))
    if listed:
        guide = AutoGuideList(positive)
        guide.append(a)
        guide.append(b)
        return guide

    def by_hand(y: Tensor) -> None:
        a(y)
        b(y)

    return by_hand


DENSITIES = {
    "autonormal": lambda: AutoNormal(positive, init_scale=0.5),
    "flat": lambda: AutoDiagonalNormal(positive, init_scale=0.5),
    "list": lambda: parted(guides.MeanField, AutoNormal, listed=True),
    "mixture": lambda: parted(functools.partial(Two, init_loc_fn="median", init_scale=0.5), AutoDiagonalNormal, listed=True),
    "hand": lambda: parted(AutoNormal, guides.FullRank, listed=False),
}


@pytest.mark.parametrize("form", DENSITIES)
def test_the_density_of_a_guide_that_is_no_family_is_that_of_its_draws(form: str) -> None:
    posterior = guides.fit(positive, DENSITIES[form](), Y, steps=2, lr=1e-6, compile="eager", seed=1)
    drawn = posterior.draws(3)
    for number in range(3):
        at = {name: value[0, number] for name, value in drawn.latents.items()}
        assert float(posterior.log_prob(at)) == pytest.approx(float(drawn.log_q[0, number]), abs=1e-3)


def test_a_density_through_sites_nobody_knows_is_refused() -> None:
    def guide(y: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(2))
        u = pyro.sample("u", dist.Normal(loc, 1.0).to_event(1), infer={"is_auxiliary": True})
        pyro.sample("a", dist.Delta(u[0]))
        pyro.sample("b", dist.Delta(u[1].exp(), -u[1]))

    posterior = guides.fit(positive, guide, Y, steps=2, compile="eager")
    with pytest.raises(
        errors.UnsupportedModelError, match="site of its own, 'u', whose value at given latents is not known"
    ):
        posterior.log_prob({"a": torch.tensor(1.0), "b": torch.tensor(1.0)})
