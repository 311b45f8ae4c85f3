"""Normal approximations that stop by themselves, one file each; importing this package registers them."""

from guides.solvers.base import Solution, Solver
from guides.solvers.dadvi import DADVI
from guides.solvers.pathfinder.pathfinder import Pathfinder
from guides.solvers.solved import Solved
from guides.solvers.solving import restore_solved, solve

__all__ = ["DADVI", "Pathfinder", "Solution", "Solved", "Solver", "restore_solved", "solve"]
