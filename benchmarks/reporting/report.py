"""Tables and pictures of a results folder as one HTML file and as Markdown."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

from benchmarks.protocol.task import SUITES, TASKS, Suite, Task
from benchmarks.reporting.metrics import METRICS, metric
from benchmarks.reporting.pictures import drawing
from benchmarks.reporting.pictures import records as pictures
from benchmarks.reporting.published import published
from benchmarks.reporting.tables import Entry, Section, Table, comparison, estimate, plain, standings, values
from benchmarks.running.store import Record, read_folders, write_atomically

__all__ = ["build", "compared", "quoted", "sections", "standard_sections", "trust_table", "verdicts"]

Folders = Sequence[tuple[Path, dict[str, Any], list[Record]]]


@dataclass(frozen=True)
class Figure:
    """A picture as the templates see it."""

    title: str
    caption: str
    file: str
    data: str
    width: int


def _suite(manifest: Mapping[str, Any], records: Sequence[Record]) -> Suite:
    """Return the suite that a folder holds; for a task by itself, a suite of one."""
    target = manifest.get("target", "")
    if target in SUITES:
        return SUITES[target]
    return Suite(target, "", tuple(dict.fromkeys(record["task"] for record in records)))


def known_tasks(records: Iterable[Record]) -> list[Task]:
    """Return the tasks of the records in order, without those that this version no longer has."""
    return [TASKS[name] for name in dict.fromkeys(record["task"] for record in records) if name in TASKS]


def sections(folders: Folders) -> list[Section]:
    """Return the sections of a report: those of the suite, or the standard ones."""
    (_, manifest, records), *_ = folders
    suite = _suite(manifest, records)
    return (suite.sections or standard_sections)(suite, records)


def standard_sections(suite: Suite, records: Sequence[Record]) -> list[Section]:
    """Return verdict, comparison by the decisive metric, and whether the posteriors can be trusted."""
    tasks = known_tasks(records)
    columns = [(task.name, task.metrics[0]) for task in tasks]
    main = comparison(
        "Decisive metric of each task, mean ± standard error over splits and seeds",
        records,
        columns,
        quoted=quoted(suite.name),
    )
    return [
        Section("Verdict", (), (verdicts(records),)),
        Section("Guide by task", (), (main,)),
        Section("Can the posteriors be trusted?", (), (trust_table(records),)),
    ]


def quoted(suite: str) -> Any:
    """Return what :func:`benchmarks.reporting.tables.comparison` asks for published numbers of a suite."""

    def rows(task: str, name: str) -> list[tuple[str, Entry]]:
        dataset = TASKS[task].dataset if task in TASKS else ""
        found = published(suite, dataset, name) if dataset else []
        digits = metric(name).digits
        return [
            (f"{entry.method} (published)", Entry(f"{entry.value:.{digits}f}".replace("-", "−"), "quoted", entry.source))
            for entry in found
        ]

    return rows


def verdicts(records: Sequence[Record]) -> Table:
    """Return one row for each task: which guide to use, by what margin, and whether to trust its posterior."""
    rows = []
    for task in known_tasks(records):
        measure = metric(task.metrics[0])
        labels = list(dict.fromkeys(record["guide"] for record in records if record["task"] == task.name))
        results = {label: values(records, task.name, label, measure.name) for label in labels}
        results = {label: found for label, found in results.items() if found}
        if not results:
            rows.append((Entry(task.name), Entry("every cell failed", "failed"), *[Entry("")] * 4))
            continue
        ranks = standings(results, measure)
        best = next((label for label, rank in ranks.items() if rank.mark == "best"), next(iter(results)))
        ties = [label for label, rank in ranks.items() if rank.mark == "tie"]
        behind = [(rank.difference, label) for label, rank in ranks.items() if rank.mark == "" and rank.difference.count]
        nearest = min(behind, key=lambda pair: pair[0].mean, default=None)
        margin = f"{nearest[1]} is {nearest[0].text(measure.digits)} behind" if nearest else "nobody is behind"
        level, words = _trust(records, task.name, best)
        rows.append(
            (
                Entry(task.name, hint=task.summary),
                Entry(best, "best"),
                Entry(", ".join(ties) or "–"),
                Entry(f"{estimate(results[best].values()).text(measure.digits)} {measure.unit}".strip(), hint=measure.help),
                Entry(margin),
                Entry(words, hint=level),
            )
        )
    head = ("task", "best guide", "ties with", "its decisive metric", "next", "its posterior")
    return Table("Which guide, task by task", head, tuple(rows), prose=True)


def _trust(records: Sequence[Record], task: str, guide: str) -> tuple[str, str]:
    """Return the worst verdict of ``diagnose`` over a guide's cells and what to say of it in a table."""
    mine = [r for r in records if r["task"] == task and r["guide"] == guide and r.get("status") == "done"]
    khat = [r["metrics"]["khat"] for r in mine if r["metrics"].get("khat") is not None]
    known = ["unknown", "good", "corrected", "usable", "unreliable"]
    levels = [level for r in mine if (level := r.get("verdict", {}).get("level", "unknown")) in known]
    worst = max(levels, key=known.index, default="unknown")
    if not khat:
        return worst, f"{worst}, no k-hat"
    return worst, f"{worst}, k-hat {_two(estimate(khat).mean)}"


def _level(khat: float) -> Literal["note", "good", "usable", "unreliable"]:
    """Return how Yao et al. (2018) read a k-hat."""
    if math.isnan(khat):
        return "note"
    return "good" if khat < 0.5 else "usable" if khat <= 0.7 else "unreliable"


def _two(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def trust_table(records: Sequence[Record]) -> Table:
    """Return guide by task: mean k-hat, and how many cells had converged."""
    tasks = known_tasks(records)
    labels = list(dict.fromkeys(record["guide"] for record in records))
    rows = []
    for label in labels:
        entries = []
        for task in tasks:
            mine = [r for r in records if r["task"] == task.name and r["guide"] == label and r.get("status") == "done"]
            khat = estimate(r["metrics"].get("khat") for r in mine)
            settled = [r["metrics"]["converged"] for r in mine if r["metrics"].get("converged") is not None]
            text = (_two(khat.mean) if khat.count else "–") if mine else "·"
            hint = f"{int(sum(settled))} of {len(settled)} loss traces had settled" if settled else ""
            text += "†" if settled and min(settled) < 1 else ""
            entries.append(Entry(text, _level(khat.mean), hint))
        rows.append((Entry(label), *entries))
    return Table(
        "Pareto k-hat of the importance weights (mean over cells)",
        ("guide", *(task.name for task in tasks)),
        tuple(rows),
        "Below 0.5 good, up to 0.7 usable with importance weights, above unreliable as a posterior, whatever its "
        "predictions are worth. A dash: no k-hat, as the guide is made of point masses or a weight is not finite. †: the "
        "loss had not settled in every cell when the fit stopped, so that longer training may help.",
    )


def compared(folders: Folders, metric_name: str | None = None) -> Table:
    """Return one table of several folders: guide by task.

    :param folders: what :func:`benchmarks.running.store.read_folders` returned.
    :param metric_name: the metric to compare by; default each task's decisive one.
    :raises ValueError: if no cell has that metric.
    """
    records: list[Record] = []
    holders: dict[tuple[str, str], set[Path]] = {}
    for path, _, found in folders:
        for record in found:
            holders.setdefault((record["task"], record["guide"]), set()).add(path)
    twice = {guide for (_, guide), paths in holders.items() if len(paths) > 1}
    for path, _, found in folders:
        for record in found:
            label = f"{record['guide']} @ {path}" if record["guide"] in twice else record["guide"]
            records.append(record | {"guide": label})
    names = list(dict.fromkeys(record["task"] for record in records))
    columns = []
    for name in names:
        chosen = metric_name or (TASKS[name].metrics[0] if name in TASKS else "log_likelihood")
        if any(chosen in record.get("metrics", {}) for record in records if record["task"] == name) or metric_name is None:
            columns.append((name, chosen))
    if not columns:
        had = sorted({key for record in records for key in record.get("metrics", {})})
        raise ValueError(f"no cell has the metric {metric_name!r}; these folders have {', '.join(had)}")
    targets = {manifest.get("target", "") for _, manifest, _ in folders}
    beside = quoted(targets.pop()) if len(targets) == 1 else None
    return comparison("Guide by task, mean ± standard error", records, columns, quoted=beside)


def detail(task: Task, records: Sequence[Record]) -> Table:
    """Return every metric of one task, guide by metric."""
    mine = [record for record in records if record["task"] == task.name]
    present = {key for record in mine for key, value in record.get("metrics", {}).items() if value is not None}
    usual = ("elbo", "khat", "ess_fraction", "rhat", "converged", "steps", "seconds")
    names = [name for name in dict.fromkeys((*task.metrics, *usual)) if name in present]
    table = comparison(task.name, mine, [(task.name, name) for name in names], heads={task.name: ""})
    counts = sorted({len(values(mine, task.name, guide, "seconds")) for guide in {r["guide"] for r in mine}})
    cells = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return Table(f"{task.name}: {task.summary}", table.header, table.rows, f"{cells} cells each. {task.source}".strip())


def _provenance(manifest: Mapping[str, Any], records: Sequence[Record]) -> dict[str, Any]:
    """Return what the numbers were made with, each fact once."""

    def facts(pick: Any) -> list[str]:
        return list(dict.fromkeys(text for record in records if (text := pick(record))))

    def code(record: Record) -> str:
        if not record.get("commit"):
            return "no checkout: an installed package"
        return str(record["commit"])[:12] + (" with uncommitted changes" if record.get("dirty") else "")

    def computer(record: Record) -> str:
        found = record.get("machine", {})
        return ", ".join(
            str(part)
            for part in (found.get("gpu"), found.get("cpu"), f"{found.get('cores')} cores", found.get("system"))
            if part
        )

    done = [record for record in records if record.get("status") == "done"]
    return {
        "commands": [entry["command"] for entry in manifest.get("commands", [])],
        "commits": facts(code),
        "devices": facts(lambda record: record.get("machine", {}).get("device")),
        "machines": facts(computer),
        "versions": facts(lambda r: ", ".join(f"{k} {v}" for k, v in r.get("versions", {}).items())),
        "seeds": sorted({record["seed"] for record in records}),
        "cells": len(records),
        "done": len(done),
        "seconds": math.fsum(record["metrics"].get("seconds") or 0.0 for record in done),
        "peak": max((record["fit"].get("peak_memory_mib") or 0.0 for record in done), default=0.0),
        "first": min((record["started"] for record in records if record["started"]), default=""),
        "last": max((record["finished"] for record in records), default=""),
    }


def _warnings(records: Sequence[Record]) -> list[tuple[str, str, int]]:
    """Return each warning once for each pair of task and guide, with how many cells gave it."""
    found: dict[tuple[str, str], int] = {}
    for record in records:
        for message in record.get("warnings", []):
            key = (f"{record['task']} · {record['guide']}", message)
            found[key] = found.get(key, 0) + 1
    return [(where, message, count) for (where, message), count in found.items()]


def _shown_width(picture: Path) -> int:
    """Return the width in pixels at which a picture's letters are as large as the page's."""
    pixels = int.from_bytes(picture.read_bytes()[16:20], "big")  # PNG: width, big-endian, after signature and IHDR
    return round(pixels * 100 / drawing.STYLE["savefig.dpi"])


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _without_html(markdown: str) -> str:
    """Return Markdown that shows tags as they are written, but for the line breaks of our heads."""
    return html.escape(markdown, quote=False).replace("&lt;br&gt;", "<br>")


def build(path: str | Path) -> Path:
    """Write ``report.html``, ``report.md`` and ``pictures/`` into a results folder and return the HTML's path.

    :param path: the results folder.
    :raises ResultsFolderError: if it holds no results.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    folders = read_folders([path])
    folder, manifest, records = folders[0]
    suite = _suite(manifest, records)
    drawn = {file.stem: file for file in pictures.write(records, folder, folder / "pictures")}
    figures = [
        Figure(
            picture.title,
            picture.caption,
            f"pictures/{picture.name}.png",
            "data:image/png;base64," + base64.b64encode(drawn[picture.name].read_bytes()).decode(),
            _shown_width(drawn[picture.name]),
        )
        for picture in pictures.PICTURES
        if picture.name in drawn
    ]
    failed = [record for record in records if record.get("status") != "done"]
    shown = {name for record in records for name in record.get("metrics", {})}
    context = {
        "suite": suite,
        "title": f"{suite.name}: {suite.summary}" if suite.summary else suite.name,
        "sections": sections(folders),
        "figures": figures,
        "details": [detail(task, records) for task in known_tasks(records)],
        "tasks": known_tasks(records),
        "protocols": manifest.get("protocols", {}),
        "quotes": list(dict.fromkeys((q.method, q.source, q.protocol) for q in published(suite.name))),
        "glossary": [entry for name, entry in METRICS.items() if name in shown],
        "failed": failed,
        "warnings": _warnings(records),
        "provenance": _provenance(manifest, records),
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
    environment = Environment(
        loader=PackageLoader("benchmarks.reporting", "templates"),
        autoescape=select_autoescape(["html.jinja"], default_for_string=False),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["plain"] = lambda text: _without_html(plain(text))
    environment.filters["without_html"] = _without_html
    for name in ("report.md", "report.html"):
        text = environment.get_template(f"{name}.jinja").render(context)
        write_atomically(folder / name, partial(_write_text, text=text))
    return folder / "report.html"
