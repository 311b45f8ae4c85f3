"""A small JSON file of one run, for publication."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from benchmarks.protocol.task import SUITES
from benchmarks.reporting.metrics import metric
from benchmarks.reporting.published import published
from benchmarks.reporting.report import known_tasks, sections
from benchmarks.reporting.tables import estimate, values
from benchmarks.running.store import Record, ResultsFolder, read_folders, write_atomically

__all__ = ["summarise", "write"]


def summarise(folder: str | Path) -> dict[str, Any]:
    """Return mean, standard error and count of every metric of a run, with everything that it takes to repeat it.

    :param folder: the results folder.
    :raises ResultsFolderError: if it holds no results.
    """
    read = read_folders([folder])
    parts = sections(read)
    _, manifest, records = read[0]
    done = [record for record in records if record.get("status") == "done"]
    tasks = []
    for task in known_tasks(records):
        mine = [record for record in records if record["task"] == task.name]
        guides = {guide: _guide(task.name, guide, mine) for guide in dict.fromkeys(record["guide"] for record in mine)}
        quotes = published(str(manifest.get("target")), task.dataset) if task.dataset else []
        tasks.append(
            {
                "task": task.name,
                "summary": task.summary,
                "source": task.source,
                "guides": guides,
                "published": [
                    {
                        "method": quote.method,
                        "metric": quote.metric,
                        "value": quote.value,
                        "spread": quote.spread,
                    }
                    for quote in quotes
                ],
            }
        )
    suite = SUITES.get(str(manifest.get("target")))
    shown = {"sections": [section.markdown() for section in parts]} if suite is not None and suite.page else {}
    return {
        "target": manifest.get("target"),
        "commands": [_without_folder(entry["command"]) for entry in manifest.get("commands", [])],
        "cells": {"done": len(done), "failed": len(records) - len(done)},
        "seeds": sorted({record["seed"] for record in records}),
        "splits": sorted({record["split"] for record in records}),
        "devices": _facts(records, lambda record: record["machine"]),
        "versions": _facts(records, lambda record: record["versions"]),
        "commits": _facts(records, lambda record: {"commit": record.get("commit"), "dirty": record.get("dirty")}),
        "started": min((record["started"] for record in records if record["started"]), default=""),
        "finished": max(record["finished"] for record in records),
        "compute_seconds": round(sum(record["metrics"].get("seconds") or 0.0 for record in done), 1),
        "sentences": [sentence for section in parts for sentence in section.sentences],
        **shown,
        "tasks": tasks,
        "units": {name: metric(name).unit for record in done for name in record["metrics"]},
        "sources": {
            quote.method: {"source": quote.source, "protocol": quote.protocol, "spread_is": quote.spread_is}
            for quote in published(str(manifest.get("target")))
        },
    }


def _facts(records: list[Record], pick: Any) -> list[Any]:
    found: list[Any] = []
    for record in records:
        fact = pick(record)
        if fact not in found:
            found.append(fact)
    return found


def _guide(task: str, guide: str, records: list[Record]) -> dict[str, Any]:
    mine = [record for record in records if record["guide"] == guide]
    names = dict.fromkeys(name for record in mine for name in record.get("metrics", {}))
    metrics = {}
    for name in names:
        found = estimate(values(mine, task, guide, name).values())
        if found.count:
            error = None if found.count < 2 else float(f"{found.error:.4g}")
            metrics[name] = {"mean": float(f"{found.mean:.6g}"), "se": error, "n": found.count}
    return {
        "protocol": mine[0]["protocol"],
        "failed": sum(record.get("status") != "done" for record in mine),
        "metrics": metrics,
    }


def write(folder: str | Path, out: str | Path) -> None:
    """Write :func:`summarise` of a results folder to a JSON file.

    :param folder: the results folder.
    :param out: the file to write, whole or not at all.
    :raises ResultsFolderError: if the folder holds no results.
    """
    text = json.dumps(summarise(ResultsFolder(folder).path), indent=1, ensure_ascii=False)
    write_atomically(Path(out), lambda path: path.write_text(text + "\n", encoding="utf-8"))


def _without_folder(command: str) -> str:
    """Return a command line without its output folder, which says nothing about the results."""
    return re.sub(r"\s--out[ =]\S+", "", command)
