"""Samplers, which draw from the posterior itself, one file each; importing this package registers them."""

from guides.samplers.base import Chains, Sampler
from guides.samplers.hmc import HMC
from guides.samplers.nuts import NUTS
from guides.samplers.restoring import restore_sampled
from guides.samplers.sampled import Sampled

__all__ = ["HMC", "NUTS", "Chains", "Sampled", "Sampler", "restore_sampled"]
