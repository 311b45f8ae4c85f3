"""Processes of this machine as an executor: networks of a few hundred weights cannot use more than one core each."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from typing import Any

import torch

from benchmarks.running.dispatch import WorkerDied

__all__ = ["LocalPool", "usable_cores"]


def usable_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class LocalPool(Executor):
    """Processes that die alone: one pool of the standard library for each, so that a death costs one call.

    A pool of several processes breaks as a whole when one of them dies, and does not say which call it was.

    :param jobs: how many processes; each starts with its first call, with one thread of PyTorch.
    """

    def __init__(self, jobs: int) -> None:
        self._context = multiprocessing.get_context("spawn")  # a fork would inherit locks of PyTorch's threads
        self._mine = threading.local()
        self._pools: list[ProcessPoolExecutor] = []
        self._receiver, self._sender = self._context.Pipe(duplex=False)
        self._threads = ThreadPoolExecutor(jobs, thread_name_prefix="cells")

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run ``fn(*args, **kwargs)`` in a process.

        :returns: a future; :class:`WorkerDied` if the process ends before it has answered.
        """
        return self._threads.submit(self._call, fn, args, kwargs)

    def _call(self, fn: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        pool = getattr(self._mine, "pool", None) or self._open()
        try:
            return pool.submit(fn, *args, **kwargs).result()
        except BrokenProcessPool as error:
            self._mine.pool = None
            raise WorkerDied("a worker process ended before its work was done (killed, for memory?)") from error

    def _open(self) -> ProcessPoolExecutor:
        pool = ProcessPoolExecutor(1, self._context, initializer=_begin, initargs=(self._receiver,))
        self._mine.pool = pool
        self._pools.append(pool)
        return pool

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Let the processes end, when they have done what they were given or, with ``cancel_futures``, at once."""
        if cancel_futures:
            self._sender.close()
        self._threads.shutdown(wait=wait, cancel_futures=cancel_futures)
        for pool in self._pools:
            pool.shutdown(wait=wait, cancel_futures=cancel_futures)
        self._sender.close()
        self._receiver.close()


def _begin(parent: Connection) -> None:
    """Make a process ready for cells: one thread, no answer to Ctrl-C, and an end when its parent wants one or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the parent says what becomes of us
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(1)
    gc.freeze()  # what was imported stays, and need not be looked through again and again


def _end_with(parent: Connection) -> None:
    """Wait until the other end is closed: by the parent, or by the system when the parent was killed."""
    parent.poll(None)
    os._exit(1)
