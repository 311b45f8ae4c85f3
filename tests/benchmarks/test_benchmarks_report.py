"""The report: self-contained, complete, and drawn from the records alone."""

from __future__ import annotations

import json
import re
import struct
from html.parser import HTMLParser
from pathlib import Path

import pytest

from benchmarks import SUITES
from benchmarks.reporting.pictures.adaptive import ADAPTIVE_PICTURES
from benchmarks.reporting.pictures.densities import DENSITY_PICTURES
from benchmarks.reporting.pictures.images import IMAGE_PICTURES
from benchmarks.reporting.pictures.records import PICTURES, README
from benchmarks.reporting.pictures.records import write as draw
from benchmarks.reporting.report import build
from benchmarks.reporting.summary import summarise
from benchmarks.running.store import ResultsFolder, read_folders


class References(HTMLParser):
    """Collects what a page refers to, and checks that its tags are balanced."""

    VOID = ("meta", "img", "br", "link", "hr")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three tasks, short, with a cell that failed."""
    from benchmarks.running import runner

    folder = tmp_path_factory.mktemp("report") / "quick"
    tasks = ("eight_schools", "breast_cancer", "blundell_curve", "foong_gap")
    short = {"epochs": None, "steps": 30}
    work = runner.plan("quick", guide_labels=("mean_field", "map"), tasks=tasks, splits=1, overrides=short)
    outcome = runner.run(work, ResultsFolder(folder), device="cpu", progress=False, command="python -m benchmarks run x")
    assert not outcome.failed
    broken = {"task": "breast_cancer", "guide": "<b>odd</b>", "split": 0, "seed": 0, "status": "failed", "protocol": "x"}
    template = ResultsFolder(folder).records()[0]
    ResultsFolder(folder).append(
        {key: template[key] for key in ("versions", "machine", "commit", "dirty", "started", "finished")}
        | broken
        | {"error": {"type": "ValueError", "message": "<script>alert(1)</script>", "traceback": "line 1\n"}}
    )
    build(folder)
    return folder


def test_html_is_self_contained_and_well_formed(finished: Path) -> None:
    page = (finished / "report.html").read_text(encoding="utf-8")
    parser = References()
    parser.feed(page)
    assert not parser.open
    assert parser.found
    assert all(reference.startswith(("#", "data:image/png;base64,")) for reference in parser.found)
    anchors = set(re.findall(r'id="([^"]+)"', page))
    assert {reference[1:] for reference in parser.found if reference.startswith("#")} <= anchors
    assert "url(" not in page
    assert "@import" not in page


def test_report_says_what_happened(finished: Path) -> None:
    page = (finished / "report.html").read_text(encoding="utf-8")
    text = (finished / "report.md").read_text(encoding="utf-8")
    assert page.index("Which guide, task by task") < page.index("Pictures</h2>") < page.index("How it was made</h2>")
    for each in (page, text):
        for said in ("mean_field", "eight_schools", "python -m benchmarks run x", "8 of 9 cells finished", "torch 2."):
            assert said in each, said
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "&lt;b&gt;odd&lt;/b&gt;" in page
    markdown = (finished / "report.md").read_text()
    assert "&lt;b&gt;odd&lt;/b&gt;" in markdown
    assert "<b>" not in markdown
    assert "<script>" not in markdown


def test_markdown_pictures_exist(finished: Path) -> None:
    text = (finished / "report.md").read_text(encoding="utf-8")
    shown = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    special = (*IMAGE_PICTURES, *DENSITY_PICTURES, *ADAPTIVE_PICTURES)  # no task of this run has any
    elsewhere = {picture.name for picture in special}
    assert len(shown) == len(PICTURES) - len(elsewhere)
    for path in shown:
        content = (finished / path).read_bytes()
        assert content.startswith(b"\x89PNG")
        assert min(struct.unpack(">II", content[16:24])) > 150
    assert sorted(finished.glob("**/.*.part")) == []


def test_pictures_of_the_readme_are_drawn_on_their_own(finished: Path, tmp_path: Path) -> None:
    (_, _, records), *_ = read_folders([finished])
    paths = draw(records, finished, tmp_path / "p", README)
    assert [path.stem for path in paths] == [picture.name for picture in PICTURES if picture.name in README]
    assert len(paths) == 3


def test_pictures_without_data_are_left_out(finished: Path, tmp_path: Path) -> None:
    (_, _, records), *_ = read_folders([finished])
    failed = [record for record in records if record["status"] == "failed"]
    assert draw(failed, finished, tmp_path) == []


def test_summary_is_small_and_complete(finished: Path) -> None:
    found = summarise(finished)
    text = json.dumps(found, allow_nan=False)
    assert len(text) < 30_000
    assert found["cells"] == {"done": 8, "failed": 1}
    assert found["commands"] == ["python -m benchmarks run x"]
    assert found["seeds"] == found["splits"] == [0]
    assert found["devices"][0]["device"] == "cpu"
    guide = next(task for task in found["tasks"] if task["task"] == "blundell_curve")["guides"]["mean_field"]
    assert guide["metrics"]["log_likelihood"].keys() == {"mean", "se", "n"}
    assert guide["metrics"]["log_likelihood"]["n"] == 1
    assert found["units"]["log_likelihood"] == "nats per point"


@pytest.mark.parametrize("name", SUITES)
def test_sections_of_every_suite_survive_what_other_suites_produce(name: str, finished: Path) -> None:
    from benchmarks.reporting.report import standard_sections

    suite = SUITES[name]
    (_, _, records), *_ = read_folders([finished])
    for given in (records, []):
        for section in (suite.sections or standard_sections)(suite, given):
            assert section.text()
            assert section.markdown().startswith("## ")
