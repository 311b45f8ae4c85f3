"""Cells planned, grouped, run and recorded."""
