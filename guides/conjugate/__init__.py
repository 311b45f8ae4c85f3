"""Closed-form coordinate ascent: what it asks of a model, and the algorithm."""
