"""Randomness as an input: every standard draw of a model and guide read from a tape.

A step of stochastic variational inference is a pure function only if its noise is an argument. Distributions draw theirs
deep inside ``rsample``; :class:`NoiseTape` intercepts the handful of torch functions that they use and hands out slices of
two vectors, one of standard normals and one of uniforms. The same tape gives the same step, whatever runs it. Dropout, which
draws inside its kernels, is done by hand for that.

The tape is open wherever a model runs, so that it also replaces the kernels that :mod:`torch.func` cannot follow; see
:mod:`guides.program.recurrent`.
"""

from __future__ import annotations

import functools
import math
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from guides.program import recurrent

__all__ = ["Noise", "NoiseLayout", "NoiseTape"]


@dataclass(frozen=True)
class NoiseLayout:
    """How many numbers of each kind one particle of one step consumes."""

    normals: int
    uniforms: int

    def draw(self, leading: tuple[int, ...], generator: torch.Generator) -> Noise:
        """Return noise of shape ``(*leading, normals)`` and ``(*leading, uniforms)`` on the generator's device."""
        device = generator.device
        return Noise(
            torch.randn(*leading, self.normals, generator=generator, device=device),
            torch.rand(*leading, self.uniforms, generator=generator, device=device),
        )

    def draw_each(self, leading: tuple[int, ...], generators: Sequence[torch.Generator]) -> Noise:
        """Return what :meth:`draw` gives for each generator, stacked, without copying it together."""
        device = generators[0].device
        normals = torch.empty(len(generators), *leading, self.normals, device=device)
        uniforms = torch.empty(len(generators), *leading, self.uniforms, device=device)
        for r, generator in enumerate(generators):
            normals[r].normal_(generator=generator)
            uniforms[r].uniform_(generator=generator)
        return Noise(normals, uniforms)


@dataclass(frozen=True)
class Noise:
    """Standard normals and uniforms, each with the same leading shape."""

    normals: Tensor
    uniforms: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> Noise:
        """Apply ``function`` to both tensors."""
        return Noise(function(self.normals), function(self.uniforms))


def _options(tensor_like: Tensor | None, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return dtype and device of a draw, from its arguments or from the tensor that it imitates."""
    dtype, device = kwargs.get("dtype"), kwargs.get("device")
    if tensor_like is not None:
        dtype, device = dtype or tensor_like.dtype, device or tensor_like.device
    return {"dtype": dtype or torch.get_default_dtype(), "device": device}


def _shape(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, ...]:
    size = kwargs.get("size", args)
    if len(size) == 1 and not isinstance(size[0], int):
        size = size[0]
    return tuple(int(s) for s in size)


class NoiseTape(TorchFunctionMode):
    """Serve the random draws inside the block from ``noise``; without it, draw afresh and count.

    Categorical draws invert the distribution function at a uniform. Draws that are not built from normals or uniforms
    (gamma, Poisson, draws without replacement, permutations) pass through to torch's own generator: they are seeded by the
    caller.

    :param noise: the two vectors to serve from, or ``None`` to record a layout.
    :ivar used: the :class:`NoiseLayout` consumed so far.
    """

    def __init__(self, noise: Noise | None = None) -> None:
        super().__init__()
        self._noise = noise
        self._normals = 0
        self._uniforms = 0

    @property
    def used(self) -> NoiseLayout:
        """The number of normals and uniforms consumed so far."""
        return NoiseLayout(self._normals, self._uniforms)

    def _take_normal(self, shape: tuple[int, ...], dtype: torch.dtype, device: Any) -> Tensor:
        size = math.prod(shape)
        start, self._normals = self._normals, self._normals + size
        if self._noise is None:
            return torch.randn(shape, dtype=dtype, device=device)
        return self._noise.normals[start : start + size].view(shape).to(dtype)

    def _take_uniform(self, shape: tuple[int, ...], dtype: torch.dtype, device: Any) -> Tensor:
        size = math.prod(shape)
        start, self._uniforms = self._uniforms, self._uniforms + size
        if self._noise is None:
            return torch.rand(shape, dtype=dtype, device=device)
        return self._noise.uniforms[start : start + size].view(shape).to(dtype)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        handler = _HANDLERS.get(func)
        if handler is None or kwargs.get("generator") is not None:
            return func(*args, **kwargs)
        return handler(self, *args, **kwargs)

    def dropout(self, input: Tensor, rate: float) -> Tensor:
        """Return ``input`` with every element zero with probability ``rate``, and larger otherwise."""
        return _dropped(self, input, rate, tuple(input.shape))


def _randn(tape: NoiseTape, *size: Any, **kwargs: Any) -> Tensor:
    return tape._take_normal(_shape(size, kwargs), **_options(None, kwargs))


def _randn_like(tape: NoiseTape, input: Tensor, **kwargs: Any) -> Tensor:
    return tape._take_normal(tuple(input.shape), **_options(input, kwargs))


def _normal_(tape: NoiseTape, self: Tensor, mean: float = 0.0, std: float = 1.0, **_: Any) -> Tensor:
    return _into(self, mean + std * tape._take_normal(tuple(self.shape), self.dtype, self.device))


def _normal(tape: NoiseTape, mean: Any, std: Any = 1.0, *size: Any, **kwargs: Any) -> Tensor:
    tensors = [t for t in (mean, std) if isinstance(t, Tensor)]
    if not tensors:
        return mean + std * tape._take_normal(_shape(size, kwargs), **_options(None, kwargs))
    shape = torch.broadcast_shapes(*(t.shape for t in tensors))
    return mean + std * tape._take_normal(tuple(shape), tensors[0].dtype, tensors[0].device)


def _rand(tape: NoiseTape, *size: Any, **kwargs: Any) -> Tensor:
    return tape._take_uniform(_shape(size, kwargs), **_options(None, kwargs))


def _rand_like(tape: NoiseTape, input: Tensor, **kwargs: Any) -> Tensor:
    return tape._take_uniform(tuple(input.shape), **_options(input, kwargs))


def _uniform_(tape: NoiseTape, self: Tensor, *bounds: float, **kwargs: Any) -> Tensor:
    low = bounds[0] if bounds else kwargs.get("from", 0.0)  # a keyword that Python cannot name as a parameter
    high = bounds[1] if len(bounds) > 1 else kwargs.get("to", 1.0)
    return _into(self, low + (high - low) * tape._take_uniform(tuple(self.shape), self.dtype, self.device))


def _bernoulli(tape: NoiseTape, input: Tensor, p: float | None = None, **_: Any) -> Tensor:
    probs = input if p is None else p
    return (tape._take_uniform(tuple(input.shape), input.dtype, input.device) < probs).to(input.dtype)


def _multinomial(tape: NoiseTape, input: Tensor, num_samples: int, replacement: bool = False, **_: Any) -> Tensor:
    if num_samples > 1 and not replacement:
        return torch.multinomial(input, num_samples)
    cumulative = input.cumsum(-1)
    # After the division the last possible category ends at exactly 1, above every uniform: impossible ones are never drawn.
    ends = cumulative / cumulative[..., -1:]
    uniform = tape._take_uniform((*input.shape[:-1], num_samples), input.dtype, input.device)
    return (ends.unsqueeze(-2) <= uniform.unsqueeze(-1)).sum(-1)


def _binomial(tape: NoiseTape, count: Tensor, prob: Tensor, **kwargs: Any) -> Tensor:
    """Not from the tape, as no gradient goes through it: under vmap torch warns where only one of the two is mapped."""
    return torch.binomial(count + torch.zeros_like(prob), prob + torch.zeros_like(count), **kwargs)


def _exponential_(tape: NoiseTape, self: Tensor, lambd: float = 1.0, **_: Any) -> Tensor:
    return _into(self, -torch.log1p(-tape._take_uniform(tuple(self.shape), self.dtype, self.device)) / lambd)


def _cauchy_(tape: NoiseTape, self: Tensor, median: float = 0.0, sigma: float = 1.0, **_: Any) -> Tensor:
    uniform = tape._take_uniform(tuple(self.shape), self.dtype, self.device)
    return _into(self, median + sigma * torch.tan(math.pi * (uniform - 0.5)))


def _bernoulli_(tape: NoiseTape, self: Tensor, p: Any = 0.5, **_: Any) -> Tensor:
    return _into(self, (tape._take_uniform(tuple(self.shape), torch.get_default_dtype(), self.device) < p).to(self.dtype))


def _dropped(tape: NoiseTape, input: Tensor, rate: float, shape: tuple[int, ...]) -> Tensor:
    """Return ``input`` times noise of ``shape``, which is zero with probability ``rate`` and has mean one."""
    if rate == 0.0 or input.numel() == 0:
        return input
    if rate == 1.0:
        return input * 0.0
    return input * ((tape._take_uniform(shape, input.dtype, input.device) >= rate) / (1.0 - rate)).to(input.dtype)


def _alpha_dropped(tape: NoiseTape, input: Tensor, rate: float, shape: tuple[int, ...]) -> Tensor:
    """Dropout to the least value of a scaled exponential linear unit, rescaled to keep mean and variance.

    Klambauer, Unterthiner, Mayr and Hochreiter (2017), Self-Normalizing Neural Networks.
    """
    if rate == 0.0 or input.numel() == 0:
        return input
    if rate == 1.0:
        return input * 0.0
    least = -1.7580993408473766
    kept = (tape._take_uniform(shape, input.dtype, input.device) >= rate).to(input.dtype)
    a = 1.0 / math.sqrt((least**2 * rate + 1.0) * (1.0 - rate))
    return a * (input * kept + least * (1.0 - kept)) - a * least * rate


def _dropout_like(
    drop: Callable[[NoiseTape, Tensor, float, tuple[int, ...]], Tensor], whole_features: bool, in_place: bool
) -> Callable[..., Tensor]:
    """Return a handler of one of torch's dropouts."""

    def handler(tape: NoiseTape, input: Tensor, p: float, train: bool) -> Tensor:
        if not train:
            return input
        shape = (*input.shape[:2], *(1 for _ in input.shape[2:])) if whole_features else tuple(input.shape)
        found = drop(tape, input, float(p), shape)
        return _into(input, found) if in_place else found

    return handler


def _rrelu(tape: NoiseTape, input: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False) -> Tensor:
    slope: Any = (lower + upper) / 2
    if training:
        slope = lower + (upper - lower) * tape._take_uniform(tuple(input.shape), input.dtype, input.device)
    return torch.where(input >= 0, input, input * slope)


def _attention(tape: NoiseTape, query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    scores = query.shape[-2] * key.shape[-2]
    if kwargs.pop("enable_gqa", False) or scores > _LARGEST_SCORES:
        return functional.scaled_dot_product_attention(query, key, *args, **kwargs)
    return recurrent.attention(tape.dropout, query, key, *args, **kwargs)


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a handler that calls a function which draws nothing."""
    return lambda tape, *args, **kwargs: function(*args, **kwargs)


def _dropping(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a handler that calls a function which drops out between layers."""
    return lambda tape, *args: function(tape.dropout, *args)


def _seen_through(name: str) -> Callable[..., Any]:
    """Return a handler of a Python function of ``torch.nn.functional`` that lets the tape see the calls inside.

    Such a function shows itself to a mode first, and inside there is no mode any more. A copy that does not ask is called
    with the tape open instead.
    """

    @functools.cache
    def copy() -> Callable[..., Any]:
        original = getattr(functional, name)
        asking = [n for n in original.__globals__ if n.startswith("has_torch_function")]
        names = {**original.__globals__, **dict.fromkeys(asking, lambda *_: False)}
        made = types.FunctionType(original.__code__, names, name, original.__defaults__, original.__closure__)
        made.__kwdefaults__ = original.__kwdefaults__
        return made

    def handler(tape: NoiseTape, *args: Any, **kwargs: Any) -> Any:
        with tape:
            return copy()(*args, **kwargs)

    return handler


def _into(target: Tensor, draw: Tensor) -> Tensor:
    """Write a draw into the tensor that it should fill, and return what the in-place function would.

    Under vmap a tensor shared by all calls cannot hold a draw for each. The draw that is returned is then right, and the
    target becomes NaN, so that code which reads the target instead fails loudly.
    """
    try:
        return target.copy_(draw)
    except RuntimeError:
        target.fill_(math.nan)
        return draw


_LARGEST_SCORES = 2**16  # of an attention; the kernel that never stores them pays for longer sequences

_DRAWING = (
    "alpha_dropout",
    "dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "feature_alpha_dropout",
    "gumbel_softmax",
    "multi_head_attention_forward",
    "rrelu",
)

_HANDLERS: dict[Any, Callable[..., Any]] = {
    torch.randn: _randn,
    torch.randn_like: _randn_like,
    torch.Tensor.normal_: _normal_,
    torch.normal: _normal,
    torch.rand: _rand,
    torch.rand_like: _rand_like,
    torch.Tensor.uniform_: _uniform_,
    torch.bernoulli: _bernoulli,
    torch.multinomial: _multinomial,
    torch.binomial: _binomial,
    torch.Tensor.multinomial: _multinomial,
    torch.Tensor.exponential_: _exponential_,
    torch.Tensor.cauchy_: _cauchy_,
    torch.Tensor.bernoulli: _bernoulli,
    torch.Tensor.bernoulli_: _bernoulli_,
    torch.dropout: _dropout_like(_dropped, whole_features=False, in_place=False),
    torch.dropout_: _dropout_like(_dropped, whole_features=False, in_place=True),
    torch.feature_dropout: _dropout_like(_dropped, whole_features=True, in_place=False),
    torch.feature_dropout_: _dropout_like(_dropped, whole_features=True, in_place=True),
    torch.alpha_dropout: _dropout_like(_alpha_dropped, whole_features=False, in_place=False),
    torch.alpha_dropout_: _dropout_like(_alpha_dropped, whole_features=False, in_place=True),
    torch.feature_alpha_dropout: _dropout_like(_alpha_dropped, whole_features=True, in_place=False),
    torch.feature_alpha_dropout_: _dropout_like(_alpha_dropped, whole_features=True, in_place=True),
    torch.rrelu: _rrelu,
    functional.scaled_dot_product_attention: _attention,
    torch.lstm: _dropping(recurrent.lstm),
    torch.gru: _dropping(recurrent.gru),
    torch.rnn_tanh: _dropping(recurrent.rnn_tanh),
    torch.rnn_relu: _dropping(recurrent.rnn_relu),
    torch.lstm_cell: _plain(recurrent.lstm_cell),
    torch.gru_cell: _plain(recurrent.gru_cell),
    torch.rnn_tanh_cell: _plain(recurrent.rnn_tanh_cell),
    torch.rnn_relu_cell: _plain(recurrent.rnn_relu_cell),
    torch.Tensor.__getitem__: _plain(recurrent.first),
    torch._pack_padded_sequence: _plain(recurrent.pack_padded),
    torch._pad_packed_sequence: _plain(recurrent.pad_packed),
    **{getattr(functional, name): _seen_through(name) for name in _DRAWING},
}
