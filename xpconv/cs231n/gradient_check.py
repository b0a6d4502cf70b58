"""The assignment's gradient checks: those of `xpconv.testing`, and one that samples a few elements."""

import random
from collections.abc import Callable

from xpconv.backend import Array, to_host
from xpconv.testing import eval_numerical_gradient, eval_numerical_gradient_array

__all__ = ["eval_numerical_gradient", "eval_numerical_gradient_array", "grad_check_sparse"]


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
    >>> grad_check_sparse(lambda x: (x**2).sum(), np.array([1.5]), np.array([3.0]), num_checks=1)
    numerical: 3.000000 analytic: 3.000000, relative error: ...
    """
    for _ in range(num_checks):
        index = tuple(random.randrange(size) for size in x.shape)
        element = to_host(x)[tuple(slice(i, i + 1) for i in index)]  # a view, so that f sees its changes
        numeric = eval_numerical_gradient(lambda _: f(x), element, h=h).item()
        analytic = float(analytic_grad[index])
        error = abs(numeric - analytic) / max(abs(numeric) + abs(analytic), 1e-300)
        print(f"numerical: {numeric:f} analytic: {analytic:f}, relative error: {error:e}")
