"""Tables and panels, as text for a prompt and as HTML for a notebook."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Table", "panel"]

_COLOURS = {"good": "#1a7f37", "corrected": "#0969da", "usable": "#9a6700", "unreliable": "#cf222e", "failed": "#cf222e"}


@dataclass(frozen=True)
class Table:
    """Rows below a head; ``left`` says how many of the first columns are words, which stand to the left.

    Example::

        >>> print(Table(("site", "mean"), (("rate", "0.79"), ("spread", "12.3"))).text())
        site    mean
        rate    0.79
        spread  12.3
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1

    def text(self) -> str:
        """Return columns padded to one width."""
        lines = [row for row in (self.head, *self.rows) if any(row)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.head))]
        padded = (
            "  ".join(c.ljust(w) if i < self.left else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths)))
            for line in lines
        )
        return "\n".join(line.rstrip() for line in padded)

    def html(self) -> str:
        """Return a table in the style that notebooks give to those of pandas; words that are verdicts have a colour."""
        head = "".join(self._cell("th", text, i) for i, text in enumerate(self.head))
        body = "".join(f"<tr>{''.join(self._cell('td', c, i) for i, c in enumerate(row))}</tr>" for row in self.rows)
        top = f"<thead><tr>{head}</tr></thead>" if any(self.head) else ""
        return f'<table class="dataframe">{top}<tbody>{body}</tbody></table>'

    def _cell(self, tag: str, text: str, column: int) -> str:
        colour = f"; color: {_COLOURS[text]}; font-weight: bold" if text in _COLOURS else ""
        return f'<{tag} style="text-align: {"left" if column < self.left else "right"}{colour}">{escape(text)}</{tag}>'


def panel(title: str, verdict: str = "", paragraphs: Iterable[str] = (), tables: Iterable[Table] = ()) -> str:
    """Return a heading, perhaps with a verdict, paragraphs and tables as HTML.

    Example::

        >>> panel("Four guides", paragraphs=["k-hat < 0.7"])
        '<div><strong>Four guides</strong><p>k-hat &lt; 0.7</p></div>'
    """
    colour = _COLOURS.get(verdict.lower(), "inherit")
    said = f' <span style="color: {colour}; font-weight: bold">{escape(verdict.upper())}</span>' if verdict else ""
    text = "".join(f"<p>{escape(paragraph)}</p>" for paragraph in paragraphs)
    return f"<div><strong>{escape(title)}</strong>{said}{text}{''.join(table.html() for table in tables)}</div>"
