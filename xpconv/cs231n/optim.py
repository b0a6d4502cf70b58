"""The assignment's update rules, ``rule(w, dw, config=None) -> (next_w, config)``: those of `xpconv.training.optim`."""

from xpconv.training.optim import adam, rmsprop, sgd, sgd_momentum

__all__ = ["adam", "rmsprop", "sgd", "sgd_momentum"]
