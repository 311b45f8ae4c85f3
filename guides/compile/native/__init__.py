"""Loops of optimisation steps as C++ of our own: from a traced graph to one library without a call per operation."""
