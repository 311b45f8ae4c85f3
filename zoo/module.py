"""Any ``torch.nn.Module`` as a Bayesian model."""

from __future__ import annotations

import copy
import fnmatch
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.func import functional_call

from zoo._checks import check_positive, one_of
from zoo._plates import normal
from zoo._registries import models
from zoo.likelihood import Likelihood

__all__ = ["BayesianModule", "bayesianize"]

Prior = float | str | TorchDistributionMixin | Callable[[str, Tensor], Any] | Mapping[str, Any]


def bayesianize(
    module: nn.Module,
    prior: Prior = "scaled",
    likelihood: str | Callable[[Tensor], TorchDistributionMixin] = "regression",
    *,
    noise: str | float = "learned",
    hide: Iterable[str] | Callable[[str, Tensor], bool] = (),
    data_size: int | None = None,
) -> BayesianModule:
    """Turn any network into a Bayesian model: every parameter becomes a latent site with a prior.

    The network given is copied and never touched, and guides start at its weights, those of a trained network too. See
    :class:`BayesianModule` for the arguments.

    Example::

        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
        >>> model = bayesianize(net, prior={"2.*": 1.0, "*": "scaled"}, likelihood="multiclass")
        >>> model(torch.randn(6, 4)).shape
        torch.Size([6])
    """
    return BayesianModule(module, prior, likelihood, noise=noise, hide=hide, data_size=data_size)


@models.register("bayesian_module")
class BayesianModule(nn.Module):
    r"""A network whose parameters are latent variables; what :func:`bayesianize` returns.

    .. math::

        \theta_i \sim p_i(\theta_i), \qquad f_n = \mathrm{network}(x_n; \theta), \qquad y_n \sim p(y \mid f_n)

    The network runs in evaluation mode whatever the mode of the model: it has to be a fixed function of its weights, so
    dropout is off and batch normalisation uses its running statistics.

    *When to use.* Convolutional, recurrent or residual networks, or a last layer on pretrained features (``hide`` the
    rest). *When not.* Plain fully connected networks: :class:`~zoo.BayesianMLP` reads better and is faster when draws are
    vectorised. Priors centred at zero suit weights, not the gains of normalisation layers: ``hide`` those or give them a
    prior of their own.

    Guides start at the weights that the network has, unless their ``init`` draws at random: a trained network is a start,
    and ``("laplace", {"sites": "last_layer"})`` around one needs no training at all.

    Sites: one latent per parameter, by the parameter's name (``"0.weight"``) and in its shape (``nn.Linear`` keeps its
    ``(out, in)``); deterministic ``"f"``, observed ``"y"`` in the plate ``"data"``; ``"sigma"`` with ``noise="learned"``.

    :param module: a network from ``(N, ...)`` to ``(N, K)`` or ``(N,)``. It is copied.
    :param prior: for every parameter: a number (standard deviation of a Gaussian at zero), ``"scaled"`` (standard deviation
        :math:`1/\sqrt{\mathrm{fan\,in}}` for tensors of two or more dimensions, where fan in is all but the first; 1 for
        others), a distribution (a scalar one is repeated), a callable ``(name, parameter) -> distribution``, or a mapping
        from name patterns (``"*.weight"``; the first that fits counts) to any of these.
    :param likelihood: ``"regression"``, ``"binary"``, ``"multiclass"``, or a callable from the output ``(..., N, K)`` to a
        distribution over ``y``.
    :param noise: for regression, as in :class:`~zoo.Likelihood`; ``"heteroscedastic"`` takes half of the outputs.
    :param hide: name patterns, or a predicate ``(name, parameter) -> bool``, of parameters to keep at their present values.
    :param data_size: size of the whole data set when calls see minibatches of it under stock SVI.
    :raises ValueError: for a module without parameters to be sampled, a parameter no prior fits, a prior whose shape is not
        the parameter's, a pattern that fits nothing, or a parameter whose name is a site of the likelihood.

    References:
        Ritter, Kukla, Zhang and Li (2021), TyXe: Pyro-based Bayesian neural nets for PyTorch.

    Example::

        >>> import torch
        >>> model = BayesianModule(torch.nn.Linear(3, 1), prior=1.0, noise=0.1)
        >>> sorted(model.priors)
        ['bias', 'weight']
    """

    natural_guide: tuple[str, dict] = ("mean_field", {"init_scale": 1e-2})

    def __init__(
        self,
        module: nn.Module,
        prior: Prior = "scaled",
        likelihood: str | Callable[[Tensor], TorchDistributionMixin] = "regression",
        *,
        noise: str | float = "learned",
        hide: Iterable[str] | Callable[[str, Tensor], bool] = (),
        data_size: int | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(module, nn.Module):
            raise ValueError(f"module must be a torch.nn.Module, got {type(module).__name__}")
        self.network = copy.deepcopy(module).requires_grad_(False).eval()
        self.likelihood = Likelihood(likelihood, noise, data_size)
        hidden = _hidden(dict(self.network.named_parameters()), hide)
        self.priors = {n: _prior_of(n, prior) for n, _ in self.network.named_parameters() if n not in hidden}
        if not self.priors:
            raise ValueError(f"there is nothing to sample: hidden {sorted(hidden)}, other parameters none")
        for name, parameter in self._sampled():
            if name in self.likelihood.sites:
                raise ValueError(f"parameter {name!r} has the name of a site of the likelihood; rename it in the module")
            _distribution(name, parameter, self.priors[name])

    @classmethod
    def example(cls) -> tuple[BayesianModule, tuple[Tensor, Tensor]]:
        """Return a small convolutional classifier of three classes and data ``(x, y)``: 12 images of 4 by 4."""
        generator = torch.Generator().manual_seed(0)
        y = torch.arange(12) % 3
        x = 0.5 * torch.randn(12, 1, 4, 4, generator=generator) + y.view(-1, 1, 1, 1)
        net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
        return cls(net, likelihood="multiclass"), (x, y)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Draw or observe ``y``.

        :param x: inputs of the network, ``(N, ...)``.
        :param y: observed targets or labels: ``(N,)``, or ``(N, K)`` for several targets.
        """
        values = {n: self._draw(n, p) for n, p in self._sampled()}
        return self.likelihood(self._run(values, x), y)

    def train(self, mode: bool = True) -> BayesianModule:
        """Set the mode of the model; the network inside stays in evaluation mode."""
        super().train(mode)
        self.network.eval()
        return self

    def _draw(self, name: str, parameter: Tensor) -> Tensor:
        """One parameter from its prior; guides start at the value that it has in the network."""
        infer: Any = {"start": parameter}
        value: Tensor = pyro.sample(name, _distribution(name, parameter, self.priors[name]), infer=infer)
        return value

    def _sampled(self) -> list[tuple[str, Tensor]]:
        return [(name, p) for name, p in self.network.named_parameters() if name in self.priors]

    def _run(self, values: dict[str, Tensor], x: Tensor) -> Tensor:
        """The network's output at sampled parameters, ``(..., N, K)``; leading dimensions of draws are mapped over."""

        def call(parameters: dict[str, Tensor]) -> Tensor:
            out = functional_call(self.network, parameters, (x,))
            return out.unsqueeze(-1) if out.dim() == 1 else out

        shapes = {name: p.shape for name, p in self._sampled()}
        lead = max((v.shape[: v.dim() - len(shapes[n])] for n, v in values.items()), key=len)
        if not lead:
            return call(values)
        draws = math.prod(lead)
        flat = {n: v.reshape(-1, *shapes[n]).expand(draws, *shapes[n]) for n, v in values.items()}
        out = torch.func.vmap(call)(flat)
        lead = lead[:-1] if lead[-1] == 1 and len(lead) > 1 else lead
        return out.reshape(*lead, *out.shape[1:])


def _hidden(parameters: dict[str, Tensor], hide: Iterable[str] | Callable[[str, Tensor], bool]) -> set[str]:
    if callable(hide):
        return {name for name, p in parameters.items() if hide(name, p)}
    found: set[str] = set()
    for pattern in [hide] if isinstance(hide, str) else hide:
        fits = fnmatch.filter(parameters, pattern)
        if not fits:
            raise ValueError(f"hide pattern {pattern!r} fits no parameter; there are {', '.join(parameters)}")
        found.update(fits)
    return found


def _prior_of(name: str, prior: Prior) -> Any:
    """The prior of one parameter: a number, ``"scaled"``, a distribution or a callable."""
    if isinstance(prior, Mapping):
        for pattern, entry in prior.items():
            if fnmatch.fnmatchcase(name, pattern):
                return _prior_of(name, entry)
        raise ValueError(f"prior has no pattern for parameter {name!r}; add it, or '*' for all others")
    if isinstance(prior, str):
        return one_of("prior", prior, ("scaled",))
    if callable(prior):  # as Pyro's distributions are, too
        return prior
    return check_positive(f"prior of {name!r}", prior)


def _distribution(name: str, parameter: Tensor, prior: Any) -> Any:
    """The prior of one parameter as a distribution of exactly its shape."""
    shape = tuple(parameter.shape)
    if isinstance(prior, str):
        prior = math.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 1.0
    if isinstance(prior, float):
        return normal(parameter.new_full((), prior), shape)
    fn = prior if isinstance(prior, TorchDistributionMixin) else prior(name, parameter)
    if not isinstance(fn, TorchDistributionMixin):
        raise ValueError(f"the prior of parameter {name!r} must be a pyro.distributions object, got {type(fn).__name__}")
    if not fn.event_shape and fn.batch_shape == ():
        fn = fn.expand(shape)
    if tuple(fn.batch_shape + fn.event_shape) != shape:
        found = tuple(fn.batch_shape + fn.event_shape)
        raise ValueError(f"the prior of parameter {name!r} has shape {found}, the parameter {shape}; make them equal")
    return fn.to_event(len(fn.batch_shape))
