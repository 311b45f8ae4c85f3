"""A posterior against draws of the truth: errors of every mean and standard deviation, and whether the verdict is true."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from benchmarks.protocol.split import Evaluation
from guides.diagnostics.truth import held_against

__all__ = ["VERDICTS", "against", "judged"]

VERDICTS = ("good", "corrected", "usable", "unreliable")
RAW_DRAWS, CORRECTED_DRAWS = 8000, 4000


def against(posterior: Any, reference: Mapping[str, Tensor], seed: int) -> Evaluation:
    """Hold a fitted posterior against draws of the truth: raw draws, draws corrected by their weights, and the verdict.

    :param posterior: a ``guides.Posterior``.
    :param reference: draws of the truth by site, ``(N, *shape)``.
    :param seed: seed of the draws; the verdict is that of ``posterior.diagnose()`` as a user calls it.
    """
    raw, corrected = held_against(posterior, reference, RAW_DRAWS, CORRECTED_DRAWS, seed)
    metrics = {
        "mean_error": raw.mean_error,
        "mean_error_average": float(raw.bias.abs().mean()),
        "sd_off": raw.sd_off,
        "wasserstein": float(raw.distance.mean()),
        "gradients": float(posterior.evaluations),
    }
    found = {"raw": raw}
    if corrected is not None:
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


def _short(value: Tensor) -> list[float]:
    return [float(f"{number:.4g}") for number in value.tolist()]
