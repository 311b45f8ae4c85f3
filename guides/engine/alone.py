"""One thread at a time.

Pyro's handlers, its parameter store and torch's random state belong to the process: two fits at once would see each other's
sites. So all that runs a model here holds one lock, and other threads wait.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pyro.poutine.runtime import _PYRO_STACK

from guides.errors import UnsupportedModelError

__all__ = ["LOCK", "undivided"]

LOCK = threading.RLock()


@contextmanager
def undivided(what: str) -> Iterator[None]:
    """Let no other thread run a model inside the block.

    :param what: names the work, for the error.
    :raises UnsupportedModelError: inside of Pyro's handlers, as when a model that is being run starts a fit.
    """
    with LOCK:
        if _PYRO_STACK:
            around = ", ".join(type(handler).__name__ for handler in _PYRO_STACK)
            raise UnsupportedModelError(
                f"{what} was called while a model was being run, or inside of Pyro's handlers ({around}), which would "
                "change what it does; call it before, and hand its result to the model. A handler goes around the model "
                "alone, as in guides.fit(pyro.poutine.scale(model, 0.5), ...)"
            )
        yield
