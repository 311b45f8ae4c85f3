"""Tables of guides against the truth: errors, verdicts, and whether the verdicts are true."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from statistics import median

from benchmarks.evaluation.reference import VERDICTS
from benchmarks.protocol.task import Suite
from benchmarks.reporting.report import known_tasks
from benchmarks.reporting.tables import Entry, Section, Table
from benchmarks.running.store import Record
from guides.diagnostics.answers import BIAS, RATIO

__all__ = ["confusion", "lies", "sections", "synthetic"]

_TOLERANCE = (
    f"Right: every mean within {BIAS} true standard deviations, every standard deviation within a factor of {RATIO}."
)


def sections(suite: Suite, records: Sequence[Record]) -> list[Section]:
    """Return verdicts against the truth, errors by posterior and guide, what was claimed wrongly, and the cost."""
    done = [record for record in records if record["status"] == "done" and "verdict_true" in record["metrics"]]
    errors = [
        _by_guide("Largest error of a mean, in true standard deviations (median over seeds)", done, records, "mean_error"),
        _by_guide("Largest factor by which a standard deviation is off (median over seeds)", done, records, "sd_off"),
        _by_guide("The same error of means after correction", done, records, "corrected_mean_error"),
        _by_guide("The same factor after correction", done, records, "corrected_sd_off"),
    ]
    return [
        Section("Are the verdicts true?", tuple(_sentences(done)), (confusion(done), _verdicts(done, records))),
        Section("Errors", (), tuple(errors)),
        Section("Verdicts that are not true", (), (lies(done),)),
        Section("What it costs", (), (_costs(done),)),
    ]


def synthetic(suite: Suite, records: Sequence[Record]) -> list[Section]:
    """Return the same for distributions of known constants, with both bounds on the evidence and the modes covered."""
    done = [record for record in records if record["status"] == "done" and "verdict_true" in record["metrics"]]
    bounds = [
        _by_guide("ELBO, nats below an evidence of 0 (median over seeds)", done, records, "elbo", ""),
        _by_guide("EUBO, nats above it", done, records, "eubo", "At exact draws; ∞: the guide has no density there."),
        _by_guide("Entropic mode coverage", done, records, "mode_coverage", "1: all modes alike; 0: a single one.", "–"),
        _by_guide("Largest error of the mass of a mode", done, records, "mode_mass_error", "", "–"),
    ]
    first, *others = sections(suite, records)
    return [first, Section("Bounds and modes", (), tuple(bounds)), *others]


def confusion(records: Sequence[Record]) -> Table:
    """Return how many fits of each verdict have raw draws that are right, only corrected draws that are, or neither."""
    rows = []
    for verdict in VERDICTS:
        mine = [record["metrics"] for record in records if record["verdict"].get("level") == verdict]
        raw = sum(m["raw_right"] == 1 for m in mine)
        mended = sum(m["raw_right"] == 0 and m["corrected_right"] == 1 for m in mine)
        false = sum(m["verdict_true"] == 0 for m in mine)
        counts = (len(mine), raw, mended, len(mine) - raw - mended, false)
        rows.append((Entry(verdict), *(Entry(str(count)) for count in counts)))
    head = ("verdict", "fits", "raw draws\nare right", "only corrected\ndraws are", "neither", "verdict\nnot true")
    note = (
        f"{_TOLERANCE} 'Good' promises it of raw draws, 'corrected' and 'usable' of corrected ones, 'unreliable' of neither."
    )
    return Table("Verdict by truth, number of fits", head, tuple(rows), note)


def lies(records: Sequence[Record]) -> Table:
    """Return every fit whose verdict is not true, claims first."""
    rows = []
    wrong = [record for record in records if record["metrics"]["verdict_true"] == 0]
    for record in sorted(wrong, key=lambda r: (-r["metrics"]["lie"], r["task"], r["guide"], r["seed"])):
        m, level = record["metrics"], record["verdict"]["level"]
        kinds = [kind for kind in ("raw", "corrected") if kind in record["curves"].get("reference", {})]
        worst = ", ".join(f"{kind}: {record['curves']['reference'][kind]['worst']}" for kind in kinds)
        said = [f"{record['task']}, {record['guide']}", str(record["seed"]), level, _number(m.get("khat"))]
        said += [_number(m.get(name)) for name in ("mean_error", "sd_off", "corrected_mean_error", "corrected_sd_off")]
        rows.append(tuple(Entry(text) for text in (*said, worst)))
    head = (
        "posterior, guide",
        "seed",
        "verdict",
        "k-hat",
        "raw\nmean",
        "raw\nsd",
        "corrected\nmean",
        "corrected\nsd",
        "worst",
    )
    return Table("Fits whose verdict is not true", head, tuple(rows), "Errors as above; worst: the element furthest off.")


def _sentences(records: Sequence[Record]) -> list[str]:
    fits = len(records)
    claimed = sum(record["metrics"]["lie"] == 1 for record in records)
    strict = sum(record["metrics"]["too_strict"] == 1 for record in records)
    refused = sum(record["verdict"]["level"] == "unreliable" for record in records)
    seeds: dict[tuple[str, str], Counter[str]] = {}
    for record in records:
        seeds.setdefault((record["task"], record["guide"]), Counter())[record["verdict"]["level"]] += 1
    several = [count for count in seeds.values() if count.total() > 1]
    same = sum(len(count) == 1 for count in several)
    found = [
        f"{fits} fits; {claimed} are called good, corrected or usable though what that promises is off; {strict} of the "
        f"{refused} called unreliable are right."
    ]
    return found + (
        [f"The same verdict at every seed for {same} of {len(several)} pairs of posterior and guide."] if several else []
    )


def _by_guide(
    title: str,
    done: Sequence[Record],
    records: Sequence[Record],
    name: str,
    note: str = _TOLERANCE,
    missing: str = "∞",
) -> Table:
    def said(mine: Sequence[Record]) -> Entry:
        found = [value for record in mine if (value := record["metrics"].get(name)) is not None]
        return Entry(_number(median(found)) if found else missing)

    return _grid(title, done, records, said, note)


def _verdicts(done: Sequence[Record], records: Sequence[Record]) -> Table:
    def said(mine: Sequence[Record]) -> Entry:
        counts = Counter(record["verdict"]["level"] for record in mine)
        false = sum(record["metrics"]["verdict_true"] == 0 for record in mine)
        words = ", ".join(f"{level} {count}" if len(counts) > 1 else level for level, count in counts.most_common())
        return Entry(words + (f" ({false} not true)" if false else ""))

    return _grid("Verdict of diagnose() by posterior and guide", done, records, said, "A number: at so many seeds.")


def _grid(
    title: str,
    done: Sequence[Record],
    records: Sequence[Record],
    said: Callable[[Sequence[Record]], Entry],
    note: str,
) -> Table:
    guides = list(dict.fromkeys(record["guide"] for record in records))
    rows = []
    for task in known_tasks(records):
        row = [Entry(task.name, hint=task.summary)]
        for guide in guides:
            mine = [record for record in done if (record["task"], record["guide"]) == (task.name, guide)]
            tried = any((record["task"], record["guide"]) == (task.name, guide) for record in records)
            row.append(said(mine) if mine else Entry("failed", "failed") if tried else Entry("·", "note", "not run"))
        rows.append(tuple(row))
    return Table(title, ("posterior", *guides), tuple(rows), note)


def _costs(records: Sequence[Record]) -> Table:
    rows = []
    for guide in dict.fromkeys(record["guide"] for record in records):
        mine = [record for record in records if record["guide"] == guide]
        seconds = [record["fit"]["seconds_wall"] for record in mine if "seconds_wall" in record["fit"]]
        gradients = [record["metrics"]["gradients"] for record in mine if record["metrics"].get("gradients") is not None]
        khat = [record["metrics"]["khat"] for record in mine if record["metrics"].get("khat") is not None]
        right = sum(record["metrics"]["raw_right"] == 1 for record in mine)
        mended = sum(record["metrics"]["corrected_right"] == 1 for record in mine)
        said = [f"{right} of {len(mine)}", f"{mended} of {len(mine)}"]
        said += [_number(median(values)) if values else "–" for values in (khat, seconds)]
        said.append(f"{median(gradients):.0f}" if gradients else "–")
        rows.append((Entry(guide), *map(Entry, said)))
    head = ("guide", "raw draws\nright", "corrected\nright", "k-hat", "seconds", "gradients")
    note = "Medians over fits; seconds of wall time, the fit's share of a vectorised run, compilation included."
    return Table("Guides over all posteriors", head, tuple(rows), note)


def _number(value: float | None) -> str:
    if value is None:
        return "∞"
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}" if abs(value) < 1e6 else f"{value:.1e}"
