"""The optimisation: steps of all replicates, chunks of steps, and what the host does between chunks."""
