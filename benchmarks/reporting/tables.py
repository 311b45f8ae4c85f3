"""Records to tables: means with standard errors, paired comparisons, and three ways to print them."""

from __future__ import annotations

import html
import math
import shutil
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from benchmarks.reporting.metrics import Metric, metric
from benchmarks.running.store import Record

__all__ = [
    "Entry",
    "Estimate",
    "Section",
    "Standing",
    "Table",
    "comparison",
    "estimate",
    "markdown_table",
    "paired_difference",
    "plain",
    "standings",
    "values",
]

Mark = Literal["", "best", "tie", "quoted", "failed", "note", "good", "usable", "unreliable"]

SYMBOLS: dict[str, str] = {"best": " *", "tie": " ~"}
LEGEND = "* best; ~ ties with it: the mean of the paired differences is within one standard error of zero."


@dataclass(frozen=True)
class Estimate:
    """A mean over cells with its standard error.

    :param mean: the mean.
    :param error: the standard error of the mean, NaN for fewer than two values.
    :param count: how many values.
    """

    mean: float
    error: float
    count: int

    def text(self, digits: int = 3) -> str:
        """Return ``mean ± error``, without the error where there is none; a dash without values."""
        if not self.count:
            return "–"
        error = "" if math.isnan(self.error) else f" ± {_number(self.error, digits)}"
        return f"{_number(self.mean, digits)}{error}"


@dataclass(frozen=True)
class Standing:
    """Where one guide stands among those that ran the same task.

    :param mark: ``"best"``, ``"tie"`` with the best, or empty.
    :param difference: paired difference to the best, positive where this guide is worse; NaN for the best.
    """

    mark: Mark
    difference: Estimate


@dataclass(frozen=True)
class Entry:
    """One entry of a table."""

    text: str
    mark: Mark = ""
    hint: str = ""


@dataclass(frozen=True)
class Table:
    """A titled table that prints itself as text, Markdown and HTML.

    :param title: one line above it.
    :param header: the head, first column included.
    :param rows: each as long as the head.
    :param note: what a reader needs to know, below it.
    :param prose: whether its entries are words, which HTML aligns left and wraps.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[Entry, ...], ...]
    note: str = ""
    prose: bool = False

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.header):
                raise ValueError(f"table {self.title!r}: a row of {len(row)} under a head of {len(self.header)}")

    def text(self, width: int | None = None) -> str:
        """Return the table for a terminal, its columns in as many blocks as fit into the width.

        :param width: in characters; default the terminal's, and 160 where there is none.
        """
        width = width or shutil.get_terminal_size((160, 24)).columns
        heads = [name.split("\n") for name in self.header]
        tall = max(map(len, heads))
        columns = [
            [*([""] * (tall - len(head)) + head), *(row[index].text + SYMBOLS.get(row[index].mark, "") for row in self.rows)]
            for index, head in enumerate(heads)
        ]
        widths = [max(map(len, column)) for column in columns]
        lines = [self.title, "=" * min(len(self.title), width)]
        for block in self._blocks(widths, width):
            printed = [
                "  ".join(_pad(columns[index][row], widths[index], index) for index in block).rstrip()
                for row in range(len(columns[0]))
            ]
            printed.insert(tall, "  ".join("-" * widths[index] for index in block))
            lines += [*printed, ""]
        lines.pop()
        if any(entry.mark in ("best", "tie") for row in self.rows for entry in row):
            lines.append(textwrap.fill(LEGEND, width))
        return "\n".join(lines + ([textwrap.fill(self.note, width)] if self.note else []))

    @staticmethod
    def _blocks(widths: Sequence[int], most: int) -> list[list[int]]:
        """Return which columns go side by side: the first in every block, the others in order."""
        blocks: list[list[int]] = [[0]]
        used = widths[0]
        for index, width in enumerate(widths[1:], start=1):
            if len(blocks[-1]) > 1 and used + 2 + width > most:
                blocks.append([0])
                used = widths[0]
            blocks[-1].append(index)
            used += 2 + width
        return blocks

    def markdown(self) -> str:
        """Return the table as GitHub Markdown, the best entries bold, ties marked ``~``."""

        def one(entry: Entry) -> str:
            safe = plain(entry.text)
            return f"**{safe}**" if entry.mark == "best" else safe + SYMBOLS.get(entry.mark, "")

        head = "| " + " | ".join("<br>".join(map(plain, name.split("\n"))) for name in self.header) + " |"
        rule = "| --- |" + " ---: |" * (len(self.header) - 1)
        rows = ["| " + " | ".join(map(one, row)) + " |" for row in self.rows]
        marked = any(entry.mark in ("best", "tie") for row in self.rows for entry in row)
        notes = [LEGEND.replace("* best", "**bold** best")] if marked else []
        notes += [plain(self.note)] if self.note else []
        return "\n".join([f"**{plain(self.title)}**", "", head, rule, *rows, *(["", " ".join(notes)] if notes else [])])

    def html(self) -> str:
        """Return the table as HTML; marks become classes for the style sheet."""

        def one(entry: Entry, tag: str) -> str:
            label = f' class="{entry.mark}"' if entry.mark else ""
            hint = f' title="{html.escape(entry.hint, quote=True)}"' if entry.hint else ""
            return f"<{tag}{label}{hint}>{html.escape(entry.text)}</{tag}>"

        head = "".join(f"<th>{html.escape(name)}</th>" for name in self.header)
        rows = "\n".join(
            "<tr>" + one(row[0], "th") + "".join(one(entry, "td") for entry in row[1:]) + "</tr>" for row in self.rows
        )
        marked = any(entry.mark in ("best", "tie") for row in self.rows for entry in row)
        legend = '<span class="best">best</span> <span class="tie">tie</span> ' if marked else ""
        explained = "A tie: the mean of the paired differences is within one standard error of zero. " if marked else ""
        note = html.escape(explained + self.note)
        foot = f'<p class="note">{legend}{note}</p>' if legend or note else ""
        kind = ' class="words"' if self.prose else ""
        return (
            f"<figure{kind}><figcaption>{html.escape(self.title)}</figcaption><div class=scroll><table><thead><tr>{head}"
            f"</tr></thead><tbody>\n{rows}\n</tbody></table></div>{foot}</figure>"
        )


@dataclass(frozen=True)
class Section:
    """Sentences and tables under one heading."""

    title: str
    sentences: tuple[str, ...] = ()
    tables: tuple[Table, ...] = field(default=())

    def text(self) -> str:
        """Return the section for a terminal."""
        width = shutil.get_terminal_size((160, 24)).columns
        sentences = (textwrap.fill(sentence, width) for sentence in self.sentences)
        return "\n\n".join([*(table.text() for table in self.tables), *sentences])

    def markdown(self) -> str:
        """Return the section as Markdown."""
        sentences = ["\n".join(f"- {plain(sentence)}" for sentence in self.sentences)] if self.sentences else []
        return "\n\n".join([f"## {plain(self.title)}", *(table.markdown() for table in self.tables), *sentences])


def plain(text: object) -> str:
    """Return a text on one line of Markdown, which begins no new cell."""
    return " ".join(str(text).split()).replace("|", "\\|")


def _pad(text: str, width: int, column: int) -> str:
    return text.ljust(width) if column == 0 else text.rjust(width)


def _number(value: float, digits: int) -> str:
    if math.isnan(value):
        return "–"
    if value and abs(value) >= 10**6:
        return f"{value:.2e}"
    small = value != 0 and abs(value) < 0.5 * 10**-digits
    return f"{value:.1e}" if small else f"{value:.{digits}f}".replace("-", "−")


def estimate(numbers: Iterable[float]) -> Estimate:
    """Return the mean of the finite ``numbers`` with its standard error.

    Example::

        >>> estimate([1.0, 3.0])
        Estimate(mean=2.0, error=1.0, count=2)
    """
    finite = [float(number) for number in numbers if number is not None and math.isfinite(number)]
    count = len(finite)
    if not count:
        return Estimate(math.nan, math.nan, 0)
    mean = math.fsum(finite) / count
    if count == 1:
        return Estimate(mean, math.nan, 1)
    variance = math.fsum((number - mean) ** 2 for number in finite) / (count - 1)
    return Estimate(mean, math.sqrt(variance / count), count)


def values(records: Iterable[Record], task: str, guide: str, name: str) -> dict[tuple[int, int], float]:
    """Return one metric of one guide on one task by ``(split, seed)``; cells that failed or lack it are absent."""
    found = {}
    for record in records:
        if record["task"] == task and record["guide"] == guide and record.get("status") == "done":
            value = record["metrics"].get(name)
            if value is not None and math.isfinite(value):
                found[record["split"], record["seed"]] = float(value)
    return found


def paired_difference(first: Mapping[tuple[int, int], float], second: Mapping[tuple[int, int], float]) -> Estimate:
    """Return mean and standard error of ``first - second`` over the splits and seeds that both have.

    Pairing takes out what a split does to everybody, which is most of the spread on small data sets.
    """
    return estimate(first[key] - second[key] for key in sorted(first.keys() & second.keys()))


def standings(results: Mapping[str, Mapping[tuple[int, int], float]], measure: Metric) -> dict[str, Standing]:
    """Rank guides on one task: the best by its mean, ties within one standard error of the paired difference.

    :param results: by guide, values by ``(split, seed)``.
    :param measure: says which direction is better; with nothing to win nobody is marked.
    """
    losses = {guide: {key: measure.loss(value) for key, value in found.items()} for guide, found in results.items() if found}
    none = Estimate(math.nan, math.nan, 0)
    if measure.better == "none" or not losses:
        return {guide: Standing("", none) for guide in results}
    means = {guide: estimate(found.values()).mean for guide, found in losses.items()}
    best = min(means, key=lambda guide: means[guide])
    found: dict[str, Standing] = {}
    for guide in results:
        if guide not in losses:
            found[guide] = Standing("", none)
        elif guide == best:
            found[guide] = Standing("best", none)
        else:
            difference = paired_difference(losses[guide], losses[best])
            # Over the splits both have, a guide may even be ahead of one whose mean is over more of them.
            tie = difference.count > 0 and (
                difference.mean <= 0 or (not math.isnan(difference.error) and difference.mean <= difference.error)
            )
            found[guide] = Standing("tie" if tie else "", difference)
    return found


def comparison(
    title: str,
    records: Sequence[Record],
    columns: Sequence[tuple[str, str]],
    *,
    note: str = "",
    heads: Mapping[str, str] | None = None,
    quoted: Callable[[str, str], Sequence[tuple[str, Entry]]] | None = None,
) -> Table:
    """Return the table guide by ``(task, metric)``: mean ± standard error, best and ties marked.

    :param title: one line above the table.
    :param records: the cells.
    :param columns: pairs of task and metric, in order.
    :param note: text below.
    :param heads: what a task is called in the head, where not by its name.
    :param quoted: ``quoted(task, metric)`` returns labelled published numbers, shown in rows below ours.
    """
    labels = list(dict.fromkeys(record["guide"] for record in records))
    grid: dict[tuple[str, int], Entry] = {}
    others: dict[str, dict[int, Entry]] = {}
    for index, (task, name) in enumerate(columns):
        measure = metric(name)
        ran = {record["guide"] for record in records if record["task"] == task}
        results = {label: values(records, task, label, name) for label in labels if label in ran}
        ranks = standings(results, measure)
        for label in labels:
            if label not in ran:
                grid[label, index] = Entry("·", "note", "not run")
                continue
            found = estimate(results[label].values())
            bad = sum(
                record.get("status") != "done" for record in records if record["task"] == task and record["guide"] == label
            )
            text = found.text(measure.digits)
            if bad:
                grid[label, index] = Entry(f"{text} ({bad} failed)" if found.count else f"{bad} failed", "failed")
            else:
                hint = f"{found.count} cells"
                difference = ranks[label].difference
                if difference.count:
                    hint += f"; paired difference to the best {difference.text(measure.digits)}"
                grid[label, index] = Entry(text, ranks[label].mark, hint)
        for label, entry in quoted(task, name) if quoted else ():
            others.setdefault(label, {})[index] = entry
    head = tuple(_head(task, metric(name), heads or {}) for task, name in columns)
    rows = [(Entry(label), *(grid[label, index] for index in range(len(columns)))) for label in labels]
    for label, entries in others.items():
        blank = Entry("", "quoted")
        rows.append((Entry(label, "quoted"), *(entries.get(index, blank) for index in range(len(columns)))))
    return Table(title, ("guide", *head), tuple(rows), note)


def _head(task: str, measure: Metric, heads: Mapping[str, str]) -> str:
    name = heads.get(task, task)
    described = f"{measure.label} {measure.arrow}".strip()
    return f"{name}\n{described}" if name else described


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: bool = False) -> str:
    """Return a table in GitHub's Markdown; all columns but the first are right-aligned if they are ``numbers``."""
    rule = "| --- |" + (" ---: |" if numbers else " --- |") * (len(head) - 1)
    lines = ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in [head, *rows]]
    return "\n".join([lines[0], rule, *lines[1:]])
