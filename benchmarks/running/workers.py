"""Groups of cells in processes of their own: networks of a few hundred weights cannot use more than one core each."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import queue
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

__all__ = ["WorkerError", "in_processes", "picklable", "usable_cores"]

_POLL_SECONDS = 1.0


class WorkerError(RuntimeError):
    """A process that ran cells ended before its work was done; the message says how."""


def usable_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def picklable(value: Any) -> bool:
    """Tell whether a value can be sent to another process."""
    try:
        pickle.dumps(value)
    except (pickle.PicklingError, AttributeError, TypeError):
        return False
    return True


def in_processes(
    work: Callable[..., Iterator[Any]], arguments: Sequence[tuple[Any, ...]], jobs: int
) -> Iterator[tuple[int, Any]]:
    """Yield what ``work(*arguments[i])`` yields for every i, as it comes, from ``jobs`` processes.

    :param work: a generator function of a module; its results must be picklable.
    :returns: pairs of i and a result.
    :raises WorkerError: if a process dies (killed for want of memory, say); what the others yielded came before.
    """
    count = min(jobs, len(arguments))
    if not count:
        return
    context = multiprocessing.get_context("spawn")  # a fork would inherit locks of PyTorch's threads
    todo, results = context.Queue(), context.Queue()
    for item in enumerate(arguments):
        todo.put(item)
    for _ in range(count):
        todo.put(None)
    processes = [context.Process(target=_serve, args=(work, todo, results, os.getpid()), daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    try:
        working = count
        while working:
            try:
                index, result, error = results.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                dead = [process for process in processes if process.exitcode not in (None, 0)]
                if dead:
                    status = dead[0].exitcode
                    raise WorkerError(f"a worker process ended with status {status} (-9: killed, for memory?)") from None
                continue
            if error is not None:
                raise WorkerError(error)
            if index is None:
                working -= 1
            else:
                yield index, result
    except BaseException:
        for process in processes:
            process.terminate()
        raise
    finally:
        for process in processes:
            process.join()


def _serve(work: Callable[..., Iterator[Any]], todo: Any, results: Any, parent: int) -> None:
    torch.set_num_threads(1)
    gc.freeze()  # what was imported stays, and need not be looked through again and again
    try:
        while (item := todo.get()) is not None:
            index, arguments = item
            for result in work(*arguments):
                results.put((index, result, None))
                if os.getppid() != parent:  # killed: nobody reads this
                    return
        results.put((None, None, None))
    except KeyboardInterrupt:
        return
    except Exception as error:  # the parent raises it
        results.put((None, None, f"{type(error).__name__}: {error}"))
