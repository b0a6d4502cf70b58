"""Why a gradient may be wrong: where its worst element is, and which common mistake would look like that."""

from collections.abc import Callable, Iterator, Mapping
from math import isclose, prod

import numpy as np

from xpconv.testing._gradients import eval_numerical_gradient_array

__all__ = ["explain"]

LIMIT = 1000  # elements to look at: each costs two forward passes
TOLERANCE = 1e-5  # of the largest element; differences of the forward pass are exact to about 1e-10


def explain(
    name: str,
    forward: Callable[[np.ndarray], np.ndarray],
    backward: Callable[[np.ndarray], np.ndarray],
    x: np.ndarray,
    dout: np.ndarray,
    shapes: Mapping[str, tuple[int, ...]],
) -> str | None:
    """Say which element of a gradient is most wrong, how many are, and a likely cause.

    Parameters
    ----------
    name : str
        What the text calls `x`.
    forward, backward : callable
        ``forward(x) -> out`` and ``backward(dout) -> gradient`` of `x`.
    x : numpy.ndarray
        float64; of more than LIMIT elements so many are looked at, evenly spread.
    dout : numpy.ndarray
        In the shape of out; random numbers, so that nothing agrees by chance.
    shapes : mapping of str to tuple of int
        Of all inputs, the first with the batch along axis 0, and of ``out``: sizes that a factor may stand for.

    Returns
    -------
    str or None
        None if no element by itself is wrong.

    Examples
    --------
    >>> x = np.ones((2, 3))
    >>> explain("x", lambda x: x**2, lambda dout: x * dout, x, x, {"x": (2, 3)})
    'backward gives 1 at x[0, 0], where the forward pass has slope 2; 6 of 6 elements are wrong. Likely it is 0.5 times
    what it should be, off by the batch size (2): a sum in place of a mean or the other way round.'
    """
    gradient = backward(dout)
    chosen = np.unique(np.linspace(0, x.size - 1, min(x.size, LIMIT)).astype(int))

    def at(values: np.ndarray) -> np.ndarray:
        moved = x.copy().reshape(-1)
        moved[chosen] = values
        return forward(moved.reshape(x.shape))

    numeric = eval_numerical_gradient_array(at, x.reshape(-1)[chosen], dout)
    analytic = gradient.reshape(-1)[chosen]
    error, scale = np.abs(analytic - numeric), max(np.max(np.abs(numeric)), np.max(np.abs(analytic)))
    wrong = error > TOLERANCE * scale
    if not wrong.any():
        return None
    places = np.stack(np.unravel_index(chosen, x.shape), axis=-1)
    worst = int(np.argmax(error))
    causes = _cause(gradient, analytic, numeric, backward(2 * dout), shapes) or _part(analytic, numeric, wrong, places)
    return (
        f"backward gives {analytic[worst]:.6g} at {name}{places[worst].tolist()}, where the forward pass has slope "
        f"{numeric[worst]:.6g}; {wrong.sum()} of {wrong.size} elements are wrong.{causes}"
    )


def _cause(
    gradient: np.ndarray,
    analytic: np.ndarray,
    numeric: np.ndarray,
    of_twice_dout: np.ndarray,
    shapes: Mapping[str, tuple[int, ...]],
) -> str:
    """Return a mistake that explains all elements at once, if one does."""

    def near(a: np.ndarray) -> bool:
        return bool(np.all(np.abs(a - numeric) <= TOLERANCE * np.max(np.abs(numeric))))

    if not analytic.any():
        return " Likely it is never computed: it is 0 everywhere."
    if np.array_equal(of_twice_dout, gradient):
        return " Likely dout is forgotten: by the chain rule a gradient is a product with dout."
    if gradient.ndim == 2 and gradient.size == numeric.size and near(gradient.T.reshape(-1)):
        return " Likely it is transposed."
    ratio = float(np.vdot(numeric, analytic) / np.vdot(analytic, analytic))  # what would make it right
    if ratio and near(ratio * analytic):
        return f" Likely it is {1 / ratio:.4g} times what it should be{_factor(1 / ratio, shapes)}."
    return ""


def _factor(ratio: float, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Return what a constant factor may stand for."""
    size = max(abs(ratio), 1 / abs(ratio))
    if isclose(size, 1, rel_tol=1e-4):
        return ": the sign is wrong" if ratio < 0 else ""
    meanings = [text for text, value in _sizes(shapes) if isclose(size, value, rel_tol=1e-4)][:2]
    if meanings:
        return f", off by {' or '.join(meanings)} ({round(size)}): a sum in place of a mean or the other way round" + (
            ", and the sign is wrong" if ratio < 0 else ""
        )
    return ": a constant factor is missing, as the 2 from the derivative of a square"


def _sizes(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, int]]:
    first = next(iter(shapes.values()))
    yield from (("the batch size", size) for size in first[:1])
    for name, shape in shapes.items():
        yield from (
            (f"the size of axis {axis} of {name}", size)
            for axis, size in enumerate(shape)
            if axis or (name != "out" and shape is not first)
        )
        yield f"the number of elements of {name}", prod(shape)
        yield f"that of a sample of {name}", prod(shape[1:])
        yield f"the number of pixels of {name}", prod(shape[2:])


def _part(analytic: np.ndarray, numeric: np.ndarray, wrong: np.ndarray, places: np.ndarray) -> str:
    """Return what the wrong elements have in common."""
    if wrong.all():
        return ""
    texts = []
    if not analytic[wrong].any():
        texts.append(" The wrong ones are all 0: likely a part of the gradient is not written, or is overwritten.")
    elif np.max(np.abs(numeric[wrong])) <= TOLERANCE * np.max(np.abs(numeric)):
        texts.append(" The wrong ones should be 0, since the output does not depend on those inputs.")
    elif places.shape[1] == 4:
        texts.append(" If windows overlap there: their parts have to be added (+=), not assigned.")
    axes = [(set(column[wrong].tolist()), set(column.tolist()), axis) for axis, column in enumerate(places.T)]
    where, everywhere, axis = min(axes, key=lambda sets: len(sets[0]) / len(sets[1]))
    if where < everywhere:
        edge = axis >= 2 and where <= {0, max(everywhere)} and len(everywhere) > 2
        texts.append(
            f" They are all at {', '.join(map(str, sorted(where)))} on axis {axis}"
            f"{', the edge of the image: look at the padding' if edge else ''}."
        )
    return "".join(texts)
