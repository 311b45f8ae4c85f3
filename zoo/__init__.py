"""Pyro models."""
