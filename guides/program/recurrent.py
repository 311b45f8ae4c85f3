"""Recurrent layers and attention as plain tensor operations.

PyTorch runs them in fused kernels that :mod:`torch.func` has no rules for: some cannot be vectorised, some cannot be
differentiated twice or forwards, and none can be compiled. What is here computes the same numbers, up to rounding, from
products and pointwise operations, which can.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, get_proxy_mode
from torch.nn.functional import linear, pad

from guides.compile.known import is_known, known_from_here

__all__ = [
    "attention",
    "first",
    "gru",
    "gru_cell",
    "lstm",
    "lstm_cell",
    "pack_padded",
    "pad_packed",
    "rnn_relu",
    "rnn_relu_cell",
    "rnn_tanh",
    "rnn_tanh_cell",
]

Dropout = Callable[[Tensor, float], Tensor]
State = tuple[Tensor, ...]
Weights = Sequence[Tensor | None]
Step = Callable[[Tensor, State, Weights], State]
"""From a time's inputs times the input weights, the state before and a layer's weights to the state after."""


def _lstm_step(inputs: Tensor, state: State, weights: Weights) -> State:
    hidden, cell = state
    i, f, g, o = (inputs + _times(hidden, weights)).chunk(4, -1)
    cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
    hidden = torch.sigmoid(o) * torch.tanh(cell)
    projection = weights[4]
    return (hidden if projection is None else linear(hidden, projection)), cell


def _gru_step(inputs: Tensor, state: State, weights: Weights) -> State:
    (hidden,) = state
    xr, xz, xn = inputs.chunk(3, -1)
    hr, hz, hn = _times(hidden, weights).chunk(3, -1)
    new = torch.tanh(xn + torch.sigmoid(xr + hr) * hn)
    return (new + torch.sigmoid(xz + hz) * (hidden - new),)


def _tanh_step(inputs: Tensor, state: State, weights: Weights) -> State:
    return (torch.tanh(inputs + _times(state[0], weights)),)


def _relu_step(inputs: Tensor, state: State, weights: Weights) -> State:
    return (torch.relu(inputs + _times(state[0], weights)),)


def _times(hidden: Tensor, weights: Weights) -> Tensor:
    matrix = weights[1]
    assert matrix is not None
    return linear(hidden, matrix, weights[3])


def _run(
    step: Step,
    inputs: list[Tensor],
    initial: State,
    parameters: Sequence[Tensor],
    has_biases: bool,
    layers: int,
    rate: float,
    bidirectional: bool,
    dropout: Dropout,
) -> tuple[list[Tensor], State]:
    """Run a stack of layers, and return the last one's outputs and the final states ``(layers * directions, N, .)``.

    :param inputs: by time, shape ``(n_t, features)``; where ``n_t`` falls, the sequences at the end are over.
    :param initial: first states, ``(layers * directions, N, .)``.
    :param rate: of the dropout between layers.
    """
    directions = 2 if bidirectional else 1
    each = len(parameters) // (layers * directions)
    final: list[State] = []
    for layer in range(layers):
        outputs: list[list[Tensor]] = []
        for direction in range(directions):
            number = layer * directions + direction
            own = parameters[number * each : (number + 1) * each]
            start = tuple(part[number] for part in initial)
            found, last = _run_layer(step, inputs, start, _named(own, has_biases), backwards=direction == 1)
            outputs.append(found)
            final.append(last)
        inputs = [torch.cat(pair, -1) for pair in zip(*outputs)] if bidirectional else outputs[0]
        if rate and layer < layers - 1:
            inputs = list(dropout(torch.cat(inputs), rate).split([len(x) for x in inputs]))
    return inputs, tuple(torch.stack(parts) for parts in zip(*final))


def _named(weights: Sequence[Tensor], has_biases: bool) -> Weights:
    """Return input and hidden weights, their biases, and the projection of a layer, ``None`` for what it lacks."""
    biases = tuple(weights[2:4]) if has_biases else (None, None)
    rest = tuple(weights[4:]) if has_biases else tuple(weights[2:])
    return (*weights[:2], *biases, *(rest or (None,)))


def _run_layer(
    step: Step, inputs: list[Tensor], state: State, weights: Weights, backwards: bool
) -> tuple[list[Tensor], State]:
    matrix = weights[0]
    assert matrix is not None
    counts = [len(x) for x in inputs]
    products = list(linear(torch.cat(inputs), matrix, weights[2]).split(counts))
    outputs: list[Tensor] = []
    if backwards:  # longer sequences begin earlier
        first, state = state, tuple(part[:0] for part in state)
        for x in reversed(products):
            joining = tuple(part[len(state[0]) : len(x)] for part in first)
            state = joining if not len(state[0]) else state if not len(joining[0]) else _joined(state, joining)
            state = step(x, state, weights)
            outputs.append(state[0])
        return outputs[::-1], state
    over: list[State] = []
    for x in products:
        if len(x) < len(state[0]):
            over.append(tuple(part[len(x) :] for part in state))
            state = tuple(part[: len(x)] for part in state)
        state = step(x, state, weights)
        outputs.append(state[0])
    for ended in reversed(over):
        state = _joined(state, ended)
    return outputs, state


def _joined(first: State, second: State) -> State:
    return tuple(torch.cat(pair) for pair in zip(first, second))


def _layers(step: Step) -> Callable[..., tuple[Tensor, ...]]:
    """Return a function that takes what torch's own takes, of padded and of packed sequences, and how to drop out."""

    def run(dropout: Dropout, input: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        packed = not isinstance(rest[2], bool)
        if packed:
            sizes, hidden, parameters, has_biases, layers, rate, train, bidirectional = rest
            dim, inputs = 0, list(input.split(_numbers(sizes)))
        else:
            hidden, parameters, has_biases, layers, rate, train, bidirectional, batch_first = rest
            dim = 1 if batch_first else 0
            inputs = list(input.unbind(dim))
        initial = (hidden,) if isinstance(hidden, Tensor) else tuple(hidden)
        rate = rate if train else 0.0
        outputs, final = _run(step, inputs, initial, parameters, has_biases, layers, rate, bidirectional, dropout)
        return (torch.cat(outputs) if packed else torch.stack(outputs, dim), *final)

    return run


lstm = _layers(_lstm_step)
gru = _layers(_gru_step)
rnn_tanh = _layers(_tanh_step)
rnn_relu = _layers(_relu_step)


def _cell(step: Step) -> Callable[..., Any]:
    """Return a function that takes what torch's own cell takes."""

    def run(
        input: Tensor, hidden: Any, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None = None, b_hh: Tensor | None = None
    ) -> Any:
        single = isinstance(hidden, Tensor)
        state = step(linear(input, w_ih, b_ih), (hidden,) if single else tuple(hidden), (w_ih, w_hh, b_ih, b_hh, None))
        return state[0] if single else state

    return run


lstm_cell = _cell(_lstm_step)
gru_cell = _cell(_gru_step)
rnn_tanh_cell = _cell(_tanh_step)
rnn_relu_cell = _cell(_relu_step)


def pack_padded(input: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, Tensor]:
    """Return the rows of sequences of falling lengths by time, below each other, and how many each time has."""
    times = input.unbind(1 if batch_first else 0)
    known = _numbers(lengths)
    with disable_proxy_modes_tracing():
        like, numbers = torch.zeros(len(times), len(times[0]), 1), torch.tensor(known)
        sizes = torch._VF._pack_padded_sequence(like, numbers, False)[1]  # with its checks
    return torch.cat([x[:count] for x, count in zip(times, sizes.tolist())]), known_from_here(sizes)


def pad_packed(data: Tensor, sizes: Tensor, batch_first: bool, padding: float, total_length: int) -> tuple[Tensor, Tensor]:
    """Return the sequences that :func:`pack_padded` packed, padded to one length, and their lengths."""
    counts = _numbers(sizes)
    if 0 < total_length < len(counts):
        raise ValueError(f"total_length is {total_length}, but the longest sequence has {len(counts)} elements")
    times = [pad(x, (0, 0) * (x.dim() - 1) + (0, counts[0] - len(x)), value=padding) for x in data.split(counts)]
    times += [torch.full_like(times[0], padding)] * (total_length - len(counts))
    lengths = torch.tensor([sum(count > row for count in counts) for row in range(counts[0])])
    return torch.stack(times, 1 if batch_first else 0), lengths


def first(tensor: Tensor, index: Any) -> Tensor:
    """Return ``tensor[index]``; of integers that are known while a graph is traced, as a number that is known too."""
    if isinstance(index, int) and get_proxy_mode() is not None and tensor.dtype == torch.long and is_known(tensor):
        with disable_proxy_modes_tracing():
            found = tensor[index]
        return known_from_here(found)
    return tensor[index]


def _numbers(tensor: Tensor) -> list[int]:
    """Return the elements of a tensor of integers; while a graph is traced, only if they are the same at every replay."""
    if get_proxy_mode() is None:
        found: list[int] = tensor.tolist()
        return found
    if not is_known(tensor):  # which tolist does not notice
        raise RuntimeError("the lengths of packed sequences depend on the data, which differ from step to step")
    with disable_proxy_modes_tracing():
        return tensor.tolist()


def attention(
    dropout: Dropout,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """Return softmax(query keyᵀ · scale + mask) value, where the mask is added, or excludes where it is ``False``."""
    scores = query @ key.mT * (1.0 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        excluded = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, -math.inf) if excluded else scores + attn_mask
    return dropout(torch.softmax(scores, -1), dropout_p) @ value
