"""Image completion: a conditional VAE beside the plain net, for less and less given."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from benchmarks.protocol.task import SUITES, Suite, Task
from benchmarks.reporting.image_tables import likelihoods, mean
from benchmarks.reporting.report import known_tasks, quoted, verdicts
from benchmarks.reporting.tables import Section, comparison
from benchmarks.running.store import Record

__all__ = ["sections"]

CVAE, NET = "amortized", "map"
SHOWN = ("tutorial_loss", "rate", "active_units", "khat", "khat_bad", "epochs", "train_seconds")


def sections(suite: Suite, records: Sequence[Record]) -> list[Section]:
    """Return log p(y | x) of both, the tutorial's quantity beside its numbers, and whether the gap grows."""
    tasks = known_tasks(records)
    tutorial = comparison(
        "Minus the mean ELBO of the pixels that were not given, beside Pyro's tutorial (which has grey levels)",
        records,
        [(task.name, "tutorial_loss") for task in tasks],
        quoted=quoted(suite.name),
    )
    return [
        Section("Verdict", (), (verdicts(records),)),
        Section(
            "Log-likelihood of the pixels that were not given",
            tuple(_sentences(tasks, records)),
            (likelihoods(suite, tasks, records, "log_py", SHOWN),),
        ),
        Section("Beside published numbers", (), (tutorial,)),
    ]


def _sentences(tasks: Sequence[Task], records: Sequence[Record]) -> list[str]:
    """Say how far the conditional VAE is ahead of the net, task by task, and whether that grows as less is given."""
    gaps = {task.name: mean(records, task.name, CVAE, "log_py") - mean(records, task.name, NET, "log_py") for task in tasks}
    gaps = {name: gap for name, gap in gaps.items() if not math.isnan(gap)}
    if not gaps:
        return []
    said = [
        f"{name}: the conditional VAE is {abs(gap):.2f} nats for each image {'better' if gap > 0 else 'worse'} than the net"
        for name, gap in gaps.items()
    ]
    sentences = ["; ".join(said) + "."]
    order = [name for name in ("cvae_3_quadrants", "cvae_2_quadrants", "cvae_1_quadrant") if name in gaps]
    if len(order) > 1:
        rising = all(gaps[more] < gaps[less] for more, less in pairwise(order))
        listed = ", ".join(f"{gaps[name]:.2f}" for name in order).replace("-", "−")
        does = "grows" if rising else "does not always grow"
        sentences.append(f"From {order[0]} to {order[-1]} the gap {does} as less is given: {listed} nats.")
    return sentences


SUITES.add(
    "cvae",
    Suite(
        name="cvae",
        summary="Completing binarised MNIST: conditional VAE and plain net; 3, 2, 1 quadrants, or middle columns given",
        tasks=("cvae_3_quadrants", "cvae_2_quadrants", "cvae_1_quadrant", "cvae_middle_columns"),
        guides=(CVAE, NET),
        sections=sections,
    ),
)
