"""Plug-ins, entry points of other packages, that are broken."""

from __future__ import annotations

import importlib
import sys
import threading
import warnings
from pathlib import Path

import _posterior_zoo_registry as registry
import guides
import zoo
from benchmarks.protocol.task import SUITES, TASKS
from guides.diagnostics import diagnostics_registry

from .fits import fit
from .harness import fault

ALONE = "reported by name, all else works at every look-up"
REGISTRIES = {
    "guides.families": guides.families,
    "guides.objectives": guides.objectives,
    "guides.diagnostics": diagnostics_registry,
    "zoo.models": zoo.models,
    "zoo.datasets": zoo.datasets.registry,
    "benchmarks.tasks": TASKS,
    "benchmarks.suites": SUITES,
}


def install(folder: Path, code: str, points: str, group: str = "guides.families") -> None:
    """Put a package with a module ``odd`` and a good one with ``fine`` on the path, and let registries look again."""
    package = folder / "packages"
    (package / "odd-1.0.dist-info").mkdir(parents=True)
    (package / "odd.py").write_text(code)
    (package / "odd-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: odd\nVersion: 1.0\n")
    (package / "odd-1.0.dist-info" / "entry_points.txt").write_text(points)
    (package / "zfine-1.0.dist-info").mkdir()
    (package / "zfine.py").write_text("from guides.families import MeanField\nclass Fine(MeanField):\n    'Fine.'\n")
    (package / "zfine-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: zfine\nVersion: 1.0\n")
    (package / "zfine-1.0.dist-info" / "entry_points.txt").write_text(f"[{group}]\nzfine = zfine:Fine\n")
    sys.path.insert(0, str(package))
    importlib.invalidate_caches()
    for each in REGISTRIES.values():
        each._entry_points_loaded = False


BROKEN: dict[str, tuple[str, str, str]] = {
    "that raises at import": ("raise ValueError('no licence')", "odd:Guide", "no licence"),
    "that lacks its attribute": ("", "odd:Guide", "Guide"),
    "that calls sys.exit": ("import sys\nsys.exit('bye')", "odd:Guide", "bye"),
    "of a module that is not there": ("", "not_there.at_all:Guide", "not_there"),
    "whose module does not parse": ("def broken(:", "odd:Guide", "SyntaxError"),
    "whose own registration fails": (
        "import guides\n@guides.families.register('mean_field')\nclass Guide: ...",
        "odd:Guide",
        "is taken by",
    ),
    "that names no attribute rightly": ("class A: ...", "odd:A.b.c", "has no attribute"),
}
for _what, (_code, _value, _said) in BROKEN.items():

    @fault("plug-ins", f"one {_what}", ALONE, _code, _value, _said, quick=_what == "that calls sys.exit")
    def _broken(folder: Path, code: str, value: str, said: str) -> None:
        install(folder, code, f"[guides.families]\nodd = {value}\nodd2 = {value}\n")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert "mean_field" in list(guides.families)
        messages = [str(w.message) for w in caught if w.category is registry.PluginWarning]
        assert len(messages) == 2, messages
        assert all("'odd" in m and said in m for m in messages), messages
        for _ in range(2):
            assert "zfine" in guides.families
            assert "odd" not in guides.families
            fit(guide="mean_field", steps=2, compile="eager")
            fit(guide="zfine", steps=2, compile="eager")
        try:
            guides.families["odd"]
        except registry.UnknownNameError as error:
            assert said in str(error), error
        else:
            raise AssertionError("the broken one is there")


for _group, _each in REGISTRIES.items():

    @fault("plug-ins", f"one among {_group} that raises", ALONE, _group, _each)
    def _everywhere(folder: Path, group: str, each: registry.Registry) -> None:
        install(folder, "raise RuntimeError('broken')", f"[{group}]\nodd = odd:Guide\n", group)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            names = list(each)
        assert [w.category for w in caught] == [registry.PluginWarning], [str(w.message) for w in caught]
        assert "zfine" in names
        assert len(names) > 1
        assert list(each) == names
        assert len(each) == len(names)


@fault("plug-ins", "a package whose list of entry points cannot be read", ALONE)
def _unreadable(folder: Path) -> None:
    install(folder, "", "[guides.families]\nthis is no entry point\n")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        names = list(guides.families)
    assert "zfine" in names and "mean_field" in names
    assert not caught or "'odd'" in str(caught[0].message), caught[0].message


@fault("plug-ins", "one that looks guides up while it is loaded", "both work")
def _reentrant(folder: Path) -> None:
    code = "import guides\nfrom guides.families import MeanField\nnames = list(guides.families)\nclass Guide(MeanField): ..."
    install(folder, code, "[guides.families]\nodd = odd:Guide\n")
    assert "odd" in list(guides.families)


@fault("plug-ins", "a broken one looked up by eight threads at once", "all find everything else")
def _threads(folder: Path) -> None:
    warnings.simplefilter("ignore", registry.PluginWarning)
    install(folder, "import time\ntime.sleep(0.3)\nraise ValueError", "[guides.families]\nodd = odd:Guide\n")
    found: list[bool] = []
    threads = [threading.Thread(target=lambda: found.append("zfine" in guides.families)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 8
