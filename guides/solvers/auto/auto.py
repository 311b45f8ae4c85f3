"""``auto``: methods from cheap to dear, until one gives answers that can be stood behind."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from guides.density.density import LogDensity, log_density
from guides.density.method import Method, check_no_parameters, start
from guides.diagnostics.diagnosis import Diagnosis, diagnose
from guides.errors import NonFiniteLossError, OptionError, UnsupportedModelError
from guides.posterior import Posterior
from guides.registries import solvers
from guides.solvers.auto.ladder import Rung, read_ladder
from guides.solvers.methods import run_method

__all__ = ["Auto", "climb"]

_CHEAP = 0.1  # share of the budget for which a sampler is not worth an approximation before it
_TIMED = 20  # gradients by which their time is told
_SURE = {"good": 0, "corrected": 0, "usable": 1, "unreliable": 2}


@solvers.register("auto")
@dataclass(frozen=True, kw_only=True)
class Auto(Method):
    r"""The best answer that can be stood behind in a given time: methods from cheap to dear, each judged by ``diagnose``.

    A ladder is climbed: Pathfinder, then DADVI, then the no-U-turn sampler, then the same with smaller steps and more of
    them. After each rung the verdict is asked for: *good* and *corrected* end the climb. An approximation is passed over
    where the sampler after it would take less than a tenth of the budget, and a rung that would take more than what is left
    of it is not tried; times are told beforehand from the measured time of a gradient. If nothing can be stood behind, the
    surest posterior is returned, the later of two that are equally sure, and its verdict says so.

    What is returned is the posterior of the rung that was chosen, with all its methods, and is saved and compared as that.
    One that is *corrected* corrects its draws by default (``posterior.corrects``): what ``sample``, ``predict`` and
    ``to_arviz`` give is right as it comes. The story, one line per rung and why the climb ended, is printed with it and is
    in ``posterior.info[0]["auto"]``.

    **When:** any model of continuous latents, up to some thousands of them, whose parameters are latents. **When not:**
    networks to be trained, encoders and minibatches, which no log density of all latents describes: it refuses them, naming
    the guide to take.

    :param budget: seconds; the rung that is being climbed when they are over is ended first.
    :param ladder: methods to try instead, by name or as ``(name, options)``.
    :raises OptionError: for a value that makes no sense.
    :raises NonFiniteLossError: if the density is finite at no start.
    :raises UnsupportedModelError: for a model with parameters to be trained, or one of which no rung gives a posterior.

    References: the verdict by Yao et al. (2018), *Yes, but did it work?*; the order by Zhang et al. (2022), *Pathfinder*,
    and Magnusson et al. (2024), *posteriordb*, who find no approximation that is right everywhere.

    Example::

        >>> import pyro, pyro.distributions as dist, torch, guides
        >>> def model(x):
        ...     scale = pyro.sample("scale", dist.HalfNormal(1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(0.0, scale), obs=x)
        >>> posterior = guides.fit(model, "auto", torch.randn(100))
        >>> posterior.diagnose().verdict in ("good", "corrected")
        True
    """

    kind: ClassVar[str] = "guide"
    because: ClassVar[str] = "which chooses methods that stop by themselves"

    budget: float = 60.0
    ladder: Sequence[Any] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.budget, int | float) or isinstance(self.budget, bool) or not self.budget > 0:
            raise OptionError(f"budget must be a number of seconds above 0, not {self.budget!r}")
        read_ladder(self.ladder)


@dataclass(frozen=True)
class _Tried:
    rung: Rung
    posterior: Posterior
    diagnosis: Diagnosis
    seconds: float


def climb(
    model: Callable[..., Any],
    auto: Auto,
    data: tuple[Any, ...],
    *,
    seed: int,
    compile: str,
    progress: bool | None,
    model_kwargs: dict[str, Any] | None,
) -> Posterior:
    """Try the rungs of a ladder until one is good enough or the time is over; see :class:`Auto`."""
    began = time.perf_counter()
    options = {"seed": seed, "compile": compile, "progress": progress, "model_kwargs": model_kwargs}
    density = log_density(model, *data, compile=compile, seed=seed, model_kwargs=model_kwargs)
    check_no_parameters(density, "the guide 'auto'")
    rungs = read_ladder(auto.ladder)
    each = _seconds_of_a_gradient(density, seed)
    tried: list[_Tried] = []
    story: list[str] = []
    for i, rung in enumerate(rungs):
        left = auto.budget - (time.perf_counter() - began)
        why = _passed_over(rung, rungs[i + 1 :], each, left, auto.budget, bool(tried))
        if why:
            story.append(f"{rung}: {why}")
            continue
        found = _try(model, rung, data, density, options)
        if isinstance(found, str):
            story.append(f"{rung}: {found}")
            continue
        tried.append(found)
        figures = f"{found.seconds:.1f} s, {found.posterior.evaluations} gradients"
        story.append(f"{rung}: {found.diagnosis.verdict} ({figures}). {_first_sentence(found.diagnosis.summary)}")
        if _SURE[found.diagnosis.verdict] == 0:
            break
    if not tried:
        raise UnsupportedModelError("no rung of the ladder gave a posterior: " + "; ".join(story))
    return _told(tried, story, time.perf_counter() - began, auto.budget)


def _try(
    model: Callable[..., Any],
    rung: Rung,
    data: tuple[Any, ...],
    density: LogDensity,
    options: Mapping[str, Any],
) -> _Tried | str:
    """Return a posterior with its verdict, or why there is none."""
    began = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what a rung would warn of is in its verdict
            posterior = run_method(model, rung.method, data, density=density, **options)
            diagnosis = diagnose(posterior, only=["chains"] if rung.samples else ["answers", "pareto_k"])
    except (NonFiniteLossError, OptionError, UnsupportedModelError) as error:  # of this rung: the density was there
        return f"{type(error).__name__}: {error}"
    return _Tried(rung, posterior, diagnosis, time.perf_counter() - began)


def _seconds_of_a_gradient(density: LogDensity, seed: int) -> float:
    """Return the time of a gradient, called as samplers do."""
    call, point = density.workspace(), start(density, seed)
    call(point)
    began = time.perf_counter()
    for _ in range(_TIMED):
        call(np.asarray(point))
    return (time.perf_counter() - began) / _TIMED


def _passed_over(rung: Rung, later: Sequence[Rung], each: float, left: float, budget: float, any_tried: bool) -> str:
    """Return why a rung is not tried, nothing if it is; the first that is left is always tried."""
    needs = rung.gradients * each
    if not any_tried:
        return ""
    if needs > left:
        return f"not tried, for some {needs:.0f} s of the {max(left, 0.0):.0f} s left of budget={budget:g}"
    surer = next((r for r in later if r.samples), None)
    if not rung.samples and surer is not None and surer.gradients * each < _CHEAP * budget:
        return f"passed over, as {surer.name} takes some {surer.gradients * each:.1f} s"
    return ""


def _told(tried: Sequence[_Tried], story: Sequence[str], seconds: float, budget: float) -> Posterior:
    """Return the surest posterior, with the story in its ``info``."""
    order = [(_SURE[t.diagnosis.verdict], -i) for i, t in enumerate(tried)]
    best = tried[order.index(min(order))]
    verdict = best.diagnosis.verdict
    if _SURE[verdict] == 0:
        why = f"{best.rung} can be stood behind"
    elif seconds > budget:
        why = f"budget={budget:g} is spent; {best.rung} is the surest, and {verdict}"
    elif any(": not tried, for some" in line for line in story):
        why = f"what is left would take more than budget={budget:g}; {best.rung} is the surest, and {verdict}"
    else:
        why = f"the ladder is at its end; {best.rung} is the surest, and {verdict}"
    posterior = best.posterior.correcting(verdict == "corrected")
    info = ({**posterior.info[0], "auto": [*story, f"chosen after {seconds:.1f} s: {why}"]}, *posterior.info[1:])
    return replace(posterior, info=info)


def _first_sentence(text: str) -> str:
    return text.split(" Next: ")[0].split("; ")[0].rstrip(".") + "."
