"""When a replicate stops: a validation score that no longer improves, or a loss that is no longer finite."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from guides.errors import NonFiniteLossError
from guides.optimise.state import State
from guides.optimise.step import ChunkRunner, Inputs, Replicates
from guides.program.factors import FactorsOrNaN
from guides.program.noise import Noise
from guides.program.strata import Stratum

__all__ = ["Chunk", "early_stopping", "rewind"]


def early_stopping(state: State, score: Tensor, patience: int | None) -> None:
    """Keep the best parameters by validation score; stop replicates that have not improved for ``patience`` rounds."""
    active = state.active.to(score.device)
    better = active & (score > state.best_score)
    state.best_score = torch.where(better, score, state.best_score)
    state.best_flat = torch.where(better.unsqueeze(-1), state.flat, state.best_flat)
    state.best_round = torch.where(better, state.round, state.best_round)
    state.scores.append(torch.where(active, score, math.nan))
    if patience is None:
        return
    waited = (state.round - state.best_round >= patience) & active
    for r in waited.nonzero().squeeze(-1).tolist():
        best = int(state.best_round[r])
        state.stop(
            r, state.step, f"no better validation score for {patience} epochs; restored the parameters of epoch {best}"
        )


@dataclass(frozen=True)
class Chunk:
    """A chunk of steps as it was about to run: first step, state of all replicates, inputs and clock."""

    first: int
    flat: Tensor
    moments: tuple[Tensor, ...]
    inputs: Inputs
    clock: Tensor


def carefully(
    runner: ChunkRunner, state: Inputs, rows: Tensor, inputs: Inputs, clock: Tensor, first: int
) -> tuple[Inputs, Tensor]:
    """Run a chunk in which a matrix could not be factored: replicates in which that happens have a loss that is NaN.

    :param runner: one that calls the model at every step.
    """
    with FactorsOrNaN():
        try:
            return runner(state, rows, inputs, clock, first, 0)
        except torch.linalg.LinAlgError:  # of another kind: all are suspected, and run again one by one
            return state, state[0].new_full((len(rows), len(clock)), math.nan)


def rewind(
    replicate: int, chunks: Sequence[Chunk], state: State, replicates: Replicates, runner: ChunkRunner
) -> tuple[Tensor, ...]:
    """Take a replicate back to the last parameters that had a finite loss, and stop it.

    Steps are pure, so running the last chunks again up to the bad step gives the parameters on the way there. Which step
    goes wrong may depend on rounding; the losses returned are those of the steps that led to the parameters kept.

    :param chunks: the chunk with the bad step and, as that may be its first, the chunk before it.
    :param runner: one that calls the model at every step.
    :return: the replicate's losses in each chunk, NaN from the step that went wrong.
    :raises NonFiniteLossError: if not even the first step of the fit was finite.
    """
    row = torch.tensor([replicate], device=state.flat.device)
    start = chunks[0]
    now = (start.flat[row], *(m[row] for m in start.moments))
    kept = now
    losses = tuple(state.flat.new_full((len(chunk.clock),), math.nan) for chunk in chunks)
    for chunk, record in zip(chunks, losses, strict=True):
        for k in range(len(chunk.clock)):
            one = tuple(i[:, k : k + 1] for i in chunk.inputs)
            after, loss = carefully(runner, now, row, one, chunk.clock[k : k + 1], chunk.first + k)
            finite_loss = bool(torch.isfinite(loss).all())
            if finite_loss:
                kept = now
            if not (finite_loss and torch.isfinite(after[0]).all()):
                _stop(state, replicates, replicate, chunk, k, now[0][0], kept, finite_loss)
                return losses
            record[k] = loss.squeeze()
            now = after
    # The chunk went wrong, but running it step by step did not: rounding decides. Keep where the steps led.
    state.write(row, now[0], now[1:])
    state.stop(replicate, chunks[-1].first + len(chunks[-1].clock), "the loss was not finite in one of two equal runs")
    return losses


def _stop(
    state: State,
    replicates: Replicates,
    replicate: int,
    chunk: Chunk,
    k: int,
    flat: Tensor,
    kept: tuple[Tensor, ...],
    finite_loss: bool,
) -> None:
    step, what = chunk.first + k, "the gradient" if finite_loss else "the loss"
    site = _first_bad_site(replicates, replicate, flat, chunk.inputs, k)
    if step == 0:
        raise NonFiniteLossError(
            f"{what} is not finite before the first step, first at {site}. Check the data's scale and the prior, or start "
            "elsewhere (init_loc_fn='sample')"
        )
    state.write(torch.tensor([replicate], device=flat.device), kept[0], kept[1:])
    state.stop(replicate, step, f"{what} was not finite at step {step}, first at {site}; kept the last finite parameters")


def _first_bad_site(replicates: Replicates, r: int, flat: Tensor, inputs: Inputs, k: int) -> str:
    """Name the first site whose value or log density is not finite at one step's parameters, noise and batch."""
    normals, uniforms, *index = (i[r, k] for i in inputs)
    tensors = replicates.args if replicates.shared else tuple(a[r] for a in replicates.args)
    batch, rows = replicates.chosen(index)
    args = replicates.arguments(tensors, batch)
    factors = FactorsOrNaN()
    program = replicates.program
    with torch.no_grad(), Stratum(program.strata(flat.device)[0], program.guide), factors:
        try:
            noise = Noise(normals[0], uniforms[0])
            model_trace, guide_trace = replicates.program.traces(flat, args, replicates.kwargs, noise, rows)
        except torch.linalg.LinAlgError as error:
            return f"a decomposition of a matrix ({str(error).splitlines()[0]})"
        for owner, trace in (("guide", guide_trace), ("model", model_trace)):
            name = _bad_site(trace)
            if name is not None:
                return f"{owner} site {name!r}{_cause(factors)}"
    return f"the gradient (every site's log density is finite){_cause(factors)}"


def _cause(factors: FactorsOrNaN) -> str:
    if not factors.failed:
        return ""
    what = " and ".join(sorted(factors.failed))
    return f" (a matrix has no {what}; add more to its diagonal, or compute in float64)"


def _bad_site(trace: Trace) -> str | None:
    for name, site in list[tuple[str, Any]](trace.nodes.items()):
        if site["type"] != "sample" or not isinstance(site["value"], Tensor):
            continue
        if not torch.isfinite(site["value"]).all():
            return name
        if hasattr(site["fn"], "log_prob") and not torch.isfinite(site["fn"].log_prob(site["value"])).all():
            return name
    return None
