"""A task: one model on one data set under one protocol, as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

import guides
from _posterior_zoo_registry import Registry
from benchmarks.protocol.describe import describe, fingerprint
from benchmarks.protocol.labels import parse_guide, sort_options, stops_by_itself, takes_encoder
from benchmarks.protocol.split import Evaluator, Split

__all__ = ["SUITES", "TASKS", "Override", "Setting", "Suite", "Task"]


@dataclass(frozen=True)
class Override:
    """What one guide does differently from its task's default.

    :param options: given to the guide's constructor, or to the objective where only that knows them.
    :param fit: given to ``guides.fit``, on top of the task's own settings; ``None`` as a value drops a setting.
    :param model: another model than the task's, such as the plain net that stands beside a conditional VAE.
    :param objective: builds the objective, from the options that it has, instead of the registry's entry of the name in
        ``fit``: one that belongs to a benchmark alone. A label that names an objective gets that one.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    fit: Mapping[str, Any] = field(default_factory=dict)
    model: Callable[[Split], nn.Module] | None = None
    objective: Callable[..., guides.Objective] | None = None


@dataclass(frozen=True)
class Setting:
    """A guide as one task runs it: everything that ``guides.fit`` needs besides data and seed.

    :param label: the guide as the command line and tables call it.
    :param family: its registry name.
    :param options: its constructor's options, as far as they are plain data.
    :param fit: arguments of ``guides.fit``; the objective by its registry name.
    :param objective: options of that objective.
    :param build_objective: builds an objective that no registry has from these options; ``None`` for a registered one.
    :param model: builds the model.
    :param encoder: builds the guide's encoder for a model, and options that go with it, where the guide takes one.
    :param num_samples: draws behind every number of a cell.
    :param protocol: all of it, described.
    """

    label: str
    family: str
    options: Mapping[str, Any]
    fit: Mapping[str, Any]
    objective: Mapping[str, Any]
    build_objective: Callable[..., guides.Objective] | None
    model: Callable[[Split], nn.Module]
    encoder: Callable[[Any], Mapping[str, Any]] | None
    num_samples: int
    protocol: Mapping[str, Any]

    @property
    def hash(self) -> str:
        """Fingerprint of the protocol: cells with equal hashes did the same thing to the same data."""
        return fingerprint(self.protocol)

    def guide(self, model: nn.Module) -> tuple[str, dict[str, Any]]:
        """Return the guide's name and options for one model, its encoder among them where it takes one."""
        encoder = {} if self.encoder is None else self.encoder(model)
        return self.family, {**encoder, **self.options}

    def fit_arguments(self) -> dict[str, Any]:
        """Return what ``guides.fit`` is called with, the objective made of its name and options."""
        if not self.objective and self.build_objective is None:
            return dict(self.fit)
        particles = {"num_particles": self.fit["num_particles"]} if "num_particles" in self.fit else {}
        build = self.build_objective or guides.objectives[self.fit.get("objective", "elbo")]
        made = build(**particles, **self.objective)
        return {key: value for key, value in self.fit.items() if key != "num_particles"} | {"objective": made}


@dataclass(frozen=True)
class Task:
    """One model on one data set under one protocol.

    :param name: its registry name, a word such as ``uci_yacht``.
    :param summary: one line for ``python -m benchmarks list tasks``.
    :param load: ``load(index)`` returns the :class:`Split` of that number; name a module-level function or a
        :func:`functools.partial` of one, so that its arguments become part of the protocol's hash.
    :param model: ``model(split)`` builds the Pyro model; only shapes may depend on the split.
    :param encoder: ``encoder(model)`` returns the option ``encoder`` of guides that take one, and options that go with it,
        for a model with a latent for each data point; only such guides run here then.
    :param evaluate: turns a posterior and a split into numbers and curves (see :mod:`benchmarks.evaluation.predictions`).
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
    :param replicates: most cells fitted in one vectorised run; 1 for models that hold networks, which would all start alike.
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
    encoder: Callable[[Any], Mapping[str, Any]] | None = None
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

    def setting(self, label: str, overrides: Mapping[str, Any] | None = None, num_samples: int | None = None) -> Setting:
        """Return how this task runs the guide called ``label``.

        Later wins: the task's ``fit``, its :class:`Override` for the family, its override for the full label, the options
        written in the label, and ``overrides`` of the command line (such as ``epochs``).

        :raises UnknownNameError: for a guide or an objective that nobody registered.
        """
        family, written = parse_guide(label)
        layers = [self.guides[key] for key in dict.fromkeys((family, label)) if key in self.guides]
        options: dict[str, Any] = {}
        fit: dict[str, Any] = {} if stops_by_itself(family) else dict(self.fit)
        model, build_objective = self.model, None
        for layer in layers:
            options |= layer.options
            fit |= layer.fit
            model = layer.model or model
            build_objective = layer.objective or build_objective
        if "objective" in written:
            build_objective = None
        options, of_fit, objective = sort_options(family, {**options, **written}, fit, build_objective)
        fit |= of_fit
        fit |= overrides or {}
        fit = {key: value for key, value in fit.items() if value is not None}
        encoder = self.encoder if takes_encoder(family) else None
        num_samples = num_samples or self.num_samples
        description = {
            "task": self.name,
            "version": self.version,
            "data": self.load,
            "model": model,
            "evaluate": self.evaluate,
            "num_samples": num_samples,
            "guide": family,
            "options": options,
            "fit": fit,
        }
        description |= {"objective": objective} if objective else {}
        description |= {"build_objective": build_objective} if build_objective else {}
        description |= {"encoder": encoder} if encoder else {}
        return Setting(
            label, family, options, fit, objective, build_objective, model, encoder, num_samples, describe(description)
        )

    def reason_to_skip(self, label: str) -> str:
        """Return why the guide called ``label`` does not run here, empty where it does."""
        family, _ = parse_guide(label)
        reason = self.skip.get(label) or self.skip.get(family)
        if reason or family in self.guides or label in self.guides:
            return reason or ""
        if self.encoder is not None and not takes_encoder(family):
            return "every data point has a latent of its own, which this guide does not compute from the data point"
        if self.encoder is None and takes_encoder(family):
            return "no latent belongs to one data point, so there is none to compute from it"
        return ""


@dataclass(frozen=True)
class Suite:
    """Tasks and guides that are run and read together.

    :param name: its registry name.
    :param summary: one line for ``python -m benchmarks list suites``.
    :param tasks: what runs by default.
    :param guides: labels that run by default, or a mapping that gives them for each task; ``None`` runs every registered
        guide, those of other packages too.
    :param splits: how many splits of each task; ``None`` runs all that exist.
    :param optional: tasks that belong here and run only when ``--tasks`` names them.
    :param variants: by name, tasks that run instead of ``tasks`` when the command line asks for a variant (``--as-printed``
        for ``"as_printed"``); these tasks are ``optional`` ones.
    :param sections: builds the tables that are printed after a run and open the report
        (see :mod:`benchmarks.reporting.tables`); ``None`` for the standard ones.
    :param page: the page below ``docs`` that shows its published sections, in a block of the suite's name; empty for the
        README's results.
    """

    name: str
    summary: str
    tasks: tuple[str, ...]
    guides: tuple[str, ...] | Mapping[str, tuple[str, ...]] | None = None
    splits: int | None = None
    optional: tuple[str, ...] = ()
    variants: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    sections: Callable[..., list[Any]] | None = None
    page: str = ""

    def labels(self, task: str) -> tuple[str, ...]:
        """Return the guides that run on a task by default."""
        found = self.guides.get(task) if isinstance(self.guides, Mapping) else self.guides
        return tuple(found or guides.families)


TASKS: Registry[Task] = Registry("task", group="benchmarks.tasks")
"""Every task, by name; :mod:`benchmarks.tasks` fills it, other packages through the entry-point group of that name."""

SUITES: Registry[Suite] = Registry("suite", group="benchmarks.suites")
"""Every suite, by name; :mod:`benchmarks.suites` fills it, other packages through the entry-point group of that name."""
