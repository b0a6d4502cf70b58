"""Detect losses and gradients that are not finite without waiting for the device, and describe the likely cause."""

from collections.abc import Iterable, Mapping
from math import prod
from typing import Any

import array_api_compat
import numpy as np

from xpconv.backend import Array, Backend, backend_of, on_host, to_host
from xpconv.ops.finite import largest_finite
from xpconv.ops.tiling import sum_in_blocks, sum_of_squares

__all__ = ["all_finite", "check_finite", "choose", "describe_nonfinite", "finite_flags", "read_rows", "read_together"]


def check_finite(loss: Any, grads: Mapping[str, Array], *, per_gradient: bool) -> tuple[Any, Any]:
    """Return a row of numbers for `read_rows`, and whether the loss and the gradients are finite.

    Parameters
    ----------
    loss : float or array ()
    grads : mapping of str to array
    per_gradient : bool
        Whether to collect a pair of numbers for each gradient, which `describe_nonfinite` needs. On a device, `good`
        is then True, and the check is deferred to `read_rows`.

    Returns
    -------
    row : tuple or array (1 + 2 * K,)
        The loss, then for each gradient the pair that `largest_finite` returns: the largest finite magnitude, and 1 if
        all elements are finite, else 0. Without `per_gradient`, and on the host if everything is finite, a single pair
        describes the loss and all gradients; its magnitude is 0.
    good : bool, or boolean array () on the device
        Whether the loss and the gradients are finite: a bool if the loss is in host memory.

    Examples
    --------
    >>> check_finite(0.5, {"W": np.ones(3)}, per_gradient=True)
    ((0.5, 0.0, 1.0), True)
    >>> check_finite(0.5, {"W": np.array([3.0, np.inf])}, per_gradient=True)
    ((0.5, 3.0, 0.0), False)
    """
    if isinstance(loss, float | np.generic) or on_host(loss):
        good = all_finite(loss, grads.values())
        largest = (to_host(largest_finite(grad)) for grad in grads.values())
        pairs = largest if per_gradient and not good else [(0, good)]
        return (float(loss), *(float(value) for pair in pairs for value in pair)), good
    xp = backend_of(loss).xp
    row = xp.empty(1 + 2 * len(grads), dtype=loss.dtype, device=array_api_compat.device(loss))
    row[0] = loss  # Not by xp.concat: with many arrays, CuPy copies their addresses to the device.
    largest_finite(*grads.values(), out=row[1:])
    if per_gradient:
        return row, True
    good = xp.all(row[2::2] > 0) & xp.isfinite(loss)
    return xp.stack([loss, xp.zeros_like(loss), xp.astype(good, loss.dtype)]), good


def read_rows(rows: list[Any]) -> tuple[list[float], list[np.ndarray], list[int]]:
    """Wait for the device and split rows of `check_finite`, or bare losses, which the course's Solver records.

    An array of two dimensions has several rows.

    Returns
    -------
    losses : list of float
    pairs : list of array (K, 2)
        The pairs of each row: largest finite magnitude, and 1 if all elements are finite. Bare losses have none.
    bad : list of int
        The indices of the rows in which the loss or a gradient is not finite.

    Examples
    --------
    >>> read_rows([(0.5, 3.0, 1.0), (0.4, 2.0, 0.0), (np.nan, 3.0, 1.0)])[2]
    [1, 2]
    """
    on_device = hasattr(rows[0], "shape") and not isinstance(rows[0], np.generic | np.ndarray)
    if on_device:
        xp = backend_of(rows[0]).xp
        width = rows[0].shape[-1] if rows[0].ndim else 1
        rows = list(to_host(xp.concat([xp.reshape(row, (-1, width)) for row in rows])))
    table = [np.ravel(each) for row in rows for each in (row if getattr(row, "ndim", 0) == 2 else [row])]
    losses, pairs = [float(row[0]) for row in table], [row[1:].reshape(-1, 2) for row in table]
    finite = (np.isfinite(loss) and pair[:, 1].all() for loss, pair in zip(losses, pairs, strict=True))
    return losses, pairs, [k for k, good in enumerate(finite) if not good]


def all_finite(loss: Any, grads: Iterable[Array]) -> Any:
    """Return whether the loss and all gradients are finite, without waiting for a device.

    Parameters
    ----------
    loss : float or array ()
    grads : iterable of array

    Returns
    -------
    bool, or a boolean array () on the device

    Examples
    --------
    >>> all_finite(0.5, [np.ones(3), np.array([1.0, np.inf])])
    False
    """
    if isinstance(loss, float | np.generic) or on_host(loss):
        return bool(np.isfinite(float(loss))) and all(_finite_on_host(grad) for grad in grads)
    xp = array_api_compat.array_namespace(loss)
    return xp.all(xp.stack([xp.isfinite(loss), *(xp.all(xp.isfinite(grad)) for grad in grads)]))


def finite_flags(arrays: Mapping[str, Array], backend: Backend) -> Array:
    """Return a boolean array (K,) on the device: for each array, whether all its elements are finite.

    Examples
    --------
    >>> from xpconv.backend import get_backend
    >>> finite_flags(
    ...     {"m": np.zeros(2), "v": np.array([1.0, np.inf])}, get_backend("numpy")
    ... )
    array([ True, False])
    """
    xp = backend.xp
    flags = [xp.all(xp.isfinite(a)) for a in arrays.values()]
    return xp.stack(flags) if flags else xp.zeros(0, dtype=xp.bool, device=backend.device)


def read_together(arrays: Iterable[Any]) -> list[np.ndarray]:
    """Return arrays as NumPy arrays, waiting once for the device; arrays of a device become float64.

    Examples
    --------
    >>> read_together([np.ones(2), 3.0])
    [array([1., 1.]), array(3.)]
    """
    arrays = list(arrays)
    places = [k for k, a in enumerate(arrays) if hasattr(a, "shape") and not isinstance(a, np.generic | np.ndarray)]
    if len(places) > 1:
        xp = backend_of(arrays[places[0]]).xp
        flat = to_host(xp.concat([xp.reshape(xp.astype(arrays[k], xp.float64), (-1,)) for k in places]))
        shapes = [tuple(arrays[k].shape) for k in places]
        ends = np.cumsum([prod(shape) for shape in shapes])
        for k, part, shape in zip(places, np.split(flat, ends[:-1]), shapes, strict=True):
            arrays[k] = part.reshape(shape)
    return [a if isinstance(a, np.ndarray) else to_host(a) for a in arrays]


def _finite_on_host(a: Array) -> bool:
    """Return whether all elements are finite.

    If the sum of squares is finite, so are all elements; that sum takes one pass and no temporary array.
    """
    with np.errstate(all="ignore"):
        if np.isfinite(float(sum_in_blocks(a, term=sum_of_squares))):
            return True
    xp = array_api_compat.array_namespace(a)
    return bool(xp.all(xp.isfinite(a)))


def choose(condition: Array | bool, a: dict[str, Array], b: dict[str, Array]) -> dict[str, Array]:
    """Return `a` if the condition is True, else `b`; if it is an array () on their device, without waiting for it.

    Examples
    --------
    >>> choose(False, {"x": np.ones(2)}, {"x": np.zeros(2)})
    {'x': array([0., 0.])}
    """
    if isinstance(condition, bool):
        return a if condition else b
    return {name: array_api_compat.array_namespace(x).where(condition, x, b[name]) for name, x in a.items()}


def describe_nonfinite(loss: float, iteration: int, names: Iterable[str], pairs: np.ndarray) -> str:
    """Describe which value is not finite, and the likely cause.

    Parameters
    ----------
    loss : float
    iteration : int
    names : iterable of str
        The names of the gradients.
    pairs : array (K, 2)
        The `largest_finite` of each gradient, or empty.

    Examples
    --------
    >>> describe_nonfinite(0.5, 9, ["W1", "b1"], np.array([[2.0, 1.0], [7.0, 0.0]]))
    'the gradient of b1 stopped being finite at iteration 9 (its largest finite value is 7.00e+00)'
    >>> describe_nonfinite(np.inf, 9, ["W1", "b1"], np.array([[8.0, 1.0], [7.0, 1.0]]))
    'the loss became inf at iteration 9 (the largest gradient is that of W1, up to 8.00e+00)'
    >>> describe_nonfinite(np.nan, 9, ["W1", "b1"], np.array([[8.0, 1.0], [7.0, 1.0]]))
    'the loss became nan at iteration 9 (all gradients are finite, so a label may be out of range)'
    >>> describe_nonfinite(np.inf, 9, ["W1", "b1"], np.array([[8.0, 1.0], [7.0, 0.0]]))
    'the loss became inf at iteration 9 (the gradient of b1 is not finite, its largest finite value is 7.00e+00)'
    """
    if not pairs.size:
        return f"the loss became {loss} at iteration {iteration}"
    magnitudes, bad = pairs[:, 0], pairs[:, 1] == 0
    worst = int(np.argmax(bad if bad.any() else magnitudes))
    name, size = list(names)[worst], f"{magnitudes[worst]:.2e}"
    if np.isfinite(loss):
        return (
            f"the gradient of {name} stopped being finite at iteration {iteration} (its largest finite value is {size})"
        )
    if np.isnan(loss) and not bad.any():  # NaN in the scores would also be in the gradients
        return (
            f"the loss became nan at iteration {iteration} (all gradients are finite, so a label may be out of range)"
        )
    cause = (
        f"the gradient of {name} is not finite, its largest finite value is {size}"
        if bad.any()
        else f"the largest gradient is that of {name}, up to {size}"
    )
    return f"the loss became {loss} at iteration {iteration} ({cause})"
