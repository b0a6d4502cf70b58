"""Metrics: confusion matrix and report against scikit-learn, and averages over an image, its mirror and its shifts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import assert_array
from xpconv import ConvNet
from xpconv.backend import to_host
from xpconv.errors import ArgumentError, ArgumentTypeError
from xpconv.training.metrics import (
    MirrorAveraged,
    accuracy,
    classification_report,
    confusion_matrix,
    evaluate,
    probabilities,
)

sklearn = pytest.importorskip("sklearn.metrics")

LABELS = st.integers(2, 5).flatmap(
    lambda C: st.tuples(st.just(C), st.lists(st.tuples(st.integers(0, C - 1), st.integers(0, C - 1)), min_size=1))
)


@given(LABELS)
def test_confusion_matrix_and_report_are_those_of_scikit_learn(drawn):
    C, pairs = drawn
    true, predicted = np.array(pairs).T
    np.testing.assert_array_equal(
        confusion_matrix(true, predicted, C), sklearn.confusion_matrix(true, predicted, labels=range(C))
    )
    report = classification_report(true, predicted, [f"c{i}" for i in range(C)])
    expected = sklearn.precision_recall_fscore_support(true, predicted, labels=range(C), zero_division=0)
    for ours, theirs in zip((report.precision, report.recall, report.f1, report.support), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    assert report.accuracy == pytest.approx(sklearn.accuracy_score(true, predicted))


def test_the_number_of_classes_is_found(backend):
    assert confusion_matrix([0, 3], [1, 1]).shape == (4, 4)
    scores = backend.asarray(np.array([[0.1, 0.7, 0.2], [0.5, 0.2, 0.3]]))
    counts = confusion_matrix(backend.asarray(np.array([1, 2])), scores)
    assert type(counts) is np.ndarray
    assert counts.dtype == np.int64
    assert counts.tolist() == [[0, 0, 0], [0, 1, 0], [1, 0, 0]]


def test_the_table_is_aligned_and_ends_with_the_means():
    report = classification_report([0, 0, 1, 2], [0, 1, 1, 0], ["a", "long name", "c"])
    assert str(report).splitlines() == [
        "class      precision  recall      F1  support",
        "a             0.5000  0.5000  0.5000        2",
        "long name     0.5000  1.0000  0.6667        1",
        "c             0.0000  0.0000  0.0000        1",
        "mean          0.3333  0.5000  0.3889        4",
    ]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            ([0, 1], [0]),
            ArgumentError,
            r"y_true has shape \(2,\) and y_pred \(1,\); expected labels \(N,\), N at least 1",
        ),
        (([], []), ArgumentError, r"y_true has shape \(0,\)"),
        (([0, 1], np.zeros((3, 2))), ArgumentError, r"y_true has shape \(2,\) and y_pred \(3, 2\)"),
        (([0.0, 1.0], [0, 1]), ArgumentTypeError, r"y_true has dtype float64; expected integers: pass y_true\.astype"),
        (([0, 1], [0, 2], 2), ArgumentError, "y_pred has labels from 0 to 2; expected 0 to 1"),
        (([-1, 1], [0, 1]), ArgumentError, "y_true has labels from -1 to 1; expected 0 to 1"),
        (([0, 1], [0, 1], 0), ArgumentError, "num_classes is 0; expected an int, 1 or more"),
        (([0], np.zeros((1, 2)), 3), ArgumentError, "y_pred has scores of 2 classes; expected 3"),
        (([0], np.array([[np.nan, 1]])), ArgumentError, "y_pred has NaN in 1 rows; expected scores"),
    ],
)
def test_labels_that_cannot_be_counted_are_refused_by_name(arguments, error, message):
    with pytest.raises(error, match=message):
        confusion_matrix(*arguments)


def make_net(backend):
    return ConvNet([4, "pool", 5], input_dim=(2, 6, 5), num_classes=3, dtype="float64", rng=0, backend=backend)


@pytest.mark.parametrize("where", ["host", "device"])
def test_scores_are_averaged_over_an_image_and_its_mirror(backend, where):
    net = make_net(backend)
    X = np.random.default_rng(0).standard_normal((7, 2, 6, 5))
    y = np.arange(7) % 3
    scores = sum(to_host(net.loss(images)) for images in (X, X[..., ::-1].copy())) / 2
    expected = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    images = backend.asarray(X) if where == "device" else X
    np.testing.assert_allclose(probabilities(MirrorAveraged(net), images, batch_size=3), expected, rtol=1e-10)
    assert accuracy(MirrorAveraged(net), images, y, net.backend) == np.mean(scores.argmax(axis=1) == y)
    loss = evaluate(MirrorAveraged(net), images, y, net.backend).loss
    assert loss == pytest.approx(-np.log(expected[np.arange(7), y]).mean(), rel=1e-10)


@pytest.mark.parametrize("shift", [1, 2])
def test_scores_are_averaged_over_shifted_images(backend, shift):
    """Half the weight is that of the unshifted image, and the borders of shifted ones are mirrored."""
    net = make_net(backend)
    X = np.random.default_rng(0).standard_normal((7, 2, 6, 5))
    padded = np.pad(X, ((0, 0), (0, 0), (shift, shift), (shift, shift)), mode="reflect")
    views = [(X, 1 / 2), (padded[:, :, :6, :5], 1 / 4), (padded[:, :, 2 * shift :, 2 * shift :], 1 / 4)]
    expected = sum(
        weight / 2 * to_host(net.loss(backend.asarray(image.copy())))
        for view, weight in views
        for image in (view, view[..., ::-1])
    )
    scores = MirrorAveraged(net, shift=shift).loss(backend.asarray(X))
    assert_array(scores, expected, backend, "float64")


def test_images_are_larger_than_the_shift():
    with pytest.raises(ArgumentError, match="shift is 5; expected less than the images' 5 pixels"):
        MirrorAveraged(make_net("numpy"), shift=5).loss(np.zeros((2, 2, 6, 5)))


def test_only_images_can_be_mirrored():
    with pytest.raises(ArgumentError, match=r"X has shape \(7, 4\); expected images \(N, C, H, W\), which can be mir"):
        probabilities(MirrorAveraged(make_net("numpy")), np.zeros((7, 4)))
