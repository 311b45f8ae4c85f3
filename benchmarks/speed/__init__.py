"""Speed, measured side by side: ``python -m benchmarks speed``.

Pyro, plain PyTorch and this project's engine run in one process of their own and NumPyro in another; both wait for
requests, so that one contender runs at a time. What they run is in :mod:`benchmarks.speed.cases`, what is demanded of the
engine in :mod:`benchmarks.speed.targets`.
"""
