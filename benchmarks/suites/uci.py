"""UCI regression beside published numbers."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.protocol.task import SUITES, Suite, Task
from benchmarks.reporting.metrics import metric
from benchmarks.reporting.published import published
from benchmarks.reporting.report import known_tasks, quoted, trust_table, verdicts
from benchmarks.reporting.tables import Section, comparison, estimate, values
from benchmarks.running.store import Record
from benchmarks.tasks.uci import SETS

__all__ = ["sections"]


def sections(suite: Suite, records: Sequence[Record]) -> list[Section]:
    """Return log-likelihood and RMSE beside published numbers, and sentences on how they compare."""
    tasks = known_tasks(records)
    tables = []
    for name in ("log_likelihood", "rmse"):
        measure = metric(name)
        tables.append(
            comparison(
                f"{measure.label} on held-out data, {measure.unit}, mean ± standard error over splits",
                records,
                [(task.name, name) for task in tasks],
                quoted=quoted(suite.name),
            )
        )
    return [
        Section("Verdict", (), (verdicts(records),)),
        Section("Beside published numbers", tuple(_sentences(suite.name, tasks, records)), tuple(tables)),
        Section("Can the posteriors be trusted?", (), (trust_table(records),)),
    ]


def _sentences(suite: str, tasks: Sequence[Task], records: Sequence[Record]) -> list[str]:
    """Say, for each published method, where the best guide is ahead and where behind."""
    guides = list(dict.fromkeys(record["guide"] for record in records))
    sentences = []
    best: dict[tuple[str, str], tuple[str, float]] = {}
    ours: dict[tuple[str, str, str], float] = {}
    for task in tasks:
        for name in ("log_likelihood", "rmse"):
            measure = metric(name)
            for guide in guides:
                found = estimate(values(records, task.name, guide, name).values())
                if found.count:
                    ours[guide, task.dataset, name] = found.mean
            candidates = {guide: ours[guide, task.dataset, name] for guide in guides if (guide, task.dataset, name) in ours}
            if candidates:
                first = min(candidates, key=lambda guide: measure.loss(candidates[guide]))
                best[task.dataset, name] = (first, candidates[first])
    if "mean_field" in guides:
        sentences.append(
            _against(suite, "plain Pyro SVI", "mean_field", {k[1:]: v for k, v in ours.items() if k[0] == "mean_field"})
        )
    for method in dict.fromkeys(entry.method for entry in published(suite)):
        sentences.append(
            _against(suite, method, "the best guide of each column", {key: value for key, (_, value) in best.items()})
        )
    return [sentence for sentence in sentences if sentence]


def _against(suite: str, method: str, who: str, found: dict[tuple[str, str], float]) -> str:
    """Return one sentence that sets ``found`` (by data set and metric) against one published method."""
    parts = []
    for name in ("log_likelihood", "rmse"):
        measure = metric(name)
        quotes = {entry.dataset: entry.value for entry in published(suite, metric=name) if entry.method == method}
        both = {d: value - quotes[d] for (d, n), value in found.items() if n == name and d in quotes}
        if not both:
            continue
        said_gap = {d: f"{d} ({gap:+.3f})".replace("-", "−") for d, gap in both.items()}
        ahead = [said_gap[d] for d, gap in both.items() if measure.loss(gap) < 0]
        behind = [said_gap[d] for d, gap in both.items() if measure.loss(gap) >= 0]
        said = f"ahead on {', '.join(ahead)}" if ahead else ""
        said += (" and " if ahead and behind else "") + (f"behind on {', '.join(behind)}" if behind else "")
        parts.append(f"in {measure.label} {said}")
    return f"Against {method} (published), {who} is {'; '.join(parts)}." if parts else ""


_DEFAULT = ("boston", "energy", "yacht")

SUITES.add(
    "uci",
    Suite(
        name="uci",
        summary="UCI regression on the 20 published splits, beside published numbers",
        tasks=tuple(f"uci_{name}" for name in _DEFAULT),
        guides=("mean_field", "laplace", "low_rank", "ensemble", "dropout"),
        optional=tuple(f"uci_{name}" for name, *_ in SETS if name not in _DEFAULT),
        sections=sections,
    ),
)
