"""Splits of data as tasks need them; what a loader is called with is part of the protocol."""
