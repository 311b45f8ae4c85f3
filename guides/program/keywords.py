"""Options by name: a misspelt one is refused with the name that was meant."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable
from typing import Any

from guides.errors import OptionError

__all__ = ["check_names", "keywords_of", "nearest"]

# What other libraries call our options.
_ELSEWHERE = {
    "batchsize": "batch_size",
    "callbacks": "progress",
    "chains": "replicates",
    "clip": "clip_norm",
    "clip_grad": "clip_norm",
    "early_stopping": "patience",
    "eta": "lr",
    "iterations": "steps",
    "iters": "steps",
    "learning_rate": "lr",
    "loss": "objective",
    "lr_scheduler": "schedule",
    "max_iter": "steps",
    "max_steps": "steps",
    "n_chains": "replicates",
    "n_epochs": "epochs",
    "n_iter": "steps",
    "n_iterations": "steps",
    "n_particles": "num_particles",
    "n_samples": "num_samples",
    "n_steps": "steps",
    "num_chains": "replicates",
    "num_epochs": "epochs",
    "num_iterations": "steps",
    "num_restarts": "replicates",
    "num_steps": "steps",
    "optim": "optimizer",
    "optimiser": "optimizer",
    "particles": "num_particles",
    "progress_bar": "progress",
    "random_seed": "seed",
    "random_state": "seed",
    "restarts": "replicates",
    "rng_seed": "seed",
    "samples": "num_samples",
    "step_size": "lr",
    "val_data": "validation",
    "validation_data": "validation",
    "validation_split": "validation",
    "verbose": "progress",
}


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the option that was probably meant by a name, or ``None``.

    Example::

        >>> nearest("learning_rate", ["lr", "steps"]), nearest("stesp", ["lr", "steps"])
        ('lr', 'steps')
    """
    known = list(known)
    meant = _ELSEWHERE.get(name.lower())
    if meant in known:
        return meant
    close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.6)
    return close[0] if close else None


def check_names(what: str, given: Iterable[str], known: Iterable[str], others: str = "") -> None:
    """Check that all names are known.

    :param others: what to say of a name that is like none of them.
    :raises OptionError: naming the first that is not and the nearest that is.
    """
    known = list(known)
    for name in given:
        if name not in known:
            meant = nearest(name, known)
            hint = f"did you mean {meant}?" if meant else others
            raise OptionError(f"{what} has no option {name!r}; {hint}{' ' if hint else ''}(options: {', '.join(known)})")


def keywords_of(function: Callable[..., Any]) -> tuple[str, ...]:
    """Return the names of a function's keyword-only parameters."""
    return tuple(p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY)
