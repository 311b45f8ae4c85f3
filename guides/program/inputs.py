"""From what a user passes to what a model can work with: the arguments of a fit, read before any work.

An argument is taken as what it plainly is. Where more than one reading makes sense (a list of numbers can be a tensor, whole
numbers can be features or an index), the model is run with each, the likeliest first, and the first that it runs on is kept;
later data are read as the first were.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler, default_collate

from guides.errors import DataError
from guides.program.data import Data, Form
from guides.program.parameters import isolated_store
from guides.program.running import run_model
from guides.program.values import Reading, is_named, readings
from guides.program.words import MODEL_ERRORS

__all__ = ["check_call", "named_arguments", "read", "read_like", "signature_of"]

Model = Callable[..., Any]

_TRIALS = 64
_BYTES = 2**32


def read(
    model: Model,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None,
    device: torch.device,
    *,
    seed: int = 0,
    rows: int | None = None,
    rows_wanted: bool = False,
    guide: Callable[[], Callable[..., Any]] | None = None,
) -> Data:
    """Return the arguments of a fit as data, checked.

    :param rows: rows to try readings on; all by default.
    :param rows_wanted: the fit needs an argument with rows.
    :param guide: makes a guide that has to run on the arguments too.
    :raises DataError: naming the argument that cannot be used, what it is and what to do.
    """
    args, batch_size = _loaded(args)
    check_call(model, args, kwargs or {})
    doubles = not isinstance(model, nn.Module) or any(p.dtype is torch.float64 for p in model.parameters())
    given: list[tuple[int | str, Any]] = [*enumerate(args), *(kwargs or {}).items()]
    ways = {k: readings(_where(k), v, doubles=doubles, tensors_first=rows_wanted and isinstance(k, int)) for k, v in given}

    def data(chosen: Mapping[int | str, Reading]) -> Data:
        positional = [chosen[i].value for i in range(len(args))]
        keywords = {k: r.value for k, r in chosen.items() if isinstance(k, str)}
        found = Data.of(positional, keywords, device)
        forms = {k: r.form for k, r in chosen.items()}
        notes = tuple(ways[k][-1].note or _odd_type(k, v) for k, v in given)
        return replace(found, forms=forms, notes=tuple(filter(None, notes)), batch_size=batch_size)

    first = data({k: way[0] for k, way in ways.items()})
    if all(len(way) == 1 for way in ways.values()):
        return first
    options = sorted(itertools.islice(itertools.product(*(range(len(w)) for w in ways.values())), 4096), key=sum)
    for option in options[:_TRIALS]:
        chosen = {k: way[i] for (k, way), i in zip(ways.items(), option)}
        candidate = first if not any(option) else data(chosen)
        if _runs(model, candidate if rows is None else candidate.head(rows), guide, seed):
            return replace(candidate, notes=())
    return first


def _runs(model: Model, data: Data, guide: Callable[[], Callable[..., Any]] | None, seed: int) -> bool:
    """Tell whether model and guide run on some data; nothing that happens here is seen afterwards."""
    with isolated_store(), torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        try:
            run_model(model, data)
            if guide is not None:
                poutine.trace(guide()).get_trace(*data.args, **data.kwargs)
        except MODEL_ERRORS:
            return False
    return True


def read_like(
    model: Model, known: Data, args: Sequence[Any], kwargs: Mapping[str, Any] | None, device: torch.device | None = None
) -> Data:
    """Return other arguments as data, read as those of ``known`` were.

    :param kwargs: keyword arguments; those of ``known`` if ``None``.
    :raises DataError: for arguments that cannot be read so: other names of columns, other categories.
    """
    args, batch_size = _loaded(args)
    check_call(model, args, known.kwargs if kwargs is None else kwargs)
    forms: dict[int | str, Form] = dict(known.forms)
    values: dict[int | str, Any] = dict(enumerate(args))
    values.update(known.kwargs if kwargs is None else kwargs)
    for key, value in values.items():
        if isinstance(key, str) and kwargs is None:
            continue
        way = _alike(_where(key), value, known.forms.get(key))
        values[key], forms[key] = way.value, way.form
    positional = [values[i] for i in range(len(args))]
    found = Data.of(positional, {k: v for k, v in values.items() if isinstance(k, str)}, device)
    found = found if known.gaps else found.without_gaps()
    return replace(found, forms={k: f for k, f in forms.items() if k in values}, batch_size=batch_size)


def _alike(where: str, value: Any, form: Form | None) -> Reading:
    if value is None or (form is not None and form.kept):
        return Reading(value, form or Form())
    if form is not None and len(form.labels) > 1 and form.labels[1] is not None and hasattr(value, "columns"):
        value = _columns(where, value, list(form.labels[1]))
    ways = readings(where, value, tensors_first=True)
    if form is None or form.dtype is None:
        return ways[0]
    if not isinstance(ways[0].value, Tensor):
        ways = [w for w in ways if isinstance(w.value, Tensor)] or ways
    if not isinstance(ways[0].value, Tensor):
        if ways[0].note:
            raise DataError(ways[0].note)
        return ways[0]
    way = next((w for w in ways if w.form.dtype is form.dtype), None)
    if way is None:
        way = replace(ways[0], value=ways[0].value.to(form.dtype), form=replace(ways[0].form, dtype=form.dtype))
    if form.categories and is_named(value) and way.form.categories != form.categories:
        raise DataError(
            f"{where} has the categories {', '.join(map(repr, way.form.categories)) or 'of no kind'}, the training data's "
            f"were {', '.join(map(repr, form.categories))}; give it the same (x.cat.set_categories), so that codes agree"
        )
    return way


def _columns(where: str, value: Any, wanted: list[Any]) -> Any:
    """Return the columns of a frame that the training data had, in their order."""
    names = {str(c): c for c in value.columns}
    missing = [c for c in wanted if str(c) not in names]
    if missing:
        raise DataError(
            f"{where} lacks the column {missing[0]!r} of the training data; its columns are "
            f"{', '.join(map(repr, names))}, the training data's {', '.join(map(repr, wanted))}"
        )
    return value[[names[str(c)] for c in wanted]]


def _where(key: int | str) -> str:
    return f"argument {key}" if isinstance(key, int) else f"argument {key!r}"


def _odd_type(key: int | str, value: Any) -> str:
    """Return a remark on the type of a tensor that torch multiplies with no other."""
    dtype = getattr(value, "dtype", None)
    if isinstance(value, Tensor) and not value.is_floating_point():
        return f"{_where(key)} is of type {str(value.dtype)[6:]}"
    if isinstance(value, np.ndarray) and value.dtype.kind in "iub":
        return f"{_where(key)} is of type {dtype}"
    return ""


def signature_of(model: Model) -> inspect.Signature | None:
    """Return the signature that a model is called by, or ``None`` where it has none to be seen."""
    target: Any = model
    if isinstance(model, nn.Module) and type(model).__call__.__module__.split(".")[0] in ("torch", "pyro"):
        target = model.forward
    try:
        return inspect.signature(target)
    except (TypeError, ValueError):
        return None


def check_call(model: Model, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Check that a model can be called with these arguments.

    :raises DataError: saying what it takes and what it was given.
    """
    signature = signature_of(model)
    if signature is None:
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        name = getattr(model, "__name__", type(model).__name__)
        keywords = f" and the keywords {', '.join(kwargs)}" if kwargs else ""
        raise DataError(
            f"the model takes {name}{_bare(signature)} and was given {len(args)} positional arguments{keywords}: {error}"
        ) from None


def _bare(signature: inspect.Signature) -> str:
    parameters = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty))


def named_arguments(model: Model, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, tuple[int | str, Any]]:
    """Return the arguments of a model by the names that it gives them, with their position or keyword."""
    signature = signature_of(model)
    if signature is None:
        return {f"argument_{i}": (i, v) for i, v in enumerate(args)} | {k: (k, v) for k, v in kwargs.items()}
    keys = signature.bind(*range(len(args)), **{k: k for k in kwargs})
    values: dict[int | str, Any] = dict(enumerate(args))
    values.update(kwargs)
    named: dict[str, tuple[int | str, Any]] = {}
    for name, key in keys.arguments.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            named |= {f"{name}_{i}": (k, values[k]) for i, k in enumerate(key)}
        elif kind is inspect.Parameter.VAR_KEYWORD:
            named |= {k: (k, values[k]) for k in key}
        else:
            named[name] = (key, values[key])
    return named


def _loaded(args: Sequence[Any]) -> tuple[list[Any], int | None]:
    """Return the arguments with every data loader and data set replaced by the tensors that it holds."""
    found: list[Any] = []
    batch_size = None
    for i, value in enumerate(args):
        if isinstance(value, DataLoader):
            batch_size = value.batch_size
            found += _rows_of_loader(f"argument {i}", value)
        elif isinstance(value, Dataset):
            found += _rows_of(f"argument {i}", value, default_collate)
        else:
            found.append(value)
    return found, batch_size


def _rows_of_loader(where: str, loader: DataLoader[Any]) -> list[Any]:
    if isinstance(loader.dataset, IterableDataset) or not isinstance(loader.sampler, SequentialSampler | RandomSampler):
        raise DataError(
            f"{where} is a DataLoader with a sampler or a stream of its own ({type(loader.sampler).__name__}), which says "
            "which rows count how often; pass the tensors, and weights of rows to the model"
        )
    if isinstance(loader.sampler, RandomSampler) and loader.sampler.replacement:
        raise DataError(f"{where} is a DataLoader that draws rows with replacement; pass the tensors and batch_size=")
    return _rows_of(where, loader.dataset, loader.collate_fn or default_collate)


def _rows_of(where: str, dataset: Any, collate: Callable[[list[Any]], Any]) -> list[Any]:
    """Return the rows of a data set in their order, as one tensor per part.

    :raises DataError: if it has no length, is larger than 4 GB, or its rows cannot be put together.
    """
    name = f"{where} (a {type(dataset).__name__})"
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise DataError(f"{name} is a stream without a length; read it into tensors and pass those")
    size = len(dataset)
    if size == 0:
        raise DataError(f"{name} is empty; a fit needs at least one data point")
    with torch.random.fork_rng():
        parts = [_parts(name, collate, [dataset[0]])]
        bytes_ = size * sum(p.numel() * p.element_size() for p in parts[0])
        if bytes_ > _BYTES:
            raise DataError(
                f"{name} holds {size} rows, {bytes_ / 2**30:.1f} GB in memory; a fit keeps its data in memory, so pass some "
                "of the rows, or smaller types"
            )
        for start in range(1, size, 1024):
            parts.append(_parts(name, collate, [dataset[i] for i in range(start, min(start + 1024, size))]))
    return [torch.cat(column) for column in zip(*parts, strict=True)]


def _parts(name: str, collate: Callable[[list[Any]], Any], rows: list[Any]) -> list[Tensor]:
    """Return some rows as one tensor per part.

    :raises DataError: if their shapes differ, or they are no tuples of tensors.
    """
    try:
        batch = collate(rows)
    except (RuntimeError, TypeError) as error:
        raise DataError(f"the rows of {name} cannot be put together; pass tensors instead: {error}") from error
    parts = [batch] if isinstance(batch, Tensor) else batch
    if not isinstance(parts, list | tuple) or not all(isinstance(p, Tensor) for p in parts):
        what = f"a {type(batch).__name__}" if not isinstance(parts, list | tuple) else "something else among them"
        raise DataError(f"{name} must give rows of tensors or tuples of tensors, not {what}; pass the tensors")
    return list(parts)
