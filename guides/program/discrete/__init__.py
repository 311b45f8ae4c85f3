"""Discrete latents: which are summed out, the sums, and draws afterwards."""
