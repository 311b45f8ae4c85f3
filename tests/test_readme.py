"""What README, CONTRIBUTING and the handwritten pages show works as shown."""

from __future__ import annotations

import importlib
import itertools
import re
import shlex
import sys
from pathlib import Path

import click
import pyro
import pyro.distributions as dist
import pytest
import torch
from click.testing import CliRunner

import guides
from benchmarks.cli import main
from docs.writer.__main__ import main as write
from docs.writer.pages import ROOT

PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", *sorted(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md")))


def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def code(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text(page), re.DOTALL | re.MULTILINE)


def named(page: str, file: str) -> str:
    """Return the code block below the mark that names its file."""
    return re.search(rf"<!-- file: {re.escape(file)} -->\n```\w+\n(.*?)^```", text(page), re.DOTALL | re.MULTILINE)[1]


def run(page: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """Run a page's Python blocks one after the other in one namespace, as a reader would, and return it."""
    monkeypatch.chdir(directory)
    pyro.set_rng_seed(0)
    space: dict = {"__name__": "readme"}
    for number, block in enumerate(code(page, "python")):
        exec(compile(block, f"{page}, block {number}", "exec"), space)
    return space


def test_the_readme_fits_three_screens_and_shows_what_its_example_prints(tmp_path, monkeypatch, capsys):
    assert len(text("README.md").splitlines()) <= 150
    run("README.md", tmp_path, monkeypatch)
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    shown = [line.split() for line in code("README.md", "text")[-1].splitlines()]
    seconds = slice(1, 1 + len(list(itertools.takewhile(lambda line: line[0] != "nuts:", shown[1:]))))
    for lines in (printed, shown):
        lines[seconds] = [line[:-1] for line in lines[seconds]]
    assert [len(line) for line in printed] == [len(line) for line in shown]
    for word, expected in zip(itertools.chain(*printed), itertools.chain(*shown)):
        number = re.fullmatch(r"\(?(-?[\d.]+\d)[,).]*", expected)
        same = word == expected if number is None else alike(word, float(number[1]))
        assert same, f"README shows {expected!r} where {word!r} is printed; run its block and put what it prints there"


def alike(word: str, number: float) -> bool:
    """Tell whether a printed number is the one shown, up to what another processor's rounding does to a fit."""
    return float(word.strip("(),.")) == pytest.approx(number, rel=0.3, abs=0.15)


def test_the_first_steps_take_a_model_of_ones_own_through_fit_diagnose_compare_and_arviz(tmp_path, monkeypatch, capsys):
    space = run("docs/first_steps.md", tmp_path, monkeypatch)
    sites = space["posterior"].sites
    assert {n: s.kind for n, s in sites.items()} == dict.fromkeys(("rate", "spread", "effect"), "latent") | {
        "failures": "observed"
    }
    assert sites["effect"].dims == ("pump",), "a local latent in a plate"
    table = space["table"]
    assert not [row.error for row in table.rows if row.error]
    elbo = {row.guide: row.elbo for row in table.rows}
    assert elbo["full_rank"] > elbo["mean_field"] + 0.3, "the text says that mean-field comes out behind"
    assert elbo["laplace"] > elbo["mean_field"]
    assert table.best != "mean_field"
    tree = space["tree"]
    assert tree["posterior"]["effect"].dims == ("chain", "draw", "pump")
    assert tree["posterior"]["effect"]["pump"].values[0] == "pump 1"
    assert space["new"].shape == (1000, 2)
    assert space["restarts"].replicates == 4
    assert torch.equal(space["again"].sample(5)["rate"], space["posterior"].sample(5)["rate"])
    assert space["fit"].family == space["network"].natural_guide[0]
    printed = capsys.readouterr().out
    assert "Pareto k-hat" in printed and "ELBO (nats)" in printed


@pytest.mark.slow
def test_the_page_on_information_says_what_its_examples_find(tmp_path, monkeypatch, capsys):
    space = run("docs/information.md", tmp_path, monkeypatch)
    entropy, table = space["table"].entropy, space["table"]
    assert float(entropy(unit="bits")) == pytest.approx(1.69, abs=5e-3)
    assert float(entropy("rain", given="umbrella", unit="bits")) == pytest.approx(0.71, abs=5e-3)
    assert float(table.mutual_information("rain", "umbrella", unit="bits")) == pytest.approx(0.26, abs=5e-3)
    assert not space["tails"].exact
    found = space["found"]
    assert found.active_units > 5 and 3 < float(found.mutual_information) < found.limit
    printed = capsys.readouterr().out
    assert "active units" in printed and "Posterior collapse: no latent unit is active" in printed
    usual, giant = space["info"].surprise(space["people"], torch.tensor([175.0, 210.0])).value
    assert giant > usual + 5


def test_the_page_on_samplers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = run("docs/samplers.md", tmp_path, monkeypatch)
    assert space["posterior"].chains == 4 and space["density"].size == 10


@pytest.mark.slow
def test_the_page_on_marginal_likelihoods_says_what_its_examples_find(tmp_path, monkeypatch, capsys):
    space = run("docs/marginal.md", tmp_path, monkeypatch)
    found, again, gap = space["found"], space["again"], space["gap"]
    assert torch.equal(found.values, again.values) and (tmp_path / "test.run").exists()
    assert -21 < found.mean < -18 and found.mean_standard_error < 0.02
    assert 0.05 < found.share_above_threshold < 0.5, "the text says that a VAE has points above the limit"
    assert float((found.values[:100] - gap.elbo).mean()) > 0.5
    assert gap.mean("approximation")[0] > 0.2 and gap.mean("amortisation")[0] > 0.2
    printed = capsys.readouterr().out
    assert "k-hat is above 0.63" in printed and "(the encoder)" in printed


@pytest.mark.parametrize("page", ["docs/arviz.md", "docs/cavi.md", "docs/generative.md", "docs/laplace.md", "docs/modes.md"])
def test_the_pages_examples_run(page, tmp_path, monkeypatch):
    assert run(page, tmp_path, monkeypatch)


def test_missing_days_are_no_points_and_are_predicted(tmp_path, monkeypatch, capsys):
    run("docs/any_model.md", tmp_path, monkeypatch)
    assert capsys.readouterr().out.split() == ["4", "torch.Size([5,", "6])"]


def test_laplace_as_a_drop_in_recovers_the_normal_posterior(tmp_path, monkeypatch):
    space = run("docs/laplace.md", tmp_path, monkeypatch)
    x, y, normal = space["x"], space["y"], space["normal"]
    precision = x.T @ x / 0.1**2 + torch.eye(3)
    mean = torch.linalg.solve(precision, x.T @ y / 0.1**2)
    torch.testing.assert_close(normal.loc.detach(), mean, atol=5e-3, rtol=0)
    covariance = normal.get_posterior().covariance_matrix
    torch.testing.assert_close(covariance.detach(), precision.inverse(), rtol=1e-3, atol=1e-6)


# -- shell commands ----------------------------------------------------------------------------------------------------


def commands() -> list[tuple[str, list[str]]]:
    found = []
    for page in PAGES:
        lines = [line for block in code(page, "bash") for line in block.splitlines()]
        lines += re.findall(r"`((?:python -m (?:benchmarks|docs\.writer|tests\.architecture)|make) [^`]+)`", text(page))
        for line in lines:
            words = shlex.split(line.replace("\\|", "|"), comments=True)
            if words:
                found.append((page, words))
    return found


COMMANDS = {f"{page}: {' '.join(words)}": (page, words) for page, words in commands()}


@pytest.mark.parametrize("shown", COMMANDS)
def test_every_command_that_a_page_shows_exists_with_its_options(shown):
    page, words = COMMANDS[shown]
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", text("Makefile"), re.MULTILINE)
        assert words[1] in targets
        return
    if words[:3] == ["python", "-m", "docs.writer"]:
        write.make_context("docs.writer", words[3:], resilient_parsing=False)
        return
    if words[:3] == ["python", "-m", "tests.architecture"]:
        assert not words[3:]
        return
    if words[:3] == ["python", "-m", "tests.faults"]:
        assert set(words[3:]) <= {"--publish"}
        return
    assert words[:3] == ["python", "-m", "benchmarks"], f"{page} shows {words}, which no test knows"
    if len(words) == 3:
        return
    name, *arguments = words[3:]
    assert name in main.commands, f"{page}: there is no command {name}"
    placeholders = all(re.fullmatch(r"\[?[A-Za-z|]+\]?(\.\.\.|…)?", word) for word in arguments)
    if arguments and placeholders and any(word.upper() == word or "|" in word for word in arguments):
        return
    parsed = main.commands[name].make_context(name, list(arguments), resilient_parsing=False) if arguments else None
    if name == "run" and parsed:
        from benchmarks import SUITES, TASKS

        assert parsed.params["target"] in {*SUITES, *TASKS}
        assert all(
            label.partition(":")[0] in {*guides.families, *guides.samplers, "logistic"}
            for label in parsed.params["guide_labels"] or ()
        )


def test_a_wrong_command_would_be_found():
    with pytest.raises(click.UsageError):
        main.commands["run"].make_context("run", ["quick", "--no-such-option"])


# -- links and marks ---------------------------------------------------------------------------------------------------


def pages_with_links() -> list[Path]:
    return [ROOT / page for page in PAGES] + sorted((ROOT / "docs").glob("*/*.md"))


@pytest.mark.parametrize("page", pages_with_links(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_pictures_lead_somewhere(page):
    without_code = re.sub(
        r"^```.*?^```|\$\$.*?\$\$|`[^`\n]*`(?!\])", "", page.read_text(encoding="utf-8"), flags=re.S | re.M
    )
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code):
        if not target.startswith(("http://", "https://", "#")):
            assert (page.parent / target.partition("#")[0]).exists(), f"{page.name} links to {target}"


# -- CONTRIBUTING: a guide in one file, here and from another package --------------------------------------------------

FILE = "logistic_guide.py"


@pytest.fixture
def logistic(tmp_path, monkeypatch):
    """The example of CONTRIBUTING, imported from a file of that name, and taken back out of the registry afterwards."""
    (tmp_path / FILE).write_text(named("CONTRIBUTING.md", FILE))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(guides.families, "_entries", dict(guides.families._entries))
    yield importlib.import_module("logistic_guide")
    sys.modules.pop("logistic_guide", None)


def normal_mean(x):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def test_the_example_guide_is_registered_and_fits(logistic):
    assert guides.families["logistic"] is logistic.LogisticFactors
    x = torch.ones(3)
    posterior = guides.fit(normal_mean, "logistic", x, steps=1200, lr=0.02, schedule="cosine", seed=0)
    draws = posterior.sample(4000, seed=1)["z"]
    assert abs(float(draws.mean()) - 0.75) < 0.06
    assert abs(float(draws.std()) - 0.5) < 0.1, "a logistic of about the normal posterior's width"
    assert posterior.diagnose().k_hat < 0.7
    svi = pyro.infer.SVI(normal_mean, logistic.LogisticFactors(normal_mean), pyro.optim.Adam({}), pyro.infer.Trace_ELBO())
    assert svi.step(x) > 0
    with pytest.raises(ValueError, match="init_scale must be positive, not 0"):
        logistic.LogisticFactors(normal_mean, init_scale=0)


def test_the_example_guide_arrives_through_an_entry_point(tmp_path, monkeypatch):
    source = re.sub(r'^@guides\.families\.register\("logistic"\)\n', "", named("CONTRIBUTING.md", FILE), flags=re.MULTILINE)
    assert "register" not in source
    (tmp_path / FILE).write_text(source)
    information = tmp_path / "logistic_guide-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: logistic-guide\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(named("CONTRIBUTING.md", "entry_points.txt"))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(guides.families, "_entries", dict(guides.families._entries))
    monkeypatch.setattr(guides.families, "_entry_points_loaded", False)
    try:
        assert "logistic" in guides.families
        listed = CliRunner().invoke(main, ["list", "guides"])
        assert "Fully factorised logistic distribution" in listed.output
        table = guides.compare(normal_mean, ["logistic", "map"], torch.ones(3), steps=200, num_samples=100)
        assert {row.guide for row in table.rows} == {"logistic", "map"} and not any(row.error for row in table.rows)
    finally:
        sys.modules.pop("logistic_guide", None)
