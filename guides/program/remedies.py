"""What to do about errors of Pyro's handlers that do not say it themselves."""

from __future__ import annotations

import traceback
from typing import Any

from torch.distributions import Distribution, Independent

from guides.program.sites import is_point

__all__ = ["remedy"]


def remedy(error: BaseException) -> str:
    """Return what to do about an error, as a further sentence, or nothing where that is not known."""
    found = list(traceback.walk_tb(_first(error).__traceback__))
    codes = [frame.f_code for frame, _ in found]
    if any(code.co_name == "_masked_observe" for code in codes) and codes[-1].co_filename.endswith("mask_messenger.py"):
        return ". obs_mask has to be a tensor of bools: torch.tensor(True)"
    if "numpy() on Tensor that requires grad" in str(error):
        return ". No gradient passes through numpy: write this in operations of torch"
    strategy = next((f.f_locals for f, _ in found if _is_strategy(f.f_code)), None)
    if strategy is not None:
        return _of_reparam(strategy, any(code.co_filename.endswith("do_messenger.py") for code in codes))
    if any(said in str(error) for said in ("not broadcastable", "Shape mismatch inside plate")):
        return _of_part([f.f_locals for f, _ in (*traceback.walk_tb(error.__traceback__), *found)])
    return ""


def _first(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _is_strategy(code: Any) -> bool:
    return bool(code.co_name == "apply" and "/infer/reparam/" in code.co_filename.replace("\\", "/"))


def _of_reparam(names: dict[str, Any], inside_do: bool) -> str:
    strategy = type(names.get("self")).__name__
    fn = names.get("fn", (names.get("msg") or {}).get("fn"))
    if inside_do:
        return (
            f". poutine.do makes the site a second time, and {strategy} would be applied to it twice; put do inside: "
            "poutine.reparam(poutine.do(model, ...), ...)"
        )
    if isinstance(fn, Distribution) and is_point(fn):
        return f". The site is reparametrised already, so that {strategy} has nothing to work on; reparametrise it once"
    while isinstance(fn, Independent):
        fn = fn.base_dist
    return f". {strategy} cannot be applied to {type(fn).__name__}; give the site another strategy, or none"


def _of_part(frames: list[dict[str, Any]]) -> str:
    for names in frames:
        site = names.get("site", names.get("msg"))
        if not isinstance(site, dict) or "cond_indep_stack" not in site:
            continue
        for frame in site["cond_indep_stack"]:
            if frame.full_size not in (None, frame.size):
                return (
                    f". Plate {frame.name!r} has {frame.size} of {frame.full_size} rows at a time; give what is inside it, "
                    "by obs= or pyro.condition, for these rows alone: obs=y[i] inside pyro.plate(...) as i"
                )
            if _rows(site, frame) > max(1, frame.size):
                return (
                    f". Plate {frame.name!r} has {frame.size} rows and the value {_rows(site, frame)}; what pyro.condition "
                    "gives is not cut into batches, pass it as an argument of the model instead"
                )
    return ""


def _rows(site: Any, frame: Any) -> int:
    """Return how many rows of a plate the value of a site has; zero if it has none."""
    shape, dim = getattr(site["value"], "shape", ()), (frame.dim or 0) - getattr(site["fn"], "event_dim", 0)
    return int(shape[dim]) if frame.dim is not None and len(shape) >= -dim else 0
