"""Normal approximations that stop by themselves, one file each; importing this package registers them."""

from guides.solvers.auto.auto import Auto, climb
from guides.solvers.base import Solution, Solver
from guides.solvers.dadvi import DADVI
from guides.solvers.pathfinder.pathfinder import Pathfinder
from guides.solvers.solved import Solved
from guides.solvers.solving import restore_solved, solve

__all__ = ["DADVI", "Auto", "Pathfinder", "Solution", "Solved", "Solver", "climb", "restore_solved", "solve"]
