"""Training: the Solver, update rules, learning-rate schedules, checkpoints, metrics and checks."""

from xpconv.training._averages import Lookahead
from xpconv.training.optim import adam, rmsprop, sgd, sgd_momentum
from xpconv.training.solver import Solver

__all__ = ["Lookahead", "Solver", "adam", "rmsprop", "sgd", "sgd_momentum"]
