"""The pages and tables that are written from docstrings, registries and result files: ``python -m docs.writer``."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

import guides
import guides.diagnostics
import guides.information
import guides.predictive
import zoo
import zoo.datasets
from benchmarks.reporting.tables import markdown_table
from benchmarks.running.store import write_atomically
from benchmarks.speed import compiled
from benchmarks.speed import report as speed
from docs.writer import readme
from docs.writer.docstrings import Docstring, parse
from guides.calibration import Calibration
from guides.comparison import Comparison
from guides.conjugate.structure import ConjugatePosterior, ConjugateStructure
from guides.density.density import LogDensity
from guides.diagnostics import Diagnosis
from guides.evidence.gaps import InferenceGap
from guides.evidence.marginal import LogMarginal
from guides.families import Family
from guides.fitted.draws import Draws
from guides.fitted.sites import Site
from guides.program.objective import Estimate
from guides.samplers import Sampled

__all__ = ["KINDS", "ROOT", "Kind", "api_names", "blocks", "documented", "fill", "generate", "preamble", "stale", "write"]

ROOT = Path(__file__).resolve().parents[2]
MARK = "<!-- Written by `python -m docs.writer`"
PACKAGES = (
    guides,
    guides.diagnostics,
    guides.information,
    guides.predictive,
    # registries stand under these names in `guides`
    *(import_module(f"guides.{name}") for name in ("families", "objectives", "samplers")),
    zoo,
    zoo.datasets,
    zoo.networks,
    zoo.pixels,
)
API = (
    ("Fit and compare", (guides.fit, guides.fit_many, guides.compare, Comparison)),
    ("The result of a fit", (guides.Posterior, guides.to_arviz, Draws, Site)),
    ("The model as one function, and chains", (guides.log_density, LogDensity, Sampled, guides.reference)),
    ("Closed-form coordinate ascent", (guides.cavi, ConjugatePosterior, ConjugateStructure)),
    ("Can it be trusted?", (guides.diagnose, Diagnosis, guides.calibrate, Calibration)),
    (
        "Marginal likelihoods and gaps",
        (guides.log_marginal, LogMarginal, guides.inference_gap, InferenceGap),
    ),
    (
        "Scores of predictions",
        tuple(getattr(guides.predictive, name) for name in guides.predictive.__all__ if name != "LEVELS"),
    ),
    ("Information", tuple(getattr(guides.information, name) for name in guides.information.__all__)),
    ("For authors of guides and objectives", (Family, guides.FlatFamily, guides.Objective, Estimate)),
    ("Models and data", (zoo.bayesianize, zoo.Likelihood, zoo.datasets.Dataset, zoo.datasets.Split)),
    (
        "Networks for images",
        (zoo.networks.mlp, zoo.networks.convolutional, zoo.networks.GaussianNetwork, zoo.networks.JointNetwork),
    ),
    (
        "Likelihoods of images",
        (
            zoo.pixels.BernoulliPixels,
            zoo.pixels.CategoricalPixels,
            zoo.pixels.DiscretizedLogisticPixels,
            zoo.pixels.GaussianPixels,
        ),
    ),
    (
        "Images to complete",
        (zoo.datasets.quadrants, zoo.datasets.middle_columns, zoo.datasets.Completion, zoo.datasets.binarize_pixels),
    ),
)


@dataclass(frozen=True)
class Kind:
    """One kind of registered thing, with a page for each entry.

    :param folder: where its pages are, below ``docs``; also what ``python -m benchmarks list`` calls it.
    :param title: heading of the index.
    :param intro: what stands above the table of the index.
    :param entries: the registry.
    :param columns: what tables say of each entry: ``"what"`` and headings of its docstring.
    """

    folder: str
    title: str
    intro: str
    entries: Callable[[], Mapping[str, Any]]
    columns: tuple[str, ...] = ("what",)


KINDS: tuple[Kind, ...] = (
    Kind(
        "models",
        "Models",
        "Plain Pyro models, called `model(x, y=None)`. They run under stock `SVI`, `NUTS` and `Predictive` and need "
        "nothing of `guides`.",
        lambda: zoo.models,
    ),
    Kind(
        "guides",
        "Guides",
        "Approximate posteriors for any Pyro model with continuous latents. `guides.fit(model, NAME, *data)` fits one; as "
        "`guides.Class(model, **options)` each is a Pyro guide that stock `pyro.infer.SVI` takes.",
        lambda: guides.families,
        ("what", "When to use"),
    ),
    Kind(
        "samplers",
        "Samplers",
        "Exact draws beside the guides: `guides.fit(model, NAME, *data, draws=1000)` has the methods of a fitted guide. "
        "[What they are good for](../samplers.md).",
        lambda: guides.samplers,
        ("what", "When to use"),
    ),
    Kind(
        "solvers",
        "Solvers",
        "Normal approximations that stop by themselves, with no learning rate and no number of steps: "
        "`guides.fit(model, NAME, *data)`. They stand on the model's [log density](../samplers.md), in float64 on the CPU.",
        lambda: guides.solvers,
        ("what", "When to use"),
    ),
    Kind(
        "objectives",
        "Objectives",
        "What a fit maximises: `guides.fit(..., objective=NAME)`. Each is a `pyro.infer.ELBO` that stock SVI takes.",
        lambda: guides.objectives,
    ),
    Kind(
        "diagnostics",
        "Diagnostics",
        "What `guides.diagnose(posterior)` runs. [Which of them to trust, and when](../diagnostics.md).",
        lambda: guides.diagnostics.diagnostics_registry,
    ),
    Kind(
        "datasets",
        "Data sets",
        "Loaders in `zoo.datasets.registry`. Files are searched in the folder that `ZOO_DATA` names, then in the cache, "
        "then downloaded and checked; scikit-learn's sets and the toy curves need neither file nor network.",
        lambda: zoo.datasets.registry,
    ),
)


def documented(kind: Kind) -> dict[str, Any]:
    """Return the entries of a kind that this project defines; other packages document their own."""
    return {name: entry for name, entry in kind.entries().items() if entry.__module__.split(".")[0] in ("guides", "zoo")}


def api_names() -> dict[str, Any]:
    """Return what ``docs/api.md`` describes, by the name that users import."""
    return {_public(entry): entry for _, entries in API for entry in entries}


def generate(root: Path = ROOT) -> dict[Path, str]:
    """Return every written file and its text: pages, indices, and README and performance page with their blocks filled.

    :param root: the checkout.
    :raises FileNotFoundError: if ``root`` has no README.
    :raises MarkupError: if a docstring cannot be turned into Markdown.
    """
    files: dict[Path, str] = {}
    for kind in KINDS:
        folder = root / "docs" / kind.folder
        for name, entry in documented(kind).items():
            files[folder / f"{name}.md"] = _page(kind, name, entry)
        files[folder / "README.md"] = _index(kind)
    files[root / "docs" / "api.md"] = _api()
    readme = root / "README.md"
    if not readme.exists():
        raise FileNotFoundError(
            f"{readme} is not there: documentation is written in a checkout, not in an installed package"
        )
    files[readme] = fill(readme.read_text(encoding="utf-8"), blocks(root))
    for page in ("commands.md", "results.md"):
        if (root / "docs" / page).exists():
            files[root / "docs" / page] = fill((root / "docs" / page).read_text(encoding="utf-8"), blocks(root))
    performance = root / "docs" / "performance.md"
    if performance.exists():
        filled = {**speed.blocks(root), **compiled.block(root)}
        files[performance] = fill(performance.read_text(encoding="utf-8"), filled)
    scoreboard = root / "docs" / "scoreboard.md"
    if scoreboard.exists():
        filled = _published(root, scoreboard.name)
        files[scoreboard] = fill(scoreboard.read_text(encoding="utf-8"), filled)
    return files


def _published(root: Path, page: str) -> dict[str, str]:
    return readme.sections(root / "docs" / "results", page)


def write(root: Path = ROOT) -> list[Path]:
    """Write what changed, remove pages of things that are gone, and return those paths."""
    files = generate(root)
    changed = [path for path, text in files.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in changed:
        write_atomically(path, partial(Path.write_text, data=files[path], encoding="utf-8"))
    orphans = _orphans(root, files)
    for path in orphans:
        path.unlink()
    return changed + orphans


def stale(root: Path = ROOT) -> list[Path]:
    """Return the files that :func:`write` would change, without changing them."""
    files = generate(root)
    changed = [path for path, text in files.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    return changed + _orphans(root, files)


def _orphans(root: Path, files: Mapping[Path, str]) -> list[Path]:
    written = (path for kind in KINDS for path in sorted((root / "docs" / kind.folder).glob("*.md")))
    return [path for path in written if path not in files and path.read_text(encoding="utf-8").startswith(MARK)]


def fill(text: str, contents: Mapping[str, str]) -> str:
    """Replace what stands between ``<!-- begin:NAME -->`` and ``<!-- end:NAME -->``.

    :param text: Markdown with marks.
    :param contents: text by NAME.
    :raises ValueError: for a mark without its partner or with a name that ``contents`` lacks.

    Example::

        >>> print(fill("<!-- begin:a -->old<!-- end:a -->", {"a": "new"}))
        <!-- begin:a -->
        new
        <!-- end:a -->
    """
    begins, ends = re.findall(r"<!-- begin:([\w-]+) -->", text), re.findall(r"<!-- end:([\w-]+) -->", text)
    if begins != ends:
        raise ValueError(f"marks do not pair: begin {begins}, end {ends}")
    unknown = [name for name in begins if name not in contents]
    if unknown:
        raise ValueError(f"nothing to fill the block {unknown[0]!r} with; there are {', '.join(contents)}")

    def replace(match: re.Match[str]) -> str:
        return f"<!-- begin:{match[1]} -->\n{contents[match[1]]}\n<!-- end:{match[1]} -->"

    return re.sub(r"<!-- begin:([\w-]+) -->.*?<!-- end:\1 -->", replace, text, flags=re.DOTALL)


# -- pages -------------------------------------------------------------------------------------------------------------


def _public(entry: Any) -> str:
    """Return the dotted name under which users import ``entry``."""
    for package in PACKAGES:
        for name in package.__all__:
            if getattr(package, name) is entry:
                return f"{package.__name__}.{name}"
    return f"{entry.__module__}.{entry.__qualname__}"


def _links(folder: str) -> dict[str, str]:
    """Return where the names of registered things lead, seen from a page in ``docs/folder``."""
    targets = {}
    for kind in KINDS:
        for name, entry in documented(kind).items():
            place = f"{name}.md" if kind.folder == folder else f"../{kind.folder}/{name}.md"
            targets[entry.__name__] = place.removeprefix("../") if not folder else place
    return targets


def _page(kind: Kind, name: str, entry: Any) -> str:
    links = {key: target for key, target in _links(kind.folder).items() if key != entry.__name__}
    described = parse(entry, links)
    origin = Path(inspect.getfile(entry)).resolve()
    source = origin.relative_to(ROOT).as_posix()
    parts = [
        f"{MARK} from the docstring of {_public(entry)}; change it there. -->",
        f"# `{name}`",
        described.summary,
        _facts(kind, name, entry, source),
    ]
    if described.has_mathematics:
        parts.append("## Mathematics")
    parts += described.body
    parts += [text for heading, said in described.sections.items() for text in (f"## {heading}", said)]
    if described.arguments:
        parts += ["## Arguments", f"```python\n{_signature(entry)}\n```", _arguments(entry, described)]
    parts += _ending(described, entry, "##")
    return "\n\n".join(parts) + "\n"


def _facts(kind: Kind, name: str, entry: Any, source: str) -> str:
    facts = [f"`{_public(entry)}`", f"[`{source}`](../../{source})"]
    if kind.folder == "models":
        guide, options = (entry.example()[0] if isinstance(entry.natural_guide, property) else entry).natural_guide
        shown = {k: type(v).__name__ if isinstance(v, nn.Module) else v for k, v in options.items()}
        given = f" with `{shown}`" if shown else ""
        facts.append(f"fitted by [`{guide}`](../guides/{guide}.md){given} if no guide is named")
    if kind.folder == "objectives":
        facts.append(f"bounds the {entry.bounds}")
    return " · ".join(facts)


def _ending(described: Docstring, entry: Any, level: str) -> list[str]:
    """Return what stands below the arguments."""
    parts = []
    if described.returns:
        parts += [f"{level} Returns", described.returns[:1].upper() + described.returns[1:]]
    if described.raises:
        parts += [f"{level} Raises", "\n".join(f"- {_classes(names)}: {said}" for names, said in described.raises)]
    if described.notes:
        parts += [f"{level} Notes", *described.notes]
    if described.examples:
        parts += [
            f"{level} Example",
            *(f"```python\n{preamble(each.code, entry)}{each.code}\n```" for each in described.examples),
        ]
    if described.references:
        parts += [f"{level} References", "\n".join(f"- {each.rstrip('.')}" for each in described.references)]
    return parts


def preamble(code: str, entry: Any) -> str:
    """Return the imports that an example needs and its docstring's own module makes unnecessary, a line each."""
    package, _, name = _public(entry).rpartition(".")
    code = "\n".join(line for line in code.splitlines() if not line.startswith("# "))
    lines = ["import torch"] if "torch." in code and not re.search(r"import .*\btorch\b", code) else []
    if re.search(rf"(?<![\w.]){name}\b", code) and not re.search(rf"import .*\b{name}\b", code):
        lines.append(f"from {package} import {name}")
    return "".join(f"{line}\n" for line in lines)


def _classes(names: str) -> str:
    return ", ".join(f"`{name.strip()}`" for name in names.split(","))


def _signature(entry: Any) -> str:
    """Return the call with its defaults, on one line if it fits."""
    shown: list[str] = []
    for parameter in inspect.signature(entry).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not any(part.startswith("*") for part in shown):
            shown.append("*")
        default = "" if parameter.default is parameter.empty else f"={_default(parameter.default)}"
        shown.append(f"{_stars(parameter)}{parameter.name}{default}")
    name = _public(entry)
    line = f"{name}({', '.join(shown)})"
    return line if len(line) <= 100 else f"{name}(\n" + "".join(f"    {part},\n" for part in shown) + ")"


def _default(value: Any) -> str:
    if isinstance(value, str):
        return json.dumps(value)
    return value.__name__ if callable(value) and hasattr(value, "__name__") else repr(value)


def _arguments(entry: Any, described: Docstring) -> str:
    """Return one item per argument: name, type, what it is."""
    annotations = {p.name: p.annotation for p in inspect.signature(entry).parameters.values()}
    items = []
    for name, said in described.arguments.items():
        kind = annotations.get(name, inspect.Parameter.empty)
        text = "" if kind is inspect.Parameter.empty else f" (`{kind if isinstance(kind, str) else kind.__name__}`)"
        items.append(re.sub(r"\n(?=.)", "\n  ", f"- **`{name}`**{text}: {said}"))
    return "\n".join(items)


def _index(kind: Kind) -> str:
    head = f"{MARK} from the registry of {kind.folder}. -->"
    return "\n\n".join([head, f"# {kind.title}", kind.intro, _table_of(kind, "")]) + "\n"


def _table_of(kind: Kind, prefix: str) -> str:
    """Return a table of the registered things of one kind, linked to their pages.

    :param prefix: the way from the page to the folder of the kind.
    """
    rows = []
    for name, entry in documented(kind).items():
        described = parse(entry)
        cells = [described.summary if each == "what" else described.sections.get(each, "") for each in kind.columns]
        rows.append([f"[`{name}`]({prefix}{name}.md)", *cells])
    return markdown_table([kind.title.lower().rstrip("s"), *(each.lower() for each in kind.columns)], rows)


def _api() -> str:
    """Return the page that Sphinx makes the reference from: names by heading, each with a page from its docstring."""
    parts = [
        f"{MARK} from the list in docs/writer/pages.py; `make docs` makes a page of each. -->",
        "# Functions and classes",
        "What is registered by name has a page of its own: "
        + ", ".join(f"[{kind.title.lower()}]({kind.folder}/README.md)" for kind in KINDS)
        + ".",
    ]
    for heading, entries in API:
        names = "\n".join(f"   {_public(entry)}" for entry in entries)
        listed = f".. autosummary::\n   :toctree: reference\n   :nosignatures:\n\n{names}"
        parts += [f"## {heading}", f"```{{eval-rst}}\n{listed}\n```"]
    return "\n\n".join(parts) + "\n"


def _stars(parameter: inspect.Parameter) -> str:
    if parameter.kind is parameter.VAR_POSITIONAL:
        return "*"
    return "**" if parameter.kind is parameter.VAR_KEYWORD else ""


# -- blocks of the README and of pages that it used to be ---------------------------------------------------------------


def blocks(root: Path = ROOT) -> dict[str, str]:
    """Return the text of every block that the README, the page of commands and that of results may mark, by name."""
    folder = root / "docs" / "results"
    return {
        "counts": _counts(),
        "commands": readme.commands(),
        "headlines": readme.headlines(folder),
        "pictures": readme.pictures(root),
        "results": readme.results(folder),
    }


def _counts() -> str:
    """Return a table of the kinds of registered things: how many there are, and a few of them."""
    rows = []
    for kind in KINDS:
        names = list(documented(kind))
        shown = ", ".join(f"[`{name}`](docs/{kind.folder}/{name}.md)" for name in names[:: max(1, len(names) // 5)][:5])
        rows.append((f"[{kind.title.lower()}](docs/{kind.folder}/README.md)", str(len(names)), shown))
    return markdown_table(("what", "how many", "some of them"), rows)
