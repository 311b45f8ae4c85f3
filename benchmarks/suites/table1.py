"""The report's Table 1, reproduced beside its numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from benchmarks.protocol.task import SUITES, Suite
from benchmarks.reporting.metrics import metric
from benchmarks.reporting.published import published
from benchmarks.reporting.report import known_tasks, trust_table, verdicts
from benchmarks.reporting.tables import Entry, Section, Table, estimate, values
from benchmarks.running.store import Record

__all__ = ["compare", "sections"]

READINGS = ("rmse", "mse", "rmse_standardised", "mse_standardised")
SHOWN = (*READINGS, "log_likelihood")


def sections(suite: Suite, records: Sequence[Record]) -> list[Section]:
    """Return every reading of "test error" beside the report's numbers, with sentences on which one fits."""
    quotes = {(entry.dataset, entry.method): entry for entry in published("table1")}
    rows = []
    ours: dict[tuple[str, str, str], float] = {}
    for task in known_tasks(records):
        for guide in dict.fromkeys(record["guide"] for record in records):
            quote = quotes.get((task.dataset, guide))
            said = f"{quote.value:.3f} ± {quote.spread:.3f}" if quote and quote.spread is not None else "–"
            entries = []
            for name in SHOWN:
                found = estimate(values(records, task.name, guide, name).values())
                entries.append(Entry(found.text(metric(name).digits), hint=f"{found.count} splits"))
                if found.count:
                    ours[task.dataset, guide, name] = found.mean
            count = len(values(records, task.name, guide, READINGS[0]))
            rows.append((Entry(f"{task.dataset}, {guide}"), Entry(str(count)), Entry(said, "quoted"), *entries))
    table = Table(
        "Test error, mean ± standard error over splits",
        (
            "data set, guide",
            "splits",
            "report's\ntest error",
            *(f"{metric(name).label}\n({metric(name).unit})" for name in SHOWN),
        ),
        tuple(rows),
        "The report does not say in which units its test error is, nor what its ± means: hence four readings.",
    )
    return [
        Section("Verdict", (), (verdicts(records),)),
        Section("The report's Table 1", tuple(compare(ours)), (table,)),
        Section("Can the posteriors be trusted?", (), (trust_table(records),)),
    ]


def compare(ours: dict[tuple[str, str, str], float]) -> list[str]:
    """Say which reading of "test error" is nearest to the report's numbers, and whether the guides rank as they do there.

    :param ours: our means by data set, guide and reading.
    """
    quotes = {(entry.dataset, entry.method): entry.value for entry in published("table1")}
    factors: dict[str, dict[str, float]] = {}
    for name in READINGS:
        for (dataset, guide), value in quotes.items():
            mine = ours.get((dataset, guide, name))
            if mine and mine > 0:
                factors.setdefault(name, {})[f"{dataset}, {guide}"] = math.log(mine / value)
    if not factors:
        return ["None of the report's data sets and guides is among these results."]
    size = {name: sum(abs(gap) for gap in gaps.values()) / len(gaps) for name, gaps in factors.items()}
    nearest = min(size, key=lambda name: size[name])
    gaps = factors[nearest]
    worst = max(gaps, key=lambda pair: abs(gaps[pair]))
    by_set = {}
    for dataset in dict.fromkeys(pair[0] for pair in quotes):
        found = {
            name: sum(abs(gap) for pair, gap in gaps.items() if pair.startswith(f"{dataset},"))
            for name, gaps in factors.items()
            if any(pair.startswith(f"{dataset},") for pair in gaps)
        }
        if found:
            by_set[dataset] = min(found, key=lambda name: found[name])
    sentences = [
        f"Read as {metric(nearest).label} ({metric(nearest).unit}), the report's numbers are nearest to ours: within a "
        f"factor of {math.exp(size[nearest]):.1f} on average, {math.exp(abs(gaps[worst])):.1f} at worst ({worst}, ours "
        f"{'larger' if gaps[worst] > 0 else 'smaller'})."
    ]
    if len(set(by_set.values())) > 1:
        listed = ", ".join(f"{dataset}: {metric(name).label}" for dataset, name in by_set.items())
        sentences.append(
            f"No one reading is nearest on every data set ({listed}), so the report's units may not be the same."
        )
    order = []
    for dataset in by_set:
        pair = [ours.get((dataset, guide, nearest)) for guide in ("mean_field", "laplace")]
        if pair[0] is not None and pair[1] is not None:
            here = "mean_field" if pair[0] < pair[1] else "laplace"
            there = "mean_field" if quotes[dataset, "mean_field"] < quotes[dataset, "laplace"] else "laplace"
            order.append(f"{dataset}: {here} here, {there} there")
    if order:
        sentences.append(f"The smaller error of the two guides is that of: {'; '.join(order)}.")
    return sentences


SUITES.add(
    "table1",
    Suite(
        name="table1",
        summary="The report's Table 1: variational and Laplace networks on three UCI data sets",
        tasks=("table1_boston", "table1_energy", "table1_yacht"),
        guides=("mean_field", "laplace"),
        splits=20,
        sections=sections,
    ),
)
