"""Runs of a model that leave no trace: draws from its prior, and one run on its data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine

__all__ = ["run_once", "sample_prior"]


def sample_prior(
    model: Callable[..., Any],
    *data: Any,
    num_samples: int = 500,
    seed: int | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
) -> dict[str, torch.Tensor]:
    """Draw every sample and deterministic site of a model from its prior, observed sites included.

    The model is run once per draw with its observations removed (``pyro.poutine.uncondition``), so it may do
    anything a Pyro model may. The caller's random state and Pyro's parameter store are left as they were.

    :param model: any Pyro model.
    :param data: its arguments; observed values only lend their shapes.
    :param num_samples: S, number of draws.
    :param seed: makes the draws repeatable.
    :param model_kwargs: keyword arguments of the model.
    :returns: site name -> (S, *site shape).
    :raises ValueError: if ``num_samples`` is not positive, or a site's shape differs from draw to draw.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> draws = sample_prior(lambda: pyro.sample("z", dist.Normal(0.0, 1.0)), num_samples=7, seed=0)
        >>> draws["z"].shape
        torch.Size([7])
    """
    if num_samples < 1:
        raise ValueError(f"num_samples is {num_samples}; it must be at least 1")
    collected: dict[str, list[torch.Tensor]] = {}
    with torch.no_grad(), _untouched(seed, data):
        for _ in range(num_samples):
            nodes = poutine.trace(poutine.uncondition(model)).get_trace(*data, **(model_kwargs or {})).nodes
            for name, node in nodes.items():
                if node["type"] == "sample" and type(node["fn"]).__name__ != "_Subsample":
                    collected.setdefault(str(name), []).append(torch.as_tensor(node["value"]))
    for name, values in collected.items():
        shapes = Counter(tuple(value.shape) for value in values)
        if len(shapes) > 1 or len(values) < num_samples:
            raise ValueError(
                f"site {name!r} does not have one shape in every run of the model (shapes and counts:"
                f" {dict(shapes)});"
                " leave the prior out with prior_samples=0"
            )
    return {name: torch.stack(values) for name, values in collected.items()}


def run_once(model: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Run a model on its arguments and return the nodes of its trace: site name -> what Pyro recorded there.

    The caller's random state and Pyro's parameter store are left as they were.
    """
    with torch.no_grad(), _untouched(None, args):
        return poutine.trace(model).get_trace(*args, **kwargs).nodes


@contextmanager
def _untouched(seed: int | None, data: Sequence[Any]) -> Iterator[None]:
    """Run the block with its own random state and parameter store."""
    devices = {item.device.index or 0 for item in data if isinstance(item, torch.Tensor) and item.is_cuda}
    with (
        torch.random.fork_rng(devices=sorted(devices)),
        pyro.get_param_store().scope(pyro.get_param_store().get_state()),
    ):
        if seed is not None:
            torch.manual_seed(seed)
        yield
