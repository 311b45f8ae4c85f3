"""What results show of themselves: one screen of text, a table in a notebook, pictures that are pictures."""

from __future__ import annotations

import pickle
from html.parser import HTMLParser

import pyro
import pyro.distributions as dist
import pytest
import torch

import guides
from guides.showing.figures import new_figure
from guides.showing.summary import Summary

SCREEN = 25
X = torch.linspace(-1, 1, 12)
Y = 2 * X


def line(x, y=None):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    for i in range(12):
        pyro.sample(f"unused_{i:02d}", dist.Normal(0.0, 1.0))
    pyro.sample("wide", dist.Normal(0.0, 1.0).expand([3, 40]).to_event(2))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(slope * x, 0.5), obs=y)


@pytest.fixture(scope="module")
def posterior() -> guides.Posterior:
    return guides.fit(line, "mean_field", X, Y, steps=8, compile="eager")


class Whole(HTMLParser):
    """Checks that what is opened is closed, and gathers the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_a_posterior_is_one_screen_that_names_model_sites_and_the_next_step(posterior):
    shown = repr(posterior)
    assert len(shown.splitlines()) <= SCREEN and "tensor(" not in shown
    assert "mean_field posterior of line" in shown and "8 steps of elbo" in shown
    assert "slope" in shown and "and 3 more" in shown and "diagnose()" in shown
    assert "8 steps" in " ".join(Whole(posterior._repr_html_()).texts)
    several = guides.fit(line, "map", X, Y, steps=3, compile="eager", replicates=2)
    assert "2 fits" in repr(several) and "weights 0.50, 0.50" in repr(several.pooled())
    assert len(repr(several.pooled()).splitlines()) <= SCREEN


def test_every_kind_of_posterior_shows_itself_so():
    """A subclass that is a dataclass gets a ``__repr__`` of its own unless it says otherwise."""
    kinds = guides.Posterior.__subclasses__()
    assert kinds and all(kind.__repr__ is guides.Posterior.__repr__ for kind in kinds), kinds


def test_a_summary_is_a_mapping_and_a_table_below_its_verdict(posterior):
    found = posterior.summary(200, seed=0)
    draws = posterior.sample(200, seed=0)
    torch.testing.assert_close(found["wide"]["mean"], draws["wide"].mean(0))
    assert found.verdict == posterior.diagnose().verdict
    lines = repr(found).splitlines()
    assert len(lines) <= SCREEN and found.verdict.upper() in lines[0] and lines[-1].startswith("and 113 more")
    shown = next(line for line in lines if line.startswith("slope")).split()
    assert float(shown[1]) == pytest.approx(float(draws["slope"].mean()), abs=0.01)
    texts = Whole(found._repr_html_()).texts
    assert "95.0%" in texts and "slope" in texts
    plain = posterior.summary(50, verdict=False)
    assert plain.verdict == "" and repr(pickle.loads(pickle.dumps(plain))) == repr(plain)


def test_a_site_of_several_replicates_and_one_without_elements_are_listed():
    several = Summary({"z": {"mean": torch.zeros(2, 3), "std": torch.ones(2, 3)}, "none": {"mean": torch.zeros(0)}}, "map")
    assert [line.split()[0] for line in repr(several).splitlines()[2:4]] == ["z[0,", "z[0,"]
    assert "none" not in repr(several)


def test_a_diagnosis_and_a_comparison_show_their_verdicts_in_colour_and_failures_below(posterior):
    found = posterior.diagnose(num_samples=50)
    assert found.verdict.upper() in Whole(found._repr_html_()).texts

    def broken(*data):
        raise ValueError("no guide " * 20)

    table = guides.compare(line, ["map", broken], X, Y, steps=3, compile="eager", num_samples=30)
    html = table._repr_html_()
    assert "map" in Whole(html).texts and 'color: #cf222e; font-weight: bold">failed' in html
    *rows, said = repr(table).splitlines()
    assert len(rows) == 3 and all(len(row) < 90 for row in rows) and said.startswith("broken failed: ValueError: no guide")


def test_markup_in_names_is_text():
    found = Summary({"<b>": {"mean": torch.zeros(())}}, "a & b")
    assert "<b>" in Whole(found._repr_html_()).texts and "&lt;b&gt;" in found._repr_html_()


def test_pictures_are_pictures_and_survive_pickling(posterior):
    figure = pickle.loads(pickle.dumps(posterior.plot(50)))
    assert figure._repr_png_().startswith(b"\x89PNG")
    labels = [tick.get_text() for tick in figure.axes[1].get_yticklabels()]
    assert labels[0] == "slope" and len(labels) <= 24 and "unused_11" in labels
    band = posterior.plot_predictions(num_samples=50).axes[0]
    assert band.get_xlim()[0] < -0.9 and band.get_ylabel() == "y"
    with pytest.raises(guides.errors.OptionError, match="site='z' is not predicted; there are 'y'"):
        posterior.plot_predictions(site="z")
    assert new_figure(3, 2).get_size_inches().tolist() == [3, 2]
