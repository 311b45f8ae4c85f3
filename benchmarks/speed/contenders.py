"""Who is measured, and on which cases."""

from __future__ import annotations

from dataclasses import dataclass

from _posterior_zoo_registry import Registry
from benchmarks.speed.cases import Case

__all__ = ["ALL", "CONTENDERS", "Contender"]


@dataclass(frozen=True)
class Contender:
    """One implementation of the cases.

    :param name: how the command line calls it.
    :param label: what it is, for tables.
    :param side: the process it runs in, ``"torch"`` or ``"numpyro"``.
    :param replicated: it can run replicates at once.
    :param only: the cases it is for; empty for all.
    """

    name: str
    label: str
    side: str = "torch"
    replicated: bool = True
    only: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """The label, for lists."""
        return self.label

    @property
    def ours(self) -> bool:
        """Whether it is this project's engine."""
        return self.name.startswith("ours")

    def runs(self, case: Case) -> bool:
        """Tell whether a case is for this contender."""
        if case.device == "cuda" and self.side == "numpyro":  # what device JAX has is another question
            return False
        return (self.replicated or case.replicates == 1) and (not self.only or case.name in self.only)


ALL: tuple[Contender, ...] = (
    Contender("pyro", "Pyro, SVI.step", replicated=False),
    Contender("pyro_jit", "Pyro, JitTrace_ELBO", replicated=False),
    Contender("torch", "PyTorch by hand, eager, fused Adam"),
    Contender("torch_compiled", "PyTorch by hand, loss compiled, fused Adam"),
    Contender("numpyro_update", "NumPyro, jitted svi.update", "numpyro"),
    Contender("numpyro_scan", "NumPyro, lax.scan over a chunk of steps", "numpyro"),
    Contender("ours_eager", 'ours, compile="eager"'),
    Contender("ours_trace", 'ours, compile="trace"'),
    Contender("ours_step", "ours, compiled, one step per call"),
    Contender("ours_loop", "ours, compiled, a chunk of steps per call"),
    Contender("ours_default", "the same with our mean_field and closed-form divergences", only=("bnn",)),
)
"""Every contender, in the order of tables."""

CONTENDERS: Registry[Contender] = Registry("contender", group="")
for _contender in ALL:
    CONTENDERS.add(_contender.name, _contender)
