"""A posterior against draws of the truth: errors of every mean and standard deviation, and whether the verdict is true."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.protocol.split import Evaluation
from guides.errors import OptionError

__all__ = ["BIAS", "RATIO", "VERDICTS", "Errors", "against", "errors", "judged"]

BIAS, RATIO = 0.1, 1.2
"""When an answer is right: its mean within a tenth of a true standard deviation, its standard deviation within a fifth."""

VERDICTS = ("good", "corrected", "usable", "unreliable")
RAW_DRAWS, CORRECTED_DRAWS = 8000, 4000
_QUANTILES = 400


@dataclass(frozen=True)
class Errors:
    """Errors of draws, element by element of every site that a reference knows.

    :param names: the elements, ``"theta[3]"``, counted from 1 as Stan does.
    :param bias: (mean - true mean) / true standard deviation.
    :param ratio: standard deviation / true one.
    :param distance: 1-Wasserstein distance between the marginals, in true standard deviations.
    """

    names: tuple[str, ...]
    bias: Tensor
    ratio: Tensor
    distance: Tensor

    @property
    def right(self) -> bool:
        """Whether all are within what is tolerated."""
        return self.mean_error <= BIAS and self.sd_off <= RATIO

    @property
    def mean_error(self) -> float:
        """The largest error of a mean."""
        return _largest(self.bias.abs())

    @property
    def sd_off(self) -> float:
        """The largest factor between a standard deviation and the true one, 1 or more."""
        return float(torch.tensor(_largest(self.ratio.log().abs()), dtype=torch.float64).exp())

    @property
    def worst(self) -> str:
        """The element that is furthest off, by what is tolerated."""
        off = torch.maximum(self.bias.abs() / BIAS, self.ratio.log().abs() / math.log(RATIO))
        return self.names[int(torch.where(off.isnan(), math.inf, off).argmax())]


def errors(draws: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> Errors:
    """Return how far draws are from a reference.

    :param draws: by site, ``(S, *shape)``; sites that the reference does not know are passed over.
    :param reference: by site, ``(N, *shape)``.
    """
    names, parts = [], []
    levels = (torch.arange(_QUANTILES, dtype=torch.float64) + 0.5) / _QUANTILES
    for site, truth in reference.items():
        if site not in draws:
            continue
        names += _elements(site, truth.shape[1:])
        have, want = (value.double().cpu().flatten(1) if value.dim() > 1 else value.double().cpu().unsqueeze(-1)
                      for value in (draws[site], truth))  # fmt: skip
        sd = want.std(0)
        apart = (torch.quantile(have, levels, dim=0) - torch.quantile(want, levels, dim=0)).abs().mean(0)
        parts.append(torch.stack([(have.mean(0) - want.mean(0)) / sd, have.std(0) / sd, apart / sd]))
    if not parts:
        raise ValueError(f"the reference knows none of the sites {', '.join(draws)}; it has {', '.join(reference)}")
    return Errors(tuple(names), *torch.cat(parts, 1))


def against(posterior: Any, reference: Mapping[str, Tensor], seed: int) -> Evaluation:
    """Hold a fitted posterior against draws of the truth: raw draws, draws corrected by their weights, and the verdict.

    :param posterior: a ``guides.Posterior``.
    :param reference: draws of the truth by site, ``(N, *shape)``.
    :param seed: seed of the draws; the verdict is that of ``posterior.diagnose()`` as a user calls it.
    """
    drawn = posterior.draws(RAW_DRAWS, seed=seed, log_likelihood=False)
    raw = errors({name: value[0] for name, value in (drawn.latents | drawn.deterministic).items()}, reference)
    metrics = {
        "mean_error": raw.mean_error,
        "mean_error_average": float(raw.bias.abs().mean()),
        "sd_off": raw.sd_off,
        "wasserstein": float(raw.distance.mean()),
        "gradients": float(posterior.losses.numel() * posterior.program.particles),
    }
    found = {"raw": raw}
    try:
        drawn = posterior.draws(CORRECTED_DRAWS, seed=seed, log_likelihood=False, corrected=True)
    except OptionError:  # point masses, and densities that are not finite, have no weights
        corrected = None
    else:
        corrected = errors({name: value[0] for name, value in (drawn.latents | drawn.deterministic).items()}, reference)
        metrics |= {"corrected_mean_error": corrected.mean_error, "corrected_sd_off": corrected.sd_off}
        found["corrected"] = corrected
    diagnosis = posterior.diagnose()
    metrics |= judged(diagnosis.verdict, raw.right, corrected.right if corrected else None)
    curves = {
        "reference": {
            kind: {"worst": e.worst, "names": list(e.names), "bias": _short(e.bias), "ratio": _short(e.ratio)}
            for kind, e in found.items()
        }
    }
    return Evaluation(metrics, curves, {"level": diagnosis.verdict, "summary": diagnosis.summary})


def judged(verdict: str, raw: bool, corrected: bool | None) -> dict[str, float]:
    """Return whether a verdict is true.

    *Good* promises that raw draws are right, *corrected* and *usable* that corrected ones are (raw ones, where there are no
    weights), *unreliable* that neither are.

    :param raw: whether raw draws are right.
    :param corrected: whether corrected draws are; ``None`` where there are none.

    Example::

        >>> judged("corrected", raw=False, corrected=True)["verdict_true"]
        1.0
    """
    mended = raw if corrected is None else corrected
    promised = {"good": raw, "corrected": mended, "usable": mended, "unreliable": not (raw or mended)}[verdict]
    return {
        "raw_right": float(raw),
        "corrected_right": float(mended),
        "verdict_true": float(promised),
        "lie": float(not promised and verdict != "unreliable"),
        "too_strict": float(not promised and verdict == "unreliable"),
    } | {f"verdict_{name}": float(verdict == name) for name in VERDICTS}


def _elements(site: str, shape: torch.Size) -> list[str]:
    if not shape:
        return [site]
    places = torch.cartesian_prod(*(torch.arange(1, size + 1) for size in shape)).reshape(-1, len(shape)).tolist()
    return [f"{site}[{','.join(map(str, place))}]" for place in places]


def _largest(value: Tensor) -> float:
    """Return the largest number, infinity if one is not a number: such an answer is as wrong as can be."""
    return math.inf if bool(value.isnan().any()) else float(value.max())


def _short(value: Tensor) -> list[float]:
    return [float(f"{number:.4g}") for number in value.tolist()]
