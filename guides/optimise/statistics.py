"""Running statistics of normalisation, gathered once the parameters are found."""

from __future__ import annotations

import torch
from torch import Tensor

from guides.errors import OptionError, UnsupportedModelError
from guides.optimise.batches import IndexStream
from guides.program.data import Data
from guides.program.isolation import quiet, seeded
from guides.program.joint import joint_traces
from guides.program.owning import is_owned
from guides.program.parameters import isolated_store
from guides.program.program import Program

__all__ = ["check_statistics", "gather_statistics", "hand_over_statistics"]

_PASSES = 100  # after which, at the usual momentum of 0.1, what a module began with counts 3e-5


def check_statistics(program: Program, replicates: int, finishes: bool) -> None:
    """Check that the running statistics which normalisation in training mode gathers would be those of one fit.

    :param finishes: the guide is finished from derivatives for each data point.
    :raises OptionError, UnsupportedModelError: naming the module and what to do.
    """
    for module in program.parameters.normalisers:
        if not module.training:
            continue
        ways = "call .eval() on it to normalise by its running statistics as they are"
        if finishes:
            raise UnsupportedModelError(
                f"{type(module).__name__} is in training mode, where a data point's output depends on the others of its "
                f"batch; this guide needs every data point's own. {ways[0].upper()}{ways[1:]}"
            )
        if replicates > 1:
            raise OptionError(
                f"{type(module).__name__} is in training mode and keeps one set of running statistics, which {replicates} "
                f"fits at once cannot share; {ways}, build it with track_running_stats=False, or fit one at a time"
            )


def gather_statistics(program: Program, flat: Tensor, data: Data, batch_size: int | None, seed: int) -> None:
    """Run model and guide on batch after batch at parameters ``flat``, ``(size,)``, and let normalisers take note."""
    if not any(module.training for module in program.parameters.normalisers):
        return
    batches = [data] * _PASSES
    if batch_size is not None:
        stream = IndexStream(data.size, batch_size, torch.Generator(flat.device).manual_seed(seed))
        batches = [data.take(index) for index in stream.take(_PASSES)]
    with isolated_store(), quiet(), seeded(seed), torch.no_grad():
        for batch in batches:
            run = lambda batch=batch: joint_traces(program.model, program.guide, batch.args, batch.kwargs)  # noqa: E731
            program.parameters.call(flat, run, keep_statistics=True)


def hand_over_statistics(source: Program, target: Program) -> None:
    """Give the normalisers in training mode of one program the running statistics of another's, its copy, but for those
    that belong to a posterior."""
    for ours, theirs in zip(source.parameters.normalisers, target.parameters.normalisers):
        if theirs.training and ours is not theirs and not is_owned(theirs):
            for name, value in ours._buffers.items():
                held = theirs._buffers[name]
                if value is not None and held is not None:
                    held.copy_(value)
