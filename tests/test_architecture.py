"""The picture in docs/architecture.md: what imports what, and that importing does nothing else."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
import textwrap

import pytest
import torch

import guides
import guides.diagnostics
import zoo
import zoo.datasets
from docs.writer.pages import KINDS, ROOT, documented
from guides.families import Family, LaplaceNormal
from guides.objectives import Compacted
from tests.architecture import LEAF, MODULES, TREES, cycle, folders, graph, hidden, imports, loose, probes, without_inits

ALLOWED = {
    "benchmarks": {"benchmarks", "guides", LEAF, "zoo"},
    "guides": {"guides", LEAF},
    LEAF: set(),
    "zoo": {LEAF, "zoo"},
}


def back_edges(edges: dict[str, set[str]]) -> list[str]:
    return [
        f"{module} imports {target}"
        for module, targets in edges.items()
        for target in sorted(targets)
        if target.split(".")[0] not in ALLOWED[module.split(".")[0]]
    ]


def test_imports_follow_the_layers_even_inside_functions():
    assert not back_edges(graph())


def test_no_files_and_no_folders_import_each_other_in_a_ring():
    assert cycle(without_inits(graph())) is None
    assert cycle(folders(graph())) is None


def test_no_import_is_hidden():
    """Inside functions and for type checkers alone: an arrow that a reader does not see. Those allowed have a reason."""
    assert {f"{m} -> {t}" for m, tree in TREES.items() for t in hidden(tree, m)} == set()


def test_the_compiler_knows_no_pyro():
    """compile/ turns pure functions of tensors into what runs them: it imports neither Pyro nor what stands above it."""
    for module, tree in TREES.items():
        if module.startswith("guides.compile"):
            assert {t for t in imports(tree, module) if not t.startswith("guides.compile")} <= {
                "guides.errors",
                "guides.checkpoint_file",
            }
            named = [
                n.names[0].name if isinstance(n, ast.Import) else n.module or ""
                for n in ast.walk(tree)
                if isinstance(n, ast.Import | ast.ImportFrom)
            ]
            assert not [name for name in named if name.split(".")[0] == "pyro"], module


def test_guides_are_asked_by_the_protocol_alone():
    assert not probes()


def test_the_layout_stays_within_its_limits():
    assert len(loose("guides")) <= 10, loose("guides")
    assert len(loose("benchmarks")) <= 4, loose("benchmarks")


def test_the_walk_sees_what_it_should():
    code = "import zoo.mlp\nfrom guides import fitting\nfrom guides.optimise.loop import train\nimport torch\n"
    assert imports(ast.parse(code), LEAF) == {"zoo.mlp", "guides.fitting", "guides.optimise.loop"}
    assert not hidden(ast.parse(code), LEAF)
    secret = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import zoo\ndef f():\n    import guides\n"
    assert hidden(ast.parse(secret), LEAF) == ["guides", "zoo"]
    assert imports(ast.parse(secret), LEAF) == {"zoo", "guides"}
    inside = "from . import loop\nfrom .. import fitting\n"
    assert imports(ast.parse(inside), "guides.optimise.step") == {"guides.optimise.loop", "guides.fitting"}
    assert back_edges({"zoo.mlp": {"guides.fitting"}}) == ["zoo.mlp imports guides.fitting"]
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    arrows = {"guides.optimise.step": {"guides.program.data"}, "guides.program.data": {"guides.optimise.step"}}
    assert cycle(folders(arrows)) == ["guides.optimise", "guides.program", "guides.optimise"]


def test_importing_does_nothing_else():
    code = """
        import contextlib, io, random, sys, warnings
        import numpy, pyro, torch
        import pyro.distributions as dist
        from pyro.infer.util import is_validation_enabled as infer_validates
        from pyro.poutine.runtime import _PYRO_STACK
        from pyro.settings import get as settings

        def state():
            return {
                "dtype": torch.get_default_dtype(),
                "device": torch.get_default_device(),
                "grad": torch.is_grad_enabled(),
                "threads": torch.get_num_threads(),
                "deterministic": torch.are_deterministic_algorithms_enabled(),
                "printing": repr(torch._tensor_str.PRINT_OPTS),
                "torch seed": torch.get_rng_state().tolist(),
                "numpy seed": str(numpy.random.get_state()),
                "python seed": random.getstate(),
                "pyro settings": {name: str(value) for name, value in settings().items()},
                "pyro checks": (infer_validates(), torch.distributions.Distribution._validate_args),
                "parameters": list(pyro.get_param_store().keys()),
                "handlers": len(_PYRO_STACK),
                "filters": list(warnings.filters),
                "show": warnings.showwarning,
            }

        before = state()
        out, err = io.StringIO(), io.StringIO()
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                import zoo, guides
        after = state()
        assert before == after, [key for key in before if before[key] != after[key]]
        assert not out.getvalue() and not err.getvalue(), (out.getvalue(), err.getvalue())
        ours = [w for w in warned if any(f"/{name}" in w.filename for name in ("zoo", "guides", "_posterior_zoo_registry"))]
        meek = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)
        loud = [w for w in warned if not issubclass(w.category, meek)]
        assert not ours and not loud, [str(w) for w in (*ours, *loud)]
        heavy = ("arviz", "matplotlib", "sklearn", "scipy.stats", "nutpie", "benchmarks")
        late = [name for name in heavy if name in sys.modules]
        assert not late, f"loaded at import: {late}"
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not done.stdout


def rank(name: str) -> tuple[int, str]:
    """Order names as ruff sorts ``__all__``: constants, classes, then functions."""
    group = 0 if name.isupper() and len(name) > 1 else 1 if name[:1].isupper() else 2
    return group, name


def only_says_what_it_is(name: str) -> bool:
    """Tell whether a module is a docstring and nothing else."""
    return len(ast.parse(MODULES[name].read_text(encoding="utf-8")).body) == 1


@pytest.mark.parametrize("name", [n for n in MODULES if not (n.endswith("__main__") or only_says_what_it_is(n))])
def test_every_module_lists_its_public_names_in_order(name):
    module = importlib.import_module(name)
    names = module.__all__
    assert list(names) == sorted(set(names), key=rank)
    assert [each for each in names if not hasattr(module, each)] == []


PUBLIC = {
    "models": zoo,
    # packages, which registries of these names hide in `guides`
    "guides": importlib.import_module("guides.families"),
    "samplers": importlib.import_module("guides.samplers"),
    "solvers": importlib.import_module("guides.solvers"),
    "objectives": importlib.import_module("guides.objectives"),
    "diagnostics": guides.diagnostics,
    "datasets": zoo.datasets,
}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.folder)
def test_what_is_registered_is_public_and_has_a_page(kind):
    package = PUBLIC[kind.folder]
    public = {id(getattr(package, name)) for name in package.__all__}
    for name, entry in documented(kind).items():
        assert id(entry) in public, f"{name} is registered but not in {package.__name__}.__all__"
        assert (ROOT / "docs" / kind.folder / f"{name}.md").exists(), f"{name} has no page; run: python -m docs.writer"


def test_what_is_public_is_registered():
    """No model, guide or objective is exported and forgotten in the registry."""
    bases = {Family, guides.FlatFamily, LaplaceNormal, guides.Objective, Compacted}  # the last one wraps another objective
    exported = [getattr(package, name) for package in (zoo, *PUBLIC.values()) for name in package.__all__]
    classes = {entry for entry in exported if isinstance(entry, type)} - bases
    assert {c for c in classes if issubclass(c, Family)} == set(documented_of("guides"))
    assert {c for c in classes if issubclass(c, guides.Objective)} == set(documented_of("objectives"))
    models = {c for c in classes if issubclass(c, torch.nn.Module) and c.__module__.startswith("zoo.")}
    assert models == set(documented_of("models"))


def documented_of(folder: str) -> list[type]:
    return list(next(documented(kind) for kind in KINDS if kind.folder == folder).values())
