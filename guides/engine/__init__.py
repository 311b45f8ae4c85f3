"""The inference engine: pure functions of parameters, noise and data, and the loop that runs them."""
