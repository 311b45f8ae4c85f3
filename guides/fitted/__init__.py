"""What has been fitted: parameters and data together, draws from them, and their way to ArviZ and to files."""
