"""``log_density``: the model as a function of one vector."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from guides.compile.executable import COMPILE_MODES
from guides.compile.native.build import MachineCode
from guides.density.doubles import doubled, in_double
from guides.density.kernels import Kernel, Workspace
from guides.density.points import Point
from guides.errors import DataError, UnsupportedModelError, check_known, check_whole
from guides.fitted.draws import take_draws
from guides.fitted.sites import Site, sites
from guides.objectives.elbo import ELBO
from guides.program.alone import undivided
from guides.program.checks import check_model
from guides.program.data import Data
from guides.program.discrete.enumeration import with_values
from guides.program.fingerprint import digest
from guides.program.inputs import read
from guides.program.isolation import quiet, seeded
from guides.program.keywords import check_names, keywords_of
from guides.program.noise import NoiseTape
from guides.program.parameters import isolated_store
from guides.program.program import Program
from guides.program.sites import contribution, density_sites
from guides.program.supports import unconstraining

__all__ = ["LogDensity", "log_density"]

_SPREAD = 0.3  # around the start, of the points at which graphs are compared with the model


def log_density(
    model: Callable[..., Any],
    *data: Any,
    compile: str = "auto",
    seed: int = 0,
    model_kwargs: dict[str, Any] | None = None,
    **misspelt: Any,
) -> LogDensity:
    r"""Return the log joint density of a model as a function of one flat unconstrained vector.

    .. math:: \log \pi(z) = \log p(x, T(z)) + \log |\det T'(z)|

    T maps all real numbers to the supports of the latents, site by site in the model's order; data are held. The density is
    not normalised: its integral is p(x). Discrete latents that are marked for enumeration are summed out; scales, masks,
    factors, conditions and reparametrisations mean what they mean in a fit. Everything is in float64, whatever the model
    says. It is the potential of Pyro's HMC and NUTS with the other sign, at a thousandth of its cost. Its gradient and the
    products of its Hessian with vectors are exact.

    Parameters of the model (``pyro.param``, networks that are registered) are held at their values of now.

    :param model: any Pyro model with continuous latents, or discrete ones that are marked.
    :param data: the model's positional arguments, all rows of them.
    :param compile: ``"native"`` compiles machine code for the density; ``"trace"`` replays a graph of its operations;
        ``"eager"`` runs the model at every call, and is what the other two are checked against; ``"auto"`` compiles when it
        has been called so often that it pays.
    :param seed: of the runs of the model that find out what its sites are.
    :param model_kwargs: keyword arguments of the model.
    :raises DataError, DiscreteLatentError, GuideMismatchError, UnsupportedModelError: as for :func:`guides.fit`; the last
        also for a model that draws random numbers beside its sites, and so has no one density.

    Example::

        >>> import pyro, pyro.distributions as dist, torch, guides
        >>> def model(x):
        ...     scale = pyro.sample("scale", dist.HalfNormal(1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(0.0, scale), obs=x)
        >>> density = guides.log_density(model, torch.ones(5))
        >>> z = density.from_sites({"scale": torch.tensor(2.0)})  # the logarithm of 2
        >>> density(z).shape, density.gradient(z).shape, density.names
        (torch.Size([]), torch.Size([1]), ('scale',))
        >>> density(torch.zeros(7, 1)).shape
        torch.Size([7])
    """
    check_names(
        "log_density", misspelt, keywords_of(log_density), "arguments of the model go by position, or in model_kwargs={...}"
    )
    check_model(model, "log_density(model, x, y)")
    check_known("compile", compile, COMPILE_MODES)
    check_whole("seed", seed)
    with undivided("guides.log_density"):
        with in_double():
            read_in = read(model, data, model_kwargs, torch.device("cpu"), seed=seed)
            args, kwargs = tuple(map(doubled, read_in.args)), {k: doubled(v) for k, v in read_in.kwargs.items()}
            given = replace(read_in, args=args, kwargs=kwargs)
            program = Program.build(model, Point(model), ELBO(), given, batch_size=None, seed=seed)
        return LogDensity(program, given, seed, compile)


class LogDensity:
    """The log joint density of a model over one flat unconstrained vector of D numbers; see :func:`log_density`.

    Any thread may call its methods, which take turns. A thread that calls very often takes a :meth:`workspace` of its own.
    The data, and all memory that machine code works in, belong to this object and its workspaces.

    :ivar size: D.
    :ivar names: of the coordinates: the site's, with the index in the site's unconstrained value.
    :ivar sites: the latent sites by name, with shapes, dimensions and supports; see :class:`guides.fitted.sites.Site`.
    :ivar dims: by latent site, a name per dimension: plates where there are some.
    :ivar start: a point ``(D,)`` at medians of the prior, or wherever the model says that a site starts.
    """

    def __init__(self, program: Program, data: Data, seed: int, mode: str) -> None:
        guide: Any = program.guide
        self.program, self.data, self._seed, self._mode = program, data, seed, mode
        self._shapes = {name: guide.unconstrained_shape(name) for name in guide.slices()}
        self._maps = {name: unconstraining(site) for name, site in guide.latent_sites()}
        self.sites: dict[str, Site] = {n: s for n, s in sites(program).items() if n in self._shapes}
        self.dims = {name: site.dims for name, site in self.sites.items()}
        self.names = tuple(name for site, shape in self._shapes.items() for name in _coordinates(site, shape))
        self.size = len(self.names)
        self.start: Tensor = guide.loc.detach().clone()
        self._lock = threading.RLock()
        self._product: Kernel | None = None
        self._check_fixed()
        self._points = self._some_points()
        self._both = Kernel(self._value_and_gradient, [(p,) for p in self._points], "the log density", mode)

    @property
    def runs(self) -> str:
        """How value and gradient are computed now: ``"eager"``, ``"trace"`` or ``"native"``."""
        return self._both.runs

    def __repr__(self) -> str:
        listed = ", ".join(f"{name} {tuple(site.shape)}" for name, site in self.sites.items())
        return f"LogDensity({self.size} numbers: {listed}; {self.runs})"

    def __call__(self, z: Any) -> Tensor:
        """Return the log density in nats at each vector, shape ``(...)`` for ``z`` of shape ``(..., D)``.

        Where ``z`` requires a gradient, so does the result; it can be differentiated once.
        """
        found: Tensor = _Differentiable.apply(self, self._vectors("z", z))
        return found

    def gradient(self, z: Any) -> Tensor:
        """Return the gradient at each vector, shape ``(..., D)``."""
        return self.value_and_gradient(z)[1]

    def value_and_gradient(self, z: Any) -> tuple[Tensor, Tensor]:
        """Return the log density, ``(...)``, and its gradient, ``(..., D)``, at each vector of ``z``, ``(..., D)``."""
        vectors = self._vectors("z", z).detach()
        with self._lock:
            found = self._both(vectors.reshape(-1, self.size))
        leading = vectors.shape[:-1]
        return found[:, 0].reshape(leading), found[:, 1:].reshape(vectors.shape)

    def hessian_product(self, z: Any, v: Any) -> Tensor:
        """Return the Hessian at each vector of ``z`` times the vector of ``v``, shape ``(..., D)``.

        :param z: ``(..., D)``; ``v``: the same, or of a shape that broadcasts with it.
        """
        z, v = torch.broadcast_tensors(self._vectors("z", z).detach(), self._vectors("v", v).detach())
        with self._lock:
            if self._product is None:
                pairs = list(zip(self._points, [*self._points[1:], self._points[0] + 1.0]))
                self._product = Kernel(self._hessian_product, pairs, "the product with the Hessian", self._mode)
            found = self._product(z.reshape(-1, self.size), v.reshape(-1, self.size))
        return found.reshape(z.shape)

    def hessian(self, z: Any) -> Tensor:
        """Return the Hessian at each vector, shape ``(..., D, D)``: D products."""
        return self.hessian_product(self._vectors("z", z)[..., None, :], torch.eye(self.size, dtype=torch.float64))

    def workspace(self) -> Workspace:
        """Return a function from a numpy vector ``(D,)`` to the array ``(1 + D,)`` of log density and gradient.

        It has memory of its own, is for one thread at a time, and leaves other Python threads running where it is machine
        code. The next call overwrites the array. This is what a sampler calls: microseconds for small models.
        """
        with self._lock:
            return self._both.workspace()

    def machine_code(self) -> MachineCode | None:
        """Return where value and gradient lie as machine code, for callers in other languages; ``None`` if they do not."""
        with self._lock:
            return self._both.machine_code()

    def to_sites(self, z: Any, deterministic: bool = True) -> dict[str, Tensor]:
        """Return the values of the latent sites at each vector, shape ``(..., *site shape)``, in their supports.

        :param deterministic: the deterministic sites too, and draws of the discrete latents that are summed out, from
            their distribution given the others and the data.
        """
        vectors = self._vectors("z", z).detach()
        leading = vectors.shape[:-1]
        flat = vectors.reshape(-1, self.size)
        with undivided("to_sites"), in_double(), torch.no_grad():
            values = self._constrained(flat)[0]
            if deterministic and len(flat):
                values = self._with_computed(values, len(flat))
        return {name: value.reshape((*leading, *value.shape[1:])) for name, value in values.items()}

    def from_sites(self, values: Mapping[str, Any]) -> Tensor:
        """Return the vectors ``(..., D)`` at given values of all latent sites, ``(..., *site shape)`` each.

        Other names, such as those of deterministic sites, are not looked at.

        :raises DataError: if a site is missing, has another shape, or lies outside its support.
        """
        missing = [name for name in self._shapes if name not in values]
        if missing:
            raise DataError(f"there is no value for latent site {missing[0]!r}; sites: {', '.join(self._shapes)}")
        given = {name: torch.as_tensor(values[name]).detach().double() for name in self._shapes}
        leading: torch.Size | None = None
        for name, value in given.items():
            shape = torch.Size(self.sites[name].shape)
            first = value.shape[: value.dim() - len(shape)]
            if value.dim() < len(shape) or value.shape[value.dim() - len(shape) :] != shape:
                raise DataError(f"latent site {name!r} has shape {tuple(shape)}, the value has {tuple(value.shape)}")
            if leading is not None and first != leading:
                raise DataError(f"latent site {name!r} has leading dimensions {tuple(first)}, others {tuple(leading)}")
            leading = first
            support = self.sites[name].support
            if not bool(support.check(value).all()):
                raise DataError(f"the value of latent site {name!r} is not in its support, {support!r}")
        assert leading is not None
        with undivided("from_sites"), in_double(), torch.no_grad():
            parts = [self._maps[name].inv(value).reshape(*leading, -1) for name, value in given.items()]
        return torch.cat(parts, -1)

    def operations(self) -> str | None:
        """Return a hash of all operations of value and gradient with their constants, the data among them.

        ``None`` where the model could not be traced.
        """
        described = self._both.described()
        return None if described is None else digest([self.names, described])

    def _vectors(self, name: str, value: Any) -> Tensor:
        """Return what should be vectors as a tensor.

        :raises DataError: if their length is another.
        """
        found = torch.as_tensor(value)
        if found.dim() == 0 or found.shape[-1] != self.size:
            raise DataError(f"{name} has shape {tuple(found.shape)}; its last dimension must be the {self.size} coordinates")
        return found.to(torch.float64)

    def _constrained(self, flat: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Return the values of the latents at vectors ``(..., D)``, and the log determinant of the map, ``(...)``."""
        values, leading = {}, flat.shape[:-1]
        total = flat.new_zeros(leading)
        parts = flat.split([shape.numel() for shape in self._shapes.values()], dim=-1)
        for (name, shape), part in zip(self._shapes.items(), parts):
            free = part.reshape((*leading, *shape))
            values[name] = self._maps[name](free)
            jacobian = self._maps[name].log_abs_det_jacobian(free, values[name])
            total = total + jacobian.reshape(*leading, -1).sum(-1)
        return values, total

    def _log_density(self, z: Tensor) -> Tensor:
        """Return the log density at one vector, by running the model."""
        values, jacobian = self._constrained(z)

        def run() -> Tensor:
            model = poutine.replay(self.program.model, trace=with_values(Trace(), values))
            trace = poutine.trace(model).get_trace(*self.data.args, **self.data.kwargs)
            return sum((contribution(s).sum() for s in density_sites(trace).values()), start=jacobian)

        found: Tensor = self.program.call(self.program.parameters.initial, run)
        return found

    def _value_and_gradient(self, z: Tensor) -> Tensor:
        with _alone():
            gradient, value = torch.func.grad_and_value(self._log_density)(z)
            return torch.cat([value.reshape(1), gradient])

    def _hessian_product(self, z: Tensor, v: Tensor) -> Tensor:
        def along(z: Tensor) -> Tensor:
            return (torch.func.grad(self._log_density)(z) * v).sum()

        with _alone():
            return torch.func.grad(along)(z)

    def _check_fixed(self) -> None:
        """Check that a run of the model at given latents draws nothing.

        :raises UnsupportedModelError: if it does.
        """
        with _alone(), seeded(self._seed):
            before = torch.get_rng_state()
            self._log_density(self.start)
            same = torch.equal(before, torch.get_rng_state())
        if not same:
            raise UnsupportedModelError(
                "the model draws random numbers beside its sample sites (dropout, torch.rand, a choice of rows), so that it "
                "has another density at every run; switch that off (net.eval()), pass the numbers as an argument, or draw "
                "them by pyro.sample"
            )

    def _some_points(self) -> list[Tensor]:
        source = torch.Generator().manual_seed(self._seed)
        noise = torch.randn(2, self.size, generator=source, dtype=torch.float64)
        return [self.start, *(self.start + _SPREAD * noise)]

    def _with_computed(self, values: dict[str, Tensor], count: int) -> dict[str, Tensor]:
        draws = take_draws(
            self.program,
            self.program.parameters.initial[None],
            count,
            self.data,
            self._seed,
            same_rows=True,
            predictive=False,
            score=True,
            keep=frozenset({"latents", "deterministic"}),
            latents={name: value[None] for name, value in values.items()},
        )
        found = {**draws.latents, **draws.deterministic}
        return {**values, **{name: value[0] for name, value in found.items() if name not in values}}


@contextmanager
def _alone() -> Iterator[None]:
    """Put round the block whatever has to be around a run of the model at given latents."""
    with isolated_store(), quiet(), in_double(), NoiseTape(), torch.no_grad():
        yield


class _Differentiable(torch.autograd.Function):
    """Lets autograd know the gradient."""

    @staticmethod
    def forward(ctx: Any, density: LogDensity, z: Tensor) -> Tensor:
        value, gradient = density.value_and_gradient(z)
        ctx.save_for_backward(gradient)
        return value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[None, Tensor]:
        (gradient,) = ctx.saved_tensors
        return None, upstream[..., None] * gradient


def _coordinates(site: str, shape: torch.Size) -> list[str]:
    if not shape:
        return [site]
    return [f"{site}[{','.join(map(str, index))}]" for index in itertools.product(*map(range, shape))]
