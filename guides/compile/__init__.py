"""From a pure function of tensors to what runs it: eagerly, from a checked graph, as one library. Knows no Pyro."""
