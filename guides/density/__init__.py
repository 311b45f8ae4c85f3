"""One log density of any model over one flat vector, with what stands on it."""
