"""A Pyro model, guide and objective as pure functions of parameters, noise and data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from guides.program.buffers import buffers_kept, check_still
from guides.program.checks import (
    Following,
    check_local,
)
from guides.program.data import Data
from guides.program.discrete.enumeration import Enumerated
from guides.program.guide import amortized_sites, as_guide
from guides.program.isolation import quiet, seeded
from guides.program.joint import joint_traces
from guides.program.judging import judged, own_plates_of
from guides.program.noise import Noise, NoiseLayout, NoiseTape
from guides.program.objective import OWN_MODULE, Estimate, ObjectiveLike
from guides.program.owning import copy_of, pack, unpack
from guides.program.parameters import ParameterLayout, isolated_store, reachable_modules
from guides.program.prepare import PreparedModel
from guides.program.running import told_in_words
from guides.program.sites import counted, is_latent, is_observed, nodes, pointwise, role
from guides.program.strata import Stratum, stratum_log_weight
from guides.program.subsampling import OwnPlates
from guides.program.vectorise import Vectorised
from guides.program.whitened import WhitenedLayout

__all__ = ["Program", "RescalePlates", "setup_rows"]


class RescalePlates(Messenger):
    """Multiply the log-density scale of every site inside one of ``plates`` by ``factor``.

    This is what makes ``pyro.plate("data", len(x))`` right for a minibatch: the plate knows only the rows it is given, the
    factor is the number of rows in all over the number given.
    """

    def __init__(self, plates: frozenset[str], factor: float) -> None:
        super().__init__()
        self._plates = plates
        self._factor = factor

    def _pyro_sample(self, msg: Any) -> None:
        if self._factor != 1.0 and any(frame.name in self._plates for frame in msg["cond_indep_stack"]):
            msg["scale"] = msg["scale"] * self._factor


def setup_rows(batch_size: int) -> int:
    """Return how many rows show what a model does with more rows than a batch has."""
    return max(64, 2 * batch_size)


def _noise(
    model: Callable[..., Any], guide: Callable[..., Any], objective: ObjectiveLike, data: Data
) -> tuple[NoiseLayout, int]:
    """Return what one particle consumes, and how many strata the guide has."""
    with NoiseTape() as tape, Stratum(torch.tensor(0), guide) as stratum:
        objective.particle(model, guide, data.args, data.kwargs)
    return tape.used, stratum.count


@dataclass(frozen=True)
class Program:
    """The pure functions of one (model, guide, objective), and the layouts of what they consume.

    Made by :meth:`build`; every method is a function of its arguments alone and works under :mod:`torch.func` transforms
    when called inside :func:`quiet` and :func:`~guides.program.parameters.isolated_store`.

    :ivar prototype: a trace of the model on the data it was built with, or under minibatching on the first rows of them.
    :ivar follows: which plates and latents follow the rows of the data.
    :ivar size: number of rows of the data it was built with.
    :ivar num_strata: components, or combinations of them, that a step draws one by one.
    :ivar own: plates whose rows the model chooses itself; a step is given them, all else runs on all of them.
    """

    model: PreparedModel | Enumerated
    guide: Callable[..., Any]
    objective: ObjectiveLike
    parameters: ParameterLayout
    noise: NoiseLayout
    follows: Following
    prototype: Trace
    latents: tuple[str, ...]
    size: int
    batch_size: int | None
    num_strata: int = 1
    own: OwnPlates = field(default_factory=OwnPlates, compare=False)
    over_particles: Vectorised = field(default_factory=lambda: Vectorised("particles"), compare=False)

    @classmethod
    def build(
        cls,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        objective: ObjectiveLike,
        data: Data,
        *,
        batch_size: int | None,
        seed: int,
    ) -> Program:
        """Run model and guide once on ``data``, check that they fit together, and read the layouts off that run.

        :raises GuideMismatchError, DiscreteLatentError, MinibatchScaleError, UnsupportedModelError: see the classes.
        """
        while isinstance(model, PreparedModel | Enumerated):
            model = model.model
        modules = reachable_modules(model, guide)
        with buffers_kept(modules) as changed, isolated_store() as store, seeded(seed), torch.no_grad():
            some = data if batch_size is None else data.head(setup_rows(batch_size))
            own = OwnPlates() if batch_size is not None else own_plates_of(model, guide, some)
            with own.whole():
                run, objective, follows, prototype = judged(
                    model, guide, objective, some, batch_size, data.size, own, modules
                )
            if batch_size is not None:
                check_local(follows, prototype, guide, data.size)
            shown = {n: torch.arange(part) for n, (_, part) in own.streams.items()}
            part = data if batch_size is None else data.head(batch_size)
            # Quiet, as a start without density is the first step's to report, by site. With gradients, as a step has them: a
            # model that leaves torch for numpy with something that depends on a latent ends here.
            with own.part(shown, guide), quiet(), told_in_words(guide, part), torch.enable_grad():
                noise, strata = _noise(run, guide, objective, part)
            check_still(changed(), modules)
            layout = ParameterLayout.discover(store, model, guide, objective)
        latents = tuple(n for n, s in prototype.nodes.items() if is_latent(s))
        return cls(
            run,
            guide,
            objective,
            layout,
            noise,
            follows,
            prototype,
            latents,
            data.size,
            batch_size,
            strata,
            own,
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Program:
        return copy_of(self, memo)

    def __getstate__(self) -> dict[str, Any]:
        return pack(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        unpack(self, state)

    def call(self, flat: Tensor, function: Callable[[], Any]) -> Any:
        """Call ``function`` with the parameters ``flat`` in place, and all rows in the plates that the model subsamples."""
        with self.own.whole():
            return self.parameters.call(flat, function)

    def in_own_terms(self, flat: Tensor) -> tuple[Program, Tensor]:
        """Return the program and ``flat``, ``(replicates, size)``, in the model's terms, whatever space was optimised in."""
        if not isinstance(self.parameters, WhitenedLayout):
            return self, flat
        layout = self.parameters.plain
        plain = layout.flatten(self.parameters.constrained(flat), flat.shape[:-1])
        return replace(self, parameters=replace(layout, initial=plain[0])), plain

    def without_objective(self, flat: Tensor) -> tuple[Program, Tensor]:
        """Return the program and ``flat``, ``(replicates, size)``, without what the objective learned for itself.

        Its module gets the parameters of the first replicate.
        """
        own = f"{OWN_MODULE}$$$"
        if not any(name.startswith(own) for name in self.parameters.names):
            return self, flat
        self.parameters.write_back(flat[0])
        layout, index = self.parameters.without(own)
        return replace(self, parameters=layout), flat[:, index]

    @property
    def visible(self) -> Callable[..., Any]:
        """The model with all of its sites: discrete latents that :attr:`model` sums out are drawn."""
        return self.model.visible if isinstance(self.model, Enumerated) else self.model

    @property
    def discrete(self) -> tuple[str, ...]:
        """Names of the discrete latents that are summed out."""
        return tuple(n for n, s in nodes(self.prototype).items() if role(s) == "enumerated")

    @property
    def shared_discrete(self) -> frozenset[str]:
        """Names of the discrete latents that are summed out and that stand in no plate of the rows of the data."""
        frames = {n: {f.name for f in nodes(self.prototype)[n]["cond_indep_stack"] if f.vectorized} for n in self.discrete}
        rows = self.follows.plates  # any plate might be that of the rows where this could not be found out
        return frozenset(n for n, plates in frames.items() if not (plates & rows if rows else plates))

    @property
    def setup_rows(self) -> int:
        """Number of rows that the prototype was run on."""
        return self.size if self.batch_size is None else min(self.size, setup_rows(self.batch_size))

    @property
    def plates(self) -> frozenset[str]:
        """Names of the plates that know only the rows they are given, to be rescaled to all of them."""
        return self.follows.rescaled

    @property
    def local(self) -> frozenset[str]:
        """Names of the latents with one value per row of the data."""
        return self.follows.local

    @property
    def amortized(self) -> frozenset[str]:
        """Names of the local latents that the guide computes from the rows it is given."""
        return self.local & amortized_sites(self.guide)

    def noise_for(self, data: Data) -> NoiseLayout:
        """Return what one particle consumes on other data, which depends on their rows where latents are local."""

        def run() -> NoiseLayout:
            return _noise(self.model, self.guide, self.objective, data)[0]

        with isolated_store(), quiet(), seeded(0), torch.no_grad():
            layout: NoiseLayout = self.call(self.parameters.initial, run)
        return layout

    @property
    def particles(self) -> int:
        """Draws per step: particles of the objective times strata of the guide."""
        return self.objective.num_particles * self.num_strata

    @property
    def frozen(self) -> Tensor | None:
        """Which parameters the optimiser must leave alone, shape ``(size,)``; ``None`` if it may change all of them.

        A guide with ``trains_model = False`` chooses the model's own parameters itself, after the optimisation.
        """
        if as_guide(self.guide).trains_model:
            return None
        prefix = f"{self.guide._pyro_name}."  # type: ignore[attr-defined]
        parts = [
            torch.full((s.numel(),), not n.startswith(prefix)) for n, s in zip(self.parameters.names, self.parameters.shapes)
        ]
        return torch.cat(parts).to(self.parameters.initial.device)

    def strata(self, device: torch.device) -> Tensor:
        """Return the stratum of each particle, shape ``(particles,)``."""
        return torch.arange(self.particles, device=device) % self.num_strata

    def estimate(
        self,
        flat: Tensor,
        normals: Tensor,
        uniforms: Tensor,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        factor: float,
        step: Tensor,
        rows: Mapping[str, Tensor] | None = None,
    ) -> Estimate:
        """Return one estimate of the objective.

        :param flat: parameters, shape ``(size,)``.
        :param normals: shape ``(particles, noise.normals)``; ``uniforms`` likewise.
        :param factor: rows of the full data over rows of ``args``.
        :param step: scalar, the number of the optimisation step, from 1.
        :param rows: of the plates :attr:`own`, the rows that the model sees; all of them by default.
        """
        plates = self.own.whole if rows is None else lambda: self.own.part(rows, self.guide)

        def particle(normals: Tensor, uniforms: Tensor, stratum: Tensor) -> dict[str, Tensor]:
            def run() -> dict[str, Tensor]:
                with (
                    plates(),
                    NoiseTape(Noise(normals, uniforms)),
                    RescalePlates(self.plates, factor),
                    Stratum(stratum, self.guide),
                ):
                    return self.objective.particle(self.model, self.guide, tuple(args), kwargs)

            return self.parameters.call(flat, run)

        strata = self.strata(flat.device)
        if self.particles == 1:
            terms = {k: v.unsqueeze(0) for k, v in particle(normals[0], uniforms[0], strata[0]).items()}
        else:
            terms = self.over_particles(particle, (0, 0, 0), normals, uniforms, strata)
        return self.objective.combine(terms, step)

    def traces(
        self,
        flat: Tensor,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        noise: Noise | None = None,
        rows: Mapping[str, Tensor] | None = None,
    ) -> tuple[Trace, Trace]:
        """Return model and guide traces of one draw at parameters ``flat``; ``rows`` as for :meth:`estimate`."""

        def run() -> tuple[Trace, Trace]:
            with self.own.whole() if rows is None else self.own.part(rows, self.guide), NoiseTape(noise):
                return joint_traces(self.model, self.guide, tuple(args), kwargs)

        return self.parameters.call(flat, run)

    def log_likelihood(
        self, flat: Tensor, noise: Noise, stratum: Tensor, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Tensor:
        """Return the log-likelihood in nats of every data point at one draw, over all observed sites, ``(rows,)``.

        The draw of a component of a mixture counts by the component's weight, so that the mean over strata is that over the
        mixture.
        """

        def run() -> Tensor:
            with NoiseTape(noise), Stratum(stratum, self.guide):
                model_trace, guide_trace = joint_traces(self.model, self.guide, tuple(args), kwargs)
            parts = []
            for site in list[Any](model_trace.nodes.values()):
                if is_observed(site):
                    density = pointwise(site)
                    parts.append(density.reshape(-1) if density.dim() < 2 else density.flatten(1).sum(-1))
            return sum(parts[1:], start=parts[0]) + stratum_log_weight(self.guide, guide_trace)

        found: Tensor = self.call(flat, run)
        return found

    def rows_there(self, flat: Tensor, noise: Noise, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor | None:
        """Return which rows have an observation that the model does not mask out, ``(rows,)``; ``None`` if all have."""

        def run() -> Tensor | None:
            with NoiseTape(noise), Stratum(torch.tensor(0)):
                model_trace, _ = joint_traces(self.model, self.guide, tuple(args), kwargs)
            masks = [counted(site) for site in nodes(model_trace).values() if is_observed(site)]
            parts = [m.flatten(1).any(-1) if m.dim() > 1 else m.reshape(-1) for m in masks if m is not None]
            return None if len(parts) < len(masks) else torch.stack(parts).any(0)

        found: Tensor | None = self.call(flat, run)
        return found
