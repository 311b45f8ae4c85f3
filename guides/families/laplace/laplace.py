"""Laplace's approximation: a normal around the mode, with the curvature there as its precision."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from guides.distributions.normals import BlockNormal
from guides.errors import NotAtTheModeWarning, OptionError, UnsupportedModelError, check_known
from guides.families.base import (
    START,
    Finished,
    FitContext,
    FlatFamily,
    init_function,
    starts_where_told,
)
from guides.families.laplace.curvature import Curvature
from guides.families.laplace.evidence import likelihood_gain, maximise_evidence
from guides.families.laplace.fisher import likelihoods
from guides.families.laplace.hessian import gradient
from guides.families.laplace.kronecker import check_factors
from guides.families.laplace.normal import LaplaceNormal
from guides.objectives.elbo import ELBO
from guides.program.data import Data
from guides.program.isolation import seeded
from guides.program.linear import LinearUse, linear_uses
from guides.program.parameters import isolated_store
from guides.program.program import Program
from guides.registries import families

__all__ = ["Laplace"]

_CURVATURES = ("ggn", "hessian", "diagonal", "kron")
_PREDICTIVES = ("sampled", "linearised")
_TRAINED = 0.05
_FAR = 1e3


@families.register("laplace")
class Laplace(FlatFamily):
    r"""Normal approximation at the mode of the unconstrained posterior density.

    .. math::
        q(z) = \mathcal{N}(z \mid \hat z, A^{-1}), \qquad
        \hat z = \arg\max_z \log p(x, z), \qquad A = -\nabla^2_z \log p(x, \hat z)

    ``guides.fit`` finds the mode, then computes the curvature, of any likelihood: by its Fisher information where that is
    known, or else by the exact Hessian of its log density, as for ``pyro.factor``. What cannot be done is refused before the
    first step. Around the last layer of a trained network (``zoo.bayesianize``) no step is needed. As a guide in stock SVI
    it is a point mass; call :meth:`laplace_approximation` afterwards, as with Pyro's ``AutoLaplaceApproximation``, which it
    replaces.

    **When:** a good mode and a posterior close to normal; a fast check on any fit; the log evidence. **When not:** several
    modes, hard boundaries, or a mode that is not typical of the posterior (as with hierarchical scales).

    The Fisher information is the curvature that data of the model have on average. Where single data sets differ much from
    that, it is right for none of them: of the location of N draws from a Laplace distribution of scale 1, whose density has
    a kink at every observation, it gives the standard deviation :math:`1/\sqrt{N}`; the exact one, by quadrature over 400
    data sets, is 1.10 times that on average and .83 to 1.41 times for nine data sets in ten at N = 20, and 1.04 (.88 to
    1.21) times at N = 200.

    :param model: a Pyro model with continuous latents.
    :param init_loc_fn: where the mode's search starts; see :class:`guides.MAP`.
    :param curvature: the precision matrix A:

        * ``"ggn"`` (default): generalised Gauss-Newton matrix of the likelihood plus the prior's curvature (its positive
          part, where the sum is not positive definite without); exact Hessian of terms without a known Fisher information;
        * ``"hessian"``: exact. At the mode of a network it is rarely positive definite; eigenvalues below a floor are
          raised to it;
        * ``"diagonal"``: the diagonal of the Gauss-Newton matrix; for many latents;
        * ``"kron"``: Kronecker factors per unconstrained weight matrix, Gauss-Newton blocks for other sites.
    :param sites: ``"all"``, ``"last_layer"`` (the last weight matrix that data are multiplied by and the bias that follows
        it), or names of latent sites; the others stay at the mode, or, around a trained network, at its weights: where a
        latent says at which value it starts (``infer={"start": value}``, as ``zoo.bayesianize`` does) and a Newton step of
        the sites to integrate could not raise the log likelihood by more than 0.05 nats per data point.
    :param predictive: ``"sampled"`` runs the model at draws of z; ``"linearised"`` linearises each data point's distribution
        around the mode, :math:`\varphi(z) \approx \varphi(\hat z) + J (z - \hat z)`. With ``"ggn"`` the latter is the model
        whose exact posterior q is, and it is far more robust for networks. By default linearised where the curvature is of
        Gauss-Newton type, sampled for ``"hessian"`` and where the Fisher information of an observed site is not known.
    :param floor: smallest eigenvalue of A to allow; by default 99% of the prior's smallest curvature (of one over the
        variance of its draws, where it is not concave), so that no direction is wider than under the prior and rounding
        repairs nothing. ``posterior.info`` says how many eigenvalues were
        raised, and from what.
    :param marginal_likelihood: hold the model's own ``pyro.param`` hyperparameters (prior scale, noise) fixed while the mode
        is sought, then choose them by the Laplace log evidence, alternating with Newton steps on the mode, this many times.
    :param create_plates: see :class:`guides.MAP`.
    :raises OptionError: for an unknown option or site.
    :raises UnsupportedModelError: for a term that cannot be differentiated twice or has kinks; for ``"kron"`` and
        ``"linearised"`` where the Fisher information is not known.

    ``posterior.info`` holds, per replicate: ``log_evidence`` (nats; of the data and the sites that vary, given the others,
    whose prior densities do not count), ``curvature``, ``repaired`` (eigenvalues raised),
    ``min_eigenvalue`` (before), ``prior_repaired`` (negative eigenvalues of the prior's curvature set to zero), ``floor``,
    ``dimension``, ``gradient_norm`` at the mode, ``from_mode`` (the longest step to the mode that the curvature predicts, in
    a latent's posterior standard deviations; a warning is given above 1,000).

    References: MacKay (1992), *A practical Bayesian framework for backpropagation networks*; Martens & Grosse (2015),
    *Optimizing neural networks with Kronecker-factored approximate curvature*; Immer, Korzepa & Bauer (2021), *Improving
    predictions of Bayesian neural nets via local linearization*; Daxberger et al. (2021), *Laplace redux*.

    Example::

        >>> import pyro, pyro.distributions as dist, torch, guides
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> posterior = guides.fit(model, "laplace", torch.ones(3), steps=1000, schedule="cosine", lr=0.05)
        >>> draws = posterior.sample(4000)["z"]  # exact here: mean 3/4, standard deviation 1/2
        >>> abs(draws.mean() - 0.75) < 0.05 and abs(draws.std() - 0.5) < 0.05
        tensor(True)
    """

    is_point_mass: bool = True
    may_stand_still: bool = True

    def __init__(
        self,
        model: Callable[..., Any],
        init_loc_fn: str | Callable[..., Any] = "median",
        *,
        curvature: str = "ggn",
        sites: str | Sequence[str] = "all",
        predictive: str | None = None,
        floor: float | None = None,
        marginal_likelihood: int = 0,
        create_plates: Callable[..., Any] | None = None,
    ) -> None:
        check_known("curvature", curvature, _CURVATURES)
        if predictive is not None:
            check_known("predictive", predictive, _PREDICTIVES)
        if floor is not None and not floor > 0:
            raise OptionError(f"floor must be positive, not {floor!r}")
        if marginal_likelihood and (curvature != "ggn" or sites != "all"):
            raise OptionError("marginal_likelihood needs curvature='ggn' and sites='all'")
        super().__init__(model, create_plates=create_plates, init_loc_fn=init_function(init_loc_fn))
        self.curvature = curvature
        self.sites = sites if isinstance(sites, str) else tuple(sites)
        self.predictive = predictive
        self.floor = floor
        self.marginal_likelihood = marginal_likelihood
        self.trains_model = not marginal_likelihood  # else they are chosen at the mode, by the evidence
        self._takes_start = starts_where_told(init_loc_fn)
        self._moved: dict[str, Tensor] = {}
        self._held: Tensor | None = None

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        self.loc = nn.Parameter(self._init_loc())
        self._settle(Data.of(args, kwargs))

    def _settle(self, data: Data) -> None:
        """Settle what stands for each likelihood's curvature and which sites vary; what cannot be done is refused here."""
        self.likelihoods = likelihoods(self.plain_model, dict(self.latent_sites()), data.args, data.kwargs)
        known, terms = self.likelihoods.fisher, self.likelihoods.terms
        self.uses: dict[str, LinearUse] = {}
        if self.curvature == "kron" or self.sites == "last_layer":
            values = {n: s["value"] for n, s in self.latent_sites()}
            with seeded(0):
                self.uses = linear_uses(self.plain_model, values, data.args, data.kwargs)
        self.chosen = _chosen_sites(self.sites, tuple(self.slices()), self.uses, self)
        if self.curvature == "kron":
            check_factors([u for n, u in self.uses.items() if n in self.chosen], terms, known, data.size)
        if self.marginal_likelihood and not self.likelihoods.parameters:
            raise OptionError("marginal_likelihood=... but the model has no pyro.param hyperparameters to choose")
        unknown = self.likelihoods.unknown
        if self.predictive == "linearised" and (unknown or not known):
            what = "there is no observed site"
            if unknown:
                kind = type(terms[unknown[0]]["fn"]).__name__
                what = f"the Fisher information of observed site {unknown[0]!r} ({kind}) is not known here"
            raise UnsupportedModelError(f"predictive='linearised', but {what}; use predictive='sampled'")
        by_default = bool(known) and not unknown and self.curvature != "hessian"
        self.linearised = self.predictive == "linearised" or (self.predictive is None and by_default)

    @contextmanager
    def moved_to(self, values: dict[str, Tensor]) -> Iterator[None]:
        """Inside the block, take some sites' flat unconstrained values from here instead of from the point."""
        self._moved = values
        try:
            yield
        finally:
            self._moved = {}

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """Return every site's part of a flat vector; see :meth:`moved_to`."""
        parts = super().split(flat)
        return parts | {n: v.reshape(parts[n].shape) for n, v in self._moved.items()}

    def begin(self, context: FitContext) -> int | None:
        """Hold the sites that are not integrated where a trained network left them; then no step is needed.

        A network is found to be trained where the model says at which values its weights start, and a Newton step of the
        sites to be integrated could not raise the log likelihood by more than 0.05 nats per data point.
        """
        slices = self.slices()
        told = {n for n, s in self.latent_sites() if self._takes_start and START in s["infer"]}
        held = {n for n in told if n not in self.chosen}
        if not held or not set(self.chosen) <= told:
            return None
        at = Curvature(context.program, context.flat, context.data)
        index = torch.cat([at.everything[slices[n]] for n in self.chosen])
        if likelihood_gain(at, index) > _TRAINED * max(context.data.size, 1):
            return None
        self._held = torch.zeros_like(self.loc, dtype=torch.bool)
        for name in held:
            self._held[slices[name]] = True
        return 0 if told == set(slices) else None

    def get_posterior(self, *args: Any, **kwargs: Any) -> Any:
        """Return the point mass at the mode."""
        loc = self.loc if self._held is None else torch.where(self._held, self.loc.detach(), self.loc)
        return dist.Delta(loc).to_event(1)

    def flat_quantiles(self, quantiles: Tensor) -> Tensor:
        """Return the mode, which has no spread before :meth:`finish`, for every probability, ``(Q, D)``."""
        return self.loc.expand(len(quantiles), -1)

    def finished_guide(self) -> LaplaceNormal:
        """Return the normal that :meth:`finish` fills, not set up."""
        return LaplaceNormal(self)

    def laplace_approximation(self, *args: Any, **kwargs: Any) -> LaplaceNormal:
        """Return the normal approximation at the current mode, after training in stock SVI.

        The model's own parameters are read from Pyro's parameter store, where SVI left them.

        :param args: the arguments that the model was trained with, all of the data.
        """
        data = Data.of(args, kwargs)
        store = pyro.get_param_store()
        trained = {n: store[n].detach() for n in store}
        program = Program.build(self.plain_model, self, ELBO(), data, batch_size=None, seed=0)
        layout = program.parameters
        values = {n: trained.get(n, v) for n, v in layout.constrained(layout.initial).items()}
        finished = self.finish(FitContext(program, layout.flatten(values), data, 0))
        guide: LaplaceNormal = finished.guide  # type: ignore[assignment]
        prefix = f"{guide._pyro_name}."
        for name, value in finished.parameters.items():
            if name.startswith(prefix):
                guide.get_parameter(name.removeprefix(prefix)).data = value
        return guide

    def finish(self, context: FitContext) -> Finished:
        """Compute the curvature at the mode and return the normal; see ``posterior.info`` in the class's description."""
        at = Curvature(context.program, context.flat, context.data)
        info: dict[str, Any] = {"curvature": self.curvature}
        if self.marginal_likelihood:
            at, tuned = maximise_evidence(at, self.marginal_likelihood)
            info.update(tuned)
        guide = self.finished_guide()
        with isolated_store(), seeded(context.seed):
            guide._setup_prototype(*context.data.args, **context.data.kwargs)
        factors, report = guide.factorise(at)
        info.update(report)
        at_fixed = frozenset(n for n in self.slices() if n not in self.chosen)
        log_joint = lambda z: at.log_joint(z, without=at_fixed)  # noqa: E731
        with at.evaluating():
            joint, slope = float(log_joint(at.loc).detach()), gradient(at.log_joint, at.loc)
        info["gradient_norm"] = float(slope.norm())
        if self._held is None:  # around a trained network, :meth:`begin` has seen how far its weights are
            assert guide.blocks is not None
            normal = BlockNormal(at.loc.double(), guide.blocks, tuple(tuple(f.double() for f in g) for g in factors))
            info["from_mode"] = self._from_mode(normal, slope.double())
        info["dimension"] = report["dimension"]
        info["log_evidence"] = joint + 0.5 * report["dimension"] * math.log(2 * math.pi) - 0.5 * report["log_det"]
        values = context.program.parameters.constrained(at.flat)
        parameters = {n: v.detach() for n, v in values.items() if not n.startswith(f"{self._pyro_name}.")}
        parameters |= guide.named_factors(at.loc, factors)
        return Finished(guide, parameters, info)

    def _from_mode(self, normal: BlockNormal, slope: Tensor) -> float:
        """Return how far a Newton step would move a latent, in its posterior standard deviations, at most; warn if far."""
        deviations = normal.variance.sqrt()
        steps = torch.where(deviations > 0, normal.covariance_times(slope).abs() / deviations, 0.0)
        farthest = {n: float(steps[s].max()) for n, s in self.slices().items() if s.stop > s.start}
        name = max(farthest, key=lambda n: farthest[n])
        if not farthest[name] <= _FAR:
            warnings.warn(
                f"guide 'laplace' did not end at the mode: a Newton step would still move latent {name!r} by "
                f"{farthest[name]:.3g} posterior standard deviations, so its normal lies elsewhere and its log evidence is "
                "not right. Take more steps or a larger learning rate, or bring data and latents to a scale near 1",
                NotAtTheModeWarning,
                stacklevel=2,
            )
        return farthest[name]


def _chosen_sites(sites: Any, names: tuple[str, ...], uses: dict[str, LinearUse], guide: Any) -> tuple[str, ...]:
    if sites == "all":
        return names
    if sites == "last_layer":
        if not uses:
            raise UnsupportedModelError(
                "sites='last_layer' but the model multiplies data by no latent weight matrix (x @ w or linear(x, w), with "
                "w as pyro.sample returned it); name the sites instead"
            )
        last = list(uses.values())[-1]
        width = guide.unconstrained_shape(last.name)[0 if last.transposed else 1]
        following = names[names.index(last.name) + 1 :][:1]
        bias = tuple(n for n in following if tuple(guide.unconstrained_shape(n)) == (width,))
        return (last.name, *bias)
    wanted = (sites,) if isinstance(sites, str) else tuple(sites)
    unknown = [n for n in wanted if n not in names]
    if unknown:
        raise OptionError(
            f"sites names {', '.join(map(repr, unknown))}, not a latent site; the model has {', '.join(names)}"
        )
    return tuple(n for n in names if n in wanted)
