"""What a model says about a latent given those above it, for guides that weigh it against what the data say."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import Independent, Normal

from guides.errors import UnsupportedModelError
from guides.families.encoders.heads import Gaussian
from guides.program.local_sites import LocalSite
from guides.program.sites import is_latent, nodes

__all__ = ["check_ladder", "conditional_prior", "precision_weighted"]


class _Found(Exception):
    """Ends a run of the model that has come to the site that was wanted."""


class _Until(Messenger):
    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name
        self.fn: Any = None

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] == self._name:
            self.fn = msg["fn"]
            raise _Found


def conditional_prior(
    model: Callable[..., Any], name: str, values: dict[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Normal:
    """Return the model's normal for a site given ``values`` of the latents that it draws before; runs no further than that.

    Parameters are read as usual; none of the sites is seen from outside.
    """
    until = _Until(name)
    with poutine.block(hide_types=["sample", "observe"]), until, suppress(_Found):
        poutine.condition(model, data=values)(*args, **kwargs)
    normal: Normal = _base(until.fn)
    return normal


def precision_weighted(gaussian: Gaussian, prior: Normal, site: LocalSite) -> Gaussian:
    """Return the product of two independent normals per row, normalised."""
    shape = site.arrange(gaussian.loc).shape
    loc, scale = (_per_row(part.expand(shape), site) for part in (prior.loc, prior.scale))
    precision, other = gaussian.scale.pow(-2), scale.pow(-2)
    total = precision + other
    return replace(gaussian, loc=(gaussian.loc * precision + loc * other) / total, scale=total.rsqrt())


def check_ladder(prototype: Trace, layers: list[list[str]], sites: dict[str, LocalSite]) -> None:
    """Check that the layers below the top have normal priors that depend on the layers above.

    :raises UnsupportedModelError: naming the site that does not.
    """
    trace = nodes(prototype)
    order = [n for n, s in trace.items() if is_latent(s)]
    for number, names in enumerate(layers[:-1]):
        above = {n for layer in layers[number + 1 :] for n in layer}
        for name in names:
            if sites[name].transform is not None or not isinstance(_base(trace[name]["fn"]), Normal):
                raise UnsupportedModelError(
                    f"order='ladder' weighs normals, but latent site {name!r} is {type(_base(trace[name]['fn'])).__name__} "
                    "below the top layer; use order='bottom_up'"
                )
            late = sorted(above - set(order[: order.index(name)]))
            if late:
                raise UnsupportedModelError(
                    f"order='ladder' draws {late[0]!r} before {name!r}, the model after it; name layers from the "
                    "bottom, the site that the model draws last, to the top"
                )


def _per_row(value: Tensor, site: LocalSite) -> Tensor:
    return value.movedim(site.row_position, 0).reshape(value.shape[site.row_position], -1)


def _base(fn: Any) -> Any:
    while isinstance(fn, Independent):
        fn = fn.base_dist
    return fn
