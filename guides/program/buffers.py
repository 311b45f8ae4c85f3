"""What modules change in themselves when they run: running statistics, counters.

A step is a pure function, evaluated for many particles and replicates at once, recorded and replayed, so that what a model
writes down as it runs would depend on how it is run. Normalisation in training mode reads nothing of what it writes: its
running statistics are put aside while a fit runs, and gathered at its end. Any other change is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from guides.errors import UnsupportedModelError

__all__ = ["buffers_kept", "check_still", "evaluating", "normalisers", "without_statistics"]

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")

Changed = tuple[nn.Module, str]
"""A module, and the name of a buffer of its own."""


def normalisers(modules: Sequence[nn.Module]) -> tuple[_NormBase, ...]:
    """Return the modules that keep running statistics of what they normalise."""
    return tuple(m for m in modules if isinstance(m, _NormBase) and m.track_running_stats and m.running_mean is not None)


@contextmanager
def without_statistics(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Let those of the normalisers that are in training mode normalise by what they are given and write nothing down."""
    aside = [(m, n, m._buffers[n]) for m in modules if m.training for n in _STATISTICS]
    for module, name, _ in aside:
        module._buffers[name] = None
    try:
        yield
    finally:
        for module, name, value in aside:
            module._buffers[name] = value


@contextmanager
def evaluating(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Put modules into evaluation mode inside the block: they drop nothing out, and normalise every row for itself."""
    training = [m for m in modules if m.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def buffers_kept(modules: Sequence[nn.Module]) -> Iterator[Callable[[], list[Changed]]]:
    """Give the modules' buffers the values back at the end of the block that they had at its beginning.

    Yields a function that returns which have changed so far.
    """
    before = [
        (module, name, value, value.clone())
        for module in modules
        for name, value in module._buffers.items()
        if value is not None and value.layout == torch.strided and not value.is_inference()
    ]

    def is_changed(module: nn.Module, name: str, value: Tensor, old: Tensor) -> bool:
        # Not by the tensor's version: kernels write running statistics without a word.
        return name in module._buffers and (module._buffers[name] is not value or not _equal(value, old))

    try:
        yield lambda: [(m, n) for m, n, value, old in before if is_changed(m, n, value, old)]
    finally:
        with torch.no_grad():
            for module, name, value, old in before:
                if is_changed(module, name, value, old):
                    module._buffers[name] = value
                    value.copy_(old)


def _equal(a: Tensor, b: Tensor) -> bool:
    """Tell whether two tensors hold the same numbers, NaN where the other does."""
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def check_still(changed: Sequence[Changed], modules: Sequence[nn.Module]) -> None:
    """Check that what has changed are running statistics.

    :raises UnsupportedModelError: naming a buffer that is something else.
    """
    kinds = set(normalisers(modules))
    for module, name in changed:
        if module not in kinds:
            paths = (path for root in modules for path, m in root.named_modules() if m is module and path)
            where = next(paths, "")
            raise UnsupportedModelError(
                f"running the model changes the buffer {f'{where}.{name}'.lstrip('.')!r} of a {type(module).__name__}; "
                "a fit evaluates the model many times at once, in no order, and would leave the buffer as no run does. "
                "Call .eval() on the module if that stops the change, or keep what it counts outside of the model"
            )
