"""Importance weights by the row: log p(x) with its error, and where a bound loses it."""
