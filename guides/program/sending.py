"""The same function of several arguments on an executor of :mod:`concurrent.futures`, wherever that runs it."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Any

from guides.errors import OptionError

__all__ = ["Raised", "called_on"]


@dataclass(frozen=True)
class Raised:
    """What a call ended with instead of a result.

    :ivar error: what the function raised, or what became of the worker that ran it.
    :ivar lost: the worker ended before it had answered.
    """

    error: Exception
    lost: bool = False


def called_on(
    executor: Executor | None, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]
) -> list[Any | Raised]:
    """Return what ``function`` returns for each of ``calls``, in their order; errors as :class:`Raised`.

    :param executor: where to call it, ``None`` for here, one after the other.
    :raises OptionError: before any work, if this is no executor or the arguments cannot be sent to its workers.
    """
    if executor is None:
        return [_guarded(function, *arguments) for arguments in calls]
    if not isinstance(executor, Executor):
        raise OptionError(
            f"executor is a {type(executor).__name__}; pass a concurrent.futures.Executor, such as ProcessPoolExecutor(), "
            "or client.get_executor() of a Dask client"
        )
    futures: list[Future[Any]] = []
    try:
        for arguments in calls:
            futures.append(_submitted(executor, function, arguments))
        return [_answer(future) for future in futures]
    finally:
        for future in futures:
            future.cancel()


def _guarded(function: Callable[..., Any], *arguments: Any) -> Any | Raised:
    try:
        return function(*arguments)
    except Exception as error:  # who called decides which errors are results
        return Raised(error)


def _submitted(executor: Executor, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Future[Any]:
    try:
        return executor.submit(_guarded, function, *arguments)
    except (pickle.PicklingError, TypeError, AttributeError) as error:  # of executors that pickle at once, as Dask's
        raise _unsendable(error) from error


def _answer(future: Future[Any]) -> Any | Raised:
    try:
        return future.result()
    except Exception as error:  # of the executor: what the function raises is an answer
        if isinstance(error, pickle.PicklingError) or "pickle" in str(error):
            raise _unsendable(error) from error
        return Raised(error, lost=True)


def _unsendable(error: Exception) -> OptionError:
    return OptionError(
        f"the model, guides or data cannot be sent to the executor's workers ({' '.join(str(error).split())[:300]}); define "
        "the model at the top of a module, or use an executor that pickles functions by value, such as Dask's"
    )
