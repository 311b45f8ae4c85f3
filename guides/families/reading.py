"""The data of a fit, read as model and guide can use them: to train on, and to choose the best parameters by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pyro.infer.autoguide import AutoGuide
from torch import Tensor

from guides.errors import DataError, OptionError
from guides.families.choose import Model, guide_factory
from guides.program.data import Data
from guides.program.inputs import read, read_like
from guides.program.program import setup_rows

__all__ = ["choose_device", "read_data", "read_for", "read_validation"]


def read_data(
    model: Model,
    guide: Any,
    data: Sequence[Any],
    validation: float | tuple[Any, ...] | None,
    model_kwargs: dict[str, Any] | None,
    device: torch.device,
    seed: int,
    batch_size: int | None,
) -> tuple[Data, Data | None]:
    """Return the data to train on, and those to choose the best parameters by, if any."""
    share = isinstance(validation, float)
    training = read_for(model, guide, data, model_kwargs, device, seed, batch_size, wanted=share)
    if validation is None:
        return training, None
    if not isinstance(validation, float):
        return training, read_validation(model, validation, training, model_kwargs, device)
    if not training.rows:
        raise OptionError("validation is a fraction, but no positional tensor argument has rows to hold out")
    return training.split(validation, seed)


def read_for(
    model: Model,
    guide: Any,
    data: Sequence[Any],
    model_kwargs: dict[str, Any] | None,
    device: torch.device,
    seed: int,
    batch_size: int | None,
    wanted: bool = False,
) -> Data:
    """Return the arguments of a fit, read as the model, and a guide that is not set up by its first call, can use them."""
    rows = None if not isinstance(batch_size, int) else setup_rows(batch_size)
    new = guide is not None and not isinstance(guide, AutoGuide)
    make = guide_factory(model, guide)[0] if new else None
    return read(
        model, data, model_kwargs, device, seed=seed, rows=rows, rows_wanted=wanted or batch_size is not None, guide=make
    )


def read_validation(
    model: Model, value: Any, training: Data, model_kwargs: dict[str, Any] | None, device: torch.device
) -> Data:
    """Return validation data, checked to look like the training data apart from the number of rows.

    :raises DataError: naming the argument that does not.
    """
    if not isinstance(value, tuple | list):
        raise DataError(f"validation must be a fraction such as 0.1 or a tuple like the data, not {type(value).__name__}")
    held_out = read_like(model, training, tuple(value), model_kwargs, device)
    if len(held_out.args) != len(training.args):
        given, have = len(held_out.args), len(training.args)
        raise DataError(f"validation has {given} arguments, the data have {have}; pass one for each")
    for i, (new, old) in enumerate(zip(held_out.args, training.args)):
        rows = i in training.rows
        if rows and (not isinstance(new, Tensor) or new.shape[1:] != old.shape[1:] or new.dim() != old.dim()):
            got = tuple(new.shape) if isinstance(new, Tensor) else repr(new)
            raise DataError(f"validation argument {i} is {got}; like the data's it must be (rows, {tuple(old.shape[1:])})")
    return held_out


def choose_device(device: str | torch.device) -> torch.device:
    """Return the device of that name; ``"auto"`` is a GPU if there is one.

    :raises OptionError: for a GPU that is not there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = torch.device(device)
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise OptionError("device='cuda' but no CUDA device was found; use device='auto' or 'cpu'")
    return chosen
