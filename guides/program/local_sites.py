"""Latents with one value per row of the data: where their rows are, and how a vector per row becomes a value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions.transforms import Transform

from guides.errors import UnsupportedModelError
from guides.program.sites import is_latent, nodes
from guides.program.supports import is_unconstrained, same_support, support_of, unconstraining

__all__ = ["LocalSite", "check_rows_alone", "find_local_sites"]


@dataclass(frozen=True)
class LocalSite:
    """A latent site with one value per row.

    :ivar frames: the plates that it stands in; ``row_plate`` names the one that follows the rows.
    :ivar whole: size of that plate, if it is one of all the data of which the model is given some rows.
    :ivar row_dim: where its rows are among its batch dimensions, counted from the right.
    :ivar batch_dims: number of batch dimensions.
    :ivar row_shape: shape of one row's unconstrained value, the other batch dimensions first.
    :ivar transform: from unconstrained values to the support; ``None`` if the support is all real numbers.
    """

    name: str
    frames: tuple[Any, ...]
    row_plate: str
    whole: int | None
    row_dim: int
    batch_dims: int
    event_dim: int
    row_shape: torch.Size
    transform: Transform | None

    @property
    def size(self) -> int:
        """Numbers per row, in the unconstrained space."""
        return self.row_shape.numel()

    @property
    def row_position(self) -> int:
        """Where the rows are among the dimensions of the value, counted from the left."""
        return self.batch_dims + self.row_dim

    @property
    def unconstrained_event(self) -> torch.Size:
        """Event shape of the unconstrained value."""
        return self.row_shape[self.batch_dims - 1 :]

    @property
    def stands_alone(self) -> bool:
        """Whether the rows are the only plate, so that one distribution per row is one per element of the plates."""
        return self.row_shape[: self.batch_dims - 1].numel() == 1

    def arrange(self, per_row: Tensor) -> Tensor:
        """Return unconstrained values ``(rows, size)`` in the site's shape."""
        return per_row.reshape(len(per_row), *self.row_shape).movedim(0, self.row_position)

    def flatten(self, value: Tensor) -> Tensor:
        """Return a value in its support as one vector per row, ``(rows, numbers)``."""
        return value.movedim(self.row_position, 0).flatten(1) if value.dim() > 1 else value.unsqueeze(-1)


def find_local_sites(
    model: Callable[..., Any], prototype: Trace, args: tuple[Any, ...], kwargs: dict[str, Any], rows: int
) -> dict[str, LocalSite]:
    """Return the latents with one value per row, in the model's order.

    The model is run on one row too: what changes follows the rows, and supports that do not change hold for any rows.

    :param prototype: a trace of the model on ``args``.
    :param rows: number of rows of ``args``.
    :raises UnsupportedModelError: if there are none, or their rows cannot be followed.
    """
    some = nodes(prototype)
    if rows == 1:
        some = nodes(_run(model, tuple(_repeated(a) for a in args), kwargs))
    one = nodes(_run(model, tuple(_cut(a, rows) for a in args), kwargs))
    found = {}
    for name, site in some.items():
        if not is_latent(site) or name not in one:
            continue
        sizes = {f.name: f.size for f in one[name]["cond_indep_stack"]}
        following = frozenset(f.name for f in site["cond_indep_stack"] if f.size != sizes.get(f.name, f.size))
        if following:
            found[name] = _local_site(name, site, one[name], following)
        elif site["value"].shape != one[name]["value"].shape:
            raise UnsupportedModelError(
                f"latent site {name!r} has shape {tuple(site['value'].shape)}, which follows the rows, but it stands in no "
                'plate; put it in pyro.plate("data", len(x))'
            )
    if not found:
        latents = ", ".join(repr(n) for n, s in some.items() if is_latent(s)) or "none"
        raise UnsupportedModelError(
            f"the model has no latent with one value per row of the {rows} rows it was given (latents: {latents}), so there "
            'is nothing to amortise; put such a site in pyro.plate("data", len(x)), or use another guide'
        )
    return found


def check_rows_alone(prototype: Trace | None, sites: dict[str, LocalSite], family: str) -> None:
    """Check that all latents of a model are of rows, in one plate.

    :param sites: the latents of rows.
    :param family: what needs that, for errors.
    :raises UnsupportedModelError: naming a site that is not.
    """
    shared = [n for n, s in nodes(prototype).items() if is_latent(s) and n not in sites]
    if shared:
        raise UnsupportedModelError(
            f"latent site {shared[0]!r} is shared by all rows, and {family} is for latents of rows alone; make it a "
            "parameter, or use 'amortized', which takes another family for such latents by rest="
        )
    plates = {s.row_plate for s in sites.values()}
    for site in sites.values():
        if len(plates) > 1 or site.batch_dims != 1 or site.row_dim != -1:
            raise UnsupportedModelError(
                f"latent site {site.name!r} stands in other plates than the one of the rows, plates "
                f"{', '.join(sorted({f.name for f in site.frames} | plates))}; {family} needs one plate, so make the others "
                "dimensions of the event (to_event)"
            )


def _local_site(name: str, site: Any, one: Any, following: frozenset[str]) -> LocalSite:
    frames = tuple(sorted(site["cond_indep_stack"], key=lambda f: f.dim))
    row_frames = [f for f in frames if f.name in following]
    if len(row_frames) > 1:
        names = " and ".join(repr(f.name) for f in row_frames)
        raise UnsupportedModelError(f"latent site {name!r} follows the rows in two plates, {names}; keep one of them")
    if not same_support(support_of(site), support_of(one)):
        raise UnsupportedModelError(
            f"the support of latent site {name!r} depends on the row or on other latents, which an amortised guide cannot "
            "follow; give the site a fixed support and transform its value in the model"
        )
    event_dim, value = site["fn"].event_dim, one["value"]
    transform = None if is_unconstrained(site) else unconstraining(one)
    if transform is not None:
        value = transform.inv(value)
    batch_dims = len(site["fn"].batch_shape)
    row_dim = row_frames[0].dim
    alone = next(f for f in one["cond_indep_stack"] if f.name == row_frames[0].name)
    whole = None if alone.full_size in (None, alone.size) else alone.full_size
    shape = list(value.shape)
    shape.pop(batch_dims + row_dim)
    return LocalSite(name, frames, row_frames[0].name, whole, row_dim, batch_dims, event_dim, torch.Size(shape), transform)


def _run(model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Trace:
    try:
        with poutine.block():
            return poutine.trace(model).get_trace(*args, **kwargs)
    except (RuntimeError, ValueError, IndexError) as error:
        raise UnsupportedModelError(
            f"an amortised guide needs a model that runs on any number of rows, and this one fails on others: {error}"
        ) from error


def _cut(value: Any, rows: int) -> Any:
    return value[:1] if isinstance(value, Tensor) and value.dim() > 0 and len(value) == rows else value


def _repeated(value: Any) -> Any:
    tall = isinstance(value, Tensor) and value.dim() > 0 and len(value) == 1
    return torch.cat([value, value]) if tall else value
