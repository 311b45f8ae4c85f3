"""The layout, measured: ``python -m tests.architecture`` prints what CONTRIBUTING's limits are about.

Every import counts, also those inside functions and under ``TYPE_CHECKING``.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LEAF = "_posterior_zoo_registry"
PACKAGES = ("benchmarks", "guides", LEAF, "zoo")
PROTOCOL = "guides.program.guide"


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = [path for name in PACKAGES for path in (sorted((ROOT / name).rglob("*.py")) or [ROOT / f"{name}.py"])]
MODULES = {module_name(path): path for path in FILES}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def resolve(name: str) -> str | None:
    """Return our module that an import of ``name`` loads last, or None if it is not ours."""
    while name:
        if name in MODULES:
            return name
        name = name.rpartition(".")[0]
    return None


def imported(node: ast.AST, module: str) -> Iterator[str]:
    """Yield our modules that one statement imports."""
    if isinstance(node, ast.Import):
        yield from filter(None, (resolve(alias.name) for alias in node.names))
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            parent = module.split(".") if MODULES[module].name == "__init__.py" else module.split(".")[:-1]
            base = ".".join([*parent[: len(parent) - node.level + 1], *filter(None, [node.module])])
        yield from filter(None, (resolve(f"{base}.{alias.name}") for alias in node.names))


def imports(tree: ast.AST, module: str) -> set[str]:
    """Return our modules that a module imports, wherever in its text."""
    return {target for node in ast.walk(tree) for target in imported(node, module)} - {module}


def hidden(tree: ast.AST, module: str) -> list[str]:
    """Return our modules that are imported inside functions, or for type checkers alone."""
    found = []
    for outer in ast.walk(tree):
        for_types = isinstance(outer, ast.If) and "TYPE_CHECKING" in ast.dump(outer.test)
        if for_types or isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            found += [target for node in ast.walk(outer) for target in imported(node, module)]
    return sorted(set(found))


def graph() -> dict[str, set[str]]:
    return {name: imports(tree, name) for name, tree in TREES.items()}


def folder(module: str) -> str:
    """Return the room of a module: its folder, or itself where it stands loose in a package."""
    path = MODULES[module]
    return module if path.name == "__init__.py" else (module.rpartition(".")[0] or module)


def folders(edges: dict[str, set[str]]) -> dict[str, set[str]]:
    """Return the arrows between folders below the packages; a folder and those inside it are one house."""
    found: dict[str, set[str]] = {}
    for module, targets in edges.items():
        here = folder(module)
        for there in map(folder, targets):
            inside = f"{here}.".startswith(f"{there}.") or f"{there}.".startswith(f"{here}.")
            if not inside and "." in here and "." in there:
                found.setdefault(here, set()).add(there)
                found.setdefault(there, set())
    return found


def cycle(edges: dict[str, set[str]]) -> list[str] | None:
    """Return nodes that import each other in a ring, or None."""
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str] | None:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return None
        for target in sorted(edges[node]):
            if found := visit(target, [*path, node]):
                return found
        done.add(node)
        return None

    return next((found for node in sorted(edges) if (found := visit(node, []))), None)


def without_inits(edges: dict[str, set[str]]) -> dict[str, set[str]]:
    """Return arrows between files that hold code; a package's ``__init__`` gathers its own files and is no room."""
    rooms = {name for name in edges if MODULES[name].name != "__init__.py"}
    return {name: edges[name] & rooms for name in rooms}


def loose(package: str) -> list[str]:
    """Return the files of a package that stand in none of its folders."""
    return sorted(path.name for path in (ROOT / package).glob("*.py"))


def probes() -> list[str]:
    """Return where a guide is probed by getattr or hasattr outside the protocol's file."""
    asked = re.compile(r"(?:getattr|hasattr)\((?:self\.)?(?:\w+\.)*_?(?:guide|member|part)\b")
    found = []
    for module, path in MODULES.items():
        if module.split(".")[0] == "guides" and module != PROTOCOL:
            lines = path.read_text(encoding="utf-8").splitlines()
            found += [f"{module}:{number}" for number, line in enumerate(lines, 1) if asked.search(line)]
    return found


def longest() -> tuple[tuple[int, str], tuple[int, str]]:
    """Return the longest file and the longest function, docstrings not counted, with their lines."""
    files, functions = [], []
    for module, tree in TREES.items():
        files.append((len(MODULES[module].read_text(encoding="utf-8").splitlines()), module))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                said = node.body[0] if ast.get_docstring(node) is not None else None
                words = 0 if said is None else (said.end_lineno or 0) - said.lineno + 1
                functions.append(((node.end_lineno or 0) - node.lineno + 1 - words, f"{module}.{node.name}"))
    return max(files), max(functions)


def lines(package: str) -> int:
    """Return the lines of a package's Python files."""
    return sum(len(p.read_text(encoding="utf-8").splitlines()) for p in (ROOT / package).rglob("*.py"))


def public(package: str) -> int:
    """Return how many names a package exports."""
    for node in TREES[package].body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            return len(ast.literal_eval(node.value))
    return 0


def measures() -> dict[str, str]:
    """Return what is measured, in words."""
    edges = graph()
    of_files, of_functions = longest()
    hidden_ones = [f"{m} -> {t}" for m, tree in TREES.items() for t in hidden(tree, m)]
    return {
        "loose files in guides": str(len(loose("guides"))),
        "loose files in benchmarks": str(len(loose("benchmarks"))),
        "ring of files, hidden imports counted": " -> ".join(cycle(without_inits(edges)) or ["none"]),
        "ring of folders": " -> ".join(cycle(folders(edges)) or ["none"]),
        "imports of own modules inside functions": ", ".join(hidden_ones) or "none",
        "probes of guides outside the protocol": ", ".join(probes()) or "none",
        "lines of guides, benchmarks, zoo": ", ".join(f"{lines(p):,}" for p in ("guides", "benchmarks", "zoo")),
        "largest file": f"{of_files[0]} lines: {of_files[1]}",
        "longest function, without its docstring": f"{of_functions[0]} lines: {of_functions[1]}",
        "public names of guides": str(public("guides")),
    }


if __name__ == "__main__":
    for name, value in measures().items():
        print(f"{name}: {value}")
