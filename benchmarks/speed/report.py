"""A result as tables: for the terminal, for ``speed.md`` and for ``docs/performance.md``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.reporting.tables import Entry, Section, Table
from benchmarks.speed import contenders
from benchmarks.speed.cases import CASES
from benchmarks.speed.contenders import CONTENDERS
from benchmarks.speed.measure import paired_ratio
from benchmarks.speed.session import read
from benchmarks.speed.targets import TARGETS, Verdict, judge

__all__ = ["blocks", "sections"]

OUTCOMES = {
    "goal": "goal met",
    "met": "met",
    "missed": "missed",
    "not measured": "not measured",
    "not comparable": "not comparable",
}


def sections(result: Mapping[str, Any]) -> list[Section]:
    """Return every table of a result, with what a reader has to know."""
    found = [Section("Targets", _remarks(result), (targets(result),))]
    for name, measured in result["cases"].items():
        found.append(Section(name, (_agreement(measured), *_share(result, name, measured)), (times(measured),)))
    found += [Section(f"Cost against {axis}", (), (growth(axis, points),)) for axis, points in result["scaling"].items()]
    if any(result.get(name) for name in ("second_start", "memory", "table1")):
        found.append(Section("Other costs", tuple(_extras(result)), ()))
    return found


def targets(result: Mapping[str, Any]) -> Table:
    """Return the table of demands and whether they are met."""
    rows = []
    for target in TARGETS:
        verdict = judge(result, target)
        work = target.work + (f", against {target.against}" if target.against else "")
        rows.append(
            (
                Entry(work),
                Entry(f"{target.at_least:g} {target.unit}"),
                Entry(f"{target.goal:g} {target.unit}"),
                Entry(_measured(verdict)),
                Entry(OUTCOMES[verdict.outcome], "best" if verdict.outcome == "goal" else "", verdict.why),
            )
        )
    return Table(
        "What it must show, and what it shows",
        ("work", "at least", "goal", "measured", "outcome"),
        tuple(rows),
        "In brackets: quartiles over the rounds of one run.",
    )


def _measured(verdict: Verdict) -> str:
    if verdict.value is None:
        return "–"
    if verdict.low is None or verdict.high is None:
        return f"{_short(verdict.value)} {verdict.target.unit}"
    return f"{_short(verdict.value)} {verdict.target.unit} ({_short(verdict.low)}–{_short(verdict.high)})"


def _short(value: float) -> str:
    """Return three digits, two decimals at most."""
    return f"{value:.{0 if abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2}f}"


def times(measured: Mapping[str, Any]) -> Table:
    """Return the times of a case: microseconds per step, and as multiples of Pyro's and of ours."""
    per = " per replicate" if measured["spec"]["replicates"] > 1 else ""
    rows = []
    for contender, entry in measured["contenders"].items():
        reason = entry.get("skipped") or entry.get("failed")
        if reason:
            rows.append((Entry(entry["label"]), Entry(f"not run: {reason}"), *(Entry("–") for _ in range(4))))
            continue
        micro = entry["microseconds"]
        ours = paired_ratio(dict(measured), contender, "ours_loop")
        rows.append(
            (
                Entry(entry["label"] + (" (fell back)" if entry["notes"] else ""), hint="; ".join(entry["notes"])),
                Entry(f"{_short(micro['median'])} ({_short(micro['low'])}–{_short(micro['high'])})"),
                Entry(_short(ours["median"]) if ours else "–"),
                Entry(str(entry["steps_per_call"])),
                Entry(_short(entry["seconds_to_start"])),
                Entry(f"{entry['loss']['last']:.5g}"),
            )
        )
    return Table(
        measured["title"],
        ("who", f"us per step{per}", "x ours, a chunk per call", "steps per call", "s to start", "loss then"),
        tuple(rows),
    )


def _agreement(measured: Mapping[str, Any]) -> str:
    found = measured["agreement"]
    if found["agree"] is None:
        return "Nothing ran, so there are no losses to compare."
    said = f"Losses after {found['steps']} steps from the same start agree to a tenth or to four standard errors"
    if found["agree"]:
        return f"{said} (median {found['loss']:.5g} nats)."
    return f"{said}, except those of: {', '.join(found['disagreeing'])} (median {found['loss']:.5g} nats)."


def _share(result: Mapping[str, Any], name: str, measured: Mapping[str, Any]) -> tuple[str, ...]:
    """Say how much of the GPU's matrix throughput our fastest way of running a case uses."""
    best = min(
        (entry["microseconds"]["median"] for key, entry in measured["contenders"].items() if _ours(key, entry)), default=None
    )
    if "gpu" not in result or best is None or measured["spec"]["device"] != "cuda":
        return ()
    share = CASES[name].products / measured["spec"]["replicates"] / (1e-6 * best) / result["gpu"]["flops"]
    rate = f"{result['gpu']['flops'] / 1e12:.3g} Tflop/s"
    return (
        f"At the rate of a large product on this GPU ({rate}), its matrix products alone would take {100 * share:.2g} % of "
        "our fastest time.",
    )


def _ours(name: str, entry: Mapping[str, Any]) -> bool:
    return name.startswith("ours") and "median" in entry.get("microseconds", {})


def growth(axis: str, points: Any) -> Table:
    """Return microseconds per step along an axis."""
    names = [c.name for c in contenders.ALL if any(c.name in point["contenders"] for point in points)]
    rows = []
    for point in points:
        cells = []
        for name in names:
            entry = point["contenders"].get(name, {})
            micro = entry.get("microseconds", {}).get("median")
            cells.append(Entry("–" if micro is None else _short(micro)))
        rows.append((Entry(str(point["value"])), *cells))
    per = " per replicate" if axis == "replicates" else ""
    return Table(f"us per step{per}", (axis, *(CONTENDERS[name].label for name in names)), tuple(rows))


def _extras(result: Mapping[str, Any]) -> list[str]:
    said = []
    start, memory, table1 = (result.get(name) for name in ("second_start", "memory", "table1"))
    if start:
        said.append(
            f"Starting a compiled fit failed: {start['failed']}."
            if start["value"] is None
            else f"A compiled fit of {start['steps']} steps of the BNN takes {_short(start['cold'])} s in the first process "
            f"and {_short(start['value'])} s in a later one that finds the compiled code cached; imports take "
            f"{_short(start['imports'])} s more."
        )
    if memory:
        for name, entry in memory["cases"].items():
            mebibytes = [entry["ours_eager"], entry["ours_loop"]]
            shown = "not measured"
            if None not in mebibytes:
                shown = f"{_short(mebibytes[0])} MiB eager, {_short(mebibytes[1])} MiB compiled"
            said.append(f"Peak memory of a step of {name}, above what the fit holds anyway: {shown}.")
    if table1:
        said.append(
            f"The suite table1 failed: {table1['failed']}."
            if table1["value"] is None
            else f"The suite table1 with {table1['splits']} splits takes {_short(table1['value'])} s from start to end, "
            "with an empty cache of compiled code."
        )
    return said


def _remarks(result: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what the numbers were made with, and what spoils them."""
    machine, versions = result["machine"], result.get("versions", {})
    said = [
        f"{machine['cpu']}, {machine['cores']} cores; torch {versions.get('torch')}, Pyro {versions.get('pyro-ppl')}, "
        + (f"NumPyro {versions['numpyro']} on JAX {versions['jax']}" if "numpyro" in versions else "NumPyro not installed")
        + f"; commit {str(result['commit'])[:10]}{' with changes' if result['dirty'] else ''}; {result['started'][:10]}."
    ]
    load = machine.get("load_at_start")
    if load is not None and load > 0.5:
        said.append(
            f"The machine was busy when the run began (load average {load:g}), so times are too long and ratios noisy."
        )
    if not result["finished"]:
        said.append("The run was interrupted; this is what it had measured.")
    if result["quick"]:
        said.append("A quick run: few and short blocks.")
    return tuple(said)


def blocks(root: Path) -> dict[str, str]:
    """Return the blocks of ``docs/performance.md`` by name, from ``docs/results/speed.json``.

    :param root: the checkout.
    """
    result = read(root / "docs" / "results" / "speed.json")
    if result is None:
        empty = "Not published yet: `python -m benchmarks speed --scaling --table1 --publish` does."
        return {"speed-targets": empty, "speed-cases": empty, "speed-scaling": empty}
    remarks, *others = (part for part in sections(result))
    cases = [part for part in others if not part.title.startswith("Cost against")]
    made = f"Made by `{result['command']}`. Everything: [`speed.json`](results/speed.json)."
    picture = "No picture yet."
    if (root / "docs" / "pictures" / "speed_scaling.png").exists():
        picture = "![Cost of a step as the problem grows](pictures/speed_scaling.png)"
    return {
        "speed-targets": "\n\n".join([*(table.markdown() for table in remarks.tables), *remarks.sentences, made]),
        "speed-cases": "\n\n".join(part.markdown().replace("## ", "### ", 1) for part in cases),
        "speed-scaling": picture,
    }
