"""The assignment's gradient checks: those of `xpconv.testing`, and one that samples a few elements."""

import random
from collections.abc import Callable
from typing import Any

from xpconv.backend import Array, to_host
from xpconv.testing import eval_numerical_gradient, eval_numerical_gradient_array

__all__ = [
    "eval_numerical_gradient",
    "eval_numerical_gradient_array",
    "eval_numerical_gradient_blobs",
    "eval_numerical_gradient_net",
    "grad_check_sparse",
]


def eval_numerical_gradient_blobs(
    f: Callable[..., object], inputs: tuple[Any, ...], output: Any, h: float = 1e-5
) -> list[Array]:
    """Return the numerical gradient of each input blob, given the gradient of the output in its ``diffs``.

    Parameters
    ----------
    f : callable
        ``f(*inputs, output)`` computes the output and writes it into ``output.vals``.
    inputs : tuple of blobs
        Objects with arrays ``vals`` and ``diffs`` of one shape; ``vals`` is changed while f runs, and restored.
    output : blob
    h : float
        The step of the central difference.

    Examples
    --------
    >>> import numpy as np
    >>> from types import SimpleNamespace
    >>> x, out = (SimpleNamespace(vals=np.ones(2), diffs=np.ones(2)) for _ in range(2))
    >>> def square(x, out):
    ...     out.vals = x.vals**2
    >>> eval_numerical_gradient_blobs(square, (x,), out)[0].round(6)
    array([2., 2.])
    """

    def values(_: Array) -> Array:
        f(*inputs, output)
        return output.vals

    return [eval_numerical_gradient_array(values, blob.vals, output.diffs, h=h) for blob in inputs]


def eval_numerical_gradient_net(net: Any, inputs: tuple[Any, ...], output: Any, h: float = 1e-5) -> list[Array]:
    """Return the numerical gradient of each input blob of a net, whose ``forward()`` writes into ``output.vals``.

    Examples
    --------
    >>> import numpy as np
    >>> from types import SimpleNamespace
    >>> x, out = (SimpleNamespace(vals=np.ones(2), diffs=np.ones(2)) for _ in range(2))
    >>> net = SimpleNamespace(forward=lambda: np.multiply(x.vals, 3, out=out.vals))
    >>> eval_numerical_gradient_net(net, (x,), out)[0].round(6)
    array([3., 3.])
    """
    return eval_numerical_gradient_blobs(lambda *_: net.forward(), inputs, output, h)


def grad_check_sparse(
    f: Callable[[Array], float], x: Array, analytic_grad: Array, num_checks: int = 10, h: float = 1e-5
) -> None:
    """Print the slope of f, its analytic gradient and their relative error at a few random elements of x.

    Parameters
    ----------
    f : callable
        Takes `x` and returns a number.
    x : numpy.ndarray of floats
        Changed in place while `f` runs, and restored afterwards.
    analytic_grad : array in the shape of `x`
    num_checks : int
        Number of elements, drawn by Python's `random`.
    h : float
        The step of the central difference, in the units of `x`.

    Raises
    ------
    ArgumentTypeError
        If `x` is not a NumPy array of floats.

    Examples
    --------
    >>> import numpy as np
    >>> grad_check_sparse(
    ...     lambda x: (x**2).sum(), np.array([1.5]), np.array([3.0]), num_checks=1
    ... )
    numerical: 3.000000 analytic: 3.000000, relative error: ...
    """
    for _ in range(num_checks):
        index = tuple(random.randrange(size) for size in x.shape)
        element = to_host(x)[tuple(slice(i, i + 1) for i in index)]  # a view, so that f sees its changes
        numeric = eval_numerical_gradient(lambda _: f(x), element, h=h).item()
        analytic = float(analytic_grad[index])
        error = abs(numeric - analytic) / max(abs(numeric) + abs(analytic), 1e-300)
        print(f"numerical: {numeric:f} analytic: {analytic:f}, relative error: {error:e}")
