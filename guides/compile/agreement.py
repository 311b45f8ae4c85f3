"""Does a compiled loop do what its graph does? What steps did is compared, each parameter against its own rounding.

What a step does is known twice: in single precision, as it runs, and in double precision, as it is meant. The difference
of the two is what rounding makes of every number of the result, in this model, with these data, at this point. A loop may
differ from the numbers that are meant by some times that, and by some units in the last place of what moved.

The optimisers divide gradients by their size, so that a gradient of rounding size can become a step of full size in either
direction. So the check chooses the state that it starts from. First steps start without moments, and their moments, which
are gradients and squares of gradients, are compared; then two steps start with moments as large as the largest gradient of
each parameter, from which no entry's step depends on its own sign, and with learning rates by which every parameter moves
far beyond its own last place; now all that is carried from step to step is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from guides.compile.evaluation import Reference

__all__ = ["Difference", "Judge"]

Inputs = tuple[Tensor, ...]
Loop = Callable[[Inputs, Inputs, Inputs], tuple[Inputs, Tensor]]

_STEPS = 3  # of loops of which nothing is known but that they are loops
_TRIES = 3  # a loop is wrong if it is so at every one of them: rounding may decide a branch now and then
_OF_PART = 10.0  # times the largest rounding error of a part
_OF_ENTRY = 50.0  # times the entry's own, or that of half of the part's entries
_LAST_PLACES = 8.0  # units in the last place of what moved
_ENOUGH, _MANY = 1024, 8192  # entries
_ORDERLY = 16.0  # root of the elements that any order sums up about as well as another
_MUCH = 30.0  # times the largest first moment: moments by which gradients, and their rounding, matter little
_UNCLEAR = 1e-4  # of the largest number of a result: rounding errors through which little is seen
_AVERAGED = 16  # steps
_DEVIATIONS = 6.0  # of a mean of rounding errors
_VISIBLE = 2.0**-8  # of the largest parameter is what a step moves
_LEAST_RATE = 1e-3
_ASIDE = 0.3  # at most, so far from the parameters of the fit


@dataclass(frozen=True)
class Difference:
    """What a loop does otherwise than its graph.

    :ivar what: a parameter and what of it, or the losses.
    :ivar step: number of the step from which the comparison started, from 1; 0 where steps are not numbered.
    :ivar found: the number that the loop gave; ``expected``: the one that is meant.
    :ivar allowed: how far rounding may lead apart.
    """

    what: str
    step: int
    found: float
    expected: float
    allowed: float

    def __str__(self) -> str:
        where = f" at step {self.step}" if self.step else ""
        return (
            f"{self.what}{where} is {self.found:.7g} where {self.expected:.7g} is right "
            f"(rounding explains {self.allowed:.2g})"
        )


@dataclass(frozen=True)
class _Trial:
    """Steps from a state that was chosen, and which parts of the state to look at afterwards."""

    state: Inputs
    varying: Inputs
    compared: tuple[int, ...]


@dataclass(frozen=True)
class Judge:
    """Compare loops with graphs.

    :ivar parts: names of parameters, and where each lies in a row of every tensor of the state.
    :ivar optimises: the state is parameters and moments of an optimiser, and the first varying tensor its clock, with
        columns of rates and step numbers; otherwise the state is started from as it is given.
    """

    parts: Mapping[str, slice] = field(default_factory=lambda: {"": slice(None)})
    optimises: bool = False

    def difference(
        self, loop: Loop, reference: Reference, state: Inputs, shared: Inputs, varying: Inputs
    ) -> Difference | None:
        """Return what a loop does otherwise than its graph near a state, ``None`` if nothing.

        :param varying: the steps whose data and noise to use; they are repeated where there are too few.
        """
        first = None
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            for number in range(_TRIES):
                find = self._stepwise if self.optimises else self._plainly
                found = find(loop, reference, state, shared, varying, number)
                if found is None:
                    return None
                first = first or found
        return first

    def _plainly(
        self, loop: Loop, reference: Reference, state: Inputs, shared: Inputs, varying: Inputs, number: int
    ) -> Difference | None:
        steps = varying[0].shape[1] if varying else 1
        first = (number * _STEPS) % max(1, steps - _STEPS + 1)
        trial = _Trial(state, tuple(v[:, first : first + _STEPS] for v in varying), tuple(range(len(state))))
        return self._first(trial, _Runs.of(loop, reference, trial, shared), 0)

    def _stepwise(
        self, loop: Loop, reference: Reference, state: Inputs, shared: Inputs, varying: Inputs, number: int
    ) -> Difference | None:
        """Compare gradients, then steps."""
        steps = varying[0].shape[1]
        chosen = [(2 * number) % steps, (2 * number + 1) % steps]
        step = int(varying[0][0, chosen[0], 1])
        now = tuple(v[:, chosen] for v in varying)
        zeros = tuple(torch.zeros_like(s) for s in state[1:])
        # At an optimum all gradients are rounding. But further away the model may have no density.
        for flat in (_aside(state[0], number), state[0]):
            trial = _Trial((flat, *zeros), _at_rates(now, torch.ones_like(now[0][:, :1, 0])), tuple(range(1, len(state))))
            runs = _Runs.of(loop, reference, trial, shared)
            if runs.finite:
                break
        found = self._first(trial, runs, step) or self._on_average(
            loop, reference, trial.state, shared, varying, number, runs
        )
        if found is not None:
            return found
        moments, rates = self._moments(runs, number), _visible(flat, runs)
        for first in (rates, now[0][:, :1, 0].clamp(min=_LEAST_RATE)):
            trial = _Trial((flat, *moments), _at_rates(now, torch.cat([first, rates], 1)), tuple(range(len(state))))
            runs = _Runs.of(loop, reference, trial, shared)
            if runs.finite:
                break
        return self._first(trial, runs, step)

    def _moments(self, runs: _Runs, number: int) -> Inputs:
        """Return moments, in every entry larger than what a step at this point adds to any of its parameter."""
        source = torch.Generator().manual_seed(number)
        moments = []
        for meant, rounded in zip(runs.meant[0][1:], runs.rounded[0][1:]):
            size = torch.zeros_like(meant)
            for part in self.parts.values():
                if size[:, part].numel():
                    right, noise = meant[:, part], runs.noise(rounded[:, part], meant[:, part])
                    size[:, part] = _MUCH * (right.abs() + torch.nan_to_num(noise)).amax(1, keepdim=True)
            spread = 0.5 + 0.5 * torch.rand(size.shape, generator=source).to(size)
            moments.append(torch.nan_to_num(size * spread, 1.0, 1.0, 1.0))
        return tuple(m.to(old.dtype) for m, old in zip(moments, runs.graph[0][1:]))

    def _on_average(
        self, loop: Loop, reference: Reference, state: Inputs, shared: Inputs, varying: Inputs, number: int, runs: _Runs
    ) -> Difference | None:
        """Compare gradients and losses of many steps, where little would be seen of those of one through the rounding.

        A loop that does what it should errs like the graph: on average over steps, by little more than the graph does.
        """
        results = (*runs.meant[0][1:], runs.meant[1]), (*runs.rounded[0][1:], runs.rounded[1])
        if all(_clear(_some(m), runs.noise(_some(r), _some(m))) for m, r in zip(*results)):
            return None
        steps = varying[0].shape[1]
        errors: list[list[Tensor]] = []
        for k in range(_AVERAGED):
            now = tuple(v[:, [(number * _AVERAGED + k) % steps]] for v in varying)
            around = (_aside(state[0], k), *state[1:])
            trial = _Trial(around, _at_rates(now, torch.zeros_like(now[0][:, :1, 0])), ())
            one = _Runs.of(loop, reference, trial, shared)
            kinds = ((*run[0][1:], run[1]) for run in (one.found, one.graph, one.meant, one.rounded))
            errors.append([torch.stack([f - m, one.unit * (r - m), m]) for f, _, m, r in zip(*kinds)])
        step = int(varying[0][0, 0, 1])
        for i, several in enumerate(zip(*errors)):
            error, noise, meant = torch.stack(several).unbind(1)
            is_loss = i == len(errors[0]) - 1
            for name, part in {"": slice(None)}.items() if is_loss else self.parts.items():
                far = _biased(error[..., part], noise[..., part], meant[..., part], runs.slack)
                if far is not None:
                    what = "the loss" if is_loss else f"state {i + 1} of the parameter {name}"
                    return Difference(f"{what}, on average over {_AVERAGED} steps,", step, *far)
        return None

    def _first(self, trial: _Trial, runs: _Runs, step: int) -> Difference | None:
        """Return the first thing that is too far from what is meant."""
        for i in trial.compared:
            what = "the parameter" if self.optimises and i == 0 else f"state {i} of"
            tensors = [_rows(t) for t in (trial.state[i], runs.found[0][i], runs.meant[0][i], runs.rounded[0][i])]
            for name, part in self.parts.items():
                start, found, meant, rounded = (_some(t[:, part]) for t in tensors)
                if start.numel():
                    far = _far(start, found, meant, runs.noise(rounded, meant), runs.slack)
                    if far is not None:
                        return Difference(f"{what} {name or 'the loop'}", step, *far)
        noise = runs.noise(runs.rounded[1], runs.meant[1])
        far = (
            _far(torch.zeros_like(runs.meant[1]), runs.found[1], runs.meant[1], noise, runs.slack) if noise.numel() else None
        )
        return None if far is None else Difference("the loss" if self.optimises else "the result", step, *far)


@dataclass(frozen=True)
class _Runs:
    """State and losses after a trial.

    :ivar found: what the loop gives.
    :ivar graph: what the graph gives.
    :ivar meant: what the graph gives in double precision, or as it is if it is in double precision.
    :ivar rounded: what it gives in single precision.
    :ivar unit: rounding errors of the graph are about as large as so many times those in single precision.
    :ivar slack: so many times larger errors are than the graph's where sums are taken in another order.
    """

    found: tuple[Inputs, Tensor]
    graph: tuple[Inputs, Tensor]
    meant: tuple[Inputs, Tensor]
    rounded: tuple[Inputs, Tensor]
    unit: float
    slack: float

    @classmethod
    def of(cls, loop: Loop, reference: Reference, trial: _Trial, shared: Inputs) -> _Runs:
        random = torch.get_rng_state()

        def again(run: Callable[[], tuple[Inputs, Tensor]]) -> tuple[Inputs, Tensor]:
            torch.set_rng_state(random)
            return run()

        found = again(lambda: loop(trial.state, shared, trial.varying))
        graph = again(lambda: _repeated(reference.graph, trial, shared))
        other = again(lambda: _repeated(reference.other, trial, shared))
        slack = max(1.0, reference.longest**0.5 / _ORDERLY)
        if not reference.in_double:
            return cls(found, graph, other, graph, 1.0, slack)
        return cls(found, graph, graph, other, torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps, slack)

    def noise(self, rounded: Tensor, meant: Tensor) -> Tensor:
        """Return how large rounding errors of some of the results are, NaN where they are not known."""
        noise = (rounded - meant).abs().to(meant.dtype)
        if self.unit < 1:  # what is finite in double precision may be too large for single precision
            noise = torch.where(torch.isfinite(rounded), noise, meant.abs())
        known = torch.isfinite(meant) & torch.isfinite(noise)
        return torch.where(known, self.unit * noise, torch.nan)

    @property
    def finite(self) -> bool:
        """Whether all that is meant is finite."""
        return all(bool(torch.isfinite(t).all()) for t in (*self.meant[0], self.meant[1]))


def _aside(flat: Tensor, number: int) -> Tensor:
    """Return parameters near some."""
    source = torch.Generator().manual_seed(number)
    return flat + _ASIDE * (2 * torch.rand(flat.shape, generator=source) - 1).to(flat)


def _rows(tensor: Tensor) -> Tensor:
    return tensor.reshape(len(tensor), -1) if tensor.dim() else tensor.reshape(1, 1)


def _some(rows: Tensor) -> Tensor:
    """Return entries of every row, all unless they are very many: an operation is wrong for more than a few."""
    return rows[:, :: rows.shape[1] // _MANY | 1] if rows.shape[1] > _MANY else rows


def _repeated(graph: Callable[..., Sequence[Tensor]], trial: _Trial, shared: Inputs) -> tuple[Inputs, Tensor]:
    state, losses = trial.state, []
    for k in range(trial.varying[0].shape[1] if trial.varying else 1):
        *new, loss = graph(*state, *shared, *(v[:, k] for v in trial.varying))
        state = tuple(new)
        losses.append(loss.reshape(-1))
    return state, torch.stack(losses, 1)


def _at_rates(varying: Inputs, rates: Tensor) -> Inputs:
    """Return as many steps as there are learning rates ``(R, steps)``, at these."""
    count = rates.shape[1]
    clock = torch.cat([rates.unsqueeze(-1).to(varying[0].dtype), varying[0][:, :count, 1:]], -1)
    return (clock, *(v[:, :count] for v in varying[1:]))


def _visible(flat: Tensor, runs: _Runs) -> Tensor:
    """Return learning rates ``(R, 1)`` by which parameters move far beyond their last places, from a step at rate one."""
    moved = torch.nan_to_num((runs.meant[0][0] - flat).abs(), 0.0, 0.0, 0.0).amax(1, keepdim=True)
    wanted = _VISIBLE * flat.abs().amax(1, keepdim=True).clamp(min=1.0)
    return torch.where(moved > 0, wanted / moved.clamp(min=1e-30), wanted).to(flat.dtype)


def _middle(noise: Tensor) -> Tensor:
    """Return the median of every row, of many entries that of some of them."""
    return noise[..., :: max(1, noise.shape[-1] // _ENOUGH)].median(-1, keepdim=True).values


def _far(start: Tensor, found: Tensor, meant: Tensor, noise: Tensor, slack: float) -> tuple[float, float, float] | None:
    """Return the number that is furthest beyond what rounding explains, what it should be, and what would be allowed.

    All tensors are ``(rows, entries)``, of which each row is judged by itself.

    :param noise: rounding errors; where they are not known, which is where numbers are not finite, any number is right.
    """
    known = ~noise.isnan()
    noise, meant = (torch.where(known, t, 0.0) for t in (noise, meant))
    moved = torch.where(known, (meant - start).abs(), 0.0)
    last = torch.finfo(found.dtype).eps * (start.abs() + moved.amax(1, keepdim=True))
    of_part = _OF_PART * noise.amax(1, keepdim=True)
    of_entry = _OF_ENTRY * torch.maximum(noise, _middle(noise))
    allowed = slack * (torch.minimum(of_part, of_entry) + _LAST_PLACES * last) + torch.finfo(found.dtype).tiny
    error = torch.where(torch.isfinite(found), (found - meant).abs(), torch.inf)
    excess = torch.where(known, error / allowed, 0.0).flatten()
    worst = int(excess.argmax())
    if float(excess[worst]) <= 1:
        return None
    return float(found.flatten()[worst]), float(meant.flatten()[worst]), float(allowed.flatten()[worst])


def _clear(meant: Tensor, noise: Tensor) -> bool:
    """Tell whether rounding errors are small beside the numbers of a result."""
    return bool((torch.nan_to_num(noise) <= _UNCLEAR * torch.nan_to_num(meant).abs().amax(1, keepdim=True)).all())


def _biased(error: Tensor, noise: Tensor, meant: Tensor, slack: float) -> tuple[float, float, float] | None:
    """Return a mean that is too far from what is meant, that one, and how far it may be; all ``(steps, rows, entries)``."""
    known = torch.isfinite(noise).all(0) & torch.isfinite(meant).all(0)
    if not known.numel():
        return None
    deviation = noise.square().mean(0).sqrt()
    deviation = torch.maximum(deviation, _middle(torch.nan_to_num(deviation)))
    last = torch.finfo(torch.float32).eps * meant.abs().amax((0, 2), keepdim=True)[0]
    allowed = (
        2 * noise.mean(0).abs()
        + slack * _DEVIATIONS / len(error) ** 0.5 * deviation
        + slack * _LAST_PLACES * last
        + torch.finfo(torch.float32).tiny
    )
    bias = torch.where(torch.isfinite(error.mean(0)), error.mean(0).abs(), torch.inf)
    excess = torch.where(known, bias / allowed, 0.0).flatten()
    worst = int(excess.argmax())
    if float(excess[worst]) <= 1:
        return None
    right, wrong = (float(t.mean(0).flatten()[worst]) for t in (meant, meant + error))
    return wrong, right, float(allowed.flatten()[worst])
