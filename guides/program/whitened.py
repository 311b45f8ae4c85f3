"""Parameters of normals as an optimiser sees them that works in another space than the model's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from guides.program.parameters import ParameterLayout

__all__ = ["Space", "WhitenedLayout"]


@dataclass(frozen=True)
class Space:
    r"""An affine map from the space that an optimiser works in to the model's unconstrained one, :math:`z = m + T z'`.

    What a guide calls ``loc``, ``scale`` and ``scale_tril`` is mapped; whatever else it has stays as it is.

    :ivar centre: m, ``(D,)``.
    :ivar root: T, lower triangular ``(D, D)``, or the diagonal of one, ``(D,)``.
    :ivar names: the guide's parameters, by the last part of their names.
    """

    centre: Tensor
    root: Tensor
    names: Mapping[str, str] = field(default_factory=dict)

    def forward(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return parameters in the model's terms, given those in the optimiser's; both may have leading dimensions."""
        root, names = self.root.to(self._kind(values)), self.names
        loc, scale = values[names["loc"]], values[names["scale"]]
        centre = self.centre.to(loc)
        if root.dim() == 1:
            return {**values, names["loc"]: centre + root * loc, names["scale"]: root * scale}
        whole = root @ (scale.unsqueeze(-1) * values[names["scale_tril"]])
        moved = (root * loc.unsqueeze(-2)).sum(-1)  # a product of a matrix and a vector that compiles
        return {**values, names["loc"]: centre + moved, **self._parted(whole)}

    def back(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return parameters in the optimiser's terms; the inverse of :meth:`forward`."""
        root, names = self.root, self.names
        loc, scale = values[names["loc"]].double() - self.centre, values[names["scale"]].double()
        if root.dim() == 1:
            found = {names["loc"]: loc / root, names["scale"]: scale / root}
        else:
            whole = scale.unsqueeze(-1) * values[names["scale_tril"]].double()
            moved = torch.linalg.solve_triangular(root, loc.unsqueeze(-1), upper=False).squeeze(-1)
            found = {names["loc"]: moved, **self._parted(torch.linalg.solve_triangular(root, whole, upper=False))}
        return {**values, **{n: v.to(self._kind(values)) for n, v in found.items()}}

    def _kind(self, values: Mapping[str, Tensor]) -> Tensor:
        return values[self.names["loc"]]

    def _parted(self, whole: Tensor) -> dict[str, Tensor]:
        scale = whole.diagonal(dim1=-2, dim2=-1)
        return {self.names["scale"]: scale, self.names["scale_tril"]: whole / scale.unsqueeze(-1)}


@dataclass(frozen=True)
class WhitenedLayout(ParameterLayout):
    """A layout whose flat vector is the optimiser's, in a space of its own; model and guide see their own terms."""

    space: Space | None = None

    @classmethod
    def of(cls, layout: ParameterLayout, space: Space) -> WhitenedLayout:
        """Return the layout of the same parameters in that space."""
        return cls(**{f.name: getattr(layout, f.name) for f in fields(ParameterLayout)}, space=space)

    @property
    def plain(self) -> ParameterLayout:
        """The layout in the model's terms."""
        return ParameterLayout(**{f.name: getattr(self, f.name) for f in fields(ParameterLayout)})

    def constrained(self, flat: Tensor) -> dict[str, Tensor]:
        """Return the tensors as model and guide see them, by name."""
        assert self.space is not None
        return self.space.forward(super().constrained(flat))

    def flatten(self, constrained: dict[str, Tensor], leading: tuple[int, ...] = ()) -> Tensor:
        """Return the flat vector for constrained tensors by name; the inverse of :meth:`constrained`."""
        assert self.space is not None
        return super().flatten(self.space.back(constrained), leading)
