"""When a replicate stops: validation that no longer improves, or a loss that is no longer finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from guides.engine.data import Data, stack
from guides.engine.noise import Noise
from guides.engine.state import State
from guides.engine.step import ChunkRunner, Inputs, Replicates
from guides.engine.tracing import Traced
from guides.errors import NonFiniteLossError

__all__ = ["early_stopping", "rewind", "validation_score"]


def validation_score(
    replicates: Replicates, validations: Sequence[Data], seeds: Sequence[int], samples: int, traced: bool
) -> Callable[[Tensor], Tensor]:
    """Return a function from parameters ``(R, size)`` to the mean log predictive density per validation point in nats,
    ``(R,)``.

    The draws' noise is fixed, so that scores of different epochs differ by the parameters only.
    """
    program = replicates.program
    first = validations[0]
    shared = all(v is first for v in validations)
    args = first.args if shared else stack(validations)
    tensors = tuple(i for i, a in enumerate(args) if isinstance(a, Tensor))
    device = program.parameters.initial.device
    draws = [program.noise.draw((samples,), torch.Generator(device).manual_seed(s + 2**33)) for s in seeds]
    normals, uniforms = torch.stack([d.normals for d in draws]), torch.stack([d.uniforms for d in draws])
    strata = program.strata(device)
    which = strata.repeat(math.ceil(samples / len(strata)))[:samples]

    def one(flat: Tensor, normals: Tensor, uniforms: Tensor, *values: Tensor) -> Tensor:
        arguments: list[Any] = list(first.args)
        for i, value in zip(tensors, values):
            arguments[i] = value

        def log_likelihood(normals: Tensor, uniforms: Tensor, stratum: Tensor) -> Tensor:
            return program.log_likelihood(flat, Noise(normals, uniforms), stratum, arguments, first.kwargs)

        per_draw = torch.vmap(log_likelihood, randomness="different")(normals, uniforms, which)
        return (torch.logsumexp(per_draw, 0) - math.log(samples)).mean()

    dims = (0, 0, 0, *((None if shared else 0) for _ in tensors))
    every = torch.vmap(one, in_dims=dims, randomness="different")
    accelerated = Traced(lambda *inputs: (every(*inputs),), "the validation score", enabled=traced)

    def score(flat: Tensor) -> Tensor:
        with torch.no_grad():
            return accelerated(flat, normals, uniforms, *(args[i] for i in tensors))[0]

    return score


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


def rewind(
    replicate: int,
    before: tuple[Tensor, tuple[Tensor, ...]],
    inputs: Inputs,
    rates: Tensor,
    state: State,
    replicates: Replicates,
    optimiser: Any,
    clip_norm: float | None,
) -> int:
    """Take a replicate back to its last parameters with a finite loss, stop it there, and return how many steps were good.

    Steps are pure, so running the chunk again up to the bad step gives the parameters just before it.

    :param before: parameters and moments of all replicates before the chunk.
    :raises NonFiniteLossError: if not even the first step of the fit was finite.
    """
    row = torch.tensor([replicate], device=rates.device)
    runner = ChunkRunner(replicates, optimiser, clip_norm, "eager")
    now = (before[0][row], *(m[row] for m in before[1]))
    good, what = len(rates), "the loss"
    for k in range(len(rates)):
        one = tuple(i[:, k : k + 1] for i in inputs)
        after, loss = runner(now, row, one, rates[k : k + 1], state.step + k, 0)
        if not (torch.isfinite(loss).all() and torch.isfinite(after[0]).all()):
            good, what = k, "the gradient" if torch.isfinite(loss).all() else "the loss"
            break
        now = after
    state.write(row, now[0], now[1:])
    step = state.step + good
    site = _first_bad_site(replicates, replicate, now[0][0], inputs, min(good, len(rates) - 1))
    if step == 0:
        raise NonFiniteLossError(
            f"{what} is not finite before the first step, first at {site}. Check the data's scale and the prior, or start "
            "elsewhere (init='sample')"
        )
    state.stop(replicate, step, f"{what} was not finite at step {step}, first at {site}; kept the last finite parameters")
    return good


def _first_bad_site(replicates: Replicates, r: int, flat: Tensor, inputs: Inputs, k: int) -> str:
    """Name the first site whose value or log density is not finite at one step's parameters, noise and batch."""
    normals, uniforms, *index = (i[r, k] for i in inputs)
    tensors = replicates.args if replicates.shared else tuple(a[r] for a in replicates.args)
    args = replicates.arguments(tensors, index[0] if index else None)
    with torch.no_grad():
        model_trace, guide_trace = replicates.program.traces(flat, args, replicates.kwargs, Noise(normals[0], uniforms[0]))
        for owner, trace in (("guide", guide_trace), ("model", model_trace)):
            name = _bad_site(trace)
            if name is not None:
                return f"{owner} site {name!r}"
    return "the gradient (every site's log density is finite)"


def _bad_site(trace: Trace) -> str | None:
    for name, site in list[tuple[str, Any]](trace.nodes.items()):
        if site["type"] != "sample" or not isinstance(site["value"], Tensor):
            continue
        if not torch.isfinite(site["value"]).all():
            return name
        if hasattr(site["fn"], "log_prob") and not torch.isfinite(site["fn"].log_prob(site["value"])).all():
            return name
    return None
