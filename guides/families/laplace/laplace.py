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
from pyro import poutine
from torch import Tensor, nn

from guides.distributions.normals import Block, BlockNormal
from guides.errors import NotAtTheModeWarning, OptionError, UnsupportedModelError, check_known
from guides.families.base import (
    START,
    Finished,
    FitContext,
    FlatFamily,
    init_function,
    starts_where_told,
)
from guides.families.laplace.curvature import Curvature, positive_part
from guides.families.laplace.evidence import SMALLEST_PRECISION, likelihood_gain, maximise_evidence
from guides.families.laplace.fisher import likelihoods
from guides.families.laplace.hessian import gradient
from guides.families.laplace.kronecker import check_factors, kronecker
from guides.objectives.elbo import ELBO
from guides.program.data import Data
from guides.program.linear import LinearUse, linear_uses
from guides.program.parameters import isolated_store
from guides.program.program import Program, seeded
from guides.program.sites import nodes
from guides.program.supports import is_unconstrained, unconstraining
from guides.registries import families

__all__ = ["Laplace", "LaplaceNormal"]

_CURVATURES = ("ggn", "hessian", "diagonal", "kron")
_PREDICTIVES = ("sampled", "linearised")
_TRAINED = 0.05
_FAR = 1e3
_PRIOR_DRAWS = 400


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
            joint, slope = float(log_joint(at.loc)), gradient(at.log_joint, at.loc)
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


class LaplaceNormal(FlatFamily):
    """The normal that :class:`Laplace` ends in; a guide in its own right."""

    def __init__(self, parent: Laplace) -> None:
        super().__init__(parent.plain_model, create_plates=parent.create_plates, init_loc_fn=init_function("median"))
        self._parent = (parent,)
        self.linearised = False  # until the parent has seen the model
        self.blocks: tuple[Block, ...] | None = None

    def _lay_out(self, *args: Any, **kwargs: Any) -> None:
        """Choose the blocks of the covariance."""
        parent = self._parent[0]
        if parent.prototype_trace is None:
            with poutine.block():  # this runs inside whatever traces the guide's first call
                parent(*args, **kwargs)
        self.linearised = parent.linearised
        slices = parent.slices()
        index = {n: torch.arange(s.start, s.stop, device=parent.loc.device) for n, s in slices.items()}
        fixed = [n for n in slices if n not in parent.chosen]
        blocks: list[Block] = []
        if parent.curvature == "kron":
            for n in parent.chosen:
                shape = tuple(parent.unconstrained_shape(n))
                factored = n in parent.uses and is_unconstrained(parent.latent_site_prototype(n))
                blocks.append(Block(n, index[n], "kron" if factored else "dense", shape))
        else:
            kind = "diagonal" if parent.curvature == "diagonal" else "dense"
            blocks.append(Block("latent", torch.cat([index[n] for n in parent.chosen]), kind))
        if fixed:
            blocks.append(Block("fixed", torch.cat([index[n] for n in fixed]), "fixed"))
        self.blocks = tuple(blocks)

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        self._lay_out(*args, **kwargs)
        assert self.blocks is not None
        self.loc = nn.Parameter(self._init_loc())
        for i, block in enumerate(self.blocks):
            for j, shape in enumerate(block.factor_shapes):
                start = torch.eye(shape[0]) if len(shape) == 2 and shape[0] == shape[1] else torch.ones(shape)
                setattr(self, f"factor_{i}_{j}", nn.Parameter(start.to(self.loc)))

    def _factors(self) -> tuple[tuple[Tensor, ...], ...]:
        assert self.blocks is not None
        return tuple(
            tuple(getattr(self, f"factor_{i}_{j}") for j in range(len(b.factor_shapes))) for i, b in enumerate(self.blocks)
        )

    def get_posterior(self, *args: Any, **kwargs: Any) -> BlockNormal:
        """Return the normal over the flat unconstrained latents."""
        assert self.blocks is not None
        return BlockNormal(self.loc, self.blocks, self._factors())

    def _loc_scale(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return self.loc, self.get_posterior().variance.sqrt()

    def named_factors(self, loc: Tensor, factors: list[tuple[Tensor, ...]]) -> dict[str, Tensor]:
        """Return the guide's parameters by name."""
        named = {f"{self._pyro_name}.loc": loc}
        for i, group in enumerate(factors):
            for j, value in enumerate(group):
                named[f"{self._pyro_name}.factor_{i}_{j}"] = value.to(loc.dtype)
        return named

    def factorise(self, at: Curvature) -> tuple[list[tuple[Tensor, ...]], dict[str, Any]]:
        """Return the factors of every block, and what had to be repaired on the way."""
        assert self.blocks is not None
        report: dict[str, Any] = {"repaired": 0, "prior_repaired": 0, "min_eigenvalue": math.inf, "log_det": 0.0}
        report["floor"], report["dimension"] = math.inf, 0
        factors: list[tuple[Tensor, ...]] = []
        for block in self.blocks:
            if block.kind == "fixed":
                factors.append(())
                continue
            make = {"diagonal": self._diagonal, "dense": self._dense, "kron": self._kronecker}[block.kind]
            group, log_det, found = make(at, block)
            factors.append(group)
            report["repaired"] += found["repaired"]
            report["prior_repaired"] += found.get("prior_repaired", 0)
            report["min_eigenvalue"] = min(report["min_eigenvalue"], found["min_eigenvalue"])
            report["floor"] = min(report["floor"], found["floor"])
            report["log_det"] += log_det
            report["dimension"] += len(block.index)
        return factors, report

    def _floor(self, smallest: float, diagonal: Tensor, at: Curvature, block: Block) -> float:
        """Return the smallest precision to allow.

        :param smallest: the prior's smallest precision. If it is not positive, as on the shoulder of a scale mixture, the
            spread of its draws tells how wide it is; under flat priors, which have none, the diagonal of all of the
            precision at least tells the latents' scales.
        """
        asked = self._parent[0].floor
        if asked:
            return asked
        if smallest > 0:
            return 0.99 * smallest
        widest = float(_prior_spread(at)[block.index].max())
        if 0 < widest < math.inf:
            return 0.99 / widest**2
        inside = diagonal[diagonal > 0]
        return SMALLEST_PRECISION * (float(inside.min()) if len(inside) else 1.0)

    def _diagonal(self, at: Curvature, block: Block) -> _Factorised:
        prior = at.prior_diagonal()[block.index]
        value = at.ggn_diagonal()[block.index] + prior
        if at.exact:
            value = value + at.exact_diagonal()[block.index]
        value, prior = _finite(value, block, at), prior.detach()
        value, found = _clamped(value, self._floor(float(prior.min()), value, at, block))
        return (value.rsqrt(),), float(value.log().sum()), found

    def _dense(self, at: Curvature, block: Block) -> _Factorised:
        prior = _finite(at.prior(index=block.index), block, at)
        smallest = float(torch.linalg.eigvalsh(prior)[0])
        if self._parent[0].curvature == "hessian":
            data = at.hessian(block.index) - prior
        else:
            data = at.ggn(index=block.index)
            if at.exact:
                data = data + at.exact_terms(index=block.index)
        data = _finite(data, block, at)
        total = data + prior
        # An indefinite prior says nothing about how wide it is; its diagonal at least says how wide each latent is.
        floor = self._floor(smallest if smallest > 0 else float(prior.diagonal().min()), total.diagonal(), at, block)
        matrix, found = positive_part(total, floor)
        if found["repaired"] and smallest < 0 and self._parent[0].curvature != "hessian":
            positive, repair = positive_part(prior, 0.0)
            matrix, found = positive_part(data + positive, floor)
            found["prior_repaired"] = repair["repaired"]
        tril, log_det = _inverse_cholesky(matrix)
        return (tril,), log_det, found

    def _kronecker(self, at: Curvature, block: Block) -> _Factorised:
        use = self._parent[0].uses[block.name]
        left, right = kronecker(at, use)
        if use.transposed:
            left, right = right, left
        prior = _finite(at.prior_diagonal()[block.index], block, at).mean()
        a, u = torch.linalg.eigh(_finite(left, block, at))
        b, v = torch.linalg.eigh(_finite(right, block, at))
        value = a.clamp(min=0)[:, None] * b.clamp(min=0)[None, :] + prior
        value, found = _clamped(value, self._floor(float(prior), value.reshape(-1), at, block))
        return (u, v, value.rsqrt()), float(value.log().sum()), found


_Factorised = tuple[tuple[Tensor, ...], float, dict[str, Any]]
"""A block's factors, the log determinant of its precision, and what was repaired."""


def _prior_spread(at: Curvature) -> Tensor:
    """Return half of the width that 68% of every latent's prior draws have, given the others at the optimum, ``(D,)``.

    It is infinite for latents whose prior cannot be drawn from.
    """
    spread = torch.full_like(at.loc, math.inf)
    slices: dict[str, slice] = at.program.guide.slices()  # type: ignore[attr-defined]
    with at.evaluating(), seeded(0), torch.no_grad():
        sites = nodes(at.traces(at.loc)[0])
        for name, part in slices.items():
            site = sites[name]
            try:
                draws = site["fn"].sample((_PRIOR_DRAWS,))
            except NotImplementedError:
                continue
            flat = unconstraining(site).inv(draws).reshape(_PRIOR_DRAWS, -1).to(at.loc)
            ordered = flat.sort(0).values  # torch.quantile takes no more than 16 million numbers
            spread[part] = 0.5 * (ordered[-_PRIOR_DRAWS * 4 // 25] - ordered[_PRIOR_DRAWS * 4 // 25])
    return spread


def _finite(matrix: Tensor, block: Block, at: Curvature) -> Tensor:
    """Return a block's matrix.

    :raises UnsupportedModelError: if it is not finite, naming the sites.
    """
    if bool(torch.isfinite(matrix).all()):
        return matrix.detach()
    wrong = (~torch.isfinite(matrix)).reshape(len(matrix), -1).any(-1)
    slices: dict[str, slice] = at.program.guide.slices()  # type: ignore[attr-defined]
    inside = block.index[wrong] if len(wrong) == len(block.index) else block.index
    names = [n for n, s in slices.items() if bool(((inside >= s.start) & (inside < s.stop)).any())]
    raise UnsupportedModelError(
        f"the curvature of latent {', '.join(map(repr, names))} at the optimum is not finite, so it has no Laplace "
        "approximation. Are the data or the prior's scale far from 1? Rescale them, or use a guide that takes no second "
        "derivatives, such as 'full_rank'"
    )


def _clamped(precision: Tensor, floor: float) -> tuple[Tensor, dict[str, Any]]:
    """Raise elements below ``floor`` to it, and say how many and how far."""
    found = {"repaired": int((precision < floor).sum()), "min_eigenvalue": float(precision.min()), "floor": floor}
    return precision.clamp(min=floor), found


def _inverse_cholesky(matrix: Tensor) -> tuple[Tensor, float]:
    """Return the lower Cholesky factor of the inverse of a positive definite matrix, and its log determinant."""
    flipped = torch.linalg.cholesky(matrix.flip(0, 1)).flip(0, 1)  # upper U with U U^T = matrix
    eye = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    return torch.linalg.solve_triangular(flipped, eye, upper=True).T, float(2 * flipped.diagonal().log().sum())


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
