"""Models that choose their own rows: ``pyro.plate(..., subsample_size=B)`` and ``pyro.plate(..., subsample=index)``.

Such a model sees other rows at every run, so two runs are not of one model: importance weights of two draws would differ by
the rows, and predictions would be of rows that nobody knows. Here the choice becomes an input. An optimisation step is given
the rows of its subsample; everything else, the guide's set-up included, runs the model on all rows of its plates.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro.infer.autoguide import AutoGuide
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message, apply_stack
from pyro.poutine.subsample_messenger import SubsampleMessenger, _Subsample
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.overrides import TorchFunctionMode

from guides.errors import FixedSubsampleWarning, UnsupportedModelError
from guides.program.sites import is_observed, nodes

__all__ = ["OwnPlates", "check_rows_have_latents", "in_model", "own_plates", "rows_seen"]

_ROWS = "_rows"
"""Key in a latent's ``infer``: the rows that the model sees of the plates that the latent stands in, by plate."""


@dataclass(frozen=True)
class OwnPlates:
    """The plates of which a model, or its guide, sees a part of its own choice.

    :ivar sizes: by plate, how many rows there are in all, and how many a run sees.
    :ivar choosable: those that can be seen whole; of others a run sees whatever the model chooses.
    :ivar indexed: those whose rows the model draws itself (``subsample=index``), which a step leaves to it: it knows why.
    """

    sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    choosable: frozenset[str] = frozenset()
    indexed: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.sizes)

    @property
    def streams(self) -> dict[str, tuple[int, int]]:
        """The plates that a step is given rows of, by name: rows in all, and rows per step."""
        return {name: size for name, size in self.sizes.items() if name in self.choosable - self.indexed}

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Run models and guides inside the block on all rows of these plates."""
        if not self.sizes:
            yield
            return
        with _choosing(_Choice(self._all_rows(), None)), _WholePermutations():
            yield

    @contextmanager
    def part(self, rows: Mapping[str, Tensor], guide: Callable[..., Any]) -> Iterator[None]:
        """Run models inside the block on these rows, by plate.

        A guide of Pyro's or ours keeps a value for every row and draws them all, of which the model takes its own; a guide
        written by hand draws what the model sees.
        """
        if not self.sizes:
            yield
            return
        of_guide = self._all_rows() if isinstance(guide, AutoGuide) else rows
        with _choosing(_Choice(of_guide, rows)) as choice, _TakeRows(choice):
            yield

    def _all_rows(self) -> dict[str, Tensor]:
        return {name: torch.arange(self.sizes[name][0]) for name in self.choosable}


@dataclass
class _Choice:
    """Which rows plates see: those of the guide, and those of the model where they differ (``None``: they do not).

    :ivar indexed: plates that came with rows of their own, as seen so far.
    :ivar seen: the rows of plates in the run that goes on.
    """

    of_guide: Mapping[str, Tensor]
    of_model: Mapping[str, Tensor] | None
    models: int = 0
    indexed: set[str] = field(default_factory=set)
    seen: dict[str, Tensor] = field(default_factory=dict)

    def rows(self, name: str, given: Tensor | None) -> Tensor | None:
        if given is not None:
            self.indexed.add(name)
        if self.models and self.of_model is not None:
            return self.of_model.get(name, given)
        return self.of_guide.get(name)


_choices: list[_Choice] = []
_pyro_subsample = SubsampleMessenger._subsample


def _subsample(
    name: str,
    size: int | None = None,
    subsample_size: int | None = None,
    subsample: Tensor | None = None,
    use_cuda: bool | None = None,
    device: Any = None,
) -> tuple[int, int, Tensor | None]:
    rows = _choices[-1].rows(name, subsample) if _choices else None
    if rows is None or size is None:
        found = _pyro_subsample(name, size, subsample_size, subsample, use_cuda, device)
        if _choices and found[2] is not None:
            _choices[-1].seen[name] = found[2]
        return found
    if subsample is not None and len(subsample) == size:
        rows = subsample  # all of them, in the model's own order
    _choices[-1].seen[name] = rows
    message = Message(
        type="sample",
        name=name,
        fn=_Subsample(size, len(rows), use_cuda, device),
        is_observed=True,  # or a replay would put the guide's rows in their place
        args=(),
        kwargs={},
        value=rows,
        infer={},
        scale=1.0,
        mask=None,
        cond_indep_stack=(),
        done=True,
        stop=False,
        continuation=None,
    )
    apply_stack(message)
    return size, len(rows), rows


@contextmanager
def _choosing(choice: _Choice) -> Iterator[_Choice]:
    """Let plates inside the block take their rows from ``choice``.

    Pyro asks its handlers for the rows, and then refuses an answer of another length than it expected; so the question is
    answered one step before.
    """
    _choices.append(choice)
    SubsampleMessenger._subsample = staticmethod(_subsample)  # type: ignore[method-assign]
    try:
        yield choice
    finally:
        _choices.pop()
        if not _choices:
            SubsampleMessenger._subsample = staticmethod(_pyro_subsample)  # type: ignore[method-assign]


@contextmanager
def in_model() -> Iterator[None]:
    """Mark that it is the model that runs, and not its guide."""
    choice = _choices[-1] if _choices else None
    if choice is None:
        yield
        return
    choice.models += 1
    try:
        yield
    finally:
        choice.models -= 1


class _TakeRows(Messenger):
    """Cut the values of latents in subsampled plates, drawn for all rows, to the rows that the model sees.

    The rows are those that the plates were given, and not what the trace says of them: handlers of the model's own may
    rename, redraw or hide the choice.
    """

    def __init__(self, choice: _Choice) -> None:
        super().__init__()
        self._choice = choice

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg) or msg["value"] is None or msg["is_observed"]:
            return
        parts = [f.name for f in msg["cond_indep_stack"] if f.full_size not in (None, f.size)]
        rows = {name: self._choice.seen[name] for name in parts if name in self._choice.seen}
        if rows:
            msg["infer"] = {**msg["infer"], _ROWS: rows}
            msg["value"] = _cut(msg["value"], msg, rows)


def _cut(value: Tensor, site: Any, rows: Mapping[str, Tensor]) -> Tensor:
    for frame in site["cond_indep_stack"]:
        if frame.dim is None or frame.full_size in (None, frame.size) or frame.name not in rows:
            continue
        dim = value.dim() - site["fn"].event_dim + frame.dim
        if 0 <= dim < value.dim() and value.shape[dim] == frame.full_size:
            value = value.index_select(dim, rows[frame.name].to(value.device))
    return value


def rows_seen(value: Tensor, site: Any) -> Tensor:
    """Return of a tensor in the shape of a latent's value, for all rows, what belongs to the rows that the model saw.

    :param site: the latent in a trace of the model.
    """
    return value if value.shape == site["value"].shape else _cut(value, site, site["infer"].get(_ROWS, {}))


class _AllOf(Tensor):
    """A permutation whose parts are the whole: ``torch.randperm(n)[:b]`` then stands for all n rows."""

    def __getitem__(self, index: Any) -> Tensor:
        whole: Tensor = self.as_subclass(Tensor)
        return whole if isinstance(index, slice) else whole[index]


class _WholePermutations(TorchFunctionMode):
    """Let a model that takes its rows from ``torch.randperm(n)[:b]`` take them all, in order."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not torch.randperm:
            return func(*args, **kwargs)
        size = args[0] if args else kwargs["n"]
        return torch.arange(size, device=kwargs.get("device")).as_subclass(_AllOf)


def own_plates(model: Callable[[], Trace], guide: Callable[[], Trace] | None = None) -> OwnPlates:
    """Return the plates of which a model or guide sees a part, by running them.

    :param model: runs the model on all of its data and returns its trace; ``guide`` likewise.
    """
    with _choosing(_Choice({}, None)) as seen:
        trace = model()
    found = _subsampled(trace)
    same_data = False
    if found:
        with _choosing(_Choice({}, None)) as seen_again:
            same_data = _observe_the_same(trace, model())
        if same_data and all(_same_rows(seen.seen.get(n), seen_again.seen.get(n)) for n in found):
            if seeded := found.keys() - seen.indexed:
                _warn_of(seeded, "always alike, as if it had a seed of its own, so that the others are never seen")
            found = {}  # the choice is fixed: by an argument, or by a seed of the model's own
    in_guide = {} if guide is None else _subsampled(guide())
    choosable = _choosable(found | in_guide, model, guide)
    if same_data and found.keys() - choosable:  # the model is given a part, and told how large the whole is
        found = {}
        choosable = _choosable(in_guide, model, guide)
    sizes = found | in_guide
    if left := sizes.keys() - choosable:
        _warn_of(left, "in a way that cannot be steered from outside")
    return OwnPlates(sizes, choosable, frozenset(seen.indexed)) if sizes else OwnPlates()


def _warn_of(plates: Collection[str], how: str) -> None:
    names = ", ".join(map(repr, sorted(plates)))
    warnings.warn(
        f"the model chooses the rows of plate {names} {how}, so whatever is said about the fit is said of the rows that it "
        "happens to choose; use pyro.plate(..., subsample_size=...) without a seed, or fit(..., batch_size=...)",
        FixedSubsampleWarning,
        stacklevel=3,
    )


def check_rows_have_latents(trace: Trace, kept: Collection[str], own: OwnPlates) -> None:
    """Check that a guide which keeps one value per row of a latent can follow the rows that the model chooses.

    :param trace: of the model on all rows that it can be made to see.
    :param kept: names of the latents that the guide keeps.
    :raises UnsupportedModelError: naming latent and plate, if it cannot.
    """
    for name, site in nodes(trace).items():
        for frame in site["cond_indep_stack"] if name in kept else ():
            full = frame.full_size
            if not frame.vectorized and frame.name in own.sizes:
                raise UnsupportedModelError(
                    f"latent site {name!r} stands in the sequential plate {frame.name!r}, of which the model sees "
                    f"{own.sizes[frame.name][1]} of {own.sizes[frame.name][0]} rows at a time, so that there are other "
                    "latents at every step; use a vectorised plate (with pyro.plate(...) as i), or a sequential one of all "
                    "rows"
                )
            if full is not None and isinstance(frame.size, int) and 0 < frame.size < full:
                raise UnsupportedModelError(
                    f"latent site {name!r} has one value per row of plate {frame.name!r}, of which the model sees "
                    f"{frame.size} of {full} rows, always the same or chosen in a way that cannot be steered from outside "
                    "(poutine.seed, a fixed index, torch.randint), so that the others would have no distribution; use "
                    "pyro.plate(..., subsample_size=...) without a seed, fit(..., batch_size=...), or a plate of the rows "
                    "that there are"
                )


def _choosable(
    sizes: Mapping[str, tuple[int, int]], model: Callable[[], Trace], guide: Callable[[], Trace] | None
) -> frozenset[str]:
    """Return those of some plates of which model and guide can be made to see all rows."""
    if not sizes:
        return frozenset()
    try:
        with OwnPlates(sizes, frozenset(sizes)).whole():
            left = _subsampled(model()) | ({} if guide is None else _subsampled(guide()))
    except (RuntimeError, ValueError, IndexError):  # it has no more rows than it sees
        return frozenset()
    return frozenset(sizes) - frozenset(left)


def _observe_the_same(one: Trace, other: Trace) -> bool:
    """Tell whether two runs observe the same."""
    values = {n: s["value"] for n, s in nodes(one).items() if is_observed(s)}
    again = {n: s["value"] for n, s in nodes(other).items() if is_observed(s)}
    same = values.keys() == again.keys() and all(torch.equal(v, again[n]) for n, v in values.items())
    return bool(values) and same


def _same_rows(one: Any, other: Any) -> bool:
    if one is None or other is None:
        return one is other
    return len(one) == len(other) and bool((torch.as_tensor(one) == torch.as_tensor(other)).all())


def _subsampled(trace: Trace) -> dict[str, tuple[int, int]]:
    """Return size and part of every plate of which a trace sees a part."""
    found = {}
    for site in nodes(trace).values():
        if site["type"] != "sample":
            continue
        for frame in site["cond_indep_stack"]:
            full = frame.full_size
            if full is not None and isinstance(frame.size, int) and 0 < frame.size < full:
                found[frame.name] = (full, frame.size)
    return found
