"""Docstrings as Markdown: the part of reStructuredText that this project writes, and an error for any other."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Docstring", "Example", "MarkupError", "parse"]

_FIELD = re.compile(r":(param|ivar|cvar|raises|returns?)(?:\s+([^:]+))?:\s*(.*)")
_BULLET = re.compile(r"[*-] +(.*)")
_MATH = re.compile(r"\.\. math::\s*(.*)")
_HEADED = re.compile(r"(?:\*\*|\*)(When(?: to use)?|When not|Blind spots?)(?:\.|:)(?:\*\*|\*)\s*")
_HEADINGS = {"When": "When to use", "When to use": "When to use", "When not": "When not to use"}


class MarkupError(ValueError):
    """Markup in a docstring that would reach the reader garbled."""


@dataclass(frozen=True)
class Example:
    """One example: what is typed, without prompts, and what it prints, as comments."""

    code: str


@dataclass
class Docstring:
    """A docstring taken apart; all text is Markdown.

    :ivar summary: its first sentence or paragraph.
    :ivar body: what follows, mathematics in place.
    :ivar sections: text under the headings that the docstring marks (``"When to use"``, ``"Blind spot"``, ``"Sites"``).
    :ivar arguments: description by argument.
    :ivar attributes: description by attribute.
    :ivar raises: exception classes, and when.
    :ivar returns: what comes back, or empty.
    :ivar references: one entry each.
    :ivar notes: what stands below the arguments.
    :ivar examples: in order.
    """

    summary: str = ""
    body: list[str] = field(default_factory=list)
    sections: dict[str, str] = field(default_factory=dict)
    arguments: dict[str, str] = field(default_factory=dict)
    attributes: dict[str, str] = field(default_factory=dict)
    raises: list[tuple[str, str]] = field(default_factory=list)
    returns: str = ""
    references: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)

    @property
    def has_mathematics(self) -> bool:
        """Whether a displayed formula is among the text."""
        return any(block.startswith("$$") for block in self.body)


@dataclass(frozen=True)
class _Block:
    kind: str
    text: str
    name: str = ""


def parse(described: Any, links: Mapping[str, str] | None = None) -> Docstring:
    r"""Take the docstring of an object apart.

    :param described: a class, a function, or the text of a docstring.
    :param links: where roles such as ``:class:`guides.MAP``` lead, by the last part of their target.
    :raises MarkupError: for markup that is not understood, naming the object and the line.

    Example::

        >>> parse("Mean of :math:`x`.\n\n:param x: shape ``(N,)``.").arguments
        {'x': 'shape `(N,)`.'}
    """
    text = inspect.cleandoc(described) if isinstance(described, str) else (inspect.getdoc(described) or "")
    try:
        return _assemble(list(_blocks(text.splitlines())), lambda raw: _inline(raw, links or {}))
    except MarkupError as error:
        name = "" if isinstance(described, str) else f" of {described.__module__}.{described.__qualname__}"
        raise MarkupError(f"the docstring{name}: {error}") from None


def _assemble(blocks: list[_Block], inline: Callable[[str], str]) -> Docstring:
    found = Docstring()
    after_fields = False
    heading = ""
    for block in blocks:
        if block.kind == "example":
            found.examples.append(Example(_code(block.text)))
        elif block.kind == "references":
            found.references += [inline(entry) for entry in _entries(block.text)]
        elif block.kind == "field":
            after_fields = True
            _file(found, block, inline)
        elif block.kind == "paragraph" and not found.summary:
            found.summary = inline(_joined(block.text))
        elif after_fields:
            found.notes.append(_markdown(block, inline))
        elif block.kind == "paragraph" and (parts := _headed(_joined(block.text))):
            before, named = parts
            if before:
                found.body.append(inline(before))
            for heading, said in named:
                found.sections[heading] = inline(said)
        elif block.kind == "paragraph" and block.text.startswith("Sites"):
            said = _joined(block.text).removeprefix("Sites").lstrip(":, ")
            found.sections["Sites"] = inline(said[:1].upper() + said[1:])
        elif heading and block.kind in ("bullets", "math"):
            found.sections[heading] += "\n\n" + _markdown(block, inline)
        else:
            found.body.append(_markdown(block, inline))
    return found


def _file(found: Docstring, block: _Block, inline: Callable[[str], str]) -> None:
    """Put a field into its place."""
    kind, _, subject = block.name.partition(" ")
    text = "\n\n".join(_markdown(inner, inline) for inner in _blocks(block.text.splitlines()))
    if kind == "param":
        found.arguments[subject] = text
    elif kind in ("ivar", "cvar"):
        found.attributes[subject] = text
    elif kind == "raises":
        found.raises.append((subject, text))
    else:
        found.returns = text


def _blocks(lines: list[str]) -> Iterator[_Block]:
    """Split dedented lines into blocks."""
    at = 0
    while at < len(lines):
        line = lines[at]
        if not line.strip():
            at += 1
            continue
        if line[0] == " ":
            raise MarkupError(f"an indented line that belongs to nothing: {line.strip()!r}")
        inner, after = _indented(lines, at + 1)
        if match := _MATH.match(line):
            yield _Block("math", "\n".join([match[1], *inner]).strip())
            at = after
        elif line.startswith(".. "):
            raise MarkupError(f"the directive {line!r} is not understood; use text, lists or '.. math::'")
        elif match := _FIELD.match(line):
            yield _Block("field", "\n".join([match[3], *inner]).strip(), f"{match[1]} {match[2] or ''}".strip())
            at = after
        elif match := _BULLET.match(line):
            items = []
            while at < len(lines) and (match := _BULLET.match(lines[at])):
                inner, at = _indented(lines, at + 1)
                items.append("\n".join([match[1], *inner]).strip())
            yield _Block("bullets", "\0".join(items))
        elif re.fullmatch(r"[=\-~+| ]{4,}", line):
            raise MarkupError(f"a table or an underlined heading ({line[:20]!r}...) is not understood")
        elif line.startswith("References:"):
            first = line.removeprefix("References:").strip()
            more = list(_until_blank(lines, at + 1)) if first else inner
            yield _Block("references", _joined("\n".join([first, *more])) if first else "\n".join(inner))
            at = at + 1 + len(more) if first else after
        elif re.fullmatch(r"Examples?::?", line):
            yield _Block("example", "\n".join(inner).strip("\n"))
            at = after
        else:
            text = [line, *_until_blank(lines, at + 1)]
            at += len(text)
            if text[-1].endswith("::"):
                inner, at = _indented(lines, at)
                yield _Block("paragraph", "\n".join([*text[:-1], text[-1][:-1]]))
                yield _Block("literal", "\n".join(inner).strip("\n"))
            else:
                yield _Block("paragraph", "\n".join(text))


def _indented(lines: list[str], start: int) -> tuple[list[str], int]:
    """Return the indented lines from ``start``, dedented, and the number of the line after them."""
    end = start
    while end < len(lines) and (not lines[end].strip() or lines[end][0] == " "):
        end += 1
    return textwrap.dedent("\n".join(lines[start:end])).rstrip().splitlines(), end


def _until_blank(lines: list[str], start: int) -> Iterator[str]:
    for line in lines[start:]:
        if not line.strip() or _FIELD.match(line):
            return
        yield line.strip()


def _markdown(block: _Block, inline: Callable[[str], str]) -> str:
    if block.kind == "math":
        return "\n\n".join(f"$$\n{_aligned(part)}\n$$" for part in re.split(r"\n\s*\n", block.text))
    if block.kind == "bullets":
        return "\n".join(f"- {inline(_joined(item))}" for item in block.text.split("\0"))
    if block.kind == "literal":
        return f"```\n{block.text}\n```"
    return inline(_joined(block.text))


def _aligned(formula: str) -> str:
    """Wrap a formula of several lines or columns as Sphinx does."""
    formula = "\n".join(line.strip() for line in formula.splitlines())
    if r"\begin" in formula or not re.search(r"\\\\|&", formula):
        return formula
    return f"\\begin{{aligned}}\n{formula}\n\\end{{aligned}}"


def _joined(text: str) -> str:
    return " ".join(line.strip() for line in text.splitlines()).strip()


def _headed(text: str) -> tuple[str, list[tuple[str, str]]] | None:
    """Split ``**When:** ... **When not:** ...`` into its parts; ``None`` if no such mark is in ``text``."""
    marks = list(_HEADED.finditer(text))
    if not marks:
        return None
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    named = [(_HEADINGS.get(mark[1], mark[1]), text[mark.end() : end].strip()) for mark, end in zip(marks, ends)]
    return text[: marks[0].start()].strip(), [(name, said[:1].upper() + said[1:]) for name, said in named]


def _entries(text: str) -> list[str]:
    """Return references one by one: on lines of their own, each ended by a stop, or parted by semicolons."""
    entries: list[str] = []
    for line in text.splitlines():
        if entries and entries[-1][-1] not in ".?!":
            entries[-1] += f" {line.strip()}"
        elif line.strip():
            entries.append(line.strip())
    return [part.strip() for entry in entries for part in re.split(r";\s+(?=[A-Z])", entry)]


def _inline(text: str, links: Mapping[str, str]) -> str:
    """Turn roles and literals into Markdown."""

    def role(match: re.Match[str]) -> str:
        kind, target = match[1], match[2]
        if kind == "math":
            return f"${target}$"
        shown = target.lstrip("~").rpartition(".")[2] if target.startswith("~") else target
        last = target.lstrip("~").rpartition(".")[2]
        shown = f"`{shown}()`" if kind in ("func", "meth") else f"`{shown}`"
        return f"[{shown}]({links[last]})" if last in links else shown

    kept: list[str] = []

    def keep(match: re.Match[str]) -> str:
        kept.append(match[1])
        return f"\0{len(kept) - 1}\0"

    text = re.sub(r"``(.+?)``", keep, text)
    text = re.sub(r":(math|class|func|meth|mod|attr|data|obj|exc):`([^`]+)`", role, text)
    if match := re.search(r":[a-z]+:`", text):
        raise MarkupError(f"the role {match[0]!r} is not understood")
    return re.sub(r"\0(\d+)\0", lambda match: f"`{kept[int(match[1])]}`", text)


def _code(text: str) -> str:
    """Return a doctest without its prompts; what it prints becomes comments."""
    if ">>>" not in text:
        return text.rstrip()
    lines: list[str] = []
    for line in text.rstrip().splitlines():
        if line.startswith((">>> ", "... ")) or line in (">>>", "..."):
            code = line[4:].rstrip()
            if lines and lines[-1] and _apart(lines[-1], code):
                lines.append("")
            lines.append(code)
        elif line.strip():
            lines.append(f"# {line}")
    return "\n".join(lines)


def _apart(before: str, after: str) -> bool:
    """Whether a blank line belongs between two lines of code: around functions and classes."""
    opens = re.match(r"(@|def |class )", after) and not before.startswith("@")
    closes = before.startswith(" ") and re.match(r"[\w@]", after)
    return bool(opens or closes)
