"""Blocks of pages that come from elsewhere: the commands, the pictures, the tables and headlines of published runs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cli import main
from benchmarks.protocol.task import SUITES, TASKS
from benchmarks.reporting.metrics import metric
from benchmarks.reporting.pictures.records import PICTURES, README
from benchmarks.reporting.tables import Estimate, markdown_table
from benchmarks.speed.targets import TARGETS, judge

__all__ = ["commands", "headlines", "pictures", "results", "sections"]

_HEADLINES = (
    ("uci.json", "plain Pyro SVI (published), the best guide", "Regression on UCI data, 20 splits"),
    ("posteriordb.json", "are called good", "Verdicts held against exact draws, on posteriors of posteriordb"),
)


def commands() -> str:
    """Return a table of the commands of ``python -m benchmarks``."""
    import click

    rows = []
    for name, command in sorted(main.commands.items()):
        pieces = [piece for piece in command.collect_usage_pieces(click.Context(command)) if piece != "[OPTIONS]"]
        help_text = (command.help or "").split("\n\n")[0]
        rows.append((f"`python -m benchmarks {' '.join([name, *pieces])}`", " ".join(help_text.split())))
    return markdown_table(("command", "what it does"), rows)


def pictures(root: Path) -> str:
    """Return the pictures that are drawn of those for the page of results, with their captions."""
    parts = []
    for picture in PICTURES:
        path = Path("pictures") / f"{picture.name}.png"
        if picture.name in README and (root / "docs" / path).exists():
            parts.append(f"**{picture.title}.** {picture.caption}\n\n![{picture.title}]({path.as_posix()})")
    return "\n\n".join(parts) or "None drawn yet."


def headlines(folder: Path) -> str:
    """Return one sentence of each of the runs that the README speaks of, with the command that made it."""
    parts = []
    for file, words, title in _HEADLINES:
        path = folder / file
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"sentences": []}
        said = next((sentence for sentence in found["sentences"] if words in sentence), None)
        if said is not None:
            command = str(found["commands"][0]).partition(" --tasks")[0]
            parts.append(f"- **{title}.** {said} `{command}`")
    measured = folder / "speed.json"
    if measured.exists():
        parts.append(_faster(json.loads(measured.read_text(encoding="utf-8"))))
    return "\n".join(filter(None, parts)) or "None published yet."


def _faster(result: Mapping[str, Any]) -> str:
    """Return how much faster a step is than Pyro's, or nothing if that was not measured."""
    verdict = judge(result, TARGETS[0])
    if verdict.value is None or verdict.low is None or verdict.high is None:
        return ""
    return (
        f"- **A step of a Bayesian network, against Pyro's `SVI.step`.** {verdict.value:.0f} times faster "
        f"({verdict.low:.0f}–{verdict.high:.0f} over the rounds of one run on two cores). `python -m benchmarks speed`"
    )


def results(folder: Path) -> str:
    """Return tables of every result file of a suite, with the command that made it."""
    parts = []
    for path in sorted(folder.glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict) and isinstance(found.get("tasks"), list):
            parts.append(_result(found, path.name))
    return "\n\n".join(parts) or "None published yet."


def sections(folder: Path, page: str) -> dict[str, str]:
    """Return the published sections of the suites that a page below ``docs`` shows, by suite."""
    shown = {}
    for name, suite in SUITES.items():
        if suite.page == page:
            path = folder / f"{name}.json"
            found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
            made = [] if found is None else [*found["sections"], _made_by(found, path.name)]
            shown[name] = "\n\n".join(made) or "None published yet."
    return shown


def _result(found: Mapping[str, Any], file: str) -> str:
    name = str(found["target"])
    suite = SUITES.get(name)
    parts = [f"## `{name}`: {suite.summary}" if suite else f"## `{name}`"]
    parts += ["\n".join(f"- {sentence}" for sentence in found["sentences"])] if found["sentences"] else []
    if suite is not None and suite.page:
        return "\n\n".join([*parts, f"All tables: [{suite.page}]({suite.page})."])
    tasks = found["tasks"]
    quoted = list(dict.fromkeys(quote["metric"] for task in tasks for quote in task["published"]))
    measured = {name for task in tasks for guide in task["guides"].values() for name in guide["metrics"]}
    if not quoted:
        parts.append(_by_task(tasks))
    elif set(quoted) <= measured:
        decisive = (TASKS[task["task"]].metrics[0] for task in tasks)
        parts += [_by_metric(tasks, name) for name in dict.fromkeys((*decisive, *quoted))]
    else:
        parts.append(_by_reading(tasks))
    parts.append(_made_by(found, file))
    return "\n\n".join(parts)


def _made_by(found: Mapping[str, Any], file: str) -> str:
    versions = found["versions"][0]
    commits = ", ".join(
        f"{str(entry['commit'])[:10]}{' with changes' if entry['dirty'] else ''}" for entry in found["commits"]
    )
    machine = "; ".join(", ".join(str(value) for value in device.values()) for device in found["devices"])
    failed = found["cells"]["failed"]
    return (
        f"Made by `{'`, `'.join(found['commands'])}`: {found['cells']['done']} cells"
        f"{f' and {failed} failed' if failed else ''}, {len(found['splits'])} splits, {len(found['seeds'])} seed"
        f"{'s' if len(found['seeds']) > 1 else ''}; mean ± standard error over splits and seeds. torch {versions['torch']}, "
        f"Pyro {versions['pyro-ppl']}; {machine}; commit {commits}. Everything: [`{file}`](results/{file})."
    )


def _said(guide: Mapping[str, Any], name: str) -> str:
    """Return ``mean ± error`` of one metric, or a dash."""
    value = guide["metrics"].get(name)
    if value is None:
        return "–"
    error = math.nan if value["se"] is None else value["se"]
    return Estimate(value["mean"], error, value["n"]).text(metric(name).digits)


def _best(guides_: Mapping[str, Mapping[str, Any]], name: str) -> str | None:
    """Return the guide with the best mean, or ``None`` where there is nothing to win."""
    losses = {
        label: metric(name).loss(guide["metrics"][name]["mean"])
        for label, guide in guides_.items()
        if name in guide["metrics"]
    }
    finite = {label: loss for label, loss in losses.items() if math.isfinite(loss)}
    return min(finite, key=lambda label: finite[label]) if finite else None


def _bold(text: str, when: bool) -> str:
    return f"**{text}**" if when else text


def _by_metric(tasks: Sequence[Mapping[str, Any]], name: str) -> str:
    """Return guides by tasks for one metric, published numbers below."""
    measure = metric(name)
    labels = list(dict.fromkeys(label for task in tasks for label in task["guides"]))
    best = [_best(task["guides"], name) for task in tasks]
    rows = []
    for label in labels:
        cells = [
            _bold(_said(task["guides"][label], name), label == first) if label in task["guides"] else ""
            for task, first in zip(tasks, best)
        ]
        rows.append([f"`{label}`", *cells])
    for method in dict.fromkeys(quote["method"] for task in tasks for quote in task["published"]):
        quotes = [[q for q in task["published"] if (q["method"], q["metric"]) == (method, name)] for task in tasks]
        rows.append([f"*{method}, published*", *(f"{q[0]['value']:g}".replace("-", "−") if q else "" for q in quotes)])
    head = [f"{measure.label} {measure.arrow} ({measure.unit})", *(str(task["task"]) for task in tasks)]
    return markdown_table(head, rows, numbers=True)


def _by_task(tasks: Sequence[Mapping[str, Any]]) -> str:
    """Return tasks by guides, each task by its decisive metric."""
    labels = list(dict.fromkeys(label for task in tasks for label in task["guides"]))
    rows = []
    for task in tasks:
        measure = metric(TASKS[task["task"]].metrics[0])
        best = _best(task["guides"], measure.name)
        cells = [
            _bold(_said(task["guides"][label], measure.name), label == best) if label in task["guides"] else "not run"
            for label in labels
        ]
        rows.append([f"{task['task']}, {measure.label} {measure.arrow}", *cells])
    return markdown_table(["task, metric", *(f"`{label}`" for label in labels)], rows, numbers=True)


def _by_reading(tasks: Sequence[Mapping[str, Any]]) -> str:
    """Return one row per task and guide: the published number, whose metric is not certain, beside readings of ours."""
    names = TASKS[tasks[0]["task"]].metrics[:5]
    rows = []
    for task in tasks:
        for label, guide in task["guides"].items():
            quotes = [quote for quote in task["published"] if quote["method"] == label]
            said = (
                "; ".join(f"{q['value']:g}" + ("" if q["spread"] is None else f" ± {q['spread']:g}") for q in quotes) or "–"
            )
            rows.append([f"{task['task']}, `{label}`", said, *(_said(guide, name) for name in names)])
    head = ["task, guide", "published", *(f"{metric(name).label} ({metric(name).unit})" for name in names)]
    return markdown_table(head, rows, numbers=True)
