"""Measure the health of training on its device: update-to-weight ratios and dead ReLU units."""

from math import nan
from typing import Any

import numpy as np

from xpconv.backend import Array, Backend, copy_arrays
from xpconv.nn import Relu, Sequential
from xpconv.nn._chain import trained_parameters
from xpconv.ops.tiling import sum_in_blocks, sum_of_squares
from xpconv.training._microbatches import MicroBatches

__all__ = ["TrainingMonitor"]


class TrainingMonitor:
    """Measure how one step changes the weights, and which ReLU units are dead.

    Create the monitor before the step, since it copies the weights, and call `measure` after the step.

    Parameters
    ----------
    model : Sequential, or any object with ``params``
        Parameters whose names start with W count as weights.
    backend : Backend
        The backend of the model.

    Examples
    --------
    >>> from xpconv.nn import TwoLayerNet
    >>> net = TwoLayerNet(input_dim=4, num_classes=3, rng=0)
    >>> monitor = TrainingMonitor(net, net.backend)
    >>> net.params["W1"] *= 1.5
    >>> monitor.measure(np.ones((2, 4)), MicroBatches(net, 1, "whole", 2))
    >>> history = {}
    >>> monitor.append_to(history, monitor.row())
    >>> {name: [round(value, 3) for value in values] for name, values in history.items()}
    {'update_ratio_W1': [0.5], 'update_ratio_W2': [0.0], 'dead_relu_1': [0.57]}
    """

    def __init__(self, model: Any, backend: Backend) -> None:
        self.model, self.backend = model, backend
        trained = trained_parameters(model) if isinstance(model, Sequential) else model.params
        self._weights = [name for name in model.params if name.startswith("W")]
        self._before = copy_arrays(
            {name: backend.asarray(model.params[name]) for name in self._weights if name in trained}
        )
        self._measured: dict[str, Array] = {}

    def measure(self, X: Array, microbatches: MicroBatches) -> None:
        """Measure the parameters after a step, without waiting for the device.

        ``update_ratio_W1`` is ``|W - W_before| / |W_before|`` (Euclidean norms), NaN if W is not trained.
        ``dead_relu_1`` is the fraction of the first ReLU's units that are 0 for every sample of `X`. After a
        convolution, a unit is a channel, and it is dead if it is 0 at every position.

        Parameters
        ----------
        X : array (N, ...)
            The minibatch of the step.
        microbatches : MicroBatches
            How it is cut.
        """
        xp = self.backend.xp
        not_trained = xp.full((), nan, dtype=xp.float64, device=self.backend.device)
        measured = {
            f"update_ratio_{name}": _ratio(self.model.params[name], self._before[name], xp)
            if name in self._before
            else not_trained
            for name in self._weights
        }
        if isinstance(self.model, Sequential):
            sizes: list[int] = []
            highest = microbatches.combine((self._highest(part, sizes) for part in microbatches.cut(X)), xp.maximum)
            for k, size in enumerate(sizes, start=1):
                dead, highest = highest[:size] == 0, highest[size:]
                measured[f"dead_relu_{k}"] = xp.mean(xp.astype(dead, xp.float64))
        self._before, self._measured = {}, measured

    def _highest(self, X: Array, sizes: list[int]) -> Array:
        """Return the highest output of each unit of all ReLUs in one array; put the numbers of units into `sizes`."""
        xp = self.backend.xp
        relus = (out for _, layer, out in self.model.outputs(X) if isinstance(layer, Relu))
        highest = [xp.reshape(xp.max(out, axis=(0, *range(2, out.ndim))), (-1,)) for out in relus]
        sizes[:] = [a.shape[0] for a in highest]
        return xp.concat(highest) if highest else xp.zeros(0)

    def row(self) -> Array:
        """Return the measured values as an array on the device."""
        xp = self.backend.xp
        values = [xp.astype(xp.asarray(value), xp.float64) for value in self._measured.values()]
        return xp.stack(values) if values else xp.zeros(0, device=self.backend.device)

    def append_to(self, history: dict[str, list[float]], row: np.ndarray) -> None:
        """Append each value of a row in host memory to its list in a history."""
        for name, value in zip(self._measured, row.tolist(), strict=True):
            history.setdefault(name, []).append(value)


def _ratio(w: Array, before: Array, xp: Any) -> Array:
    with np.errstate(all="ignore"):  # The weights may be 0 or not finite.
        return xp.sqrt(sum_in_blocks(w - before, term=sum_of_squares) / sum_in_blocks(before, term=sum_of_squares))
