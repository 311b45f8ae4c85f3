"""Where cells run: from the words of ``--executor`` to an executor of :mod:`concurrent.futures`."""

from __future__ import annotations

import importlib
import logging
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.running.dispatch import Fleet, GivenUp
from benchmarks.running.local import usable_cores
from benchmarks.running.submitted import Jobs

__all__ = ["ExecutorError", "opened"]

_WAIT_SECONDS = 15
_KINDS = "local, dask:ADDRESS, slurm:partition=NAME,time=MINUTES,..., submitit-local:parallel=N or MODULE:FUNCTION"
_SETTINGS = {
    "partition": "slurm_partition",
    "account": "slurm_account",
    "time": "timeout_min",
    "cpus": "cpus_per_task",
    "mem": "mem_gb",
    "gpus": "gpus_per_node",
}
_DEFAULTS = {"timeout_min": 60, "cpus_per_task": 1}
_DAY = 24 * 60


class ExecutorError(ValueError):
    """An executor that cannot be had; the message says why and what to do."""


@contextmanager
def opened(spec: str | None) -> Iterator[Executor | None]:
    """Open what ``--executor`` names, and close it again; ``None`` stands for processes of this machine.

    :param spec: ``local``, ``dask:ADDRESS``, ``slurm:...``, ``submitit-local:...`` or ``module:function``.
    :raises ExecutorError: before any work, if it is not there.
    """
    kind, _, rest = (spec or "local").partition(":")
    if kind == "local":
        if rest:
            raise ExecutorError(f"--executor {spec}: local takes no address; how many processes is --jobs N")
        yield None
        return
    if kind == "dask":
        executor: Executor = _Dask(rest)
    elif kind in ("slurm", "submitit-local"):
        executor = _submitit(kind, rest)
    elif rest:
        executor = _Renewed(spec or "", _function(kind, rest))
    else:
        raise ExecutorError(f"--executor {spec}: not known; give {_KINDS}")
    try:
        yield executor
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


class _Dask(Fleet):
    """Workers of a Dask scheduler, by the executor of its client."""

    def __init__(self, address: str) -> None:
        if not address:
            raise ExecutorError("--executor dask: give the scheduler's address, as in dask:tcp://HOST:8786")
        try:
            import distributed
        except ImportError as error:
            raise _missing("dask", "distributed") from error
        logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what is lost is said once, by us
        try:
            self._client = distributed.Client(address, timeout=_WAIT_SECONDS, set_as_default=False)
        except (OSError, ValueError, TimeoutError) as error:
            raise ExecutorError(
                f"--executor dask:{address}: no scheduler answers there ({type(error).__name__}); start one with "
                "`dask scheduler` and name the address that it prints"
            ) from error
        self._killed = distributed.KilledWorker
        try:
            self._client.wait_for_workers(1, timeout=_WAIT_SECONDS)
        except TimeoutError as error:
            self._client.close()
            raise ExecutorError(
                f"--executor dask:{address}: the scheduler has no workers; start some with "
                f"`dask worker {address} --nthreads 1`"
            ) from error
        self._executor = self._client.get_executor(pure=False)

    def everywhere(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        return list(self._client.run(function, *arguments).values())

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        inner, outer = self._executor.submit(fn, *args, **kwargs), Future[Any]()
        inner.add_done_callback(lambda done: self._hand_over(done, outer))
        outer.add_done_callback(lambda done: inner.cancel() if done.cancelled() else None)
        return outer

    def _hand_over(self, done: Future[Any], outer: Future[Any]) -> None:
        """Hand a future's outcome on, in our words where its workers died."""
        if outer.cancelled():
            return
        if done.cancelled():
            outer.cancel()
            outer.set_running_or_notify_cancel()  # wakes who waits
            return
        error = done.exception()
        if error is None:
            outer.set_result(done.result())
        elif isinstance(error, self._killed):
            outer.set_exception(GivenUp(" ".join(str(error).split())))
        else:
            outer.set_exception(error)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._executor.shutdown(wait=wait and not cancel_futures)
        self._client.close()


def _submitit(kind: str, words: str) -> Executor:
    """Return jobs of Slurm or of this machine.

    :raises ExecutorError: if submitit or Slurm is not there, or a setting is not known.
    """
    try:
        import submitit
    except ImportError as error:
        raise _missing(kind, "submitit") from error
    pairs = dict(word.partition("=")[::2] for word in words.split(",") if word)
    local = kind == "submitit-local"
    folder = Path(pairs.pop("folder", "submitit"))
    most = pairs.pop("parallel", str(usable_cores() if local else 100))
    known = {} if local else _SETTINGS
    unknown = [name for name in pairs if name not in known and (local or not name.startswith("slurm_"))]
    if unknown or not most.isdecimal() or int(most) < 1:
        given = ", ".join(["parallel (1 or more)", "folder", *known, *([] if local else ["slurm_..."])])
        raise ExecutorError(f"--executor {kind}:{words}: {(unknown or ['parallel'])[0]!r} is wrong; settings are {given}")
    if not local and shutil.which("sbatch") is None:
        raise ExecutorError(f"--executor {kind}:{words}: there is no sbatch on this machine; run on Slurm's login node")
    settings = {_SETTINGS.get(name, name): int(value) if value.isdecimal() else value for name, value in pairs.items()}
    jobs = submitit.AutoExecutor(folder / "%j", cluster="local" if local else "slurm")
    jobs.update_parameters(**({"timeout_min": 30 * _DAY} if local else _DEFAULTS | settings))
    return Jobs(jobs, int(most), 1.0 if local else 30.0)


def _function(module: str, name: str) -> Callable[[], Executor]:
    """Return a function that makes an executor.

    :raises ExecutorError: if there is no such function.
    """
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ExecutorError(f"--executor {module}:{name}: {error}; give {_KINDS}") from error
    if not callable(found):
        raise ExecutorError(
            f"--executor {module}:{name}: is a {type(found).__name__}; name a function that returns an executor"
        )
    return found


class _Renewed(Executor):
    """What a function makes, made again where it broke.

    :param spec: its name in messages.
    :param make: returns an executor.
    """

    def __init__(self, spec: str, make: Callable[[], Executor]) -> None:
        self._make = make
        self._now = make()
        if not isinstance(self._now, Executor):
            kind = type(self._now).__name__
            raise ExecutorError(f"--executor {spec}: returned a {kind}; it must return a concurrent.futures.Executor")

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        try:
            return self._now.submit(fn, *args, **kwargs)
        except BrokenExecutor:
            self._now.shutdown(wait=False, cancel_futures=True)
            self._now = self._make()
            return self._now.submit(fn, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._now.shutdown(wait=wait, cancel_futures=cancel_futures)


def _missing(kind: str, package: str) -> ExecutorError:
    return ExecutorError(f"--executor {kind}: {package} is not installed; pip install 'pyro-posterior-zoo[fleet]'")
