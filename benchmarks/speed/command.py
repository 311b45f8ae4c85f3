"""What ``python -m benchmarks speed`` does with its options."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from benchmarks.reporting.tables import Section
from benchmarks.running.provenance import ROOT
from benchmarks.running.store import write_atomically
from benchmarks.speed import cases as cases_
from benchmarks.speed import contenders as contenders_
from benchmarks.speed import pictures, report, session
from benchmarks.speed.cases import CASES
from benchmarks.speed.contenders import CONTENDERS
from benchmarks.speed.measure import Effort
from benchmarks.speed.scaling import AXES
from benchmarks.speed.session import QUICK_CASES, Request

__all__ = ["request", "run"]

TABLE1_SPLITS = 20


def request(
    *,
    quick: bool = False,
    cases: Sequence[str] | None = None,
    contenders: Sequence[str] | None = None,
    scaling: bool = False,
    table1: bool = False,
    extras: bool = True,
    rounds: int | None = None,
    threads: int | None = None,
    numpyro_python: str | None = None,
    command: str = "",
) -> Request:
    """Return what the options ask for.

    :raises UnknownNameError: for a case or contender that does not exist, naming the nearest.
    """
    for registry, names in ((CASES, cases), (CONTENDERS, contenders)):
        for name in names or ():
            registry[name]
    everything = (*cases_.ALL, *(cases_.GPU if torch.cuda.is_available() else ()))
    effort = Effort.quick() if quick else Effort()
    return Request(
        cases=tuple(cases or (QUICK_CASES if quick else [case.name for case in everything])),
        contenders=tuple(contenders or [contender.name for contender in contenders_.ALL]),
        effort=replace(effort, rounds=rounds or effort.rounds),
        quick=quick,
        axes=tuple(AXES) if scaling else (),
        second_start=extras,
        memory=extras,
        table1_splits=TABLE1_SPLITS if table1 else 0,
        threads=threads,
        numpyro_python=numpyro_python,
        command=command,
    )


def run(request: Request, out: Path, *, publish: bool = False, progress: bool = True) -> list[Section]:
    """Measure, write ``speed.json``, ``speed.md`` and the picture to a folder, and return the tables.

    :param publish: write result and picture where the documentation finds them, too.
    :raises Failure: if the interpreter named for NumPyro has none.
    """
    result = session.run(request, out / "speed.json", progress=progress)
    sections = report.sections(result)
    drawn = pictures.draw(result, out / "speed_scaling.png")
    text = "\n\n".join(["# Speed", *(section.markdown() for section in sections)])
    if drawn:
        text += "\n\n![Cost of a step as the problem grows](speed_scaling.png)"
    write_atomically(out / "speed.md", partial(Path.write_text, data=text + "\n", encoding="utf-8"))
    if publish:
        session.save(result, ROOT / "docs" / "results" / "speed.json")
        if drawn:
            picture = ROOT / "docs" / "pictures" / "speed_scaling.png"
            picture.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(out / "speed_scaling.png", picture)
    return sections
