"""One thread at a time.

Pyro's handlers, its parameter store and torch's random state belong to the process: two fits at once would see each other's
sites. So all that runs a model here holds one lock, and other threads wait.
"""

from __future__ import annotations

import linecache
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from pyro.poutine.runtime import _PYRO_STACK
from torch.fx import graph_module

from guides.errors import UnsupportedModelError

__all__ = ["LOCK", "undivided"]

LOCK = threading.RLock()


_OF_TORCH = ("TORCH", "TRITON")


@contextmanager
def _surroundings() -> Iterator[None]:
    """Leave the filters of warnings and the environment as they were, and no sources of graphs behind.

    What torch imports at first use changes the first two; of every graph that was made, it keeps the source for tracebacks.
    """
    before, sources = set(os.environ), graph_module._loader.eval_cache
    known = set(sources)
    with warnings.catch_warnings():
        try:
            yield
        finally:
            for name in [n for n in os.environ if n not in before and n.startswith(_OF_TORCH)]:
                del os.environ[name]
            for name in [n for n in sources if n not in known]:
                del sources[name]
                linecache.cache.pop(name, None)


@contextmanager
def undivided(what: str) -> Iterator[None]:
    """Let no other thread run a model inside the block.

    :param what: names the work, for the error.
    :raises UnsupportedModelError: inside of Pyro's handlers, as when a model that is being run starts a fit.
    """
    with LOCK, _surroundings():
        if _PYRO_STACK:
            around = ", ".join(type(handler).__name__ for handler in _PYRO_STACK)
            raise UnsupportedModelError(
                f"{what} was called while a model was being run, or inside of Pyro's handlers ({around}), which would "
                "change what it does; call it before, and hand its result to the model. A handler goes around the model "
                "alone, as in guides.fit(pyro.poutine.scale(model, 0.5), ...)"
            )
        yield
