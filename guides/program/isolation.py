"""Blocks that leave nothing behind: seeds, checks of arguments and warnings are the caller's again afterwards."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pyro
import torch

from guides.program.functions import followable
from guides.program.stating import without_false_alarms
from guides.program.validation import Unvalidated

__all__ = ["quiet", "seeded"]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's generators inside the block and give the caller's states back afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """Switch Pyro's and torch's argument validation off inside the block: it branches on values, which vmap cannot.

    Also let :mod:`torch.func` follow gradients that are written by hand, and silence vmap's remark on operations, such as
    gamma draws, that it runs one by one.
    """
    with pyro.validation_enabled(False), Unvalidated(), followable(), without_false_alarms():
        warnings.filterwarnings("ignore", message="There is a performance drop", category=UserWarning)
        warnings.filterwarnings("ignore", message=".*was not registered in the param store", category=UserWarning)
        yield
