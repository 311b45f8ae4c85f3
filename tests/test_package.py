"""What somebody has who installed the package: types, a version, a command, and words where an extra is missing."""

from __future__ import annotations

import re
import sys
import tomllib
from configparser import ConfigParser
from pathlib import Path

import pytest
import torch

import _posterior_zoo_registry
import benchmarks
import guides
import zoo
from _posterior_zoo_registry.extras import EXTRAS, MissingExtraError, check_extra, needs
from benchmarks.cli import main
from docs.writer.pages import ROOT

SETTINGS = ConfigParser()
SETTINGS.read(ROOT / "setup.cfg", encoding="utf-8")
IMPORTED = {"scikit-learn": "sklearn"}


def required(extra: str) -> set[str]:
    lines = SETTINGS["options.extras_require"][extra].split()
    names = (re.split(r"[<>=\[]", line)[0] for line in lines)
    return {IMPORTED.get(name, name) for name in names}


def test_every_package_is_typed_and_is_installed():
    include = SETTINGS["options.packages.find"]["include"].split()
    for package in (_posterior_zoo_registry, guides, zoo, benchmarks):
        folder = Path(str(package.__file__)).parent
        assert (folder / "py.typed").exists() and f"{folder.name}*" in include
    assert "py.typed" in SETTINGS["options.package_data"]["*"].split()


def test_one_version_everywhere():
    version = _posterior_zoo_registry.__version__
    assert version == guides.__version__ == zoo.__version__ == benchmarks.__version__
    assert SETTINGS["metadata"]["version"] == "attr: _posterior_zoo_registry.__version__"
    assert f'version: "{version}"' in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]


def test_the_command_is_that_of_the_module():
    script = SETTINGS["options.entry_points"]["console_scripts"].strip()
    assert script == f"posterior-zoo = {main.callback.__module__}:main"


def test_what_an_extra_is_asked_for_is_what_it_installs():
    assert {name: set(packages) - required(name) for name, packages in EXTRAS.items()} == {"data": set(), "report": set()}
    assert set(SETTINGS["options.extras_require"]) >= {"all", "data", "docs", "nuts", "report"}


def test_a_missing_package_is_named_with_the_extra_that_has_it(monkeypatch):
    for name in ("pooch", "sklearn", "sklearn.datasets", "sklearn.cluster", "arviz", "matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"scikit-learn needs the package 'sklearn'.*pyro-posterior-zoo\[data\]"):
        zoo.datasets.diabetes()
    with pytest.raises(MissingExtraError, match=r"k-means.*'pyro-posterior-zoo\[data\]'"):
        guides.cavi(zoo.DirichletProcessMixture(2, in_features=1), torch.randn(5, 1))
    with pytest.raises(MissingExtraError, match=r"to_arviz needs the package 'arviz'.*\[report\]"):
        guides.fitted.groups.import_arviz()
    monkeypatch.setattr("_posterior_zoo_registry.extras.find_spec", lambda name: None if name == "jinja2" else name)
    with pytest.raises(MissingExtraError, match="a report needs the package 'jinja2'"):
        check_extra("report", "a report")


def test_a_package_of_ours_that_is_broken_is_not_called_a_missing_extra():
    with pytest.raises(ImportError) as caught, needs("report", "a picture"):
        from guides import no_such_name  # noqa: F401
    assert not isinstance(caught.value, MissingExtraError)
