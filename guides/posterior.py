"""The result of a fit: a fitted guide with its judges, its file, and more training."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch
from torch import Tensor

from _posterior_zoo_registry import UnknownNameError
from guides.checkpoint_file import write_whole
from guides.diagnostics import Diagnosis, diagnose
from guides.errors import (
    DataError,
    DiscreteLatentError,
    GuideMismatchError,
    MinibatchScaleError,
    OptionError,
    check_whole,
)
from guides.families.choose import Model, guide_factory
from guides.fitted.arviz_io import to_arviz
from guides.fitted.fitted import FittedGuide
from guides.fitted.run import warn_of
from guides.fitted.saved import checked, fields_of, latent_shapes
from guides.fitted.shown import described, plot_fit, plot_predictions
from guides.fitted.values import holds_module
from guides.objectives.choose import make_objective
from guides.optimise.loop import train
from guides.optimise.settings import Settings
from guides.pooled import Pooled, pool_weights
from guides.program.alone import undivided
from guides.program.data import Data, plain_forms
from guides.program.guide import as_guide
from guides.program.owning import is_owned
from guides.program.program import Program
from guides.registries import families
from guides.showing.summary import Summary
from guides.showing.tables import panel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["RESTORERS", "Posterior"]

_FORMAT = 1

RESTORERS: dict[str, Callable[[dict[str, Any], Model, Any], Posterior]] = {}
"""How to read files of other kinds of posteriors, by an entry that only they have."""


@dataclass(frozen=True, repr=False)
class Posterior(FittedGuide):
    """An approximate posterior fitted to data. Frozen: methods return new objects and leave all global state alone.

    With ``replicates=R`` it holds R independent fits; results then have a leading dimension R.

    It owns a copy of model and guide, which hold its parameters: what becomes of the caller's modules later does not change
    it, nor does a later fit that starts from its guide. Functions cannot be copied, so networks that a model *function*
    closes over stay the caller's, and hold what was last written to them.

    :ivar family: registry name of the guide, or its class or function name.
    :ivar options: the options that the family was made with.
    :ivar losses: minus the objective in nats at every step, shape ``(R, steps)``; NaN after a replicate stopped.
    :ivar objective: registry name of the objective.
    :ivar steps: steps run, the most of any replicate.
    :ivar seed: the seed of the first replicate.
    :ivar stop_reasons: one sentence per replicate.
    :ivar seconds: wall time of ``"setup"``, ``"train"`` and ``"finish"``.
    :ivar info: what the family has to say about its fit, one dict per replicate; see the family's page.
    :ivar data: positional arguments of the training data.
    :ivar validation: log predictive density, or the objective if latents are amortised, per validation point and epoch in
        nats, shape ``(R, epochs)``.
    """

    def continue_(
        self,
        steps: int,
        *,
        lr: float | None = None,
        schedule: str | Callable[[float], float] = "constant",
        progress: bool | None = None,
    ) -> Posterior:
        """Train on from where the fit ended, on the same data with the same options, and return the longer fit.

        The optimiser goes on with its state; minibatches, noise and validation go on in their order. With a constant
        schedule the result is that of one fit of all the steps, up to rounding. Replicates that had stopped run again. The
        caller's modules stay as they are.

        :param steps: steps to add.
        :param lr: learning rate; by default that of the fit.
        :param schedule: over the added steps, whatever it was before: as for :func:`guides.fit`.
        :raises OptionError: for a posterior that :meth:`load` read, as a file keeps no state of the optimiser.
        """
        check_whole("steps", steps, least=1)
        run = self.run
        if run is None:
            raise OptionError(
                "this posterior was read from a file, which keeps no state of the optimiser; start a new fit from it: "
                "guides.fit(model, posterior.guide, *data)"
            )
        before = run.resume.state.step
        rate = run.settings.lr if lr is None else lr
        fresh = Settings.of(run.datasets[0], lr=rate, schedule=schedule, steps=steps, progress=progress)
        settings = replace(
            run.settings, steps=before + steps, begun=before, lr=rate, schedule=schedule, progress=fresh.progress
        )
        began = time.perf_counter()
        with undivided("posterior.continue_"):
            trained = train(
                run.program,
                run.resume.state.flat,
                run.datasets,
                run.seeds,
                settings,
                validations=run.validations,
                resume=run.resume,
            )
            warn_of(trained, settings, stacklevel=3)
            again = replace(run, settings=settings, resume=trained.resume)
            longer = Posterior.concluded(again, trained, self.family, self.options, setup=0.0, began=began)
            return longer.owning().with_statistics(again)

    def pooled(self, weights: str | Sequence[float] = "equal") -> Pooled:
        """Return the mixture of the replicates as one posterior that draws and predicts across them.

        :param weights: ``"equal"``; ``"elbo"``, in proportion to the exponential of the objective over the last tenth of the
            steps (at most 100), which all but chooses the best unless they are within a few nats; or R numbers.
        :raises OptionError: for other weights.
        """
        return Pooled(self, pool_weights(self, weights, -self.final_losses))

    def diagnose(self, **options: Any) -> Diagnosis:
        """Say whether the fit can be trusted; see :func:`guides.diagnose`."""
        return diagnose(self, **options)

    def summary(self, num_samples: int = 1000, seed: int | None = None, *, verdict: bool = True) -> Summary:
        """Return mean, standard deviation, median, 5 % and 95 % quantiles of every latent site, below the verdict.

        By site and then by ``"mean"``, ``"std"``, ``"median"``, ``"5.0%"`` and ``"95.0%"``, as in Pyro's summary of an MCMC
        run; of the site's shape each, with a leading dimension R if R > 1. It prints as one table.

        :param verdict: :meth:`diagnose` first, and say at the top what it found. Left out, the table comes sooner and is not
            known to be right.
        """
        found = self._moments(num_samples, seed)
        if not verdict:
            return Summary(found, self.family)
        judged = self.diagnose()
        return Summary(found, self.family, judged.verdict, judged.summary)

    def plot(self, num_samples: int = 1000, seed: int | None = None) -> Figure:
        """Draw the loss at every step, and the median of each latent with its 50 % and 90 % intervals, of 24 at most.

        :returns: a matplotlib figure that belongs to no window; save it with ``figure.savefig(path)``.
        """
        return plot_fit(self, num_samples, seed)

    def plot_predictions(self, *data: Any, site: str | None = None, **options: Any) -> Figure:
        """Draw bands of predictions, 50 % and 90 %, against the input, if it is one column, or else in their order.

        :param data: as for :meth:`predict`; the training data by default.
        :param site: the site to draw; by default the first observed one.
        :param options: of :meth:`predict`.
        :returns: a matplotlib figure that belongs to no window; ``figure.axes[0].plot(...)`` adds points to it.
        :raises OptionError: for a site that is not predicted, or is not one number for each row.
        """
        return plot_predictions(self, data, site, options)

    def __repr__(self) -> str:
        title, lines, table = described(self)
        return "\n".join([title, *lines[:-1], "", table.text(), "", lines[-1]])

    def _repr_html_(self) -> str:
        title, lines, table = described(self)
        return panel(title, "", lines, [table])

    def to_arviz(self, **options: Any) -> Any:
        """Return ``InferenceData`` (ArviZ 0.x) or ``DataTree`` (ArviZ 1.x); see :func:`guides.to_arviz`."""
        return to_arviz(self, **options)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything but the code of model and guide to ``path``, whole or not at all.

        Options that hold modules, such as an encoder, are left out; their parameters are saved with all others.

        :raises OptionError: if an option or an argument of the model is neither a tensor nor a plain Python value.
        :raises StorageError: if the file cannot be written; what was there stays as it was.
        """
        content = self._content()

        def write(file: IO[bytes]) -> None:
            torch.save(content, file)
            file.seek(0)
            try:
                torch.load(file, weights_only=True)
            except Exception as error:
                raise OptionError(
                    f"this posterior cannot be saved without pickle: {error}. Options and model arguments must be tensors "
                    "or plain values"
                ) from error

        write_whole(Path(path), write)

    def _content(self) -> dict[str, Any]:
        """Return what :meth:`save` writes."""
        return {
            "format": _FORMAT,
            "family": self.family,
            "options": {k: v for k, v in self.options.items() if not holds_module(v)},
            "modules": [k for k, v in self.options.items() if holds_module(v)],
            "batch_size": self.program.batch_size,
            "objective": self.objective,
            "steps": self.steps,
            "seed": self.seed,
            "stop_reasons": self.stop_reasons,
            "seconds": self.seconds,
            "info": self.info,
            "losses": self.losses,
            "validation": self.validation,
            "flat": self.flat.cpu(),
            "names": self.program.parameters.names,
            "args": tuple(a.cpu() if isinstance(a, Tensor) else a for a in self.training.args),
            "kwargs": self.training.kwargs,
            "forms": plain_forms(self.training.forms),
            "sites": latent_shapes(self.program),
        }

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: Callable[..., Any], guide: Any = None) -> Posterior:
        """Read a posterior that :meth:`save` wrote.

        :param model: the model it was fitted to.
        :param guide: the guide, if it was not one of the registry or has modules among its options: as for
            :func:`guides.fit`, with modules of the saved ones' architecture. Modules of model and guide get the saved
            parameters (with replicates only the posterior's own copies do).
        :raises OptionError: if the guide is needed and not given.
        :raises DataError: if the file is not one of ours or does not fit ``model``.
        """
        try:
            content = torch.load(path, weights_only=True)
        except FileNotFoundError:
            raise
        except Exception as error:
            raise DataError(f"{path} is not a saved posterior, or is damaged: {error}") from error
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise DataError(f"{path} is not a posterior saved by this version (format {_FORMAT})")
        found = checked(content, path)
        restore = next((RESTORERS[kind] for kind in found if kind in RESTORERS), _restored)
        return restore(found, model, guide)


def _saved_model(content: dict[str, Any]) -> str:
    listed = ", ".join(f"{n} {tuple(s)}" for n, s in content.get("sites", {}).items())
    return f"a model with the latent sites {listed}" if listed else "another model"


def _restored(content: dict[str, Any], model: Model, guide: Any) -> Posterior:
    """Rebuild a posterior from what :meth:`guides.Posterior.save` wrote."""
    held = fields_of(content)
    training: Data = held["training"]
    spec = guide if guide is not None else (content["family"], content["options"])
    if guide is None and content["family"] not in families:
        raise OptionError(f"the saved guide {content['family']!r} is not in the registry; pass it as guide=")
    if guide is None and content.get("modules"):
        names = ", ".join(map(repr, content["modules"]))
        raise OptionError(
            f"the options {names} of guide {content['family']!r} hold modules, which are saved without their code; pass "
            f'guide=("{content["family"]}", {{...}}) with all its options. Modules then get the saved parameters'
        )
    make, family, options = guide_factory(model, spec)
    try:
        objective = make_objective(content["objective"], None)
    except UnknownNameError as error:
        raise OptionError(f"the saved posterior cannot be used without its objective: {error}") from error
    batch_size = content.get("batch_size")
    try:
        program = Program.build(model, make(), objective, training, batch_size=batch_size, seed=content["seed"])
    except (DataError, GuideMismatchError, DiscreteLatentError, MinibatchScaleError) as error:
        raise DataError(f"the saved posterior is of {_saved_model(content)}, which this is not: {error}") from error
    finished = as_guide(program.guide).finished_guide()
    if finished is not None:
        program = Program.build(model, finished, objective, training, batch_size=None, seed=0)
    here_sites = latent_shapes(program)
    if content.get("sites", here_sites) != here_sites:
        listed = ", ".join(f"{n} {s}" for n, s in here_sites.items())
        raise DataError(
            f"the saved parameters are not those of this model: they are of {_saved_model(content)}, this one has {listed}"
        )
    layout = program.parameters
    if layout.names != tuple(content["names"]) or layout.size != content["flat"].shape[-1]:
        saved, here = ", ".join(content["names"]), ", ".join(layout.names)
        raise DataError(f"the saved parameters ({saved}) are not those of this model and guide ({here})")
    if len(content["flat"]) == 1:
        layout.write_back(content["flat"][0], spared=is_owned)
    return Posterior(**{**held, "family": family, "options": options}, program=program).owning()
