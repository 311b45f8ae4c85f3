"""Which models run compiled, and why the others do not: ``python -m benchmarks compiled``."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

import guides
import zoo
from benchmarks.reporting.tables import markdown_table
from benchmarks.running import provenance
from benchmarks.running.store import write_atomically
from benchmarks.speed.pyro_models import MODELS, Example

__all__ = ["GUIDES", "block", "examples", "publish", "table", "try_all", "try_one"]

GUIDES = ("natural", "mean_field", "full_rank", "laplace")
"""What every model is fitted with unless told otherwise; ``natural`` is the guide that a model of the zoo names."""
STEPS = 8
"""Enough for the graph to be traced and checked and the loop to be compiled and checked."""
FILE = Path("docs/results/compiled.json")
REFUSALS = (
    guides.errors.DataError,
    guides.errors.OptionError,
    guides.errors.GuideMismatchError,
    guides.errors.DiscreteLatentError,
    guides.errors.UnsupportedModelError,
)
Record = dict[str, str]


def examples() -> dict[str, Callable[[], Example]]:
    """Return every registered model's example, then the small models in the manner of Pyro's."""
    registered = {f"`{name}`": model.example for name, model in zoo.models.items() if hasattr(model, "example")}
    return {**registered, **MODELS}


def try_one(name: str, example: Callable[[], Example], guide: str, compile: str = "native") -> Record | None:
    """Fit a few steps and say how they ran.

    :param guide: a registry name, or ``"natural"``.
    :returns: ``model``, ``guide``, ``runs`` (``"compiled"``, ``"traced"``, ``"eager"`` or ``"refused"``) and ``why``; or
        ``None`` where the model names no natural guide.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, data = example()
    natural = getattr(model, "natural_guide", None)
    if guide == "natural" and natural is None:
        return None
    found = {"model": name, "guide": natural[0] if natural and guide == "natural" else guide}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            chosen = None if guide == "natural" else guide
            guides.fit(model, chosen, *data, steps=STEPS, compile=compile, progress=False)
        except REFUSALS as error:
            return {**found, "runs": "refused", "why": str(error).splitlines()[0]}
    said = [str(w.message) for w in caught if issubclass(w.category, guides.errors.EagerFallbackWarning)]
    eager = [text for text in said if "without acceleration" in text]
    runs = "eager" if eager else "traced" if said else "compiled"
    return {**found, "runs": runs, "why": (eager or said or [": "])[0].partition(": ")[2].splitlines()[0] if said else ""}


def try_all(names: Sequence[str] = GUIDES, compile: str = "native") -> Iterator[Record]:
    """Yield a record of every model with every guide; the same guide is not tried twice on a model."""
    for name, example in examples().items():
        tried: set[str] = set()
        for guide in names:
            record = try_one(name, example, guide, compile) if guide not in tried else None
            if record is not None and record["guide"] not in tried:
                tried.add(record["guide"])
                yield record


def publish(records: Sequence[Record], command: str, root: Path) -> Path:
    """Write the records, with what they were made by, to ``docs/results/compiled.json``."""
    found = {"command": command, "versions": provenance.versions(), **provenance.commit(), "fits": list(records)}
    path = root / FILE
    write_atomically(path, lambda where: where.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8"))
    return path


def block(root: Path) -> dict[str, str]:
    """Return the block of ``docs/performance.md`` that says which models run compiled.

    :param root: the checkout.
    """
    path = root / FILE
    if not path.exists():
        return {"compiled": "Not published yet: `python -m benchmarks compiled --publish` does."}
    found = json.loads(path.read_text(encoding="utf-8"))
    remark = f" ({found['remark']})" if "remark" in found else ""
    return {
        "compiled": table(found["fits"])
        + f"\n\nMade by `{found['command']}`{remark}. Everything: [`{FILE.name}`](results/{FILE.name})."
    }


def table(records: Sequence[Record]) -> str:
    """Return the share that runs compiled, and one row per model."""
    counts = Counter(record["runs"] for record in records)
    fitted = sum(counts.values()) - counts["refused"]
    models = list(dict.fromkeys(record["model"] for record in records))
    rows, whole = [], 0
    for model in models:
        mine = [r for r in records if r["model"] == model and r["runs"] != "refused"]
        whole += bool(mine) and all(r["runs"] == "compiled" for r in mine)
        ways = [f"{way}: " + ", ".join(f"`{r['guide']}`" for r in mine if r["runs"] == way) for way in _WAYS]
        why = dict.fromkeys(r["why"] for r in mine if r["why"])
        rows.append((model, "; ".join(w for w in ways if not w.endswith(": ")), "; ".join(why)))
    percent = 100 * counts["compiled"] / max(fitted, 1)
    share = (
        f"Of {fitted} fits of {len(models)} models {counts['compiled']} run compiled ({percent:.0f} %), "
        f"{counts['traced']} traced, {counts['eager']} eagerly; {whole} models with every guide that takes them. "
        f"{counts['refused']} pairs were refused before any work, since the guide is not made for such a model."
    )
    return share + "\n\n" + markdown_table(("model", "runs with", "why not compiled"), rows)


_WAYS = ("compiled", "traced", "eager")
