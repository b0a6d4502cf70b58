"""Accuracy, loss and probabilities of a model, computed in batches, and their summaries by class."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from math import inf, isfinite, log
from operator import add
from typing import Any, NamedTuple

import numpy as np

from xpconv._html import html_table
from xpconv._validation import check_count
from xpconv.backend import Array, Backend, backend_of, to_host
from xpconv.data.rows import Rows, as_rows
from xpconv.errors import ArgumentError, ArgumentTypeError, NonFiniteLossError
from xpconv.layers import softmax_loss
from xpconv.layers._checks import check_labels, label_hint
from xpconv.ops.update import ignore_underflow
from xpconv.parallel import Communicator

__all__ = [
    "ClassificationReport",
    "Evaluation",
    "MirrorAveraged",
    "accuracy",
    "checks_since_best",
    "classification_report",
    "confusion_matrix",
    "evaluate",
    "l2_penalty",
    "loss_of_equal_scores",
    "merits_of_checks",
    "probabilities",
    "take_rows",
]


class Evaluation(NamedTuple):
    """The accuracy of a model, 0 to 1, and its loss: the mean cross-entropy.

    Examples
    --------
    >>> Evaluation(accuracy=0.9, loss=0.31).loss
    0.31
    """

    accuracy: float
    loss: float


def accuracy(
    model: Any,
    X: Array,
    y: Array,
    backend: Backend,
    batch_size: int = 100,
    rows: np.ndarray | None = None,
    *,
    allow_nonfinite: bool = False,
) -> float:
    """Return the fraction of samples whose highest score is that of their label.

    Parameters, return value and errors are those of `evaluate`, but for the loss.

    Examples
    --------
    >>> from xpconv.nn import TwoLayerNet
    >>> net = TwoLayerNet(input_dim=4, num_classes=3, rng=0)
    >>> X = np.ones((6, 4))
    >>> accuracy(net, X, np.full(6, int(np.argmax(net.loss(X)[0]))), net.backend)
    1.0
    """
    return evaluate(model, X, y, backend, batch_size, rows, allow_nonfinite=allow_nonfinite).accuracy


def evaluate(
    model: Any,
    X: Array,
    y: Array,
    backend: Backend,
    batch_size: int = 100,
    rows: np.ndarray | None = None,
    *,
    allow_nonfinite: bool = False,
    communicator: Communicator | None = None,
) -> Evaluation:
    """Return the accuracy and the loss of a model on samples.

    The accuracy is the fraction of samples whose highest score is that of their label. The loss is the mean
    cross-entropy of the softmax of the scores, without a penalty or label smoothing. The device adds both up, and the
    host waits for it once.

    Parameters
    ----------
    model : object
        Its ``loss(X)`` returns scores (N, C).
    X : array (N, ...)
    y : array (N,) of integers
    backend : Backend
        The backend of the model.
    batch_size : int
        Samples per forward pass.
    rows : array (M,) of integers, optional
        Use these samples instead of all.
    allow_nonfinite : bool
        Whether samples whose highest score is NaN or infinite count as wrong, with an infinite loss; otherwise they
        raise an error.
    communicator : Communicator, optional
        Connects workers with the same model and samples, each of which evaluates some of the batches.

    Returns
    -------
    Evaluation

    Raises
    ------
    ArgumentError
        If `X` is empty, or `y` does not have one label for each sample, or a label is not the number of a class, or the
        scores are not one row for each sample.
    ArgumentTypeError
        If the labels or `batch_size` are not integers.
    NonFiniteLossError
        If the highest score of a sample is NaN or infinite.

    Examples
    --------
    >>> from xpconv.nn import TwoLayerNet
    >>> net = TwoLayerNet(input_dim=4, num_classes=3, rng=0)
    >>> accuracy, loss = evaluate(net, np.zeros((6, 4)), np.arange(6) % 3, net.backend)
    >>> (
    ...     round(accuracy, 3),
    ...     round(loss, 3),
    ... )  # equal scores, of which the first is the highest
    (0.333, 1.099)
    """
    X, y, xp = _samples(X), y if hasattr(y, "shape") else np.asarray(y), backend.xp
    if tuple(y.shape) != (X.shape[0],):
        raise ArgumentError(
            f"X has {X.shape[0]} samples but y has shape {tuple(y.shape)}; expected one label for each, (N,)"
            + label_hint("y", y)
        )
    if rows is not None:
        X, y = take_rows(X, rows), take_rows(y, rows)
    communicator = communicator or Communicator()
    batches, totals = list(_batches(X.shape[0], batch_size)), list[Array]()
    share = len(batches) / communicator.size
    for batch in batches[round(communicator.rank * share) : round((communicator.rank + 1) * share)]:
        totals.append(_batch_totals(_scores(model, X[batch, ...]), backend.asarray(y[batch]), xp))
    hits, nonfinite, unknown, loss = _add_totals(totals, communicator, backend)
    N = X.shape[0]
    if unknown:
        raise ArgumentError(
            f"y has {unknown:.0f} labels out of range; expected 0 to {_scores(model, X[:1, ...]).shape[1] - 1}"
        )
    if nonfinite and not allow_nonfinite:
        raise NonFiniteLossError(_nonfinite_text(int(nonfinite), N))
    return Evaluation(hits / N, inf if nonfinite else loss / N)


def _batch_totals(scores: Array, labels: Array, xp: Any) -> Array:
    """Return the numbers of hits, of scores that are not finite and of unknown labels, and the sum of the losses."""
    C = scores.shape[1]
    check_labels(labels, labels.shape[0], C, xp)
    labels = xp.astype(labels, xp.int64)
    finite = xp.isfinite(xp.max(scores, axis=1))  # The maximum of scores with NaN is NaN.
    hits = xp.logical_and(xp.argmax(scores, axis=1) == labels, finite)
    unknown = xp.logical_or(labels < 0, labels >= C)
    counts = [xp.sum(xp.astype(flag, xp.float64)) for flag in (hits, xp.logical_not(finite), unknown)]
    with np.errstate(all="ignore"):  # the scores may be NaN
        loss, _ = softmax_loss(xp.astype(scores, xp.float64), labels, reduction="sum")
    return xp.stack([*counts, loss])


def _add_totals(totals: list[Array], communicator: Communicator, backend: Backend) -> list[float]:
    """Add the totals of all batches in order, so that the bits do not depend on the number of workers."""
    own = to_host(backend.xp.stack(totals)).tolist() if totals else []
    rows = [row for table in communicator.gather_objects(own) for row in table]
    return [reduce(add, column, 0.0) for column in zip(*rows, strict=True)]  # sum() rounds differently


def _samples(X: Array) -> Array:
    X = as_rows(X)
    X = X if hasattr(X, "shape") else np.asarray(X)
    if not X.shape or X.shape[0] == 0:
        raise ArgumentError(f"X has shape {tuple(X.shape)}; expected (N, ...) with N at least 1")
    return X


def _batches(N: int, batch_size: int) -> Iterator[slice]:
    batch_size = check_count("batch_size", batch_size)
    return (slice(start, min(start + batch_size, N)) for start in range(0, N, batch_size))


def _scores(model: Any, X: Array) -> Array:
    scores = model.loss(X)
    shape = tuple(getattr(scores, "shape", ()))
    if len(shape) != 2 or shape[0] != X.shape[0] or shape[1] == 0:
        raise ArgumentError(
            f"model.loss(X) returned scores of shape {shape}; expected ({X.shape[0]}, C), one row for each sample"
        )
    return scores


def _nonfinite_text(count: int, N: int) -> str:
    return (
        f"the scores of {count} of {N} samples are NaN or infinite; expected numbers: a parameter of the "
        "model, or X, has NaN or values that are too large"
    )


def take_rows(a: Any, rows: np.ndarray) -> Any:
    """Return some rows of an array, on its device; of Rows they are read later.

    Examples
    --------
    >>> take_rows(np.array([1.5, 2.5, 3.5]), np.array([2, 0]))
    array([3.5, 1.5])
    """
    if isinstance(a, Rows):
        return a.select(rows)
    backend = backend_of(a)
    return backend.xp.take(a, backend.asarray(rows), axis=0)


class MirrorAveraged:
    """A model whose scores are the mean of a model's scores for each image and for its mirror image.

    It has ``loss(X)`` for scores, so it can take a model's place in `evaluate`, `accuracy` and `probabilities`. Since
    scores are averaged, its probabilities are the geometric means of both probabilities, normalised.

    With `shift`, half of the weight is that of the image and its mirror image, a quarter that of both shifted up and
    left, and a quarter that of both shifted down and right, with mirrored borders (Jordan, "94% on CIFAR-10 in 3.29
    Seconds on a Single GPU", 2024, section 3.5).

    Parameters
    ----------
    model : object
        Its ``loss(X)`` returns scores (N, C) of images (N, C, H, W).
    shift : int
        Pixels by which images are shifted; 0 for no shifts.

    Examples
    --------
    >>> from xpconv.nn import ConvNet
    >>> net = ConvNet([4], input_dim=(1, 4, 4), num_classes=3, rng=0)
    >>> image = np.arange(16.0).reshape(1, 1, 4, 4)
    >>> probs = [
    ...     probabilities(MirrorAveraged(net), X)
    ...     for X in (image, np.flip(image, axis=-1))
    ... ]
    >>> np.allclose(*probs)
    True
    """

    def __init__(self, model: Any, shift: int = 0) -> None:
        self.model, self.shift = model, check_count("shift", shift, 0)

    def loss(self, X: Array) -> Array:
        """Return the averaged scores (N, C) of images (N, C, H, W), of any array library.

        Raises
        ------
        ArgumentError
            If `X` are not images.
        """
        X = _samples(X)
        if len(X.shape) != 4:
            raise ArgumentError(f"X has shape {tuple(X.shape)}; expected images (N, C, H, W), which can be mirrored")
        scores = self._mirrored(X)
        if not self.shift:
            return scores
        padded = _reflected(X, self.shift)
        ends = [slice(start, start + X.shape[axis]) for axis in (2, 3) for start in (0, 2 * self.shift)]
        up_left, down_right = (padded[:, :, rows, cols] for rows, cols in zip(ends[:2], ends[2:], strict=True))
        return scores / 2 + (self._mirrored(up_left) + self._mirrored(down_right)) / 4

    def _mirrored(self, X: Array) -> Array:
        return (_scores(self.model, X) + _scores(self.model, backend_of(X).xp.flip(X, axis=-1))) / 2


def _reflected(X: Array, pixels: int) -> Array:
    """Return images with borders of a number of pixels that mirror them, without repeating the outermost pixels."""
    xp = backend_of(X).xp
    if pixels >= min(X.shape[2:]):
        raise ArgumentError(f"shift is {pixels}; expected less than the images' {min(X.shape[2:])} pixels")
    for axis in (2, 3):
        size = X.shape[axis]
        index = [*range(pixels, 0, -1), *range(size), *range(size - 2, size - 2 - pixels, -1)]
        X = xp.take(X, xp.asarray(index, device=backend_of(X).device), axis=axis)
    return X


def confusion_matrix(y_true: Array, y_pred: Array, num_classes: int | None = None) -> np.ndarray:
    """Count how often samples of each class were predicted to be of each class.

    Parameters
    ----------
    y_true : array (N,) of integers
        Labels.
    y_pred : array (N,) of integers, or array (N, C)
        Predicted classes, or scores or probabilities, the highest of which are the prediction.
    num_classes : int, optional
        C; by default that of the scores, or else one more than the largest label or prediction.

    Returns
    -------
    numpy.ndarray (C, C) of int64
        Row i and column j has the number of samples of class i that were predicted to be of class j.

    Raises
    ------
    ArgumentError
        If there are no samples, the shapes do not match, a label or prediction is out of range, or a score is NaN.
    ArgumentTypeError
        If labels or predictions are not integers.

    Examples
    --------
    >>> confusion_matrix([0, 0, 1, 2], [0, 1, 1, 2])
    array([[1, 1, 0],
           [0, 1, 0],
           [0, 0, 1]])
    """
    true, predicted = to_host(y_true), to_host(y_pred)
    if predicted.ndim == 2:
        predicted, num_classes = _highest(predicted, num_classes)
    if true.shape != predicted.shape or true.ndim != 1 or not true.size:
        raise ArgumentError(
            f"y_true has shape {true.shape} and y_pred {to_host(y_pred).shape}; expected labels (N,), N at least 1, "
            "and as many predictions (N,) or rows of scores (N, C)"
        )
    labels = {"y_true": true, "y_pred": predicted}
    for name, a in labels.items():
        if a.dtype.kind not in "iu":
            raise ArgumentTypeError(f"{name} has dtype {a.dtype}; expected integers: pass {name}.astype(int)")
    largest = max(int(a.max()) for a in labels.values())
    C = largest + 1 if num_classes is None else check_count("num_classes", num_classes)
    for name, a in labels.items():
        if a.min() < 0 or a.max() >= C:
            raise ArgumentError(f"{name} has labels from {a.min()} to {a.max()}; expected 0 to {C - 1}")
    cells = true.astype(np.int64) * C + predicted.astype(np.int64)
    return np.bincount(cells, minlength=C * C).reshape(C, C)


def _highest(scores: np.ndarray, num_classes: int | None) -> tuple[np.ndarray, int]:
    """Return the class with the highest score of each row, and the number of classes."""
    C = scores.shape[1]
    if num_classes not in (None, C) or not C:
        expected = "at least one" if num_classes is None else num_classes
        raise ArgumentError(f"y_pred has scores of {C} classes; expected {expected}")
    if np.isnan(scores).any():
        raise ArgumentError(f"y_pred has NaN in {np.isnan(scores).any(axis=1).sum()} rows; expected scores")
    return scores.argmax(axis=1), C


@dataclass(frozen=True, eq=False)
class ClassificationReport:
    """Precision, recall, F1 and support of each class, as `classification_report` returns them.

    ``str(report)`` is a table, which Jupyter shows as HTML. Its last row has the mean over classes (macro average) and
    all samples.

    Parameters
    ----------
    class_names : tuple of str
    precision : array (C,)
        Fraction of the predictions of a class that are right; 0 if there are none.
    recall : array (C,)
        Fraction of the samples of a class that are predicted to be of it; 0 if there are none.
    f1 : array (C,)
        Harmonic mean of precision and recall; 0 if both are 0.
    support : array (C,) of int64
        Number of samples of each class.
    accuracy : float

    Examples
    --------
    >>> report = classification_report([0, 0, 1, 1], [0, 1, 1, 1], ["cat", "dog"])
    >>> report.rows()[1]
    ('dog', '0.6667', '1.0000', '0.8000', '2')
    """

    class_names: tuple[str, ...]
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    support: np.ndarray
    accuracy: float

    HEADER = ("class", "precision", "recall", "F1", "support")

    def rows(self) -> list[tuple[str, ...]]:
        """Return the rows of the table as text, without its header."""
        numbers = np.stack([self.precision, self.recall, self.f1], axis=1)
        names = (*self.class_names, "mean")
        counts = (*self.support.tolist(), int(self.support.sum()))
        return [
            (name, *(f"{value:.4f}" for value in values), str(count))
            for name, values, count in zip(names, [*numbers, numbers.mean(axis=0)], counts, strict=True)
        ]

    def _repr_html_(self) -> str:
        return html_table(self.HEADER, self.rows())

    def __str__(self) -> str:
        rows = [self.HEADER, *self.rows()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join([name.ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(cells, widths[1:], strict=True))])
            for name, *cells in rows
        )


def classification_report(y_true: Array, y_pred: Array, class_names: Sequence[str] = ()) -> ClassificationReport:
    """Return precision, recall, F1 and support of each class.

    ``precision = hits / predicted``, ``recall = hits / support``, ``F1 = 2 * hits / (predicted + support)``; each is 0
    where its divisor is.

    Parameters
    ----------
    y_true, y_pred : array
        As for `confusion_matrix`.
    class_names : sequence of str, optional
        One name for each class; by default the numbers.

    Returns
    -------
    ClassificationReport
        A table if printed.

    Raises
    ------
    ArgumentError, ArgumentTypeError
        As for `confusion_matrix`, whose number of classes is that of `class_names`.

    Examples
    --------
    >>> print(classification_report([0, 0, 1, 1], [0, 1, 1, 1], ["cat", "dog"]))
    class  precision  recall      F1  support
    cat       1.0000  0.5000  0.6667        2
    dog       0.6667  1.0000  0.8000        2
    mean      0.8333  0.7500  0.7333        4
    """
    counts = confusion_matrix(y_true, y_pred, len(class_names) or None)
    hits, support, predicted = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)

    def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
        return part / np.maximum(whole, 1)

    return ClassificationReport(
        tuple(map(str, class_names or range(len(counts)))),
        precision=ratio(hits, predicted),
        recall=ratio(hits, support),
        f1=ratio(2 * hits, predicted + support),
        support=support,
        accuracy=float(hits.sum() / support.sum()),
    )


def merits_of_checks(
    accuracies: Sequence[float], losses: Sequence[float], patience_on: str
) -> list[tuple[float, float]]:
    """Return the merit of each check: the higher its accuracy or the lower its loss; the other one decides ties.

    Parameters
    ----------
    accuracies, losses : sequence of float
        On the validation images, at each check. A value that is not finite is worse than all others.
    patience_on : {"accuracy", "loss"}

    Examples
    --------
    >>> merits_of_checks([0.5, 0.9, 0.9], [1.2, 0.7, 0.4], "accuracy")
    [(0.5, -1.2), (0.9, -0.7), (0.9, -0.4)]
    """
    signed = [(accuracy, -loss) for accuracy, loss in zip(accuracies, losses, strict=True)]
    pairs = signed if patience_on == "accuracy" else [(second, first) for first, second in signed]
    return [
        (first, second if isfinite(second) else -inf) if isfinite(first) else (-inf, -inf) for first, second in pairs
    ]


def checks_since_best(values: Sequence[Any]) -> int:
    """Return the number of values after the best one, the first of tied maxima.

    Examples
    --------
    >>> checks_since_best([0.1, 0.7, 0.6, 0.7]), checks_since_best([])
    (2, 0)
    """
    return len(values) - 1 - values.index(max(values)) if values else 0


def l2_penalty(model: Any) -> float:
    """Return the L2 term of a model's loss, ``0.5 * reg * sum(W * W)`` over all weights W.

    Examples
    --------
    >>> from xpconv import TwoLayerNet
    >>> l2_penalty(TwoLayerNet(reg=0.0, rng=0))
    0.0
    """
    weights = (to_host(w).astype(np.float64) for name, w in model.params.items() if name.startswith("W"))
    reg = float(getattr(model, "reg", 0.0))
    return 0.5 * reg * sum(float(np.sum(w * w)) for w in weights) if reg else 0.0


def loss_of_equal_scores(loss: str, num_classes: int, num_samples: int = 1) -> tuple[float, str]:
    """Return the loss of a net whose scores are equal, and its formula: ``ln C`` for softmax, ``C - 1`` for the SVM.

    A softmax loss that is a sum over `num_samples` samples is that many times ``ln C``.

    Examples
    --------
    >>> loss_of_equal_scores("svm", 10)
    (9.0, '10 - 1')
    """
    if loss == "svm":
        return float(num_classes - 1), f"{num_classes} - 1"
    return num_samples * log(num_classes), f"{num_samples} ln {num_classes}" if num_samples > 1 else f"ln {num_classes}"


def probabilities(model: Any, X: Array, batch_size: int = 500) -> np.ndarray:
    """Return the softmax of a model's scores, in host memory.

    Parameters
    ----------
    model : object
        Its ``loss(X)`` returns scores (N, C).
    X : array (N, ...)
    batch_size : int
        Samples per forward pass.

    Returns
    -------
    numpy.ndarray (N, C)
        In float64; the sum of each row is 1.

    Raises
    ------
    ArgumentError
        If `X` is empty, or the scores are not one row for each sample.
    NonFiniteLossError
        If the highest score of a sample is NaN or infinite.

    Examples
    --------
    >>> from xpconv.nn import TwoLayerNet
    >>> probabilities(
    ...     TwoLayerNet(input_dim=4, num_classes=3, rng=0), np.zeros((1, 4))
    ... ).round(3)
    array([[0.333, 0.333, 0.333]])
    """
    X = _samples(X)
    scores = [to_host(_scores(model, X[batch, ...])) for batch in _batches(X.shape[0], batch_size)]
    joined = np.concatenate(scores).astype(np.float64)
    highest = joined.max(axis=1, keepdims=True)
    if nonfinite := int((~np.isfinite(highest)).sum()):
        raise NonFiniteLossError(_nonfinite_text(nonfinite, len(joined)))
    with ignore_underflow():  # The exponential of a low score may become 0.
        probs = np.exp(joined - highest)
        return np.asarray(probs / probs.sum(axis=1, keepdims=True))
