"""Pieces of work on any executor: what comes back, as it comes, and what becomes of pieces whose worker died."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Executor, Future, wait
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

__all__ = ["MOST_RUNS", "Fleet", "GivenUp", "Lost", "WorkerDied", "WorkerError", "dispatch"]

MOST_RUNS = 3
"""How often a piece may run: once, and twice again after its worker died."""

_MOST_AT_ONCE = 1000
_FEWER = 8

P = TypeVar("P")


class WorkerError(RuntimeError):
    """Work cannot go on where it was sent; the message says why and what to do. What came back before is kept."""


class Fleet(Executor):
    """An executor that can say something to its workers before there is work."""

    def everywhere(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Return what a function returns on every worker that there is now; nothing where workers come with the work."""
        raise NotImplementedError


class WorkerDied(RuntimeError):
    """The worker of one piece of work ended before it had answered; no other piece is touched."""


class GivenUp(WorkerDied):
    """The executor has tried by itself on several workers, and each died."""


@dataclass(frozen=True)
class Lost(Generic[P]):
    """A piece of work that took its worker with it each time, and is given up."""

    error: BaseException


@dataclass
class _Flight(Generic[P]):
    part: P
    runs: int = 0


def dispatch(
    executor: Executor, call: Callable[[P], Any], parts: Sequence[P], apart: Callable[[P], Sequence[P]]
) -> Iterator[tuple[P, Any]]:
    """Yield each part with what ``call`` returned for it, in the order in which they finish.

    ``call`` returns what went wrong inside it as a value, so that an exception means that the worker was lost: the part
    runs again, the last time as the parts that ``apart`` makes of it, so that one that kills costs no other; then it is
    given up. A pool that breaks (``BrokenExecutor``) takes everything in flight with it and does not say whose fault it
    was: then fewer run at once, until one is lost alone.

    :param call: a function that the executor can send, with its argument, to a worker.
    :returns: pairs of a part and a result, or :class:`Lost`.
    :raises WorkerError: if nothing can run there, at once and for every part.
    """
    waiting = deque(_Flight(part) for part in parts)
    flying: dict[Future[Any], _Flight[P]] = {}
    most = _MOST_AT_ONCE
    try:
        while waiting or flying:
            while waiting and len(flying) < most:
                _start(executor, call, waiting, flying)
            done, _ = wait(flying, return_when=FIRST_COMPLETED)
            landed = [(flying.pop(future), future) for future in done]
            broken = [flight for flight, future in landed if _is_broken(future)]
            if broken:  # the rest follows within moments, and is not to be blamed one after the other
                others, _ = wait(flying)
                landed += [(flying.pop(future), future) for future in others]
                broken = [flight for flight, future in landed if _is_broken(future)]
            for flight, future in landed:
                error = _outcome(future)
                if error is None:
                    most = min(_MOST_AT_ONCE, 2 * most)
                    yield flight.part, future.result()
                    continue
                flight.runs += len(broken) < 2 or flight not in broken
                if isinstance(error, GivenUp):
                    flight.runs = MOST_RUNS - (len(apart(flight.part)) > 1)
                if flight.runs >= MOST_RUNS:
                    yield flight.part, Lost(error)
                elif flight.runs == MOST_RUNS - 1:
                    waiting.extendleft(_Flight(part, flight.runs) for part in reversed(apart(flight.part)))
                else:
                    waiting.appendleft(flight)
            if len(broken) > 1:
                most = max(1, min(most, len(broken)) // _FEWER)
    finally:
        for future in flying:
            future.cancel()


def _start(
    executor: Executor, call: Callable[[P], Any], waiting: deque[_Flight[P]], flying: dict[Future[Any], _Flight[P]]
) -> None:
    flight = waiting.popleft()
    try:
        flying[executor.submit(call, flight.part)] = flight
    except BrokenExecutor as error:
        raise WorkerError(f"the pool of workers broke and takes no more work ({_said(error)})") from error
    except RuntimeError as error:
        raise WorkerError(f"the workers take no more work ({_said(error)})") from error


def _is_broken(future: Future[Any]) -> bool:
    return not future.cancelled() and isinstance(future.exception(), BrokenExecutor)


def _outcome(future: Future[Any]) -> BaseException | None:
    """Return the error by which a part's worker was lost, ``None`` where it answered.

    :raises WorkerError: if the error is of a kind that every part would meet.
    """
    if future.cancelled():
        raise WorkerError("the connection to the workers was lost")
    error = future.exception()
    if isinstance(error, CancelledError):
        raise WorkerError("the connection to the workers was lost") from error
    if isinstance(error, ImportError | AttributeError):
        raise WorkerError(
            f"a worker cannot load what it was sent ({_said(error)}); install there the package that it comes from, "
            "of the version that is here"
        ) from error
    return error


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
