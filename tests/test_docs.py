"""Pages are what the docstrings say, and the examples in docstrings print what they say."""

from __future__ import annotations

import doctest
import importlib
import inspect
import json
import re
import textwrap
from collections.abc import Iterator
from typing import Any

import pyro
import pytest
import torch
from click.testing import CliRunner

import guides
import guides.diagnostics
import zoo
import zoo.datasets
from docs.writer import pages as docs
from docs.writer import readme
from docs.writer.__main__ import main
from docs.writer.docstrings import MarkupError, parse

KINDS = {kind.folder: kind for kind in docs.KINDS}
ENTRIES = {f"{folder}/{name}": entry for folder, kind in KINDS.items() for name, entry in docs.documented(kind).items()}
PAGED = {key: entry for key, entry in ENTRIES.items() if key.split("/")[0] in ("models", "guides", "objectives")}


# -- pages -------------------------------------------------------------------------------------------------------------


def test_pages_tables_and_readme_are_up_to_date():
    stale = [str(path.relative_to(docs.ROOT)) for path in docs.stale()]
    assert not stale, "run: python -m docs.writer"


@pytest.mark.parametrize("key", PAGED, ids=str)
def test_every_model_guide_and_objective_says_what_it_is_for(key):
    page = (docs.ROOT / "docs" / f"{key}.md").read_text(encoding="utf-8")
    wanted = ["## Mathematics", "## Arguments", "## Example", "## References"]
    if not key.startswith("objectives"):
        wanted += ["## When to use", "## When not to use"]
    assert [heading for heading in wanted if heading not in page] == []


@pytest.mark.parametrize("key", [k for k in ENTRIES if k.startswith("diagnostics")], ids=str)
def test_every_diagnostic_names_its_blind_spot(key):
    assert re.search(r"^## Blind spots?$", (docs.ROOT / "docs" / f"{key}.md").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("key", PAGED, ids=str)
def test_arguments_are_described_by_their_names(key):
    entry = ENTRIES[key]
    described = set(parse(entry).arguments)
    assert described == set(inspect.signature(entry).parameters)


@pytest.mark.parametrize("name", ENTRIES, ids=str)
def test_no_markup_of_docstrings_reaches_the_reader(name):
    page = docs.ROOT / "docs" / f"{name}.md"
    text = re.sub(r"^```.*?^```|\$\$.*?\$\$|`[^`\n]+`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    assert not re.search(r"``|:\w+:`|^\.\. |^:param|^\s*>>>", text, re.MULTILINE)


def test_check_names_what_is_stale_and_writing_repairs_it(tmp_path, monkeypatch):
    (tmp_path / "README.md").write_text("before\n<!-- begin:counts -->\nold\n<!-- end:counts -->\nafter\n")
    monkeypatch.setattr(docs, "ROOT", docs.ROOT)
    assert tmp_path / "README.md" in docs.stale(tmp_path)
    written = docs.write(tmp_path)
    assert tmp_path / "docs/guides/laplace.md" in written
    assert docs.stale(tmp_path) == []
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "[`bayesian_mlp`](docs/models/bayesian_mlp.md)" in text
    (tmp_path / "docs/guides/gone.md").write_text(f"{docs.MARK} from the docstring of guides.Gone; change it there. -->\n")
    (tmp_path / "docs/guides/notes.md").write_text("# By hand\n")
    (tmp_path / "docs/guides/laplace.md").write_text("edited by hand")
    assert {path.name for path in docs.stale(tmp_path)} == {"gone.md", "laplace.md"}
    docs.write(tmp_path)
    assert not (tmp_path / "docs/guides/gone.md").exists()
    assert (tmp_path / "docs/guides/notes.md").exists(), "pages written by hand are left alone"


def test_the_command_fails_when_something_is_stale(monkeypatch):
    monkeypatch.setattr(docs, "stale", lambda: [docs.ROOT / "docs" / "api.md"])
    result = CliRunner().invoke(main, ["--check"])
    assert result.exit_code == 1
    assert "docs/api.md" in result.output and "python -m docs.writer" in result.output
    monkeypatch.setattr(docs, "stale", list)
    assert CliRunner().invoke(main, ["--check"]).exit_code == 0


def test_outside_a_checkout_the_command_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(docs, "stale", lambda: docs.generate(tmp_path))
    result = CliRunner().invoke(main, ["--check"])
    assert result.exit_code == 1
    assert "written in a checkout" in result.output and "Traceback" not in result.output


def test_a_guide_of_another_package_gets_no_page(monkeypatch):
    class Borrowed(guides.MeanField):
        """A guide of another package."""

    Borrowed.__module__ = "another_package.guide"
    monkeypatch.setitem(guides.families._entries, "borrowed", Borrowed)
    assert "borrowed" in guides.families
    assert "borrowed" not in docs.documented(KINDS["guides"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- begin:a -->", "marks do not pair"),
        ("<!-- begin:a --><!-- end:b -->", "marks do not pair"),
        ("<!-- begin:nothing --><!-- end:nothing -->", "nothing to fill the block 'nothing' with"),
    ],
)
def test_wrong_marks_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        docs.fill(text, {"a": "new", "b": "new"})


# -- docstrings as Markdown --------------------------------------------------------------------------------------------

SAMPLE = textwrap.dedent(
    r"""
    A thing of :math:`x`, see :class:`~guides.MAP` and ``code_with_underscores``.

    .. math::
        a &= b \\
        c &= d

        e = f

    More prose
    over lines. **When:** always; and
    then. **When not:** never.

    Sites: latent ``"w"``.

    :param x: shape ``(N,)``,
        in metres:

        * ``"a"``: first
          of two;
        * ``"b"``: second.
    :param y: other.
    :raises ValueError: if not.
    :returns: nothing.

    Afterwards.

    References: A & B (2001), *One; two*; C (2002), *Three*.

    Example::

        >>> def f():
        ...     return 1
        >>> f()
        1
    """
)


def test_a_docstring_becomes_markdown():
    found = parse(SAMPLE, {"MAP": "map.md"})
    assert found.summary == "A thing of $x$, see [`MAP`](map.md) and `code_with_underscores`."
    assert found.body == [
        "$$\n\\begin{aligned}\na &= b \\\\\nc &= d\n\\end{aligned}\n$$\n\n$$\ne = f\n$$",
        "More prose over lines.",
    ]
    assert found.sections == {"When to use": "Always; and then.", "When not to use": "Never.", "Sites": 'Latent `"w"`.'}
    assert found.arguments == {
        "x": 'shape `(N,)`, in metres:\n\n- `"a"`: first of two;\n- `"b"`: second.',
        "y": "other.",
    }
    assert found.raises == [("ValueError", "if not.")]
    assert found.returns == "nothing."
    assert found.notes == ["Afterwards."]
    assert found.references == ["A & B (2001), *One; two*", "C (2002), *Three*."]
    assert [example.code for example in found.examples] == ["def f():\n    return 1\n\nf()\n# 1"]


def test_references_on_lines_of_their_own():
    found = parse("What.\n\nReferences:\n    A (2001), One, which is\n    long.\n    B (2002), Two?\n    C (2003), Three.\n")
    assert found.references == ["A (2001), One, which is long.", "B (2002), Two?", "C (2003), Three."]


@pytest.mark.parametrize(
    "text",
    [
        "What.\n\n.. note:: hidden",
        "What.\n\n=====  =====\na      b",
        "What, see :foo:`x`.",
        "What.\n\nProse.\n\n    indented",
    ],
)
def test_markup_that_is_not_understood_is_refused(text):
    with pytest.raises(MarkupError):
        parse(text)


# -- blocks of the README ----------------------------------------------------------------------------------------------


def summary(**changes: Any) -> dict[str, Any]:
    def guide(**means: float) -> dict[str, Any]:
        return {"metrics": {name: {"mean": mean, "se": 0.05, "n": 20, "unit": ""} for name, mean in means.items()}}

    quote = {"method": "plain Pyro SVI", "metric": "rmse", "value": 3.206, "spread": 0.857, "source": "", "protocol": ""}
    return {
        "target": "uci",
        "commands": ["python -m benchmarks run uci"],
        "cells": {"done": 40, "failed": 0},
        "seeds": [0],
        "splits": list(range(20)),
        "devices": [{"name": "a processor"}],
        "versions": [{"torch": "2.13.0", "pyro-ppl": "1.9.2"}],
        "commits": [{"commit": "0123456789abcdef", "dirty": False}],
        "sentences": ["Against plain Pyro SVI it is ahead."],
        "tasks": [
            {
                "task": "uci_boston",
                "guides": {"mean_field": guide(rmse=2.9, log_likelihood=-2.5), "laplace": guide(rmse=3.1)},
                "published": [quote],
            }
        ],
    } | changes


def test_result_tables_come_from_files_and_from_nothing_else(tmp_path):
    assert readme.results(tmp_path) == "None published yet."
    (tmp_path / "uci.json").write_text(json.dumps(summary()))
    (tmp_path / "speed.json").write_text(json.dumps({"other": "schema"}))
    text = readme.results(tmp_path)
    assert "| `mean_field` | **2.900 ± 0.050** |" in text, "the best in bold"
    assert "| `laplace` | 3.100 ± 0.050 |" in text
    assert "| *plain Pyro SVI, published* | 3.206 |" in text
    assert "- Against plain Pyro SVI it is ahead." in text
    assert "`python -m benchmarks run uci`: 40 cells, 20 splits, 1 seed;" in text
    assert "commit 0123456789." in text and "torch 2.13.0" in text
    assert text.count("## ") == 1, "files of another schema are no tables"


def test_a_run_of_changed_code_says_so(tmp_path):
    (tmp_path / "uci.json").write_text(json.dumps(summary(commits=[{"commit": "0123456789abcdef", "dirty": True}])))
    assert "commit 0123456789 with changes" in readme.results(tmp_path)


def test_tasks_without_published_numbers_are_rows_by_their_decisive_metric(tmp_path):
    task = summary()["tasks"][0] | {"published": []}
    (tmp_path / "quick.json").write_text(json.dumps(summary(target="quick", tasks=[task], sentences=[])))
    text = readme.results(tmp_path)
    assert "| uci_boston, log-likelihood ↑ | **−2.500 ± 0.050** | – |" in text


def test_numbers_of_unknown_units_stand_beside_every_reading_of_ours(tmp_path):
    quote = {"method": "laplace", "metric": "test_error", "value": 2.764, "spread": 1.189, "source": "", "protocol": ""}
    task = summary()["tasks"][0] | {"task": "table1_boston", "published": [quote]}
    (tmp_path / "table1.json").write_text(json.dumps(summary(target="table1", tasks=[task])))
    text = readme.results(tmp_path)
    assert "| table1_boston, `laplace` | 2.764 ± 1.189 | 3.100 ± 0.050 | – |" in text
    assert "| table1_boston, `mean_field` | – | 2.900 ± 0.050 |" in text


# -- examples ----------------------------------------------------------------------------------------------------------

EXAMPLES = {**docs.api_names(), **ENTRIES}
MODULES = (
    "benchmarks.protocol.describe",
    "docs.writer.pages",
    "docs.writer.docstrings",
    "benchmarks.reporting.tables",
    "benchmarks.protocol.task",
    "guides.fitted.groups",
    "guides.psis",
    "guides.information.measure",
    "guides.program.prior",
    "_posterior_zoo_registry",
)


def check(examples: Iterator[doctest.DocTest]) -> int:
    """Run doctests at a fixed seed and return how many lines were typed."""
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    for example in examples:
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        report: list[str] = []
        runner.run(example, out=report.append, clear_globs=False)
        assert not report, "".join(report)
    return runner.tries


@pytest.mark.parametrize("name", [n for n, e in EXAMPLES.items() if ">>>" in (inspect.getdoc(e) or "")], ids=str)
def test_the_example_of_the_page_prints_what_it_says(name):
    """In a namespace that holds what a reader has: the imports that the page shows, and nothing of the module's own."""
    entry = EXAMPLES[name]
    space: dict[str, Any] = {}
    exec(docs.preamble("\n".join(example.code for example in parse(entry).examples), entry), space)
    found = doctest.DocTestParser().get_doctest(inspect.getdoc(entry), space, name, None, 0)
    assert check(iter([found])) > 0


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_examples_of_helpers_print_what_they_say(module):
    finder = doctest.DocTestFinder(exclude_empty=True)
    assert check(test for test in finder.find(importlib.import_module(module)) if test.examples) > 0


def test_examples_are_code_that_a_test_can_run():
    """An example without prompts would be shown and never run."""
    unrun = []
    for name, entry in EXAMPLES.items():
        if "Example" in (inspect.getdoc(entry) or "") and ">>>" not in inspect.getdoc(entry):
            unrun.append(name)
    assert not unrun


def test_models_and_guides_have_examples():
    assert [key for key, entry in PAGED.items() if not parse(entry).examples] == []
    assert torch.get_default_dtype() is torch.float32
    assert zoo.models and zoo.datasets.registry
