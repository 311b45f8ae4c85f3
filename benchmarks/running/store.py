"""A folder of results that survives ``kill -9`` at any moment.

Layout::

    manifest.json       what ran here: the target, every task's and guide's protocol, the commands
    cells.jsonl         one line per finished or failed cell, appended and synchronised as it finishes
    posteriors/         one netCDF file per cell, written under a temporary name and then renamed
    images/             what cells of image models drew, one compressed file of grey levels per cell
    report.html, report.md, pictures/

A line is the last thing a cell writes, so a line means that everything else of the cell is there.
"""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.protocol.describe import differences

__all__ = [
    "Cell",
    "Record",
    "ResultsFolder",
    "ResultsFolderError",
    "read_folders",
    "read_images",
    "write_atomically",
    "write_images",
]

Record = dict[str, Any]

SCHEMA = 1


class ResultsFolderError(RuntimeError):
    """A results folder cannot be used for what was asked; the message says why and what to do."""


@dataclass(frozen=True, order=True)
class Cell:
    """The unit of work: one guide on one split of one task with one seed."""

    task: str
    guide: str
    split: int
    seed: int

    @property
    def fit_seed(self) -> int:
        """The seed that the fit gets: different for every split and seed, the same for every guide."""
        return 100_003 * self.seed + self.split

    @property
    def file(self) -> str:
        """Where the cell's posterior is kept, relative to the results folder."""
        return f"posteriors/{self._place}.nc"

    @property
    def images_file(self) -> str:
        """Where the cell's images are kept, relative to the results folder."""
        return f"images/{self._place}.npz"

    @property
    def _place(self) -> str:
        guide = "".join(character if character.isalnum() or character in "_.=-" else "+" for character in self.guide)
        return f"{self.task}/{guide}/split{self.split:02d}-seed{self.seed}"

    @classmethod
    def of(cls, record: Record) -> Cell:
        """Return the cell that a record is about."""
        return cls(record["task"], record["guide"], int(record["split"]), int(record["seed"]))


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, synchronise it, then rename it to ``path``.

    Whoever looks sees the old file or the whole new one, never a part.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_images(path: Path, images: Mapping[str, Tensor]) -> None:
    """Write named images, grey levels in [0, 1] of any shape ``(..., height, width)``, in 8 bits a pixel."""
    import numpy as np

    levels: dict[str, Any] = {
        name: (image.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8).numpy() for name, image in images.items()
    }

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez_compressed(file, **levels)

    write_atomically(path, write)


def read_images(path: Path) -> dict[str, Any]:
    """Return the images of a cell as arrays of 8-bit grey levels, nothing where the file is gone."""
    import numpy as np

    if not path.is_file():
        return {}
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _plain(value: Any) -> Any:
    """Return ``value`` as strict JSON: NaN and infinities become null, tensors and arrays lists, floats 6 digits."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float):
        return float(f"{value:.9g}") if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    return str(value)


_EMPTY: Record = {
    "status": "failed",
    "metrics": {},
    "curves": {},
    "verdict": {},
    "fit": {},
    "error": {},
    "warnings": [],
    "versions": {},
    "machine": {},
    "protocol": "",
    "posterior": "",
    "images": "",
    "started": "",
    "finished": "",
}
_ERROR = {"type": "unknown", "message": "the record does not say", "traceback": ""}


def _whole(record: Record) -> Record:
    """Return a record with all that a report reads, empty where it is missing or of another kind."""
    kept = {k: v for k, v in record.items() if k not in _EMPTY or isinstance(v, type(_EMPTY[k]))}
    whole = _EMPTY | kept
    numbers = {k: v for k, v in whole["metrics"].items() if v is None or isinstance(v, int | float)}
    if whole["status"] == "done":
        return whole | {"metrics": numbers, "split": int(record["split"]), "seed": int(record["seed"])}
    return whole | {"metrics": numbers, "error": _ERROR | whole["error"]}


def _files(record: Record) -> list[str]:
    """Return the files that belong to a record, relative to the folder."""
    return [name for name in (record["posterior"], record["images"]) if name]


class ResultsFolder:
    """Reads and appends to one folder of results.

    :param path: the folder; it need not exist yet.

    Example::

        >>> folder = ResultsFolder("results/quick")
        >>> [record["metrics"] for record in folder.records()]     # doctest: +SKIP
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.damaged_lines = 0

    @property
    def cells_file(self) -> Path:
        """The JSON Lines file of cells."""
        return self.path / "cells.jsonl"

    @property
    def manifest_file(self) -> Path:
        """The JSON file that says what ran here."""
        return self.path / "manifest.json"

    def manifest(self) -> dict[str, Any]:
        """Return the manifest, empty where there is none.

        :raises ResultsFolderError: if the file is not valid JSON.
        """
        try:
            found = json.loads(self.manifest_file.read_bytes())
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise ResultsFolderError(
                f"{self.manifest_file} is not valid JSON ({error}); delete the folder or choose another with --out"
            ) from error
        if not isinstance(found, dict):
            raise ResultsFolderError(f"{self.manifest_file} is no manifest; delete the folder or choose another with --out")
        commands = found.get("commands")
        known = found.get("protocols")
        return found | {
            "target": str(found.get("target", "")),
            "protocols": known if isinstance(known, dict) else {},
            "commands": [c for c in commands if isinstance(c, dict) and "command" in c]
            if isinstance(commands, list)
            else [],
        }

    def records(self) -> list[Record]:
        """Return the last record of every cell, in the order in which cells first ran.

        A last line without its end (the process died while writing it) is passed over, as is any line that is no JSON;
        :attr:`damaged_lines` counts them, and their cells count as missing. What a record lacks is filled in as empty.
        """
        self.damaged_lines = 0
        found: dict[Cell, Record] = {}
        try:
            content = self.cells_file.read_bytes()
        except FileNotFoundError:
            return []
        for line in content.split(b"\n"):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                cell = Cell.of(record)
                found[cell] = _whole(record)
            except (ValueError, KeyError, TypeError):
                self.damaged_lines += 1
        return list(found.values())

    def done(self) -> set[Cell]:
        """Return the cells that have finished and did not fail, and whose files are there."""
        finished = (record for record in self.records() if record["status"] == "done")
        return {Cell.of(record) for record in finished if all((self.path / name).is_file() for name in _files(record))}

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one record as one line and wait until the disk has it."""
        line = json.dumps(_plain(record), separators=(",", ":"), allow_nan=False) + "\n"
        descriptor = os.open(self.cells_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            data = line.encode()
            while data:
                data = data[os.write(descriptor, data) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _mend_last_line(self) -> None:
        """Cut a torn last line off, so that the next record starts on a line of its own."""
        try:
            content = self.cells_file.read_bytes()
        except FileNotFoundError:
            return
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with self.cells_file.open("rb+") as file:
                file.truncate(whole)
                os.fsync(file.fileno())

    def prepare(
        self,
        target: str,
        protocols: Mapping[str, Mapping[str, Any]],
        *,
        resume: bool,
        command: str,
    ) -> None:
        """Make the folder ready for a run, or say why it cannot be.

        :param target: the suite or task that is about to run.
        :param protocols: the protocol of every ``"task | guide"`` about to run.
        :param resume: whether results that are here may be added to.
        :param command: the command line, kept in the manifest.
        :raises ResultsFolderError: if the folder holds results of another target or protocol (both are named), results
            of this one without ``resume``, or files that are not results.
        """
        self._no_file()
        if not self.path.is_dir() or all(entry.name.startswith(".") for entry in self.path.iterdir()):
            self.path.mkdir(parents=True, exist_ok=True)
            self._write_manifest({"target": target, "protocols": dict(protocols), "commands": [self._stamp(command)]})
            return
        manifest = self.manifest()
        if not manifest:
            raise ResultsFolderError(
                f"--out {self.path} is not empty and holds no results (no manifest.json); choose another folder"
            )
        if manifest.get("target") != target:
            raise ResultsFolderError(
                f"{self.path} holds results of {manifest.get('target')!r}, and this run is of {target!r}; "
                f"choose another --out (the default is results/{target}), or delete the folder"
            )
        known = manifest.get("protocols", {})
        for key in sorted(known.keys() & protocols.keys()):
            changed = differences(known[key], protocols[key])
            if changed:
                listed = "\n".join(f"    {line}" for line in changed)
                raise ResultsFolderError(
                    f"{self.path} holds results of another protocol for {key}:\n{listed}\n"
                    "choose another --out, or delete the folder to start afresh"
                )
        if not resume:
            records = self.records()
            done = sum(record.get("status") == "done" for record in records)
            raise ResultsFolderError(
                f"{self.path} already holds {done} finished and {len(records) - done} failed cells of {target!r}; "
                "add --resume to run only what is missing, choose another --out, or delete the folder"
            )
        self._mend_last_line()
        for kind in ("posteriors", "images"):
            for leftover in self.path.glob(f"{kind}/*/*/.*.part"):
                leftover.unlink(missing_ok=True)
        for leftover in self.path.glob(".*.part"):
            leftover.unlink(missing_ok=True)
        manifest["protocols"] = known | dict(protocols)
        manifest.setdefault("commands", []).append(self._stamp(command))
        self._write_manifest(manifest)

    def _no_file(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise ResultsFolderError(f"--out {self.path} is a file; name a folder that is new, empty or holds results")

    @staticmethod
    def _stamp(command: str) -> dict[str, str]:
        return {"command": command, "started": datetime.now(UTC).isoformat(timespec="seconds")}

    def _write_manifest(self, manifest: Mapping[str, Any]) -> None:
        text = json.dumps({"schema": SCHEMA} | dict(manifest), indent=1, sort_keys=True)
        write_atomically(self.manifest_file, lambda path: path.write_text(text + "\n"))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep a second run out of the folder; the lock goes with the process, however it ends.

        :raises ResultsFolderError: if another process runs here now.
        """
        try:
            import fcntl
        except ImportError:  # no such lock on Windows: two runs at once are then the user's to avoid
            yield
            return
        self._no_file()
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ResultsFolderError(
                    f"another run is writing to {self.path}; wait for it to end or choose another --out"
                ) from error
            yield


def read_folders(paths: Iterable[str | Path]) -> list[tuple[Path, dict[str, Any], list[Record]]]:
    """Return path, manifest and records of each folder.

    :raises ResultsFolderError: if one of them holds no results.
    """
    found = []
    for path in paths:
        folder = ResultsFolder(path)
        records = folder.records()
        if not records:
            raise ResultsFolderError(
                f"{path} holds no results (no cells.jsonl with finished cells); run `python -m benchmarks run` first"
            )
        found.append((folder.path, folder.manifest(), records))
    return found
