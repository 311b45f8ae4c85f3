"""Mixtures for single data points: fixed ones, and as many components as a data point needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.protocol.task import SUITES, Suite
from benchmarks.reporting.image_tables import guides_of, likelihoods, mean
from benchmarks.reporting.report import known_tasks, verdicts
from benchmarks.reporting.tables import Section
from benchmarks.running.store import Record

__all__ = ["sections"]

TASK, PRINTED = "mnist_adaptive", "mnist_as_printed"
SINGLE, FIXED, RNN = "amortized", "mixture_amortized", "stick_breaking_rnn"
SHOWN = (
    "importance_samples",
    "elbo_test",
    "objective_test",
    "effective_components",
    "components_run",
    "rows_saved",
    "dead_components",
    "halted_first",
    "khat_bad",
    "epochs",
    "epoch_seconds",
)


def sections(suite: Suite, records: Sequence[Record]) -> list[Section]:
    """Return log p(x) and the use of components of every guide, what they gain and save, and whether bounds are bounds."""
    uses = tuple(_uses(records))
    return [
        Section("Verdict", (), (verdicts(records),)),
        Section(
            "Log-likelihood of test images, and components",
            (*_gains(records), *_savings(records), *_bounds(records), *_lost(records)),
            (likelihoods(suite, known_tasks(records), records, "log_px", SHOWN),),
        ),
        *([Section("Who gets how many components", uses)] if uses else []),
    ]


def _gains(records: Sequence[Record]) -> list[str]:
    """Say what each mixture of a fixed size adds to the single normal."""
    said = []
    for guide in guides_of(records, TASK):
        elbo, log_px, error = _ahead(records, guide, SINGLE)
        if guide.partition(":")[0] == FIXED and not math.isnan(elbo + log_px):
            said.append(
                f"{guide} is {_signed(elbo)} nats of ELBO and {_signed(log_px)} nats of log p(x) from {SINGLE}, a single "
                f"normal with the same decoder (Monte Carlo error {error:.2f})."
            )
    return said


def _savings(records: Sequence[Record]) -> list[str]:
    """Say what each recurrent network saves against the fixed mixture, and what that costs."""
    said = []
    for guide in guides_of(records, TASK):
        elbo, log_px, error = _ahead(records, guide, FIXED)
        if guide.partition(":")[0] == RNN and not math.isnan(elbo + log_px):
            fewer = 100 * (1 - mean(records, TASK, guide, "components_run") / mean(records, TASK, FIXED, "components_run"))
            said.append(
                f"{guide} runs {fewer:.0f} % fewer components than {FIXED}, and is {_signed(elbo)} nats of ELBO and "
                f"{_signed(log_px)} nats of log p(x) from it (Monte Carlo error {error:.2f})."
            )
    return said


def _ahead(records: Sequence[Record], guide: str, other: str) -> tuple[float, float, float]:
    """Return how far a guide is ahead of another in ELBO and log p(x), and the Monte Carlo error of the latter."""
    elbo, log_px = (mean(records, TASK, guide, name) - mean(records, TASK, other, name) for name in ("elbo_test", "log_px"))
    return elbo, log_px, math.hypot(*(mean(records, TASK, label, "log_px_se") for label in (guide, other)))


def _bounds(records: Sequence[Record]) -> list[str]:
    """Say which ELBOs and objectives are above log p(x)."""
    said, ran = [], 0
    for task in (TASK, PRINTED):
        for guide in guides_of(records, task):
            log_px = mean(records, task, guide, "log_px")
            ran += not math.isnan(log_px)
            above = {
                words: mean(records, task, guide, name) - log_px
                for name, words in (("elbo_test", "the ELBO"), ("objective_test", "the objective"))
            }
            said += [
                f"{task}: {words} of {guide} is {gap:.2f} nats above log p(x)"
                + (", which it is no bound on: see docs/adaptive.md." if task == PRINTED else ".")
                for words, gap in above.items()
                if gap > 0
            ]
    return said if said or not ran else ["Every ELBO, and every objective, is below log p(x), as it has to be."]


def _lost(records: Sequence[Record]) -> list[str]:
    """Say where components have died, and where every image stops at its first."""
    said = []
    for task in (TASK, PRINTED):
        for guide in guides_of(records, task):
            dead = mean(records, task, guide, "dead_components")
            if dead > 0:
                said.append(f"{task}: {guide} has {dead:g} dead components, of a mean weight below 1e-4.")
            if guide.partition(":")[0] != SINGLE and mean(records, task, guide, "halted_first") == 1:
                said.append(f"{task}: {guide} halts at the first step for every image, and so is a single normal.")
    return said


def _uses(records: Sequence[Record]) -> list[str]:
    """Say which digits get most and fewest components, and whether that goes with the number of modes."""
    said = []
    for record in records:
        curves = record.get("curves", {})
        if record["task"] != TASK or not curves.get("modes"):
            continue
        name = "run" if record["guide"].partition(":")[0] == RNN else "effective"
        words = "components run" if name == "run" else "effective components"
        used = dict(zip(curves["components"]["classes"], curves["components"][name]))
        most, fewest = max(used, key=lambda digit: used[digit]), min(used, key=lambda digit: used[digit])
        if used[most] - used[fewest] < 0.005:
            said.append(f"{record['guide']}: {words} for every digit: {used[most]:.2f}.")
            continue
        said.append(
            f"{record['guide']}: {words} from {used[fewest]:.2f} for the digit {fewest} to {used[most]:.2f} for {most}; "
            f"{_relation(curves['modes'], name)}."
        )
    return said


def _relation(probed: dict[str, Any], name: str) -> str:
    """Say whether components used by single images go with the modes that gradient ascent finds there."""
    modes, used = probed["modes"], probed[name]
    if len(set(modes)) < 2 or len(set(used)) < 2:
        same = "modes" if len(set(modes)) < 2 else "components"
        return f"all {len(modes)} images probed have the same number of {same}, so that nothing can correlate"
    rank = float(torch.corrcoef(torch.stack([_ranks(modes), _ranks(used)]))[0, 1])
    error = 1 / math.sqrt(len(modes) - 1)
    verdict = (
        "they correlate" if rank > 2 * error else "they anticorrelate" if rank < -2 * error else "they do not correlate"
    )
    rank_text = f"{rank:.2f}".replace("-", "−")
    return (
        f"against the number of modes that gradient ascent finds for {len(modes)} images (mean "
        f"{sum(modes) / len(modes):.1f}), rank correlation {rank_text} (± {error:.2f} if there were none): {verdict}"
    )


def _ranks(values: Sequence[float]) -> Tensor:
    """Return the rank of each value, those of equal values averaged."""
    numbers = torch.tensor(values, dtype=torch.float64)
    return (numbers.unsqueeze(1) - numbers).sign().sum(1)


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


SUITES.add(
    "adaptive",
    Suite(
        name="adaptive",
        summary="Posteriors of single images as mixtures, of fixed size or as large as an image needs (the report's 4.5)",
        tasks=(TASK,),
        guides={
            TASK: (
                SINGLE,
                f"{SINGLE}:objective=iwae:num_particles=5",
                FIXED,
                f"{FIXED}:objective=entropy_bound",
                RNN,
                f"{RNN}:penalty=0.05",
                f"{RNN}:penalty=0.2",
                f"{RNN}:objective=selbo:epsilon=0.13",
            ),
            PRINTED: (RNN,),
        },
        optional=(PRINTED,),
        variants={"as_printed": (PRINTED,)},
        sections=sections,
    ),
)
