"""The VampPrior: a mixture of the encoder's own answers to learned pseudo-inputs."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn

__all__ = ["VampPrior"]


class VampPrior(nn.Module):
    r"""A prior of codes that is the average approximate posterior of K learned pseudo-inputs.

    .. math:: p(z) = \frac1K \sum_k q(z \mid u_k)

    The best prior for the ELBO is the approximate posterior averaged over the data; this one imitates it with K inputs,
    learned with everything else. Pseudo-inputs are unconstrained here: they are what an encoder takes, and need not be
    images.

    :param encoder: a network from inputs ``(rows, *image)`` to ``(loc, scale)``, each ``(rows, latent_dim)``. It has to be
        the very object that the guide uses, which :attr:`zoo.VAE.natural_guide` sees to.
    :param pseudo_inputs: where they start, ``(K, *image)``: K training images are a good choice.
    :raises ValueError: if the encoder returns anything else.

    References: Tomczak and Welling (2018), VAE with a VampPrior.
    """

    def __init__(self, encoder: nn.Module, pseudo_inputs: Tensor) -> None:
        super().__init__()
        self.encoder = encoder
        self.pseudo_inputs = nn.Parameter(pseudo_inputs.detach().clone().to(torch.get_default_dtype()))

    def forward(self) -> dist.MixtureSameFamily:
        """Return the prior, of event shape ``(latent_dim,)``."""
        answer = self.encoder(self.pseudo_inputs)
        if not (isinstance(answer, tuple) and len(answer) == 2):
            found = f"a tensor {tuple(answer.shape)}" if isinstance(answer, Tensor) else type(answer).__name__
            raise ValueError(
                f"the encoder returns {found}; with prior='vamp' model and guide share it, so it has to return "
                "(loc, scale): wrap it in zoo.networks.GaussianNetwork(encoder, features, latent_dim)"
            )
        loc, scale = answer
        return dist.MixtureSameFamily(dist.Categorical(logits=loc.new_zeros(len(loc))), dist.Normal(loc, scale).to_event(1))
