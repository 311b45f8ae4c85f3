"""What the plates of a model are, and what lies in them."""

from __future__ import annotations

from typing import Any

from pyro.poutine.messenger import Messenger
from torch import Tensor

__all__ = ["FillPlates", "SizePlates", "WithoutLoops"]


class SizePlates(Messenger):
    """Give plates without a size, ``pyro.plate("data")``, the size of the first site in them that has a dimension there.

    Pyro says that such a plate has -1 elements, and everything that makes a plate of the same size fails on it: guides,
    sums over discrete latents, names of dimensions. A site in it that does not have its dimension is one number for the
    whole plate, and does not depend on it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._sizes: dict[str, int] = {}

    def __enter__(self) -> Any:
        self._sizes.clear()
        return super().__enter__()

    def _pyro_sample(self, msg: Any) -> None:
        if all(frame.size != -1 for frame in msg["cond_indep_stack"]):
            return
        shape, frames = getattr(msg["fn"], "batch_shape", ()), []
        for frame in msg["cond_indep_stack"]:
            if frame.size == -1:
                there = shape[frame.dim] if frame.dim is not None and len(shape) >= -frame.dim else 1
                size = there if there > 1 else self._sizes.get(frame.name, 1)
                if len(shape) < -frame.dim:
                    continue
                self._sizes[frame.name] = size
                frames.append(frame._replace(size=size, full_size=size))
            else:
                frames.append(frame)
        msg["cond_indep_stack"] = tuple(frames)


class FillPlates(Messenger):
    """Let a given value of a latent fill the plates that the latent is in.

    A reparametrisation inside a plate hands on the value that a guide starts from before the plate has spread it. Read from
    that, the latent would be one number for all elements of the plate.
    """

    def _pyro_sample(self, msg: Any) -> None:
        value = msg["value"]
        if msg["is_observed"] and msg["infer"].get("is_observed", True):
            return
        if not isinstance(value, Tensor) or not hasattr(msg["fn"], "shape"):
            return
        shape = msg["fn"].shape()
        if value.dim() < len(shape):
            msg["value"] = value.expand(shape)


class WithoutLoops(Messenger):
    """Hide sequential plates, ``for i in pyro.plate(...)``, whose sites are sites of their own with names of their own.

    Pyro's autoguides refuse them, though nothing is left to do about such a plate but its scale, which sites bear already.
    """

    def _pyro_sample(self, msg: Any) -> None:
        msg["cond_indep_stack"] = tuple(frame for frame in msg["cond_indep_stack"] if frame.vectorized)
