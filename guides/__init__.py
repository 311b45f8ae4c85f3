"""Approximate posteriors for any Pyro model."""
