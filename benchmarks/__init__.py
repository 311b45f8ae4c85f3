"""Tasks, runner, results and report: guides compared under published protocols.

A task (:class:`Task`) pairs a model with data and a protocol, all of it as data; a suite (:class:`Suite`) names tasks and
guides that are read together. Both are registered where they are defined, one file each under :mod:`benchmarks.tasks` and
:mod:`benchmarks.suites`.
"""

from _posterior_zoo_registry import __version__
from benchmarks.protocol.split import Curve, Split
from benchmarks.protocol.task import SUITES, TASKS, Override, Suite, Task

from benchmarks import suites, tasks  # isort: skip  # noqa: F401  (fill the registries)

__all__ = ["SUITES", "TASKS", "Curve", "Override", "Split", "Suite", "Task", "__version__"]
