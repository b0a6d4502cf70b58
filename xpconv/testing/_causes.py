"""Likely causes of a wrong gradient: its worst element, and the common mistake that explains it."""

from collections.abc import Callable, Iterator, Mapping
from math import isclose, prod

import numpy as np

from xpconv.testing._gradients import eval_numerical_gradient_array

__all__ = ["explain"]

MAX_ELEMENTS = 1000  # checked elements: each costs two forward passes
TOLERANCE = 1e-5  # relative to the largest element; numerical slopes are exact to about 1e-10


def explain(
    name: str,
    forward: Callable[[np.ndarray], np.ndarray],
    backward: Callable[[np.ndarray], np.ndarray],
    x: np.ndarray,
    dout: np.ndarray,
    shapes: Mapping[str, tuple[int, ...]],
) -> str | None:
    """Describe a wrong gradient: its worst element, the number of wrong elements, and a likely cause.

    Parameters
    ----------
    name : str
        Name of `x` in the text.
    forward, backward : callable
        ``forward(x) -> out`` and ``backward(dout) -> gradient`` with respect to `x`.
    x : numpy.ndarray
        Values of float64. If it has more than MAX_ELEMENTS, that many evenly spaced ones are checked.
    dout : numpy.ndarray
        Random numbers in the shape of out, so that wrong elements do not agree by chance.
    shapes : mapping of str to tuple of int
        Shapes of all inputs and of ``out``, whose sizes may explain a factor. The first input has the batch on axis 0.

    Returns
    -------
    str or None
        None if no element is wrong.

    Examples
    --------
    >>> x = np.ones((2, 3))
    >>> explain("x", lambda x: x**2, lambda dout: x * dout, x, x, {"x": (2, 3)})
    'backward gives 1 at x[0, 0], where the forward pass has slope 2; 6 of 6 elements are wrong. Likely it is 0.5 times
    what it should be, off by the batch size (2): a sum instead of a mean, or a mean instead of a sum.'
    """
    gradient = backward(dout)
    chosen = np.unique(np.linspace(0, x.size - 1, min(x.size, MAX_ELEMENTS)).astype(int))

    def forward_with(values: np.ndarray) -> np.ndarray:
        changed = x.copy().reshape(-1)
        changed[chosen] = values
        return forward(changed.reshape(x.shape))

    numeric = eval_numerical_gradient_array(forward_with, x.reshape(-1)[chosen], dout)
    analytic = gradient.reshape(-1)[chosen]
    error, scale = np.abs(analytic - numeric), max(np.max(np.abs(numeric)), np.max(np.abs(analytic)))
    wrong = error > TOLERANCE * scale
    if not wrong.any():
        return None
    indices = np.stack(np.unravel_index(chosen, x.shape), axis=-1)
    worst = int(np.argmax(error))
    cause = _explain_all(gradient, analytic, numeric, backward(2 * dout), shapes) or _explain_some(
        analytic, numeric, wrong, indices
    )
    return (
        f"backward gives {analytic[worst]:.6g} at {name}{indices[worst].tolist()}, where the forward pass has slope "
        f"{numeric[worst]:.6g}; {wrong.sum()} of {wrong.size} elements are wrong.{cause}"
    )


def _explain_all(
    gradient: np.ndarray,
    analytic: np.ndarray,
    numeric: np.ndarray,
    gradient_of_doubled_dout: np.ndarray,
    shapes: Mapping[str, tuple[int, ...]],
) -> str:
    """Return the mistake that explains all elements at once, or an empty text."""

    def is_close(a: np.ndarray) -> bool:
        return bool(np.all(np.abs(a - numeric) <= TOLERANCE * np.max(np.abs(numeric))))

    if not analytic.any():
        return " Likely it is never computed: it is 0 everywhere."
    if np.array_equal(gradient_of_doubled_dout, gradient):
        return " Likely dout is forgotten: by the chain rule, a gradient is a product with dout."
    if gradient.ndim == 2 and gradient.size == numeric.size and is_close(gradient.T.reshape(-1)):
        return " Likely it is transposed."
    ratio = float(np.vdot(numeric, analytic) / np.vdot(analytic, analytic))  # the factor that would correct it
    if ratio and is_close(ratio * analytic):
        return f" Likely it is {1 / ratio:.4g} times what it should be{_factor(1 / ratio, shapes)}."
    return ""


def _factor(ratio: float, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Return what may explain a constant factor."""
    size = max(abs(ratio), 1 / abs(ratio))
    if isclose(size, 1, rel_tol=1e-4):
        return ": the sign is wrong" if ratio < 0 else ""
    meanings = [text for text, value in _sizes(shapes) if isclose(size, value, rel_tol=1e-4)][:2]
    if meanings:
        return (
            f", off by {' or '.join(meanings)} ({round(size)}): a sum instead of a mean, or a mean instead of a sum"
            + (", and the sign is wrong" if ratio < 0 else "")
        )
    return ": a constant factor is missing, such as the 2 in the derivative of a square"


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
        yield f"the number of elements of a sample of {name}", prod(shape[1:])
        yield f"the number of pixels of {name}", prod(shape[2:])


def _explain_some(analytic: np.ndarray, numeric: np.ndarray, wrong: np.ndarray, indices: np.ndarray) -> str:
    """Return what the wrong elements have in common."""
    if wrong.all():
        return ""
    texts = []
    if not analytic[wrong].any():
        texts.append(" The wrong ones are all 0: likely some of the gradient is never written, or is overwritten.")
    elif np.max(np.abs(numeric[wrong])) <= TOLERANCE * np.max(np.abs(numeric)):
        texts.append(" The wrong ones should be 0, since the output does not depend on those inputs.")
    elif indices.shape[1] == 4:
        texts.append(" If windows overlap there, their contributions have to be added (+=), not assigned.")
    axes = [(set(column[wrong].tolist()), set(column.tolist()), axis) for axis, column in enumerate(indices.T)]
    wrong_at, checked_at, axis = min(axes, key=lambda sets: len(sets[0]) / len(sets[1]))
    if wrong_at < checked_at:
        edge = axis >= 2 and wrong_at <= {0, max(checked_at)} and len(checked_at) > 2
        texts.append(
            f" They are all at {', '.join(map(str, sorted(wrong_at)))} on axis {axis}"
            f"{', the edge of the image: look at the padding' if edge else ''}."
        )
    return "".join(texts)
