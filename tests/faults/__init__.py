"""Faults, each made in a process of its own, and what the library makes of them: ``python -m tests.faults``."""
