"""Sections of reports on image models: likelihoods of test images beside published ones, and how latents are used."""

from __future__ import annotations

import math
from collections.abc import Sequence

from benchmarks.protocol.task import Suite, Task
from benchmarks.reporting.metrics import metric
from benchmarks.reporting.published import published
from benchmarks.reporting.report import known_tasks, verdicts
from benchmarks.reporting.tables import Entry, Estimate, Section, Table, estimate, standings, values
from benchmarks.running.store import Record

__all__ = ["guides_of", "likelihoods", "mean", "sections"]

SHOWN = ("elbo_test", "rate", "distortion", "active_units", "khat", "khat_bad", "epochs", "train_seconds")


def sections(suite: Suite, records: Sequence[Record]) -> list[Section]:
    """Return log p(x) of every model and guide beside published values, the use of latents, and sentences on both."""
    tasks = known_tasks(records)
    return [
        Section("Verdict", (), (verdicts(records),)),
        Section(
            "Log-likelihood of test images",
            tuple(sentence for task in tasks for sentence in _sentences(suite, task, records)),
            (likelihoods(suite, tasks, records, "log_px", SHOWN),),
        ),
    ]


def guides_of(records: Sequence[Record], task: str) -> list[str]:
    """Return the guides that have run on a task, in order."""
    return list(dict.fromkeys(record["guide"] for record in records if record["task"] == task))


def mean(records: Sequence[Record], task: str, guide: str, name: str) -> float:
    """Return the mean of a metric over cells, NaN where there is none."""
    return estimate(values(records, task, guide, name).values()).mean


def likelihoods(
    suite: Suite, tasks: Sequence[Task], records: Sequence[Record], decisive: str, shown: Sequence[str]
) -> Table:
    """Return a row for each task and guide: a log-likelihood, its Monte Carlo error, what else there is; published rows.

    :param decisive: name of the log-likelihood; ``<name>_se`` is its Monte Carlo error.
    :param shown: further metrics.
    """
    names = [name for name in shown if any(record.get("metrics", {}).get(name) is not None for record in records)]
    rows = []
    for task in tasks:
        labels = guides_of(records, task.name)
        ranks = standings({label: values(records, task.name, label, decisive) for label in labels}, metric(decisive))
        for label in labels:
            found = estimate(values(records, task.name, label, decisive).values())
            error = mean(records, task.name, label, f"{decisive}_se")
            said = found.text(2) if found.count else "failed"
            rows.append(
                (
                    Entry(task.name, hint=task.summary),
                    Entry(label),
                    Entry(said, ranks[label].mark if found.count else "failed", f"{found.count} cells"),
                    Entry("–" if math.isnan(error) else f"{error:.3f}"),
                    *(_entry(records, task.name, label, name) for name in names),
                )
            )
        for quote in published(suite.name, task.dataset, decisive) if task.dataset else []:
            blank = Entry("", "quoted")
            value = Entry(Estimate(quote.value, math.nan, 1).text(2), "quoted", quote.protocol)
            source = Entry(f"{quote.method} (published)", "quoted", quote.source)
            rows.append((Entry(task.name, "quoted"), source, value, *[blank] * (1 + len(names))))
    heads = [f"{metric(name).label}\n{metric(name).arrow} {metric(name).unit}".strip() for name in names]
    measure = metric(decisive)
    return Table(
        f"{measure.label}, mean over the test images, and what is behind it",
        ("task", "guide", f"{measure.label} {measure.arrow}\n{measure.unit}", "Monte Carlo\nerror", *heads),
        tuple(rows),
        "± is the standard error over cells (splits and seeds), where there are several. Both errors are about how well the "
        "figure is known for these test images, not about other ones.",
    )


def _entry(records: Sequence[Record], task: str, guide: str, name: str) -> Entry:
    found = estimate(values(records, task, guide, name).values())
    return Entry(found.text(metric(name).digits))


def _sentences(suite: Suite, task: Task, records: Sequence[Record]) -> list[str]:
    """Say what each guide adds to the first one, and how the best stands against published values."""
    labels = [label for label in guides_of(records, task.name) if not math.isnan(mean(records, task.name, label, "log_px"))]
    if not labels:
        return []
    found = {label: mean(records, task.name, label, "log_px") for label in labels}
    error = {label: mean(records, task.name, label, "log_px_se") for label in labels}
    said = []
    for label in labels[1:]:
        gap = found[label] - found[labels[0]]
        noise = math.hypot(error[label], error[labels[0]])
        word = "better" if gap > 0 else "worse"
        said.append(f"{label} is {abs(gap):.2f} nats {word} than {labels[0]} (Monte Carlo error {noise:.2f})")
    best = max(labels, key=lambda label: found[label])
    epochs = mean(records, task.name, best, "epochs")
    against = []
    for quote in published(suite.name, task.dataset, "log_px") if task.dataset else []:
        gap = found[best] - quote.value
        against.append(f"{abs(gap):.2f} nats {'ahead of' if gap > 0 else 'behind'} {quote.method} ({quote.value:.2f})")
    sentences = [f"{task.name}: {'; '.join(said)}."] if said else []
    if against:
        after = "" if math.isnan(epochs) else f" after {epochs:.0f} epoch{'' if epochs == 1 else 's'}"
        sentences.append(f"{task.name}: the best guide, {best}{after}, is {'; '.join(against)}, all published.")
    return [sentence.replace("(-", "(−") for sentence in sentences]
