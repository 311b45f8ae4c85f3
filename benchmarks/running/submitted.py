"""Jobs of submitit (Slurm's, or processes of this machine) as an executor."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from benchmarks.running.dispatch import Fleet, WorkerDied

__all__ = ["Jobs"]

_POLL_SECONDS = 0.2
_IMPORTS = ("ModuleNotFoundError", "ImportError", "AttributeError")


class Jobs(Fleet):
    """Calls as jobs, a bounded number at once, looked after by one thread.

    :param jobs: an executor of submitit.
    :param most: how many jobs may be queued or run at once.
    :param grace: seconds that an ended job's answer may take to appear on a shared disk.
    """

    def __init__(self, jobs: Any, most: int, grace: float) -> None:
        self._jobs, self._most, self._grace = jobs, most, grace
        self._waiting: deque[tuple[Future[Any], Callable[..., Any], Any, Any]] = deque()
        self._running: dict[Future[Any], Any] = {}
        self._ended: dict[Future[Any], float] = {}
        self._open = True
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run ``fn(*args, **kwargs)`` as a job.

        :returns: a future; :class:`WorkerDied` if the job ends without an answer.
        """
        if not self._open:
            raise RuntimeError("no job can be submitted after shutdown")
        future: Future[Any] = Future()
        self._waiting.append((future, fn, args, kwargs))
        return future

    def everywhere(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Return nothing: a job has its worker to itself, and checks it before it works."""
        return []

    def _serve(self) -> None:
        while self._open or self._waiting or self._running:
            for future, job in list(self._running.items()):
                if future.cancelled():
                    job.cancel(check=False)
                    del self._running[future]
                elif self._has_ended(future, job):
                    del self._running[future]
                    _settle(future, job)
            while self._waiting and len(self._running) < self._most:
                self._begin(*self._waiting.popleft())
            time.sleep(_POLL_SECONDS)

    def _has_ended(self, future: Future[Any], job: Any) -> bool:
        if job.paths.result_pickle.exists():
            return True
        if not job.done():
            return False
        return time.monotonic() - self._ended.setdefault(future, time.monotonic()) > self._grace

    def _begin(self, future: Future[Any], fn: Callable[..., Any], args: Any, kwargs: Any) -> None:
        if future.cancelled():
            return
        try:
            self._running[future] = self._jobs.submit(fn, *args, **kwargs)
        except Exception as error:  # of pickling or of the cluster: the future says it
            future.set_exception(error)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; with ``cancel_futures``, cancel jobs that wait or run."""
        self._open = False
        if cancel_futures:
            for future in [*(entry[0] for entry in list(self._waiting)), *list(self._running)]:
                future.cancel()
        if wait:
            self._thread.join()


def _settle(future: Future[Any], job: Any) -> None:
    """Hand a job's outcome to its future."""
    if not future.set_running_or_notify_cancel():
        return
    if not job.paths.result_pickle.exists():
        log = job.paths.stderr
        future.set_exception(WorkerDied(f"job {job.job_id} ended without an answer (state {job.state}); its log is {log}"))
        return
    try:
        result = job.result()
    except Exception as error:  # submitit's own, which holds the traceback of the job as text
        future.set_exception(_raised(error))
        return
    future.set_result(result)


def _raised(error: Exception) -> Exception:
    """Return a job's error; what it could not import or find there as an :class:`ImportError`."""
    last = [line for line in str(error).splitlines() if line.partition(":")[0] in _IMPORTS]
    return ImportError(last[-1]) if last else error
