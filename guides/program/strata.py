"""Guides with several components: one component at a time instead of one at random, and what it weighs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from pyro.distributions import MaskedDistribution
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from guides.distributions.mixtures import chosen
from guides.errors import OptionError, UnsupportedModelError
from guides.program.guide import as_guide, marks_strata, parts
from guides.program.sites import nodes

__all__ = ["Stratum", "check_parts", "choices", "stratum_log_weight", "unweighed"]


class Stratum(Messenger):
    """Fix the stratum that a stratified guide would otherwise choose at random.

    A guide with several components marks the site that chooses one with ``infer={"stratum": True}``; drawing every
    component once instead of a random one removes that part of the gradient's variance. Where several sites choose, so that
    a stratum is a path, each says which digit of the stratum's number it is: ``{"stratum": (place, base)}`` stands for
    ``index // place % base``. ``{"stratum": "drawn"}`` marks one that is drawn at random even so.

    In a list of guides, or in a function that calls guides, nobody has said so: the choices become digits in the order in
    which they are met, and :attr:`count`, after a run, is the number of their combinations.

    :param index: scalar integer tensor, the stratum to use.
    :param guide: the guide as a whole, if it does not mark the sites itself.
    :ivar weighed: the choices met so whose components have weights of their own.
    """

    def __init__(self, index: Tensor, guide: Callable[..., Any] | None = None) -> None:
        super().__init__()
        self._index = index
        self._guide = guide
        self._marked = guide is None or marks_strata(guide)
        self._digits: dict[str, tuple[int, int]] = {}
        self.weighed: list[str] = []

    @property
    def count(self) -> int:
        """Number of strata of the guide, known after it has run once."""
        return as_guide(self._guide).num_strata if self._marked else math.prod(b for _, b in self._digits.values())

    def _pyro_sample(self, msg: Any) -> None:
        digit = msg["infer"].get("stratum")
        if digit and not self._marked:
            digit = self._met(msg)
        if digit and digit != "drawn":
            msg["value"] = self._index if digit is True else self._index // digit[0] % digit[1]
            msg["done"] = True
            msg["mask"] = False  # a choice that is not made at random has no density

    def _met(self, msg: Any) -> tuple[int, int]:
        """Return the digit of a choice that a part of the guide makes, by name, as a guide may be run again."""
        name, choice, masked = msg["name"], msg["fn"], isinstance(msg["fn"], MaskedDistribution)
        while isinstance(choice, MaskedDistribution):
            choice = choice.base_dist
        if msg["infer"]["stratum"] is not True or choice.batch_shape:
            raise UnsupportedModelError(
                f"site {name!r} chooses a component for every row, in a mixture that is a part of a guide; fit it alone"
            )
        if name not in self._digits:
            self._digits[name] = self.count, choice.logits.shape[-1]
            self.weighed += [] if masked else [name]
        msg["infer"] = {**msg["infer"], "strata": self._digits[name][1]}
        return self._digits[name]


def stratum_log_weight(guide: Any, guide_trace: Trace) -> Tensor:
    r"""Return :math:`\log (K \pi_k)` of the stratum that a draw belongs to, zero for guides whose strata weigh the same.

    Its shape is that of the guide's weights: ``()``, or ``(rows,)`` where each row of the data has weights of its own.
    Mixtures among the parts of a list of guides, or called in a function, each add theirs. A choice made at random, as
    outside :class:`~guides.objectives.base.Stratum`, adds zero, with the gradient of its log weight: that of the
    score-function kind.
    """
    of_guide = as_guide(guide).log_stratum_weight(guide_trace)
    if of_guide is not None:
        return of_guide
    total = torch.zeros(())
    for site in choices(guide, guide_trace).values():
        log_weight = chosen(site["fn"].logits, site["value"])
        strata = site["infer"].get("strata")
        total = total + (log_weight - log_weight.detach() if strata is None else log_weight + math.log(strata))
    return total


def choices(guide: Any, guide_trace: Trace) -> dict[str, Any]:
    """Return the sites where mixtures that are parts of a guide, and not the guide itself, chose a component."""
    if marks_strata(guide):
        return {}
    return {
        n: s
        for n, s in nodes(guide_trace).items()
        if s["type"] == "sample" and s["infer"].get("stratum") and hasattr(s["fn"], "logits")
    }


def check_parts(guide: Any, guide_trace: Trace, objective: Any) -> None:
    """Check that the parts of a guide go together, and with the objective.

    :raises UnsupportedModelError: for a part that is finished after its optimisation, or mixtures of each row as a part.
    :raises OptionError: for an objective that would not weigh the components of a part.
    """
    for part in parts(guide) if len(parts(guide)) > 1 else []:
        if as_guide(part).finished_guide() is not None:
            raise UnsupportedModelError(
                f"{type(part).__name__} is a point until it is finished after its optimisation, which nobody does for a "
                "part of a list of guides; use another family for its sites, or fit it alone"
            )
    inside = choices(guide, guide_trace)
    for name, site in inside.items():
        if site["value"].dim() or site["infer"]["stratum"] is not True:
            raise UnsupportedModelError(
                f"site {name!r} chooses a component for every row, in a mixture that is a part of a guide; fit it alone"
            )
    if inside and not (objective.weighs_choices and not objective.warmup):
        raise OptionError(unweighed(inside, objective))


def unweighed(sites: Iterable[str], objective: object) -> str:
    """Return the words in which an objective that gives all components of a part of a guide the same weight is refused."""
    return (
        f"the guide has a mixture among its parts ({', '.join(map(repr, sites))}), whose components only 'elbo', and "
        f"'selbo' without warmup, weigh; {type(objective).__name__} does not"
    )
