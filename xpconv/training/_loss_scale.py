"""The scale of the loss in mixed precision, which follows the range of the gradients."""

from typing import Any

from xpconv.backend import Array, array_namespace
from xpconv.errors import ArgumentError

__all__ = ["LossScale"]

START = 2.0**16
GROWTH_INTERVAL = 2000


class LossScale:
    """A power of two that halves with each overflow of a gradient, and doubles after 2,000 steps without one.

    The scale stays on the device, so the host does not wait (Micikevicius et al., "Mixed Precision Training", 2018).

    Parameters
    ----------
    model : Sequential or another object
        Without mixed precision, there are no arrays, and nothing is scaled.

    Attributes
    ----------
    arrays : dict of str to array ()
        ``scale``, and ``good_steps``, the number of steps without an overflow since the scale last changed. Both are
        updated in place.
    """

    def __init__(self, model: Any) -> None:
        self.arrays: dict[str, Array] = {}
        self._precision = _precision(model)
        if self._precision == "mixed":
            values = {"scale": START, "good_steps": 0.0}
            self.arrays = {name: model.backend.asarray(value, "float32") for name, value in values.items()}

    def check(self, model: Any) -> None:
        """Raise ArgumentError if the precision of the model has changed since the Solver was made."""
        if _precision(model) != self._precision:
            raise ArgumentError(
                f"model.precision is {_precision(model)!r}, but was {self._precision!r} when the Solver was made: make "
                "a new Solver for the new precision"
            )

    def apply(self, model: Any) -> None:
        """Let the model scale the loss of the next step."""
        self.check(model)
        if self.arrays:
            model.loss_scale = self.arrays["scale"]

    def judge(self, row: Array) -> Array:
        """Return whether a step is finite, from its row of `check_finite`, and adapt the scale.

        Gradients that are not finite count as an overflow if the loss is finite and the scale is above 1. Such a step
        is marked as finite in the row, since training goes on without it.
        """
        scale, steps = self.arrays["scale"], self.arrays["good_steps"]
        xp = array_namespace(row=row)
        finite = xp.all(row[2::2] > 0) & xp.isfinite(row[0])
        overflow = ~finite & xp.isfinite(row[0]) & (scale > 1)
        row[2::2] = xp.where(overflow, xp.ones_like(row[2::2]), row[2::2])
        grows = finite & (steps + 1 >= GROWTH_INTERVAL)
        steps[...] = xp.where(finite & ~grows, steps + 1, xp.zeros_like(steps))
        scale[...] = xp.where(grows, 2 * scale, xp.where(overflow, scale / 2, scale))
        return finite


def _precision(model: Any) -> str:
    return str(getattr(model, "precision", "full"))
