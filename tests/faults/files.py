"""Saved posteriors and checkpoints that are damaged, foreign or hostile; names that files cannot hold; threads."""

from __future__ import annotations

import copy
import gc
import linecache
import os
import pickle
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch

import guides
from benchmarks.running.netcdf import netcdf

from .fits import X, Y, fit, regression
from .harness import as_another_user, child, fault, full_after

OWN = (guides.errors.DataError, guides.errors.OptionError, guides.errors.StorageError)
REFUSED = "refused by one of the library's own errors"


def saved(folder: Path) -> Path:
    fit(compile="eager", steps=3).save(folder / "saved")
    return folder / "saved"


def refused(path: Path, *words: str) -> None:
    try:
        guides.Posterior.load(path, regression)
    except OWN as error:
        assert all(word in str(error) for word in words), error
    else:
        raise AssertionError("it was taken")


def _changed(name: str, value: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        content = torch.load(path, weights_only=True)
        if value is KeyError:
            content.pop(name)
        else:
            content[name] = value(content[name]) if callable(value) else value
        torch.save(content, path)

    return change


ENTRIES = (
    "family",
    "options",
    "objective",
    "steps",
    "seed",
    "stop_reasons",
    "seconds",
    "info",
    "losses",
    "flat",
    "names",
    "args",
)
SPOILT: dict[str, Callable[[Path], object]] = {
    **{f"without its entry {name!r}": _changed(name, KeyError) for name in (*ENTRIES, "validation", "kwargs", "format")},
    **{f"whose entry {name!r} is None": _changed(name, None) for name in (*ENTRIES, "validation", "kwargs")},
    "whose parameters are NaN": _changed("flat", lambda flat: flat * float("nan")),
    "whose parameters are whole numbers": _changed("flat", lambda flat: flat.long()),
    "whose parameters have one dimension": _changed("flat", lambda flat: flat[0]),
    "whose parameters are too few": _changed("flat", lambda flat: flat[:, :-1]),
    "whose parameters are of no replicate": _changed("flat", lambda flat: flat[:0]),
    "whose losses are of two replicates": _changed("losses", lambda losses: losses.expand(2, -1)),
    "of a guide that is not there": _changed("family", "no_such_guide"),
    "of an objective that is not there": _changed("objective", "no_such_objective"),
    "with an option that the guide does not know": _changed("options", {"evil": 1}),
    "of another version": _changed("format", 999),
    "cut to half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "of zero length": lambda path: os.truncate(path, 0),
    "of text": lambda path: path.write_text("hello"),
    "that is a list": lambda path: torch.save([1], path),
    "that is a bare tensor": lambda path: torch.save(torch.ones(3), path),
    "that is a folder": lambda path: (path.unlink(), path.mkdir()),
}
for _what, _spoil in SPOILT.items():

    @fault("saved posteriors", f"a file {_what}", REFUSED, _spoil, quick=_what == "whose parameters are NaN")
    def _spoilt(folder: Path, spoil: Callable[[Path], object]) -> None:
        path = saved(folder)
        spoil(path)
        refused(path)


class _Evil:
    def __reduce__(self) -> Any:
        return (os.mkdir, (os.environ["EVIL"],))


for _what, _write in {
    "a pickle": lambda p: p.write_bytes(pickle.dumps(_Evil())),
    "torch's": lambda p: torch.save(_Evil(), p),
}.items():

    @fault("saved posteriors", f"a file of {_what} that runs code", "refused, and the code is not run", _write)
    def _evil(folder: Path, write: Callable[[Path], object]) -> None:
        os.environ["EVIL"] = str(folder / "ran")
        write(folder / "saved")
        refused(folder / "saved")
        assert not (folder / "ran").exists()


@fault("saved posteriors", "a full disk", "a StorageError; what was saved before stays")
def _full(folder: Path) -> None:
    path = saved(folder)
    before = path.read_bytes()
    posterior = fit(compile="eager", steps=3)
    full_after(1000)
    try:
        posterior.save(path)
    except guides.errors.StorageError:
        assert path.read_bytes() == before
        assert list(folder.iterdir()) == [path]
        return
    raise AssertionError


@fault("saved posteriors", "a folder that may not be written to", "a StorageError")
def _closed(folder: Path) -> None:
    posterior = fit(compile="eager", steps=3)
    as_another_user(folder)
    (folder / "closed").mkdir(mode=0o500)
    try:
        posterior.save(folder / "closed" / "saved")
    except guides.errors.StorageError:
        return
    raise AssertionError


def scaled(x: torch.Tensor, y: torch.Tensor | None = None) -> None:
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, 100.0), obs=y)


ORDER = torch.randperm(len(X), generator=torch.Generator().manual_seed(1))
OTHERS: dict[str, dict[str, Any]] = {
    "another likelihood": {"model": scaled},
    "other targets of the same sum": {"data": (X, Y[ORDER])},
    "the rows in another order": {"data": (X[ORDER], Y[ORDER])},
    "another guide": {"guide": "full_rank"},
    "another option of the guide": {"guide": ("mean_field", {"init_scale": 0.3})},
    "another objective": {"objective": "iwae"},
    "another seed": {"seed": 5},
    "another rate": {"lr": 0.01},
    "another optimiser": {"optimizer": "sgd"},
    "minibatches": {"batch_size": 10},
    "validation data": {"validation": (X[:5], Y[:5])},
    "fewer steps": {"steps": 10},
}
for _what, _other in OTHERS.items():

    @fault("checkpoints", f"one of a fit with {_what}", "refused, saying what differs", _other)
    def _foreign(folder: Path, other: dict[str, Any]) -> None:
        path = folder / "state"
        fit(compile="eager", checkpoint=path)
        given = {"model": regression, "guide": "mean_field", "data": (X, Y), **other}
        model, guide, data = (given.pop(name) for name in ("model", "guide", "data"))
        try:
            fit(model, guide, *data, compile="eager", checkpoint=path, **given)
        except guides.errors.OptionError as error:
            assert "What differs" in str(error), error
        else:
            raise AssertionError("it was taken")


HURT: dict[str, Callable[[Path], object]] = {
    "cut to half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "of zero length": lambda path: os.truncate(path, 0),
    "of text": lambda path: path.write_text("hello"),
    "that is a saved posterior": lambda path: fit(compile="eager", steps=2).save(path),
    "without its state": _changed("state", KeyError),
    "without its random state": _changed("noise", KeyError),
    "whose state is None": _changed("state", None),
    "that runs code": lambda path: torch.save(_Evil(), path),
}
for _what, _hurt in HURT.items():

    @fault("checkpoints", f"a file {_what}", REFUSED, _hurt)
    def _hurting(folder: Path, hurt: Callable[[Path], object]) -> None:
        os.environ["EVIL"] = str(folder / "ran")
        path = folder / "state"
        fit(compile="eager", checkpoint=path)
        hurt(path)
        try:
            fit(compile="eager", checkpoint=path)
        except OWN:
            assert not (folder / "ran").exists()
        else:
            raise AssertionError("it was taken")


@fault("checkpoints", "a full disk", "one warning, the fit is done")
def _full_checkpoint(folder: Path) -> None:
    want = fit(compile="eager").flat
    full_after(1000)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = fit(compile="eager", checkpoint=folder / "state")
    assert [w.category for w in caught] == [guides.errors.StorageWarning]
    assert torch.equal(found.flat, want)
    assert list(folder.iterdir()) == []


NAMES = ("a/b", "", "it's", 'so "called"', "/", "a.b", "draw", "α", "a b", "..", "net/w.1/2")


def _named(x: torch.Tensor) -> None:
    total = sum(pyro.sample(name, dist.Normal(0.0, 1.0)) for name in NAMES)
    with pyro.plate("rows/of", len(x)):
        z = pyro.sample("z/local", dist.Normal(total, 1.0))
        pyro.sample("x/obs", dist.Normal(z, 1.0), obs=x)


@fault("names", "sites called 'a/b', '', '..', 'draw', quoted", "all are in ArviZ's object and its netCDF file", quick=True)
def _names(folder: Path) -> None:
    import arviz

    posterior = guides.fit(_named, "mean_field", Y, steps=2, compile="eager")
    data = posterior.to_arviz(num_samples=5, prior_samples=5)
    data.to_netcdf(str(folder / "a.nc"))
    (folder / "b.nc").write_bytes(netcdf(data))
    for name in ("a.nc", "b.nc"):
        again = arviz.from_netcdf(str(folder / name))["posterior"]
        there = {value.attrs.get("site", key) for key, value in again.data_vars.items()}
        assert there == {*NAMES, "z/local"}, there
        assert again["z.local"].dims == ("chain", "draw", "rows.of")


@fault("threads", "eight fits at once", "the numbers of fits one after the other")
def _threads(folder: Path) -> None:
    want = [fit(compile="trace", seed=s).flat for s in range(8)]
    found: dict[int, torch.Tensor] = {}
    errors: list[BaseException] = []

    def one(seed: int) -> None:
        try:
            found[seed] = fit(compile="trace", seed=seed).flat
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=(s,)) for s in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors
    for seed in range(8):
        torch.testing.assert_close(found[seed], want[seed])


@fault("threads", "predictions, diagnoses and fits at once", "the numbers of doing one after the other")
def _mixed(folder: Path) -> None:
    posterior = fit(compile="eager")
    want = posterior.predict(X, num_samples=20, seed=3)["y"]
    errors: list[BaseException] = []

    def predict() -> None:
        try:
            for _ in range(5):
                torch.testing.assert_close(posterior.predict(X, num_samples=20, seed=3)["y"], want)
        except BaseException as error:
            errors.append(error)

    def work() -> None:
        try:
            fit(compile="eager")
            posterior.sample(10)
            copy.deepcopy(posterior)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=t) for t in (predict, work, predict, work)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors


@fault("threads", "a fit inside a model that is being fitted", "refused by one of the library's own errors")
def _nested(folder: Path) -> None:
    def model(x: torch.Tensor, y: torch.Tensor) -> None:
        fit(compile="eager", steps=2)
        regression(x, y)

    try:
        fit(model, compile="eager", steps=2)
    except (guides.errors.UnsupportedModelError, guides.errors.DataError) as error:
        assert "while a model was being run" in str(error), error
    else:
        raise AssertionError


_UNTOUCHED = """
import os, warnings
import guides
from tests.faults.fits import fit
filters, environment = list(warnings.filters), dict(os.environ)
posterior = fit(compile="trace")
fit(compile="native")
posterior.diagnose(num_samples=50)
assert list(warnings.filters) == filters, [f for f in warnings.filters if f not in filters]
assert dict(os.environ) == environment, os.environ.keys() - environment.keys()
"""


@fault("surroundings", "the first fit of a process", "warnings.filters and the environment are as before")
def _untouched(folder: Path) -> None:
    done = child(_UNTOUCHED)
    assert done.returncode == 0, done.stderr


@fault("surroundings", "twenty traced fits in one process", "no object and no source of a graph stays")
def _nothing_stays(folder: Path) -> None:
    def count() -> tuple[int, int]:
        fit(compile="trace", steps=22)
        gc.collect()
        return len(linecache.cache), len(gc.get_objects())

    count()
    sources, objects = count()
    for _ in range(17):
        fit(compile="trace", steps=22)
    after = count()
    assert after[0] <= sources, (sources, after[0])
    assert after[1] <= objects + 200, (objects, after[1])
