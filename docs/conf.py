"""The site: ``make docs`` builds it, ``make docs-serve`` shows it."""

from __future__ import annotations

import os
import re
import sys
import warnings
from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))

from _posterior_zoo_registry import __version__  # noqa: E402

warnings.filterwarnings("ignore", category=DeprecationWarning)

project = "Pyro posterior zoo"
author = "the maintainers"
copyright = "the maintainers"
version = release = __version__
REPOSITORY = "https://github.com/pyro-posterior-zoo/pyro-posterior-zoo"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary"]
root_doc = "index"
exclude_patterns = ["README.md", "writer", "results", "_build"]
templates_path = ["_templates"]

myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
suppress_warnings = ["misc.highlighting_failure", "myst.header"]
nb_execution_mode = os.environ.get("DOCS_EXECUTION", "force")  # "cache" runs a tutorial again only when its text changed
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_execution_in_temp = True
nb_merge_streams = True
nb_mime_priority_overrides = [("html", "text/html", 5), ("html", "image/png", 6)]

autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_default_options = {"members": True, "show-inheritance": True}
autosummary_generate = True
autosummary_ignore_module_all = False
python_use_unqualified_type_names = True
add_module_names = False

html_theme = "pydata_sphinx_theme"
html_title = f"Pyro posterior zoo {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sourcelink = False
html_theme_options: dict[str, Any] = {
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "header_links_before_dropdown": 6,
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
    "pygments_light_style": "tango",
}

COPIED = {"contributing": "CONTRIBUTING.md", "changelog": "CHANGELOG.md"}
LINK = re.compile(r"(?<=\]\()(?!https?:|#|mailto:)([^)\s#]+)(#[^)\s]*)?(?=\))")


def towards(folder: Path, text: str, place: Path | None = None) -> str:
    """Return Markdown whose links to files that are no pages of the site lead to the repository.

    :param folder: where the links start.
    :param place: where the text is going to stand, if that is elsewhere.
    """

    def replaced(match: re.Match[str]) -> str:
        target = (folder / match[1]).resolve()
        page = target.suffix in (".md", ".png") and target.is_relative_to(HERE) and target != HERE / "README.md"
        if page:
            return match[0] if place is None else _way(place, target) + (match[2] or "")
        names = {ROOT / file: HERE / "project" / f"{name}.md" for name, file in COPIED.items()}
        if target in names:
            return _way(place or folder, names[target])
        if target in (ROOT / "README.md", HERE / "README.md"):
            return _way(place or folder, HERE / "index.md")
        kind = "tree" if target.is_dir() else "blob"
        return f"{REPOSITORY}/{kind}/main/{target.relative_to(ROOT).as_posix()}{match[2] or ''}"

    parts = re.split(r"(^```.*?^```)", text, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if part.startswith("```") else LINK.sub(replaced, part) for part in parts)


def _way(start: Path, target: Path) -> str:
    """Return the relative path from a folder to a file."""
    ups = 0
    while not target.is_relative_to(start):
        start, ups = start.parent, ups + 1
    return "../" * ups + target.relative_to(start).as_posix()


def read(app: Sphinx, name: str, source: list[str]) -> None:
    """Lead links of a page to where they mean."""
    source[0] = towards(Path(app.env.doc2path(name)).parent, source[0])
    if name.endswith("/README"):  # the pages of a kind stand below its table
        source[0] += "\n```{toctree}\n:hidden:\n:glob:\n\n*\n```\n"


def copy_pages(app: Sphinx) -> None:
    """Bring pages of the repository's root into the site."""
    folder = HERE / "project"
    folder.mkdir(exist_ok=True)
    for name, file in COPIED.items():
        text = towards(ROOT, (ROOT / file).read_text(encoding="utf-8"), folder)
        page = folder / f"{name}.md"
        if not page.exists() or page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8")


def inline_math(translator: HTML5Translator, node: nodes.math) -> None:
    """Write a formula in a line as MathML, which browsers show without a script and without a network."""
    translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def block_math(translator: HTML5Translator, node: nodes.math_block) -> None:
    """Write displayed formulas; blank lines part them, and aligned rows stand in one."""
    for formula in re.split(r"\n\s*\n", node.astext().strip()):
        rows = rf"\begin{{aligned}}{formula}\end{{aligned}}" if r"\\" in formula and r"\begin" not in formula else formula
        translator.body.append(f'<div class="formula">{convert(rows, display="block")}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Hook in."""
    app.add_html_math_renderer("mathml", (inline_math, None), (block_math, None))
    app.connect("builder-inited", copy_pages, priority=100)
    app.connect("source-read", read)
