"""Means, standard errors, paired comparisons, marks, and the tables built from them."""

from __future__ import annotations

import math

import pytest

from benchmarks.reporting.metrics import metric
from benchmarks.reporting.report import compared
from benchmarks.reporting.tables import Entry, Table, comparison, estimate, paired_difference, standings, values
from benchmarks.suites.table1 import compare


def cells(task: str, guide: str, numbers, name: str = "rmse", status: str = "done") -> list[dict]:
    return [
        {"task": task, "guide": guide, "split": split, "seed": 0, "status": status, "metrics": {name: number}}
        for split, number in enumerate(numbers)
    ]


def test_estimate_is_mean_and_standard_error() -> None:
    found = estimate([1.0, 2.0, 3.0, 4.0, float("nan"), None])
    assert (found.mean, found.count) == (2.5, 4)
    assert found.error == pytest.approx(math.sqrt(5 / 3 / 4))
    assert estimate([]).count == 0
    assert math.isnan(estimate([1.0]).error)
    assert estimate([1.0]).text() == "1.000"
    assert estimate([-1.0, -3.0]).text(2) == "−2.00 ± 1.00"
    assert estimate([]).text() == "–"
    assert estimate([0.0001, 0.0003]).text(3) == "2.0e-04 ± 1.0e-04"


def test_pairing_uses_common_cells_only() -> None:
    found = paired_difference({(0, 0): 1.0, (1, 0): 2.0, (2, 0): 9.0}, {(0, 0): 0.5, (1, 0): 1.0, (3, 0): 0.0})
    assert (found.mean, found.count) == (0.75, 2)


def test_marks_best_and_ties_by_paired_difference() -> None:
    # b is behind a by 0.1 on every split: no tie, though the splits themselves spread by several units.
    # c is behind on average, within one standard error of the paired difference: a tie. d is far.
    spread = [1.0, 5.0, 9.0, 13.0]
    results = {
        "a": spread,
        "b": [value + 0.1 for value in spread],
        "c": [value + shift for value, shift in zip(spread, (0.6, -0.5, 0.4, -0.3))],
        "d": [value + 3 for value in spread],
    }
    keyed = {guide: {(split, 0): value for split, value in enumerate(found)} for guide, found in results.items()}
    ranks = standings(keyed, metric("rmse"))
    assert {guide: rank.mark for guide, rank in ranks.items()} == {"a": "best", "b": "", "c": "tie", "d": ""}
    assert ranks["b"].difference.mean == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("name", "best"), [("rmse", "low"), ("log_likelihood", "high"), ("coverage_80", "near"), ("steps", None)]
)
def test_direction_of_a_metric_decides(name: str, best: str | None) -> None:
    results = {"low": {(0, 0): 0.1}, "near": {(0, 0): 0.82}, "high": {(0, 0): 2.0}}
    marked = [guide for guide, rank in standings(results, metric(name)).items() if rank.mark == "best"]
    assert marked == ([best] if best else [])


def test_single_split_has_no_ties_without_equality() -> None:
    ranks = standings({"a": {(0, 0): 1.0}, "b": {(0, 0): 1.001}, "c": {(0, 0): 1.0}}, metric("rmse"))
    assert [ranks[guide].mark for guide in "abc"] == ["best", "", "tie"]


def test_guide_without_numbers_is_not_marked() -> None:
    ranks = standings({"a": {}, "b": {(0, 0): 1.0}}, metric("rmse"))
    assert [ranks[guide].mark for guide in "ab"] == ["", "best"]


def test_comparison_shows_failures_absences_and_published_numbers() -> None:
    records = [
        *cells("t", "a", [1.0, 2.0]),
        *cells("t", "b", [1.5, 2.5]),
        *cells("t", "c", [None, None], status="failed"),
        *cells("u", "a", [3.0]),
    ]
    table = comparison(
        "title", records, [("t", "rmse"), ("u", "rmse")], quoted=lambda task, name: [("theirs", Entry("9.9", "quoted"))]
    )
    by_guide = {row[0].text: row[1:] for row in table.rows}
    assert by_guide["a"][0] == Entry("1.500 ± 0.500", "best", "2 cells")
    assert by_guide["b"][0].mark == ""
    assert by_guide["c"][0].text == "2 failed"
    assert by_guide["b"][1].text == "·"
    assert [entry.text for entry in by_guide["theirs"]] == ["9.9", "9.9"]
    text, markdown, html = table.text(), table.markdown(), table.html()
    assert "1.500 ± 0.500 *" in text
    assert "**1.500 ± 0.500**" in markdown
    assert '<td class="best" title="2 cells">1.500 ± 0.500</td>' in html
    assert len({len(line) for line in text.splitlines()[2:8]}) <= 2


def test_names_cannot_break_out_of_a_table() -> None:
    table = Table("<t>", ("a|b", "c"), ((Entry("<script>|"), Entry("1", "best", '"><img>')),))
    assert "<script>" not in table.html()
    assert "<img>" not in table.html()
    assert "<script>\\|" in table.markdown()
    with pytest.raises(ValueError, match="a row of 1 under a head of 2"):
        Table("t", ("a", "b"), ((Entry("x"),),))


def test_failed_cells_and_missing_values_are_no_numbers() -> None:
    records = [*cells("t", "a", [1.0, None, float("inf")]), *cells("t", "a", [7.0], status="failed")]
    assert values(records, "t", "a", "rmse") == {(0, 0): 1.0}


def test_compare_names_the_folder_of_a_guide_that_is_in_both(tmp_path) -> None:
    one = (tmp_path / "one", {}, [*cells("t", "a", [1.0, 2.0], "log_likelihood"), *cells("t", "b", [1.0], "log_likelihood")])
    two = (tmp_path / "two", {}, cells("t", "a", [3.0, 4.0], "log_likelihood"))
    names = [row[0].text for row in compared([one, two]).rows]
    assert names == [f"a @ {tmp_path / 'one'}", "b", f"a @ {tmp_path / 'two'}"]
    with pytest.raises(ValueError, match="no cell has the metric 'crps'"):
        compared([one, two], "crps")


def test_table1_finds_the_reading_that_fits_the_report() -> None:
    """Numbers made from the report's own, read as standardised MSE, off by 10 %."""
    report = {"boston": (2.275, 2.764), "energy": (0.058, 0.186), "yacht": (1.984, 1.953)}
    ours = {}
    for dataset, pair in report.items():
        for guide, value in zip(("mean_field", "laplace"), pair):
            ours[dataset, guide, "mse_standardised"] = 1.1 * value
            ours[dataset, guide, "rmse"] = 10 * value
            ours[dataset, guide, "mse"] = 100 * value
    nearest, order = compare(ours)
    assert nearest.startswith("Read as MSE, standardised (variance of target)")
    assert "within a factor of 1.1 on average, 1.1 at worst" in nearest
    assert "boston: mean_field here, mean_field there" in order
    assert "yacht: laplace here, laplace there" in order
    assert compare({}) == ["None of the report's data sets and guides is among these results."]
