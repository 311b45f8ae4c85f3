"""A Pyro model seen from outside: what its sites are, and what they contribute."""
