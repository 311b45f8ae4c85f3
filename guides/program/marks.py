"""Which discrete latents a model asks to have summed out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyro import poutine
from pyro.poutine.messenger import Messenger

__all__ = ["Marks", "continuous_part", "is_marked", "is_summed_out"]

_SUMMED_OUT = "_summed_out"


def is_marked(site: Any) -> bool:
    """Tell whether a site is a discrete latent that is marked to be summed out, by ``infer={"enumerate": ...}``.

    ``config_enumerate`` sets the mark. A mark with ``num_samples`` asks for several draws instead, which is another thing.
    """
    if site["type"] != "sample" or site["is_observed"]:
        return False
    asked, fn = site["infer"].get("enumerate"), site["fn"]
    return bool(asked) and site["infer"].get("num_samples") is None and bool(getattr(fn, "has_enumerate_support", False))


def is_summed_out(site: Any) -> bool:
    """Tell whether a site of a model that runs inside :class:`Marks` is summed out."""
    return bool(site["infer"].get(_SUMMED_OUT))


class Marks(Messenger):
    """Let all marked sites but some ask for the same: all values at once."""

    def __init__(self, without: frozenset[str]) -> None:
        super().__init__()
        self._without = without

    def _pyro_sample(self, msg: Any) -> None:
        if msg["infer"].get("enumerate"):
            summed_out = is_marked(msg) and msg["name"] not in self._without
            asked = {"enumerate": "parallel" if summed_out else None, "expand": False, _SUMMED_OUT: summed_out}
            msg["infer"] = {**msg["infer"], **asked}


def continuous_part(model: Callable[..., Any]) -> Callable[..., Any]:
    """Return the model with its marked sites out of sight: drawn from their priors and seen by no handler outside."""
    hidden: Callable[..., Any] = poutine.block(model, hide_fn=is_marked)
    return hidden
