"""Pathfinder: normals along the paths of L-BFGS on a log density, by themselves and as a guide."""
