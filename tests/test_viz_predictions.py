"""Pictures of predictions: the confusion matrix, and the images with the least likely labels."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from xpconv.backend import get_backend
from xpconv.errors import ArgumentError
from xpconv.viz import save_confusion_matrix, save_mistakes


def matrix_of(figure):
    """Return the counts written into a confusion matrix, and the fractions that its colours show."""
    axes = figure.axes[0]
    C = len(axes.images[0].get_array())
    counts = np.zeros((C, C), int)
    for text in axes.texts:
        j, i = (int(x) for x in text.get_position())
        counts[i, j] = int(text.get_text())
    return counts, np.asarray(axes.images[0].get_array())


def test_confusion_matrix_has_true_classes_in_rows_and_predicted_ones_in_columns(tmp_path, figures):
    y, predicted = [0, 0, 0, 1, 2, 2], [0, 1, 1, 1, 0, 2]
    save_confusion_matrix(y, predicted, ["cat", "dog", "emu"], tmp_path / "confusion.png")
    counts, fractions = matrix_of(figures[0])
    assert counts.tolist() == [[1, 2, 0], [0, 1, 0], [1, 0, 1]]
    np.testing.assert_allclose(fractions, [[1 / 3, 2 / 3, 0], [0, 1, 0], [0.5, 0, 0.5]])
    axes = figures[0].axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog", "emu"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")
    assert axes.get_title() == "3 of 6 images correct"


def overlaps(texts, figure):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in texts if text.get_text()]
    return [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]


@pytest.mark.parametrize("classes", [2, 20, 100])
def test_numbers_and_names_do_not_overlap(tmp_path, figures, classes):
    y = np.repeat(np.arange(classes), 3000)
    predicted = np.where(np.arange(len(y)) % 2, y, np.random.default_rng(0).integers(0, classes, len(y)))
    save_confusion_matrix(y, predicted, [f"class {i}" for i in range(classes)], tmp_path / "confusion.png")
    axes = figures[0].axes[0]
    assert not overlaps(axes.texts, figures[0])
    assert not overlaps(axes.get_yticklabels(), figures[0])
    with Image.open(tmp_path / "confusion.png") as picture:
        assert 400 <= min(picture.size) <= max(picture.size) <= 2500


def test_confusion_matrix_takes_arrays_on_any_device(tmp_path, figures):
    pytest.importorskip("array_api_strict")
    move = get_backend("array_api_strict:device1").asarray
    save_confusion_matrix(move(np.array([0, 1])), move(np.array([1, 1])), ["a", "b"], tmp_path / "confusion.png")
    assert matrix_of(figures[0])[0].tolist() == [[0, 1], [0, 1]]


@pytest.mark.parametrize(("y", "predicted"), [([0, 1], [0]), ([], []), ([0, 2], [0, 1]), ([0, 1], [0, -1])])
def test_labels_of_the_wrong_shape_or_range_are_refused(tmp_path, y, predicted):
    with pytest.raises(ArgumentError, match=r"expected labels \(N,\) from 0 to 1 in both, N at least 1"):
        save_confusion_matrix(y, predicted, ["a", "b"], tmp_path / "confusion.png")
    assert not list(tmp_path.iterdir())


def titles_and_images(figure):
    (axes,) = figure.axes
    return [(text.get_text(), image.get_array()) for text, image in zip(axes.texts, axes.images, strict=True)]


def overlaps_images(axes, figure):
    """Return the places of images that another image, a text or the border of the figure cuts off."""
    renderer = figure.canvas.get_renderer()
    boxes = [image.get_window_extent(renderer) for image in axes.images]
    others = [*boxes, *(text.get_window_extent(renderer) for text in axes.texts)]
    return [
        i
        for i, box in enumerate(boxes)
        if sum(box.overlaps(other) for other in others) > 1 or box.x0 < 0 or box.y0 < 0 or box.x1 > figure.bbox.x1
    ]


@pytest.mark.parametrize("channels", [1, 3])
def test_images_with_the_least_likely_true_classes_come_first(tmp_path, figures, channels):
    X = np.arange(4 * channels * 4, dtype=np.uint8).reshape(4, channels, 2, 2)
    probs = np.array([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7], [0.95, 0.05]])
    y = np.array([0, 1, 0, 1])  # probabilities of the true classes: 0.9, 0.4, 0.3, 0.05
    save_mistakes(X, y, probs, ["cat", "dog"], tmp_path / "mistakes.png", count=4)
    titles, images = zip(*titles_and_images(figures[0]), strict=True)
    assert titles == ("dog\n→ cat (0.95)", "cat\n→ dog (0.70)", "dog\n→ cat (0.60)", "cat\n→ cat (0.90)")
    weights = [text.get_fontweight() for text in figures[0].axes[0].texts]
    assert weights == ["bold", "bold", "bold", "normal"]
    for image, i in zip(images, (3, 2, 1, 0), strict=True):
        np.testing.assert_array_equal(image, X[i].transpose(1, 2, 0).squeeze())
    assert figures[0].get_suptitle().endswith("\n3 of 4 images wrong, in bold")


def test_a_picture_without_mistakes_mentions_no_bold_titles(tmp_path, figures):
    save_mistakes(np.zeros((2, 1, 4, 4), np.uint8), [0, 1], np.eye(2), ["cat", "dog"], tmp_path / "mistakes.png")
    assert figures[0].get_suptitle().endswith("\n0 of 2 images wrong")


@pytest.mark.parametrize("count", [1, 3, 7, 20])
def test_count_images_or_all_are_drawn_and_no_text_overlaps(tmp_path, figures, count):
    rng = np.random.default_rng(0)
    X, y, probs = rng.integers(0, 256, (12, 3, 8, 8), np.uint8), rng.integers(0, 3, 12), rng.random((12, 3))
    names = ["automobile", "grasshopper", "golden retriever puppy"]
    save_mistakes(X, y, probs, names, tmp_path / "mistakes.png", count=count)
    assert len(titles_and_images(figures[0])) == min(count, 12)
    (axes,) = figures[0].axes
    assert not overlaps([*axes.texts, *figures[0].texts], figures[0])
    assert not overlaps_images(axes, figures[0])


@pytest.mark.parametrize(
    ("X", "y", "probs"),
    [((2, 4, 5, 5), (2,), (2, 3)), ((2, 1, 5, 5), (3,), (2, 3)), ((2, 1, 5, 5), (2,), (2, 4)), ((2, 25), (2,), (2, 3))],
)
def test_shapes_that_do_not_match_are_refused(tmp_path, X, y, probs):
    with pytest.raises(ArgumentError, match=r"expected images \(N, 1 or 3, H, W\), labels \(N,\) and \(N, 3\)"):
        save_mistakes(np.zeros(X), np.zeros(y, int), np.zeros(probs), ["a", "b", "c"], tmp_path / "mistakes.png")


def test_class_names_are_not_read_as_formulas(tmp_path):
    names = ["$\\frac$", "b$", "^_{"]
    save_confusion_matrix([0, 1, 2], [1, 1, 2], names, tmp_path / "confusion.png")
    images = np.zeros((3, 1, 4, 4), np.uint8)
    save_mistakes(images, np.arange(3), np.eye(3), names, tmp_path / "mistakes.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["confusion.png", "mistakes.png"]


@pytest.mark.parametrize("shape", [(1, 1, 8), (1, 8, 1), (1, 1, 1), (3, 1, 8)])
def test_images_of_one_row_or_column_are_drawn(tmp_path, shape):
    X, probs = np.zeros((2, *shape), np.uint8), [[0.5, 0.5]] * 2
    save_mistakes(X, [0, 1], probs, ["a", "b"], tmp_path / "mistakes.png")
    assert (tmp_path / "mistakes.png").exists()


def test_no_images_and_no_count_are_refused(tmp_path):
    labels, probs = np.zeros(2, int), np.zeros((2, 2))
    with pytest.raises(ArgumentError, match=r"X has shape \(0, 1, 4, 4\); expected one image or more"):
        save_mistakes(np.zeros((0, 1, 4, 4)), labels[:0], probs[:0], ["a", "b"], tmp_path / "mistakes.png")
    with pytest.raises(ArgumentError, match="count is 0; expected an int, 1 or more"):
        save_mistakes(np.zeros((2, 1, 4, 4)), labels, probs, ["a", "b"], tmp_path / "mistakes.png", count=0)
