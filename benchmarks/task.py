"""A task: one model on one data set under one protocol, as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from benchmarks.describe import describe, fingerprint
from registry import Registry

if TYPE_CHECKING:
    from benchmarks.evaluation import Evaluator

__all__ = ["SUITES", "TASKS", "Curve", "Override", "Setting", "Split", "Suite", "Task", "parse_guide"]


@dataclass(frozen=True)
class Curve:
    """Where and on what to draw predictive bands of a task with one input.

    :param inputs: what the model is called with, shape ``(G, 1)``, standardised as the training inputs are.
    :param x: the same inputs in original units, shape ``(G,)``.
    :param points: training inputs and targets in original units, each of shape ``(N,)``.
    :param truth: the noise-free curve at ``x``, shape ``(G,)``, where it is known.
    """

    inputs: Tensor
    x: Tensor
    points: tuple[Tensor, Tensor]
    truth: Tensor | None = None


@dataclass(frozen=True)
class Split:
    """The data of one cell, standardised as the protocol says.

    :param train: what the model is called with, e.g. ``(x, y)`` of shapes ``(N, D)`` and ``(N,)``.
    :param test: the same for held-out points; ``None`` where a task has none.
    :param validation: the same for early stopping, taken from the training part only; ``None`` for none.
    :param target_scale: what one unit of ``y`` is in the original target's units (its standard deviation over the
        training part), so that ``rmse * target_scale`` and ``log_likelihood - log(target_scale)`` are in original units.
    :param target_shift: the original target's value where ``y`` is 0.
    :param curve: what the report draws predictive bands on; ``None`` for no picture.
    """

    train: tuple[Tensor, ...]
    test: tuple[Tensor, ...] | None = None
    validation: tuple[Tensor, ...] | None = None
    target_scale: float = 1.0
    target_shift: float = 0.0
    curve: Curve | None = None

    @property
    def shape(self) -> tuple[Any, ...]:
        """Shapes of everything a fit sees: splits that agree here can be fitted in one vectorised run."""

        def shapes(data: tuple[Tensor, ...] | None) -> tuple[tuple[int, ...], ...] | None:
            return None if data is None else tuple(tuple(part.shape) for part in data)

        return shapes(self.train), shapes(self.validation)


@dataclass(frozen=True)
class Override:
    """What one guide does differently from its task's default.

    :param options: given to the guide's constructor.
    :param fit: given to ``guides.fit``, on top of the task's own settings; ``None`` as a value drops a setting.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    fit: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Setting:
    """A guide as one task runs it: everything that ``guides.fit`` needs besides model, data and seed."""

    label: str
    family: str
    options: Mapping[str, Any]
    fit: Mapping[str, Any]
    protocol: Mapping[str, Any]

    @property
    def hash(self) -> str:
        """Fingerprint of the protocol: cells with equal hashes did the same thing to the same data."""
        return fingerprint(self.protocol)


def parse_guide(label: str) -> tuple[str, dict[str, Any]]:
    """Split ``name:key=value:key=value`` into the guide's registry name and its options.

    Values are read as Python literals where they are, as words where they are not.

    :raises ValueError: if an option has no ``=``.

    Example::

        >>> parse_guide("laplace:curvature=kron:floor=1e-6")
        ('laplace', {'curvature': 'kron', 'floor': 1e-06})
    """
    import ast

    name, *pairs = label.split(":")
    options: dict[str, Any] = {}
    for pair in pairs:
        key, separator, text = pair.partition("=")
        if not separator or not key:
            raise ValueError(f"guide {label!r}: option {pair!r} should read key=value, as in laplace:curvature=kron")
        try:
            options[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            options[key] = text
    return name, options


@dataclass(frozen=True)
class Task:
    """One model on one data set under one protocol.

    :param name: its registry name, a word such as ``uci_yacht``.
    :param summary: one line for ``python -m benchmarks list tasks``.
    :param load: ``load(index)`` returns the :class:`Split` of that number; name a module-level function or a
        :func:`functools.partial` of one, so that its arguments become part of the protocol's hash.
    :param model: ``model(split)`` builds the Pyro model; only shapes may depend on the split.
    :param evaluate: turns a posterior and a split into numbers and curves (see :mod:`benchmarks.evaluation`).
    :param metrics: names of what tables show, the decisive one first.
    :param splits: how many splits exist.
    :param fit: keyword arguments of ``guides.fit``: epochs, batch size, learning rate, patience, ...
    :param guides: what single guides do differently, by guide name or by full label (``"laplace:curvature=kron"``).
    :param skip: guides that cannot run here, each with the reason a reader gets instead of a number.
    :param source: where the protocol comes from.
    :param dataset: the name under which published numbers are filed (``"boston"``).
    :param target: what is predicted, with its unit, for pictures.
    :param forest: latent sites that the report's forest plot compares between guides; empty for none.
    :param num_samples: posterior draws behind every number of a cell.
    :param keep_draws: posterior draws kept in the cell's netCDF file; 0 keeps no file.
    :param replicates: most cells fitted in one vectorised run.
    :param threads: CPU threads, ``None`` for all. Networks of a few hundred weights run fastest on one: the others would
        spend their time waiting for each other.
    :param version: raise it when code behind ``load``, ``model`` or ``evaluate`` changes what they do.

    Example::

        >>> from benchmarks import TASKS
        >>> task = TASKS["blundell_curve"]
        >>> task.setting("mean_field").family
        'mean_field'
    """

    name: str
    summary: str
    load: Callable[[int], Split]
    model: Callable[[Split], nn.Module]
    evaluate: Evaluator
    metrics: tuple[str, ...]
    splits: int = 1
    fit: Mapping[str, Any] = field(default_factory=dict)
    guides: Mapping[str, Override] = field(default_factory=dict)
    skip: Mapping[str, str] = field(default_factory=dict)
    source: str = ""
    dataset: str = ""
    target: str = "y"
    forest: tuple[str, ...] = ()
    num_samples: int = 1000
    keep_draws: int = 100
    replicates: int = 20
    threads: int | None = 1
    version: int = 1

    def setting(self, label: str, overrides: Mapping[str, Any] | None = None) -> Setting:
        """Return how this task runs the guide called ``label``.

        Later wins: the task's ``fit``, its :class:`Override` for the family, its override for the full label, the options
        written in the label, and ``overrides`` of the command line (such as ``epochs``).
        """
        family, options = parse_guide(label)
        layers = [self.guides[key] for key in dict.fromkeys((family, label)) if key in self.guides]
        merged_options: dict[str, Any] = {}
        merged_fit: dict[str, Any] = dict(self.fit)
        for layer in layers:
            merged_options |= layer.options
            merged_fit |= layer.fit
        merged_options |= options
        merged_fit |= overrides or {}
        merged_fit = {key: value for key, value in merged_fit.items() if value is not None}
        protocol = describe(
            {
                "task": self.name,
                "version": self.version,
                "data": self.load,
                "model": self.model,
                "evaluate": self.evaluate,
                "num_samples": self.num_samples,
                "guide": family,
                "options": merged_options,
                "fit": merged_fit,
            }
        )
        return Setting(label, family, merged_options, merged_fit, protocol)


@dataclass(frozen=True)
class Suite:
    """Tasks and guides that are run and read together.

    :param name: its registry name.
    :param summary: one line for ``python -m benchmarks list suites``.
    :param tasks: what runs by default.
    :param guides: labels that run by default; ``None`` runs every registered guide, those of other packages too.
    :param splits: how many splits of each task; ``None`` runs all that exist.
    :param optional: tasks that belong here and run only when ``--tasks`` names them.
    :param sections: builds the tables that are printed after a run and open the report
        (see :mod:`benchmarks.tables`); ``None`` for the standard ones.
    """

    name: str
    summary: str
    tasks: tuple[str, ...]
    guides: tuple[str, ...] | None = None
    splits: int | None = None
    optional: tuple[str, ...] = ()
    sections: Callable[..., list[Any]] | None = None


TASKS: Registry[Task] = Registry("task", group="benchmarks.tasks")
"""Every task, by name; :mod:`benchmarks.tasks` fills it, other packages through the entry-point group of that name."""

SUITES: Registry[Suite] = Registry("suite", group="benchmarks.suites")
"""Every suite, by name; :mod:`benchmarks.suites` fills it, other packages through the entry-point group of that name."""
