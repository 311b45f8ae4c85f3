"""One run of a model or a guide, and what went wrong there in the words of the library."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pyro import poutine
from pyro.poutine.trace_struct import Trace
from pyro.util import check_site_shape
from torch import Tensor

from guides.compile.tracing import said
from guides.errors import (
    DataError,
    UnsupportedModelError,
)
from guides.program.data import Data
from guides.program.guide import name_of
from guides.program.prepare import FillMissing
from guides.program.sites import is_latent, is_observed, nodes
from guides.program.stating import without_false_alarms
from guides.program.supports import PlainSupports
from guides.program.words import MODEL_ERRORS, describe, in_words

__all__ = ["run_model", "scale_of", "told_in_words"]


_LARGE = 30.0


def run_model(model: Callable[..., Any], data: Data) -> Trace:
    """Run a model on data and return its trace, with densities.

    :raises DataError: if that fails, or a value broadcasts against its distribution.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with PlainSupports(), FillMissing():
                trace = poutine.trace(poutine.block(model, hide_types=["param"])).get_trace(*data.args, **data.kwargs)
            trace.compute_log_prob()
            for name, site in nodes(trace).items():
                if is_latent(site) or is_observed(site):
                    _check_shape(name, site)
    except NotImplementedError as error:
        raise UnsupportedModelError(
            f"the model cannot be run: {said(error)}. A distribution there has no sampler or no density; give "
            "the site another, or reparametrise it (pyro.infer.reparam)"
        ) from error
    except MODEL_ERRORS as error:
        data.without_gaps()
        raise DataError(f"the model cannot be run on the data it was given ({_told(data)}): {_why(error, data)}") from error
    return trace


@contextmanager
def told_in_words(guide: Callable[..., Any], data: Data) -> Iterator[None]:
    """Turn what a guide raises inside the block into words; the library's own errors are such already.

    :raises DataError: if the guide, or the model at its draws, cannot be run.
    :raises UnsupportedModelError: if a distribution lacks what that takes.
    """
    try:
        with without_false_alarms():
            yield
    except MODEL_ERRORS as error:
        if type(error).__module__ == DataError.__module__:
            raise
        if isinstance(error, NotImplementedError):
            raise UnsupportedModelError(f"guide {name_of(guide)!r} cannot be run: {in_words(error)}") from error
        if "requires grad" in str(error):
            raise UnsupportedModelError(
                f"guide {name_of(guide)!r}, or the model at its draws, cannot be differentiated: {in_words(error)}"
            ) from error
        raise DataError(
            f"guide {name_of(guide)!r} cannot be run on the data it was given ({_told(data)}): {_why(error, data)}"
            f"{scale_of(data)}"
        ) from error


def scale_of(data: Data) -> str:
    """Return what to do about data far from the scale that networks start on, or nothing if they are not."""
    floats = {i: a for i, a in enumerate(data.args) if isinstance(a, Tensor) and a.is_floating_point() and a.numel()}
    largest = {i: float(a.abs().nan_to_num(0.0, 0.0, 0.0).max()) for i, a in floats.items()}
    found = max(largest, key=lambda i: largest[i], default=0)
    if largest.get(found, 0.0) < _LARGE:
        return ""
    return f". Argument {found} has values up to {largest[found]:.3g}: bring the data to a scale of about 1 first"


def _told(data: Data) -> str:
    """Return the arguments of a model in a few words each."""
    keywords = [f"{k}={describe(v)}" for k, v in data.kwargs.items()]
    said = [*map(describe, data.args), *keywords]
    return f"arguments {', '.join(said)}" if said else "no arguments"


def _why(error: BaseException, data: Data) -> str:
    """Return what stopped a run, with what is odd about its arguments."""
    named = {f"argument {i}": a for i, a in enumerate(data.args)} | {f"argument {k!r}": a for k, a in data.kwargs.items()}
    said = in_words(error, named)
    notes = list(data.notes)
    if "log_prob shape" in said or "broadcasts against" in said:
        thin = {n: a for n, a in named.items() if isinstance(a, Tensor) and a.dim() > 1 and a.shape[-1] == 1}
        notes += [f"{n} has one column; x.squeeze(-1) has one number per row" for n in thin]
    return ". ".join([said, *notes])


def _check_shape(name: str, site: Any) -> None:
    """Refuse a value that broadcasts against its distribution, as (N, 1) does against (N,) to (N, N)."""
    if site["cond_indep_stack"]:
        check_site_shape(site, math.inf)  # type: ignore[arg-type]
        return
    batch = site["value"].shape[: site["value"].dim() - site["fn"].event_dim]
    if site["log_prob"].numel() > max(batch.numel(), math.prod(site["fn"].batch_shape)):  # some have a tuple for a shape
        raise ValueError(
            f"at site {name!r}, a value of shape {tuple(site['value'].shape)} broadcasts against a distribution of batch "
            f"shape {tuple(site['fn'].batch_shape)}"
        )
