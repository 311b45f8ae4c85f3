"""``guides.fit(model, "auto", ...)``: the ladder, its verdicts, and what it returns."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch

import guides
from guides import errors
from guides.solvers.auto.ladder import LADDER, Rung, read_ladder

X = torch.linspace(-1.0, 1.0, 30)
Y = 1.0 + 2.0 * X + 0.3 * torch.randn(30, generator=torch.Generator().manual_seed(1))


def line(x: torch.Tensor, y: torch.Tensor | None = None) -> Any:
    a, b = pyro.sample("a", dist.Normal(0.0, 5.0)), pyro.sample("b", dist.Normal(0.0, 5.0))
    with pyro.plate("rows", len(x)):
        return pyro.sample("y", dist.Normal(a + b * x, 0.3), obs=y)


def funnel() -> None:
    width = pyro.sample("width", dist.Normal(0.0, 3.0))
    with pyro.plate("many", 9):
        pyro.sample("x", dist.Normal(0.0, (width / 2).exp()))


def exact() -> tuple[torch.Tensor, torch.Tensor]:
    features = torch.stack([torch.ones(30), X], 1).double()
    precision = features.T @ features / 0.09 + torch.eye(2, dtype=torch.float64) / 25
    covariance = precision.inverse()
    return covariance @ features.T @ Y.double() / 0.09, covariance.diagonal().sqrt()


def test_the_first_rung_that_can_be_stood_behind_ends_the_climb() -> None:
    posterior = guides.fit(line, "auto", X, Y, seed=3)
    assert posterior.family == "pathfinder"
    story = posterior.info[0]["auto"]
    assert story[0].startswith("pathfinder: good") and story[-1].endswith("pathfinder can be stood behind")
    assert len(story) == 2 and all(part in repr(posterior) for part in story)
    mean, sd = exact()
    drawn = posterior.sample(4000, seed=0)
    for i, name in enumerate("ab"):
        assert abs(float(drawn[name].mean()) - mean[i]) < 0.1 * sd[i]
        assert float(drawn[name].std() / sd[i]) == pytest.approx(1.0, rel=0.06)


def test_draws_are_corrected_by_default_where_only_those_are_right(tmp_path: Any) -> None:
    def skewed() -> None:
        pyro.sample("s", dist.Gamma(15.0, 1.0))

    posterior = guides.fit(skewed, "auto", ladder=[("pathfinder", {"paths": 2})])
    assert posterior.corrects and posterior.diagnose(only=["answers"]).verdict == "corrected"
    saved = tmp_path / "auto"
    posterior.save(saved)
    for each in (posterior, guides.Posterior.load(saved, skewed)):
        drawn, raw = each.sample(4000, seed=1)["s"], each.sample(4000, seed=1, corrected=False)["s"]
        assert float(drawn.mean()) == pytest.approx(15.0, abs=0.4) and float(drawn.std()) == pytest.approx(15**0.5, rel=0.1)
        assert not torch.equal(drawn, raw)
        assert torch.equal(each.draws(50, seed=1).latents["s"][0], each.sample(50, seed=1)["s"])


def test_what_cannot_be_stood_behind_is_called_so() -> None:
    posterior = guides.fit(funnel, "auto", ladder=["pathfinder"])
    story = posterior.info[0]["auto"]
    assert "unreliable" in story[0] and "the ladder is at its end" in story[-1] and "unreliable" in story[-1]
    assert posterior.diagnose(only=["answers"]).verdict == "unreliable" and not posterior.corrects


def test_a_dear_rung_is_not_climbed_when_the_time_is_over() -> None:
    dear = Rung("nuts", gradients=10**12)
    posterior = guides.fit(funnel, "auto", ladder=["pathfinder", dear], budget=5.0)
    story = posterior.info[0]["auto"]
    assert posterior.family == "pathfinder" and "nuts: not tried, for some" in story[1]
    assert "what is left would take more than budget=5" in story[-1] or "is spent" in story[-1]


def flat() -> None:
    w = pyro.sample("w", dist.ImproperUniform(dist.constraints.real, (), ()))
    pyro.factor("hardly", 1e-9 * w)
    pyro.sample("z", dist.Normal(0.0, 1.0))


def test_a_rung_that_cannot_is_a_line_of_the_story() -> None:
    dadvi = ("dadvi", {"num_draws": 4, "max_iterations": 20})
    quick = ("nuts", {"draws": 50, "tune": 50, "chains": 2})
    posterior = guides.fit(flat, "auto", ladder=[dadvi, quick], progress=False)
    assert posterior.family == "nuts"
    assert posterior.info[0]["auto"][0].startswith(
        "dadvi(num_draws=4, max_iterations=20): UnsupportedModelError: guide 'dad"
    )
    with pytest.raises(errors.UnsupportedModelError, match="no rung of the ladder gave a posterior: dadvi"):
        guides.fit(flat, "auto", ladder=[dadvi])


def test_an_approximation_is_passed_over_where_the_sampler_is_cheap() -> None:
    quick = ("nuts", {"draws": 200, "tune": 300, "chains": 2})
    posterior = guides.fit(funnel, "auto", ladder=["pathfinder", "dadvi", quick], progress=False)
    assert posterior.info[0]["auto"][1].startswith("dadvi: passed over, as nuts takes some")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"budget": 0}, "budget must be a number of seconds above 0, not 0"),
        ({"ladder": "nuts"}, r"ladder must be a list of methods, such as \['pathfinder', 'nuts'\], not 'nuts'"),
        ({"ladder": ["mean_field"]}, "'mean_field', which is no solver or sampler"),
        ({"ladder": ["auto"]}, "ladder holds 'auto'"),
        ({"ladder": [Rung("auto")]}, "ladder holds Rung"),
        ({"ladder": [("nuts", {"drawz": 3})]}, "'nuts' has no option 'drawz'|drawz"),
        ({"steps": 100}, "steps=100 means nothing for the guide 'auto'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(errors.OptionError, match=said):
        guides.fit(line, "auto", X, Y, **options)


def test_models_with_parameters_are_refused() -> None:
    def trained(x: torch.Tensor) -> None:
        scale = pyro.param("scale", torch.tensor(1.0))
        pyro.sample("z", dist.Normal(0.0, scale))

    with pytest.raises(errors.UnsupportedModelError, match="the guide 'auto' cannot do"):
        guides.fit(trained, "auto", X)


def test_a_ladder_is_data() -> None:
    assert read_ladder(None) == LADDER
    assert read_ladder(["nuts"])[0].gradients == 200_000
    assert str(Rung("nuts", {"chains": 2})) == "nuts(chains=2)"
