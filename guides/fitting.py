"""``fit`` and ``fit_many``: the short way from a model and data to a posterior."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from guides.density.method import check_applies, method_of, name_of_method
from guides.errors import (
    DataError,
    NonFiniteLossError,
    OptionError,
    UnsupportedModelError,
    check_whole,
)
from guides.families.base import Family, FitContext
from guides.families.choose import Model, check_order, guide_factory, is_guide
from guides.families.reading import choose_device, read_data, read_for, read_validation
from guides.fitted.run import Run, finishes, warn_of
from guides.objectives.base import Objective
from guides.objectives.choose import make_objective
from guides.optimise.loop import train
from guides.optimise.settings import Settings
from guides.optimise.statistics import check_statistics, hand_over_statistics
from guides.posterior import Posterior
from guides.program.alone import undivided
from guides.program.buffers import buffers_kept
from guides.program.checks import check_model, check_values
from guides.program.data import Data
from guides.program.factors import FactorsOrNaN
from guides.program.guide import as_guide
from guides.program.inputs import read_like
from guides.program.isolation import seeded
from guides.program.keywords import check_names, keywords_of
from guides.program.moving_supports import check_same_supports
from guides.program.owning import is_owned
from guides.program.parameters import isolated_store, reachable_modules
from guides.program.program import Program
from guides.program.running import scale_of
from guides.solvers.auto.auto import Auto, climb
from guides.solvers.methods import run_method
from guides.solvers.pilot import check_precondition, obstacle, pilot_of, whitened

__all__ = ["fit", "fit_alike", "fit_many", "read_once"]

_OF_OBJECTIVE: dict[str, Any] = {"objective": "elbo", "num_particles": None}


def fit(
    model: Model,
    guide: Any = None,
    *data: Any,
    objective: str | Objective = "elbo",
    steps: int | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float = 1e-2,
    optimizer: str = "adam",
    schedule: str | Callable[[float], float] = "constant",
    clip_norm: float | None = None,
    num_particles: int | None = None,
    precondition: Any = None,
    validation: float | tuple[Any, ...] | None = None,
    patience: int | None = None,
    seed: int = 0,
    replicates: int = 1,
    device: str | torch.device = "auto",
    compile: str = "auto",
    precision: str = "float32",
    progress: bool | None = None,
    checkpoint: str | Path | None = None,
    model_kwargs: dict[str, Any] | None = None,
    **misspelt: Any,
) -> Posterior:
    r"""Fit an approximate posterior to data.

    :param model: any Pyro model. Discrete latents are summed out where they are marked for it (``config_enumerate``); others
        need ``objective="score_function"`` and a guide that draws them.
    :param guide: a registry name (``"mean_field"``), a name with options (``("low_rank", {"rank": 5})``), families by
        pattern of site names (``{"w.*": "low_rank"}``, see :class:`guides.Structured`), a family class, a guide object, or
        any Pyro guide function; or a sampler (``"nuts"``, ``"hmc"``), a solver (``"dadvi"``), or ``"auto"``, which tries
        those from cheap to dear. Their own options go beside them (``draws=2000, chains=4``), and they take ``seed``,
        ``compile``, ``progress`` and ``model_kwargs`` of those below: see :class:`guides.samplers.NUTS`,
        :class:`guides.solvers.DADVI` and :class:`guides.solvers.Auto`. Left out, the model's ``natural_guide`` is used.
    :param data: the model's positional arguments. Tensors share their first dimension, the data points.
    :param objective: a registry name or an :class:`~guides.Objective`.
    :param steps: optimisation steps; 2000 if neither this nor ``epochs`` is given, or none for ``laplace`` around the last
        layer of a trained network. 0 is for ``laplace`` and ``map``: at the values that they start from.
    :param epochs: passes over the data, instead of ``steps``.
    :param batch_size: data points per step; all by default. Plates that follow the rows are rescaled to the full data.
    :param lr: learning rate, times the ``schedule``: ``"constant"``, ``"cosine"``, ``"linear"``, or a function of progress
        in [0, 1).
    :param optimizer: ``"adam"`` (which forgets large gradients of the beginning sooner than Adam's own 1000 steps),
        ``"clipped_adam"`` (with every entry of the gradient cut to ±10 first) or ``"sgd"`` (with momentum).
    :param clip_norm: largest gradient norm; longer gradients are shortened to it.
    :param num_particles: Monte Carlo draws per step; by default the objective's own number, one for the ELBO.
    :param precondition: optimise in a space where the posterior is near a standard normal, and start there: ``"pathfinder"``
        finds it by some hundred gradients (:class:`guides.solvers.Pathfinder`), a posterior of the
        same latents by its draws. ``"auto"`` is ``"pathfinder"`` where that can be done, and nothing elsewhere. For
        ``mean_field``, ``full_rank``, ``low_rank`` and mixtures of them, up to 500 latents, no other parameters: in badly
        scaled models, such as regressions on columns as they are, steps are then of the right length in every direction.
        ``init_loc_fn`` and ``init_scale`` mean nothing then. What is fitted, returned and saved stays in the model's terms.
    :param validation: data to choose the best parameters by, either a fraction of ``data`` to hold out or a tuple like
        ``data``. Scored after every epoch by log predictive density, or by the objective where the guide computes latents
        from the rows it is given; the best parameters are restored at the end.
    :param patience: stop after that many epochs without a better score.
    :param seed: of everything random in the fit. Replicate r has seed ``seed + r``.
    :param replicates: independent fits to run at once; they become chains in ArviZ.
    :param device: ``"auto"`` takes a GPU if there is one.
    :param compile: ``"eager"`` runs the model at every step; ``"trace"`` replays a graph of its tensor operations, checked
        against the model; ``"native"`` compiles loops over that graph from C++ generated for it; ``"auto"`` takes what
        pays.
    :param precision: ``"bfloat16"`` or ``"float16"`` takes matrix products and convolutions in that type during
        optimisation; values, densities and gradients at every site stay in float32, and so does what follows the fit.
    :param progress: show a progress bar; by default if standard error is a terminal.
    :param checkpoint: a file to save the state to every 20 seconds and to continue from if it exists, also to more ``steps``
        than before (a schedule is then that of all of them). A file of any other fit is refused, saying what differs; one
        that cannot be written is warned of once and costs nothing.
    :param model_kwargs: keyword arguments of the model, the same at every step.
    :raises DataError, OptionError, GuideMismatchError, UnsupportedModelError: before any work, naming what was found and
        what to do.
    :raises DiscreteLatentError, MinibatchScaleError: likewise.
    :raises NonFiniteLossError: for a loss that is not finite at the start.

    Batch normalisation in evaluation mode uses the running statistics that it has. In training mode it normalises by the
    batch at every step, and in what follows the fit; its running statistics are gathered when the parameters have been
    found, in 100 passes over batches.

    A loss that turns NaN later, or a matrix that has no Cholesky factor, stops that replicate with a
    :class:`~guides.errors.NonFiniteLossWarning`, keeps the last finite parameters, and says in ``stop_reasons`` at which
    step and site it went wrong. Ctrl-C ends the training and returns what was fitted, with an
    :class:`~guides.errors.InterruptedFitWarning` (before the first steps it ends the call). Pyro's parameter store, torch's
    random state, default dtype and grad mode are left as they were.

    The posterior has a model and guide of its own. The modules that were passed get its parameters too, if it is one
    replicate, unless they belong to a posterior: a fit that starts from ``posterior.guide`` leaves that posterior as it is
    (replicates all start there, with other noise). Threads take turns.

    Example::

        >>> import pyro, pyro.distributions as dist, torch, guides
        >>> def model(x):
        ...     scale = pyro.sample("scale", dist.HalfNormal(1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(0.0, scale), obs=x)
        >>> posterior = guides.fit(model, "mean_field", torch.randn(100), steps=500)
        >>> posterior.sample(10)["scale"].shape
        torch.Size([10])
    """
    given = dict(locals())
    method = method_of(guide, misspelt)
    if method is not None:
        check_model(model, f"fit(model, {name_of_method(method)!r}, x, y)")
        check_applies(method, given, fit)
        shared: dict[str, Any] = {"seed": seed, "compile": compile, "progress": progress, "model_kwargs": model_kwargs}
        if isinstance(method, Auto):
            return climb(model, method, data, **shared)
        return run_method(model, method, data, **shared)
    check_names("fit", misspelt, keywords_of(fit), "arguments of the model go by position, or in model_kwargs={...}")
    check_model(model, "fit(model, 'mean_field', x, y)")
    if guide is not None and not is_guide(guide):
        guide, data = None, (guide, *data)
    check_order(guide, data)
    check_whole("replicates", replicates, least=1)
    check_whole("seed", seed)
    where = choose_device(device)
    with undivided("guides.fit"):
        training, held_out = read_data(model, guide, data, validation, model_kwargs, where, seed, batch_size)
    given["batch_size"] = training.batch_size if batch_size is None else batch_size
    settings = Settings.of(training, held_out is not None, **{name: given[name] for name in keywords_of(Settings.of)})
    check_precondition(precondition)
    chosen = make_objective(objective, num_particles)
    seeds = [seed + r for r in range(replicates)]
    many = [training] * replicates
    validations = None if held_out is None else [held_out] * replicates
    with undivided("guides.fit"):
        return _fit(model, guide, chosen, many, validations, seeds, settings, where, checkpoint, precondition=precondition)


def fit_many(
    model: Model,
    guide: Any,
    datasets: Sequence[tuple[Any, ...]],
    *,
    validations: Sequence[tuple[Any, ...]] | None = None,
    seeds: Sequence[int] | None = None,
    device: str | torch.device = "auto",
    checkpoint: str | Path | None = None,
    model_kwargs: dict[str, Any] | None = None,
    **options: Any,
) -> list[Posterior]:
    """Fit the same model and guide to several data sets of equal shapes in one vectorised run.

    Data set r with seed s gives the posterior that ``fit(model, guide, *datasets[r], seed=s)`` gives, up to rounding, at a
    fraction of the time: the Python and the kernel launches of a step are paid once for all.

    :param datasets: one tuple of positional model arguments each.
    :param validations: one tuple each, to stop early by; see :func:`fit`.
    :param seeds: one each; 0, 1, ... by default.
    :param options: ``objective``, ``steps``, ``epochs``, ``batch_size``, ``lr``, ``optimizer``, ``schedule``, ``clip_norm``,
        ``num_particles``, ``patience``, ``compile``, ``precision``, ``progress``, and the arguments above: as for
        :func:`fit`.
    :returns: one posterior per data set.
    :raises DataError: if shapes differ; all that :func:`fit` raises.

    Example::

        >>> import pyro, pyro.distributions as dist, torch, guides
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> posteriors = guides.fit_many(model, "mean_field", [(torch.zeros(5),), (torch.ones(5),)], steps=500)
        >>> [p.replicates for p in posteriors]
        [1, 1]
    """
    check_names("fit_many", options, [*_OF_OBJECTIVE, *keywords_of(Settings.of)])
    if not datasets:
        raise DataError("datasets is empty; pass at least one tuple of model arguments")
    where = choose_device(device)
    check_model(model, "fit(model, 'mean_field', x, y)")
    with undivided("guides.fit_many"):
        training = [read_for(model, guide, datasets[0], model_kwargs, where, 0, options.get("batch_size"))]
    training += [read_like(model, training[0], d, model_kwargs, where) for d in datasets[1:]]
    held_out = None
    if validations is not None:
        if len(validations) != len(training):
            raise DataError(f"{len(validations)} validations for {len(training)} data sets; pass one each")
        held_out = [read_validation(model, v, t, model_kwargs, where) for v, t in zip(validations, training)]
    seeds = list(range(len(datasets))) if seeds is None else list(seeds)
    if len(seeds) != len(datasets):
        raise OptionError(f"{len(seeds)} seeds for {len(datasets)} data sets; pass one each")
    for seed in seeds:
        check_whole("every seed", seed)
    objective, num_particles = (options.pop(name, default) for name, default in _OF_OBJECTIVE.items())
    settings = Settings.of(training[0], held_out is not None, **options)
    chosen = make_objective(objective, num_particles)
    with undivided("guides.fit_many"):
        joint = _fit(model, guide, chosen, training, held_out, seeds, settings, where, checkpoint)
    parts = [joint.replicate(r) for r in range(len(training))]
    return [replace(p, training=d, seed=s) for p, d, s in zip(parts, training, seeds)]


def read_once(
    model: Model, guide: Any, data: tuple[Any, ...], model_kwargs: dict[str, Any] | None, device: str | torch.device
) -> Data:
    """Return the arguments of a fit as the model and the guide are going to see them."""
    check_model(model, "fit(model, 'mean_field', x, y)")
    with undivided("guides.fit_many"):
        return read_for(model, guide, data, model_kwargs, choose_device(device), 0, None)


def fit_alike(
    model: Model,
    guide: Any,
    datasets: Sequence[tuple[Any, ...]],
    *,
    seed: int,
    device: str | torch.device = "auto",
    model_kwargs: dict[str, Any] | None = None,
    **options: Any,
) -> Posterior:
    """Fit to many data sets of equal shapes as :func:`fit_many` does, all from the start of the first.

    What is done once for each data set there (a guide is made, the program checked, a posterior copied) is done once for
    all, which is what makes a thousand of them fast.

    :param seed: of the first data set; the others have the seeds after it.
    :returns: one posterior, whose replicate r belongs to data set r of ``posterior.run``.
    """
    check_names("fit_many", options, [*_OF_OBJECTIVE, *keywords_of(Settings.of)])
    where = choose_device(device)
    objective, num_particles = (options.pop(name, default) for name, default in _OF_OBJECTIVE.items())
    first = read_once(model, guide, datasets[0], model_kwargs, where)
    with undivided("guides.fit_many"):
        training = [first, *(read_like(model, first, d, model_kwargs, where) for d in datasets[1:])]
        seeds = list(range(seed, seed + len(training)))
        settings = Settings.of(first, **options)
        chosen = make_objective(objective, num_particles)
        return _fit(model, guide, chosen, training, None, seeds, settings, where, None, one_start=True)


def _fit(
    model: Model,
    guide: Any,
    objective: Objective,
    datasets: list[Data],
    validations: list[Data] | None,
    seeds: list[int],
    settings: Settings,
    device: torch.device,
    checkpoint: str | Path | None,
    one_start: bool = False,
    precondition: Any = None,
) -> Posterior:
    start = time.perf_counter()
    if isinstance(model, nn.Module) and device.type != "cpu":
        model.to(device)
    make, family, family_options = guide_factory(model, guide)
    program, starts = _begin(model, guide, make, objective, datasets, seeds, settings, device, one_start)
    if validations:
        _check_validates(program)
    check_statistics(program, len(seeds), finishes(program))
    if isinstance(program.guide, Family):
        enough = program.guide.begin(FitContext(program, starts[0], datasets[0], seeds[0]))
        if enough is not None and settings.by_default:
            settings = replace(settings, steps=enough)
    program, starts, pilot_gradients = _preconditioned(program, starts, model, guide, datasets, seeds, device, precondition)
    setup = time.perf_counter()
    file = None if checkpoint is None else Path(checkpoint)
    try:
        trained = train(program, starts.to(device), datasets, seeds, settings, validations=validations, checkpoint=file)
    except NonFiniteLossError as error:
        raise NonFiniteLossError(f"{error}{scale_of(datasets[0])}") from error
    trained.stop_reasons = tuple(
        reason + scale_of(d) if "not finite" in reason else reason for reason, d in zip(trained.stop_reasons, datasets)
    )
    warn_of(trained, settings, stacklevel=4)
    run = Run(program, datasets, validations, seeds, settings, trained.resume, pilot_gradients)
    posterior = Posterior.concluded(run, trained, family, family_options, setup=setup - start, began=setup)
    if len(seeds) == 1:
        posterior.program.parameters.write_back(posterior.flat[0], spared=is_owned)
    owning = posterior.owning().with_statistics(run)
    hand_over_statistics(owning.program, posterior.program)
    return owning


def _preconditioned(
    program: Program,
    starts: Tensor,
    model: Model,
    guide: Any,
    datasets: list[Data],
    seeds: list[int],
    device: torch.device,
    precondition: Any,
) -> tuple[Program, Tensor, int]:
    """Return the program and the starts in the space to optimise in, and what it took to find it.

    :raises OptionError: if a space was asked for and there can be none.
    """
    if precondition is None:
        return program, starts, 0
    anyhow = isinstance(precondition, str) and precondition == "auto"
    why_not = obstacle(program, guide, datasets, device)
    if why_not is not None:
        if anyhow:
            return program, starts, 0
        raise OptionError(f"this fit cannot be preconditioned: {why_not}")
    try:
        pilot = pilot_of(model, datasets[0], precondition, seeds[0])
    except (NonFiniteLossError, UnsupportedModelError):  # of a density with no start, or of a model that has none
        if anyhow:
            return program, starts, 0
        raise
    return *whitened(program, pilot, seeds, starts), pilot.gradients


def _begin(
    model: Model,
    guide: Any,
    make: Callable[[], Callable[..., Any]],
    objective: Objective,
    datasets: list[Data],
    seeds: list[int],
    settings: Settings,
    device: torch.device,
    one_start: bool,
) -> tuple[Program, Tensor]:
    """Return the program of the first data set, and the start of each fit, ``(replicates, size)``.

    :param one_start: all fits start where the first does.
    """
    program, checked = None, None
    starts: list[Tensor] = []
    for data, seed in zip(datasets, seeds):
        if one_start and starts:
            starts.append(starts[0])
            continue
        kept = buffers_kept(reachable_modules(model, guide))
        with kept, isolated_store(), seeded(seed), FactorsOrNaN():  # a prior's draw may have none; the start decides
            if settings.batch_size is not None and data is not checked:
                check_values(model, data, settings.batch_size)
                checked = data
            made = make()
            if settings.steps == 0 and not as_guide(made).may_stand_still:
                raise OptionError("steps must be at least 1, not 0; only 'laplace' and 'map' mean something without any")
            if isinstance(made, nn.Module) and device.type != "cpu":
                made.to(device)  # an encoder is where its author made it
            built = Program.build(model, made, objective, data, batch_size=settings.batch_size, seed=seed)
        program = program or built
        check_same_supports(program.prototype, built.prototype, made)
        starts.append(built.parameters.initial)
    assert program is not None
    if program.parameters.size == 0:
        raise OptionError("neither model nor guide has parameters to optimise")
    return program, torch.stack(starts)


def _check_validates(program: Program) -> None:
    """Check that the model says something about rows it was not fitted to.

    :raises OptionError: naming a latent with one value per data point.
    """
    for name in sorted(program.local - program.amortized):
        raise OptionError(
            f"latent site {name!r} has one value per data point, so there is none to score validation data with; "
            "fit without validation, or with a guide that computes it from the data ('amortized')"
        )
