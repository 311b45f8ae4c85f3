"""Intercepting the product of data and a drawn weight matrix.

Local reparameterisation, flipout, dropout and Kronecker-factored curvature all act where a model multiplies by its weights.
A Pyro model says nothing about where that is, but the product is taken with the very tensor that ``pyro.sample`` returned,
so it can be recognised by identity.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import Normal
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from guides.errors import UnsupportedModelError

__all__ = [
    "LinearRules",
    "LinearUse",
    "Product",
    "apply_weight",
    "flipout",
    "linear_uses",
    "local_reparameterisation",
    "once",
]

Product = Callable[[Tensor, bool], Tensor]
"""A replacement for a product: from inputs ``(..., in)`` and whether the weight is stored transposed, to ``(..., out)``."""

_MATMUL = {torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.mm, torch.Tensor.mm}


class LinearRules(TorchFunctionMode):
    """Inside the block, replace ``x @ w`` and ``linear(x, w, b)`` for the weights that ``rules`` names.

    :param rules: by ``id`` of the weight tensor, what to compute instead of the product.
    """

    def __init__(self, rules: Mapping[int, Product]) -> None:
        super().__init__()
        self._rules = rules

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _MATMUL and len(args) == 2 and id(args[1]) in self._rules:
            return self._rules[id(args[1])](args[0], False)
        if func is functional.linear:
            inputs, weight, bias = _linear_arguments(*args, **kwargs)
            if id(weight) in self._rules:
                product = self._rules[id(weight)](inputs, True)
                return product if bias is None else product + bias
        return func(*args, **kwargs)


def _linear_arguments(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
    return input, weight, bias


def once(name: str, product: Product) -> Product:
    """Return ``product``, refusing a second use.

    A rule that draws noise of its own per product would make two products with one weight independent of each other.

    :raises UnsupportedModelError: when called again.
    """
    used = False

    def guarded(inputs: Tensor, transposed: bool) -> Tensor:
        nonlocal used
        if used:
            raise UnsupportedModelError(
                f"the model multiplies by weight {name!r} more than once, and noise per product would make the products "
                "independent; use estimator='weights'"
            )
        used = True
        return product(inputs, transposed)

    return guarded


def apply_weight(inputs: Tensor, weight: Tensor, transposed: bool) -> Tensor:
    """Return the product of inputs ``(..., in)`` and a weight stored ``(in, out)``, or ``(out, in)`` if transposed."""
    return inputs @ (weight.mT if transposed else weight)


@dataclass(frozen=True)
class LinearUse:
    """A latent weight matrix that the model multiplies data by.

    :ivar name: the site.
    :ivar transposed: stored as ``(out, in)``, as ``torch.nn.Linear`` does, instead of ``(in, out)``.
    :ivar shapes: of what it multiplies, one shape ``(..., in)`` for every time that it does.
    """

    name: str
    transposed: bool
    shapes: tuple[torch.Size, ...] = ()


def linear_uses(
    model: Callable[..., Any], latents: Mapping[str, Tensor], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, LinearUse]:
    """Return the weight matrices among ``latents`` that the model multiplies data by, in order of use."""
    found: dict[str, LinearUse] = {}

    def recorder(name: str, weight: Tensor) -> Product:
        def product(inputs: Tensor, transposed: bool) -> Tensor:
            before = found.get(name, LinearUse(name, transposed))
            found[name] = replace(before, shapes=(*before.shapes, inputs.shape))
            return apply_weight(inputs, weight, transposed)

        return product

    with LinearRules({id(w): recorder(n, w) for n, w in latents.items() if w.dim() == 2}):
        poutine.block(poutine.condition(model, data=dict(latents)))(*args, **kwargs)
    return found


def local_reparameterisation(q: Normal, draw: Tensor) -> Product:
    r"""Draw the product from its own distribution, independently for every data point.

    For :math:`w_{ij} \sim \mathcal N(\mu_{ij}, \sigma_{ij}^2)`, the product :math:`x w` is normal with mean :math:`x \mu`
    and variance :math:`x^2 \sigma^2` (Kingma, Salimans & Welling 2015).
    """

    def product(inputs: Tensor, transposed: bool) -> Tensor:
        mean = apply_weight(inputs, q.loc, transposed)
        variance = apply_weight(inputs.square(), q.scale.square(), transposed)
        # The floor keeps the square root differentiable where all inputs of a row are zero.
        return mean + (variance + 1e-16).sqrt() * torch.randn_like(mean)

    return product


def flipout(q: Normal, draw: Tensor) -> Product:
    r"""Flip the signs of one draw's deviation per data point (Wen et al. 2018).

    .. math:: x \mu + ((x \circ s) \, \Delta w) \circ r, \qquad s_i, r_j \in \{-1, 1\}
    """

    def product(inputs: Tensor, transposed: bool) -> Tensor:
        mean = apply_weight(inputs, q.loc, transposed)
        sign_in = torch.where(torch.rand_like(inputs) < 0.5, -1.0, 1.0)
        sign_out = torch.where(torch.rand_like(mean) < 0.5, -1.0, 1.0)
        return mean + apply_weight(inputs * sign_in, draw - q.loc, transposed) * sign_out

    return product
