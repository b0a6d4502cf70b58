"""Training: the Solver, update rules, schedules, checkpoints and what is measured on the way."""

from xpconv.training.optim import adam, rmsprop, sgd, sgd_momentum
from xpconv.training.solver import Solver

__all__ = ["Solver", "adam", "rmsprop", "sgd", "sgd_momentum"]
