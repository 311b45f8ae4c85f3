"""Errors of torch and Pyro in words: which site, which constraint, which values; never a whole tensor."""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

import pyro
import torch
from torch import Tensor

from guides.compile.failures import site_of
from guides.program.remedies import remedy

__all__ = ["MODEL_ERRORS", "describe", "in_words", "value_range"]

# What a model that gets something it cannot work with may raise.
MODEL_ERRORS = (RuntimeError, ValueError, IndexError, TypeError, KeyError, AttributeError, AssertionError)

_SITE = re.compile(r"Error while computing (?:log_prob|score|log_prob_sum)[^\n]*? at site '([^']*)'")
_PARAMETER = re.compile(
    r"Expected parameter (\w+) .*? of distribution (\w+).*? to satisfy the constraint (.*?), but found", re.S
)
_VALUE = re.compile(r"Expected value argument .*? to be within the support \((.*?)\) of the distribution (\w+)", re.S)
_LIBRARIES = (
    os.path.dirname(os.path.dirname(torch.__file__)) + os.sep,  # all that is installed beside torch
    os.path.dirname(os.path.dirname(pyro.__file__)) + os.sep,
    os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep,
    os.path.dirname(os.__file__) + os.sep,
)
_LABELLED = ("Bernoulli", "Categorical", "OrderedLogistic")
_SHOWN = 8
_TENSOR = re.compile(r"tensor\([^()]*(?:\([^()]*\)[^()]*)*\)", re.S)


def in_words(error: BaseException, arguments: Mapping[str, Any] | None = None) -> str:
    """Return an error's message, rewritten where torch or Pyro would print shapes of nothing or whole tensors.

    Values outside a constraint are told by their range; they are read off the frame that refused them.

    :param arguments: the arguments of the model, to name the one that a refused value is.

    Example::

        >>> try:
        ...     torch.distributions.Gamma(1.0, 1.0, validate_args=True).log_prob(torch.tensor([1.0, -2.0, -3.0]))
        ... except ValueError as error:
        ...     print(in_words(error).split("; ")[1])
        2 of 3 values are not, from -3 to -2, the first at index (1,)
    """
    site = next((m.group(1) for e in _chain(error) if (m := _SITE.search(str(e)))), None)
    where = "" if site is None else f"at site {site!r}, "
    for cause in _chain(error):
        said = str(cause)
        if found := _PARAMETER.search(said):
            name, distribution, constraint = found.groups()
            line = _line(cause) if site is None else ""
            return f"{where}{name} of {distribution} must satisfy {_plain(constraint)}; {_offending(cause)}{line}"
        if found := _VALUE.search(said):
            constraint, distribution = found.groups()
            name, hint = _observation(cause, distribution, constraint, arguments or {})
            value = f"{where}the value{name} must be in the support ({_plain(constraint)}) of {distribution}"
            return f"{value}; {_offending(cause)}{hint}"
    said = _SITE.sub("", str(error)).split("Trace Shapes:")[0].strip(": \n")
    said = _TENSOR.sub(lambda m: m.group() if len(m.group()) < 60 and "\n" not in m.group() else "tensor(...)", said)
    if isinstance(error, KeyError) or not said:
        said = f"{type(error).__name__} {said or _asserted(error)}".strip()
    if site is None:
        name = site_of(error)
        where, said = "" if name is None else f"at site {name!r}, ", said + _line(error)
    todo = remedy(error)
    return where + (said.rstrip(".") + todo if todo else said)


def _asserted(error: BaseException) -> str:
    """Return the line of an assertion that says nothing itself."""
    lines = traceback.extract_tb(error.__traceback__)
    return f"({lines[-1].line})" if isinstance(error, AssertionError) and lines else ""


def describe(value: Any) -> str:
    """Return what an argument is, in a few words: shape and type of a tensor or array, the repr of something short."""
    kind = type(value).__name__
    if isinstance(value, Tensor):
        return str(tuple(value.shape))
    if hasattr(value, "shape"):
        return f"{kind} {tuple(value.shape)}"
    said = repr(value)
    if len(said) <= 40:
        return said
    return f"{kind} of {len(value)} items" if hasattr(value, "__len__") else kind


def value_range(value: Tensor) -> str:
    """Return the range of a tensor's values, ``"from 2 to 3"``."""
    finite = value[torch.isfinite(value)] if value.is_floating_point() else value
    if finite.numel() == 0:
        return "none of them finite"
    low, high = finite.min().item(), finite.max().item()
    some = "" if finite.numel() == value.numel() else " and NaN or infinite ones"
    return (f"from {low:.6g} to {high:.6g}" if low != high else f"{low:.6g}") + some


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _plain(constraint: str) -> str:
    return constraint.removesuffix("()")


def _observation(error: BaseException, distribution: str, constraint: str, arguments: Mapping[str, Any]) -> tuple[str, str]:
    """Return the name of the argument that a refused value is, and what to do if it holds labels."""
    value = next((v for f in _frames(error.__traceback__) if isinstance(v := f.get("value"), Tensor)), None)
    if value is None:
        return "", ""
    same = [n for n, a in arguments.items() if isinstance(a, Tensor) and a.shape == value.shape and torch.equal(a, value)]
    name = f" ({same[0]})" if same else ""
    if distribution not in _LABELLED or value.numel() == 0 or not bool((value == value.round()).all()):
        return name, ""
    found = value.unique().tolist()
    said = ", ".join(f"{v:g}" for v in found[:_SHOWN]) + (", ..." if len(found) > _SHOWN else "")
    bound = re.search(r"upper_bound=(\d+)", constraint)
    labels = 2 if bound is None else int(bound.group(1)) + 1
    if len(found) > labels:
        what = f"it has {labels} labels for {len(found)} values"
    elif found == [-1, 1] and labels == 2:
        what = "pass (y + 1) / 2"
    elif found[0] == 1 and found[-1] <= labels:
        what = "pass y - 1"
    else:
        what = "pass torch.unique(y, return_inverse=True)[1]"
    return name, f". The labels found are {said}; those of {distribution} are 0 to {labels - 1}: {what}"


def _line(error: BaseException) -> str:
    """Return the last line of the user's own code on the way to an error, which is where a site without a name is made."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.line and not os.path.abspath(frame.filename).startswith(_LIBRARIES):
            if frame.line.startswith("raise "):  # it says itself what is wrong
                return ""
            return f" (line {frame.lineno} of {os.path.basename(frame.filename)}: {frame.line})"
    return ""


def _offending(error: BaseException) -> str:
    """Return how many values torch refused, their range and the place of the first, from the frame that raised."""
    for names in _frames(error.__traceback__):
        value, valid = names.get("value"), names.get("valid")
        if isinstance(value, Tensor) and isinstance(valid, Tensor) and not valid.all():
            if valid.shape == value.shape:
                bad, what = ~valid, "values"
            else:  # one answer per event
                bad, what = ~valid.reshape(valid.shape + (1,) * (value.dim() - valid.dim())).expand_as(value), "entries"
            first = tuple(int(i) for i in bad.nonzero()[0])
            which = f"{int(bad.sum())} of {value.numel()} {what} are not"
            return f"{which}, {value_range(value[bad])}, the first at index {first}"
    return "some values do not"


def _frames(at: TracebackType | None) -> list[dict[str, Any]]:
    found = []
    while at is not None:
        found.append(at.tb_frame.f_locals)
        at = at.tb_next
    return found[::-1]
