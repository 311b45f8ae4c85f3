"""Distributions and densities that Pyro lacks: structured normals, Kumaraswamy, flows under torch.func, mixtures."""
