"""Training: the Solver, update rules, learning-rate schedules, checkpoints, metrics and checks."""

from xpconv.training._capture import capture_obstacle
from xpconv.training.optim import adam, rmsprop, sgd, sgd_momentum
from xpconv.training.solver import Solver

__all__ = ["Solver", "adam", "capture_obstacle", "rmsprop", "sgd", "sgd_momentum"]
