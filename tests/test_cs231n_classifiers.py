"""The classifiers and features of assignment 1, against loops and other libraries."""

import subprocess
import sys
from math import atan2, degrees, hypot

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xpconv import cs231n
from xpconv.cs231n.classifiers import KNearestNeighbor, LinearClassifier, LinearSVM, Softmax
from xpconv.cs231n.classifiers.linear_svm import svm_loss_naive, svm_loss_vectorized
from xpconv.cs231n.classifiers.neural_net import TwoLayerNet
from xpconv.cs231n.classifiers.softmax import softmax_loss_naive, softmax_loss_vectorized
from xpconv.cs231n.features import color_histogram_hsv, extract_features, hog_feature, rgb2gray
from xpconv.cs231n.gradient_check import eval_numerical_gradient
from xpconv.errors import ArgumentError, ArgumentTypeError, CheckpointError
from xpconv.testing import rel_error

rng = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _seed():
    """Start from one state of NumPy's global generator, and leave it as it was."""
    state = np.random.get_state()
    np.random.seed(0)
    yield
    np.random.set_state(state)


# ---- linear losses

LOSSES = {
    "svm": (svm_loss_naive, svm_loss_vectorized),
    "softmax": (softmax_loss_naive, softmax_loss_vectorized),
}


def expected_loss(kind, W, X, y, reg):
    """Return the loss by its definition, in plain Python."""
    total = 0.0
    for x, label in zip(X.tolist(), y.tolist(), strict=True):
        scores = [sum(a * b for a, b in zip(x, column, strict=True)) for column in W.T.tolist()]
        if kind == "svm":
            total += sum(max(0.0, s - scores[label] + 1) for j, s in enumerate(scores) if j != label)
        else:
            total -= np.log(np.exp(scores[label]) / sum(map(np.exp, scores)))
    return total / len(X) + reg * sum(w**2 for w in W.ravel().tolist())


def linear_problem(dtype="float64"):
    W, X = rng.standard_normal((5, 4)).astype(dtype), rng.standard_normal((7, 5)).astype(dtype)
    return W, X, rng.integers(0, 4, 7)


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("reg", [0.0, 0.3])
def test_both_forms_have_the_defined_loss_and_its_gradient(kind, reg):
    W, X, y = linear_problem()
    for loss_of in LOSSES[kind]:
        loss, dW = loss_of(W, X, y, reg)
        assert type(loss) is float
        assert loss == pytest.approx(expected_loss(kind, W, X, y, reg), rel=1e-12)
        numeric = eval_numerical_gradient(lambda W: expected_loss(kind, W, X, y, reg), W, verbose=False)
        assert rel_error(numeric, dW) < 1e-6


@pytest.mark.torch
@pytest.mark.parametrize("kind", LOSSES)
def test_losses_and_gradients_are_those_of_torch(kind):
    torch = pytest.importorskip("torch")
    W, X, y = linear_problem()
    weights = torch.tensor(W, requires_grad=True)
    scores, labels = torch.tensor(X) @ weights, torch.tensor(y)
    if kind == "svm":  # torch divides the sum over the classes by their number
        loss = torch.nn.functional.multi_margin_loss(scores, labels) * W.shape[1]
    else:
        loss = torch.nn.functional.cross_entropy(scores, labels)
    loss = loss + 0.3 * (weights**2).sum()
    loss.backward()
    for loss_of in LOSSES[kind]:
        found, dW = loss_of(W, X, y, 0.3)
        assert found == pytest.approx(loss.item(), rel=1e-12)
        np.testing.assert_allclose(dW, weights.grad.numpy(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("loss_of", [f for pair in LOSSES.values() for f in pair])
def test_gradients_have_the_dtype_of_the_weights(loss_of):
    W, X, y = linear_problem("float32")
    assert loss_of(W, X, y, np.float64(0.1))[1].dtype == np.float32
    assert loss_of(W, X.astype("float64"), y.astype("uint8"), np.array([0.1]))[1].dtype == np.float32
    assert loss_of(np.ones((5, 4), int), X, y, 0)[1].dtype == np.float64


@pytest.mark.parametrize("loss_of", [f for pair in LOSSES.values() for f in pair])
def test_arguments_are_left_alone_and_large_scores_do_not_overflow(loss_of):
    W, X, y = linear_problem()
    for array in (W, X, y):
        array.flags.writeable = False
    with np.errstate(all="raise", under="ignore"):
        loss, dW = loss_of(1e4 * W, X, y, 0.0)
    assert np.isfinite(loss)
    assert np.isfinite(dW).all()


@pytest.mark.parametrize("loss_of", [f for pair in LOSSES.values() for f in pair])
def test_editions_until_2016_halve_the_regularisation(loss_of, monkeypatch):
    W, X, y = linear_problem()
    with_reg, without = loss_of(W, X, y, 0.5), loss_of(W, X, y, 0.0)
    for edition, share in ((2016, 0.5), (2017, 1.0), (None, 1.0)):
        monkeypatch.setattr(cs231n, "edition", edition)
        loss, dW = loss_of(W, X, y, 0.5)
        assert loss - without[0] == pytest.approx(share * (with_reg[0] - without[0]))
        np.testing.assert_allclose(dW - without[1], share * (with_reg[1] - without[1]), atol=1e-14)


@pytest.mark.parametrize("loss_of", [f for pair in LOSSES.values() for f in pair])
def test_bad_arguments_of_a_loss_are_named(loss_of):
    W, X, y = linear_problem()
    with pytest.raises(ArgumentError, match=r"X has shape \(7, 4\) and W has shape \(5, 4\); expected \(N, D\)"):
        loss_of(W, X[:, 1:], y, 0.0)
    with pytest.raises(ArgumentError, match=r"X has shape \(0, 5\) and .*, with N at least 1"):
        loss_of(W, X[:0], y[:0], 0.0)
    with pytest.raises(ArgumentError, match="reg is nan; expected a finite number, 0 or more"):
        loss_of(W, X, y, float("nan"))
    with pytest.raises(ArgumentError, match=r"y .*\(7, 1\)"):
        loss_of(W, X, y[:, None], 0.0)
    with pytest.raises(ArgumentError, match=r"y .*4"):
        loss_of(W, X, np.full(7, 4), 0.0)
    with pytest.raises(ArgumentTypeError, match=r"y .*float64"):
        loss_of(W, X, y.astype(float), 0.0)


# ---- linear classifiers


def clusters(num=300):
    """Return points around three centres, with a column of ones, and the centre of each."""
    y = rng.integers(0, 3, num)
    X = np.array([[3.0, 0.0], [0.0, 3.0], [-3.0, -3.0]])[y] + rng.standard_normal((num, 2))
    return np.column_stack([X, np.ones(num)]), y


@pytest.mark.parametrize("kind", [LinearSVM, Softmax])
def test_training_takes_the_courses_steps_and_prints_its_lines(kind, capsys):
    X, y = clusters()
    classifier = kind()
    assert classifier.W is None
    np.random.seed(3)
    losses = classifier.train(X, y, learning_rate=0.1, reg=1e-3, num_iters=201, batch_size=50, verbose=True)

    np.random.seed(3)
    loss_of = LOSSES["svm" if kind is LinearSVM else "softmax"][0]
    W, expected = 0.001 * np.random.randn(3, 3), []
    for _ in range(201):
        batch = np.random.choice(300, 50)
        loss, dW = loss_of(W, X[batch], y[batch], 1e-3)
        expected.append(loss)
        W = W - 0.1 * dW
    np.testing.assert_allclose(losses, expected, rtol=1e-9)
    np.testing.assert_allclose(classifier.W, W, rtol=1e-9)
    assert capsys.readouterr().out.splitlines() == [f"iteration {i} / 201: loss {losses[i]:f}" for i in (0, 100, 200)]
    assert classifier.predict(X).dtype == np.int64
    assert np.mean(classifier.predict(X) == y) > 0.95


def test_training_goes_on_from_the_weights_that_are_there():
    X, y = clusters()
    classifier = Softmax()
    first = classifier.train(X, y, learning_rate=0.1)
    kept = classifier.W
    before = kept.copy()
    assert classifier.train(X, y, learning_rate=0.1, num_iters=1)[0] < first[0]
    np.testing.assert_array_equal(kept, before)  # a copy that a notebook keeps does not change
    assert classifier.train(X, y, num_iters=0) == []


def test_a_learning_rate_that_is_too_high_ends_in_predictions_not_in_an_error():
    X, y = clusters()
    with np.errstate(all="ignore"):
        for classifier in (LinearSVM(), Softmax()):
            losses = classifier.train(1e200 * X, y, learning_rate=1e200, num_iters=5)
            assert len(losses) == 5
            assert classifier.predict(X).shape == y.shape


def test_bad_arguments_of_a_linear_classifier_are_named():
    X, y = clusters()
    classifier = Softmax()
    with pytest.raises(ArgumentError, match=r"the classifier has no weights: call train\(X, y\) or load\(fname\)"):
        classifier.predict(X)
    with pytest.raises(ArgumentError, match=r"call train\(X, y\) before save"):
        classifier.save("nowhere")
    with pytest.raises(ArgumentError, match=r"X has shape \(300, 3, 1\) and y has shape \(300,\); .* reshape images"):
        classifier.train(X[..., None], y)
    with pytest.raises(ArgumentError, match="learning_rate is -1; expected a finite number, 0 or more"):
        classifier.train(X, y, learning_rate=-1)
    with pytest.raises(ArgumentError, match="batch_size is 0; expected an int, 1 or more"):
        classifier.train(X, y, batch_size=0)
    classifier.train(X, y)
    with pytest.raises(ArgumentError, match=r"X has shape \(300, 2\); expected \(N, 3\), since W has shape \(3, 3\)"):
        classifier.predict(X[:, :2])
    with pytest.raises(TypeError, match="abstract"):
        LinearClassifier()


def test_weights_are_saved_as_a_plain_array_and_come_back(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    X, y = clusters()
    classifier, other = Softmax(), Softmax()
    classifier.train(X, y)
    assert other.load("best_softmax.npy") is False
    classifier.save("best_softmax.npy")
    assert other.load("best_softmax.npy") is True
    assert capsys.readouterr().out.splitlines() == [
        "best_softmax.npy not available.",
        "best_softmax.npy saved.",
        "best_softmax.npy loaded.",
    ]
    np.testing.assert_array_equal(other.W, classifier.W)
    np.testing.assert_array_equal(np.load("best_softmax.npy", allow_pickle=False), classifier.W)


def test_a_pickle_is_refused_with_a_way_to_read_it(tmp_path):
    path = tmp_path / "softmax.npy"
    np.save(path, {"W": np.ones((3, 2))})
    classifier = Softmax()
    with pytest.raises(CheckpointError, match=r"cannot read weights from .*softmax\.npy: .*allow_pickle=True"):
        classifier.load(path)
    for wrong in (np.ones(3), np.ones((2, 2), int), np.full((2, 2), np.nan)):
        np.save(path, wrong)
        with pytest.raises(CheckpointError, match=r"softmax\.npy has no matrix of finite weights"):
            classifier.load(path)
    assert classifier.W is None


# ---- nearest neighbours


@settings(max_examples=50)
@given(st.integers(1, 9), st.integers(1, 12), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_all_three_distances_are_the_defined_ones(num_test, num_train, D, seed):
    generator = np.random.default_rng(seed)
    X, X_train = (generator.integers(0, 256, (n, D)) for n in (num_test, num_train))
    expected = [[sum((a - b) ** 2 for a, b in zip(x, t, strict=True)) ** 0.5 for t in X_train] for x in X]
    classifier = KNearestNeighbor()
    for dtype in ("uint8", "int64", "float32", "float64"):  # bytes do not wrap around
        classifier.train(X_train.astype(dtype), np.zeros(num_train))
        for distances in (
            classifier.compute_distances_two_loops(X.astype(dtype)),
            classifier.compute_distances_one_loop(X.astype(dtype)),
            classifier.compute_distances_no_loops(X.astype(dtype)),
        ):
            assert distances.dtype == np.float64
            np.testing.assert_allclose(distances, expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("k", [1, 2, 5, 40])
def test_labels_are_those_of_scikit_learn(k):
    neighbors = pytest.importorskip("sklearn.neighbors")
    X, y = clusters(240)
    y = 10 * y - 10  # labels need not count from 0
    classifier, reference = KNearestNeighbor(), neighbors.KNeighborsClassifier(k, algorithm="brute")
    classifier.train(X[:200], y[:200])
    reference.fit(X[:200], y[:200])
    for num_loops in (0, 1, 2):
        predicted = classifier.predict(X[200:], k=k, num_loops=num_loops)
        assert predicted.dtype == np.float64
        np.testing.assert_array_equal(predicted, reference.predict(X[200:]))


def test_ties_go_to_the_smallest_label_and_the_first_sample():
    classifier = KNearestNeighbor()
    classifier.train(np.zeros((4, 1)), np.array([7, 3, 7, 3]))
    np.testing.assert_array_equal(classifier.predict_labels(np.array([[2.0, 1, 1, 2]]), k=4), [3])
    np.testing.assert_array_equal(classifier.predict_labels(np.array([[1.0, 1, 1, 1], [2, 1, 1, 1]])), [7, 3])
    np.testing.assert_array_equal(classifier.predict_labels(np.array([[1.0, 1, 1, 1]]), k=3), [7])


def test_the_distance_of_equal_samples_is_not_nan():
    X = rng.standard_normal((50, 30)) * 1e3
    classifier = KNearestNeighbor()
    classifier.train(X, np.arange(50))
    with np.errstate(all="raise"):
        np.testing.assert_array_equal(classifier.predict(X), np.arange(50))


def test_bad_arguments_of_the_neighbours_are_named():
    classifier = KNearestNeighbor()
    with pytest.raises(ArgumentError, match=r"has no training samples: call train\(X, y\) first"):
        classifier.predict(np.ones((2, 3)))
    with pytest.raises(ArgumentError, match=r"X has shape \(2, 3, 1\) and y has shape \(2,\); .* reshape images"):
        classifier.train(np.ones((2, 3, 1)), np.ones(2))
    classifier.train(np.ones((4, 3)), np.ones(4))
    with pytest.raises(ArgumentError, match="num_loops is 3; expected an int from 0 to 2"):
        classifier.predict(np.ones((2, 3)), num_loops=3)
    with pytest.raises(ArgumentError, match="k is 5; expected an int from 1 to 4"):
        classifier.predict(np.ones((2, 3)), k=5)
    with pytest.raises(ArgumentError, match=r"X has shape \(2, 4\); expected \(N, 3\)"):
        classifier.predict(np.ones((2, 4)))
    with pytest.raises(ArgumentError, match=r"dists has shape \(2, 3\); expected \(N, 4\), a distance to each"):
        classifier.predict_labels(np.ones((2, 3)))


# ---- the net of assignment 1


def toy_net():
    np.random.seed(0)
    net = TwoLayerNet(4, 10, 3, std=1e-1)
    np.random.seed(1)
    return net, 10 * np.random.randn(5, 4), np.array([0, 1, 2, 2, 1])


def test_the_toy_net_has_the_published_scores_loss_and_training(monkeypatch):
    net, X, y = toy_net()
    published = [
        [-0.81233741, -1.27654624, -0.70335995],
        [-0.17129677, -1.18803311, -0.47310444],
        [-0.51590475, -1.01354314, -0.8504215],
        [-0.15419291, -0.48629638, -0.52901952],
        [-0.00618733, -0.12435261, -0.15226949],
    ]
    np.testing.assert_allclose(net.loss(X), published, atol=5e-9)
    assert net.loss(X, y, reg=0.05)[0] == pytest.approx(1.30378789133, abs=1e-11)
    monkeypatch.setattr(cs231n, "edition", 2016)
    assert net.loss(X, y, reg=0.1)[0] == pytest.approx(1.30378789133, abs=1e-11)
    monkeypatch.setattr(cs231n, "edition", None)
    np.random.seed(0)
    net = TwoLayerNet(4, 10, 3, std=1e-1)
    stats = net.train(X, y, X, y, learning_rate=1e-1, reg=5e-6, num_iters=100)
    assert stats["loss_history"][-1] == pytest.approx(0.017149607938732093, rel=1e-9)


def test_gradients_of_the_net_are_differences_of_its_loss():
    net, X, y = toy_net()
    grads = net.loss(X, y, reg=0.05)[1]
    assert grads.keys() == net.params.keys()
    for name, gradient in grads.items():
        numeric = eval_numerical_gradient(lambda _: net.loss(X, y, reg=0.05)[0], net.params[name], verbose=False)
        assert rel_error(numeric, gradient) < 1e-8


def test_the_nets_history_has_a_loss_an_iteration_and_accuracies_an_epoch(capsys):
    X, y = clusters(100)
    net = TwoLayerNet(3, 20, 3, std=0.1)
    stats = net.train(
        X, y, X[:7], y[:7], learning_rate=0.5, learning_rate_decay=0.5, num_iters=101, batch_size=30, verbose=True
    )
    assert {name: len(history) for name, history in stats.items()} == {
        "loss_history": 101,
        "train_acc_history": 34,  # 100 // 30 iterations an epoch
        "val_acc_history": 34,
    }
    assert {type(value) for history in stats.values() for value in history} == {float}
    assert capsys.readouterr().out.splitlines() == [
        f"iteration {i} / 101: loss {stats['loss_history'][i]:f}" for i in (0, 100)
    ]
    assert np.mean(net.predict(X) == y) > 0.9


def test_a_decay_of_0_ends_training_after_the_first_iteration():
    net, X, y = toy_net()
    losses = net.train(X, y, X, y, learning_rate_decay=0, num_iters=3, batch_size=5)["loss_history"]
    first = {name: value.copy() for name, value in net.params.items()}
    net.train(X, y, X, y, learning_rate=0, num_iters=3)
    assert len(losses) == 3
    for name, value in net.params.items():
        np.testing.assert_array_equal(value, first[name])


def test_bad_arguments_of_the_net_are_named():
    net, X, y = toy_net()
    with pytest.raises(ArgumentError, match="hidden_size is 0; expected an int, 1 or more"):
        TwoLayerNet(4, 0, 3)
    with pytest.raises(ArgumentError, match="reg is -1; expected a finite number, 0 or more"):
        net.loss(X, y, reg=-1)
    with pytest.raises(ArgumentError, match="learning_rate is inf; expected a finite number, 0 or more"):
        net.train(X, y, X, y, learning_rate=float("inf"))
    with pytest.raises(
        ArgumentError, match=r"X has shape \(5, 4\) and y has shape \(4,\); expected \(N, D\) and \(N,\)"
    ):
        net.train(X, y[:4], X, y)
    with pytest.raises(ArgumentError, match=r"X_val has shape \(5, 4\) and y_val has shape \(5, 1\)"):
        net.train(X, y, X, y[:, None])


# ---- features


def hog_by_loops(image):
    """Return the histograms of a grey image, pixel by pixel."""
    H, W = image.shape
    histograms = {}
    for i in range(H // 8 * 8):
        for j in range(W // 8 * 8):
            gx = image[i, j + 1] - image[i, j] if j + 1 < W else 0.0
            gy = image[i + 1, j] - image[i, j] if i + 1 < H else 0.0
            angle = degrees(atan2(gy, gx + 1e-15)) + 90
            if 0 < angle < 180:
                key = j // 8, i // 8, int(angle // 20)
                histograms[key] = histograms.get(key, 0.0) + hypot(gx, gy) / 64
    return [
        histograms.get((column, row, bin_), 0.0)
        for column in range(W // 8)
        for row in range(H // 8)
        for bin_ in range(9)
    ]


@pytest.mark.parametrize("shape", [(8, 8), (32, 32), (16, 24), (29, 12)])
def test_orientation_histograms_are_those_of_loops(shape):
    image = rng.uniform(0, 255, shape)
    np.testing.assert_allclose(hog_feature(image), hog_by_loops(image), rtol=1e-12, atol=1e-12)
    colours = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    np.testing.assert_allclose(hog_feature(colours), hog_by_loops(rgb2gray(colours)), rtol=1e-12, atol=1e-12)
    grey = colours[..., 0]  # bytes do not wrap around
    np.testing.assert_array_equal(hog_feature(grey), hog_feature(grey.astype(float)))


def test_orientation_histograms_are_local_means_of_scipy():
    """The course averages with SciPy's filter and takes every eighth value."""
    ndimage = pytest.importorskip("scipy.ndimage")
    colours = rng.uniform(0, 255, (32, 32, 3))
    image = colours @ [0.299, 0.587, 0.144]
    gx, gy = (np.diff(image, axis=axis, append=image.take([-1], axis=axis)) for axis in (1, 0))
    angles = np.degrees(np.arctan2(gy, gx + 1e-15)) + 90
    found = hog_feature(colours).reshape(4, 4, 9)
    for i in range(9):
        inside = (20 * i <= angles) & (angles < 20 * (i + 1)) & (angles > 0)
        means = ndimage.uniform_filter(np.where(inside, np.hypot(gx, gy), 0), size=8)[4::8, 4::8]
        np.testing.assert_allclose(found[:, :, i], means.T, atol=1e-10)


def test_hues_are_those_of_matplotlib():
    colors = pytest.importorskip("matplotlib.colors")
    levels = np.array([0, 1, 100, 128, 254, 255.0])
    colours = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(6, 36, 3)  # ties and greys, too
    hues = colors.rgb_to_hsv(colours / 255)[..., 0] * 255
    for nbin in (1, 10, 256):
        expected, _ = np.histogram(hues, bins=nbin, range=(0, 255))
        np.testing.assert_allclose(color_histogram_hsv(colours, nbin), expected / expected.sum(), rtol=1e-12, atol=0)
        counts = color_histogram_hsv(colours, nbin=nbin, normalized=False)
        np.testing.assert_allclose(counts, expected * (255 / nbin), rtol=1e-12)


def test_hues_of_bytes_and_of_fractions_are_the_same():
    image = rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)
    expected = color_histogram_hsv(image.astype(float))
    assert expected.sum() == pytest.approx(1)
    np.testing.assert_array_equal(color_histogram_hsv(image), expected)
    np.testing.assert_allclose(color_histogram_hsv(image / 255, xmax=1), expected)


def test_features_of_images_are_put_side_by_side(capsys):
    images = rng.integers(0, 256, (5, 32, 32, 3)).astype(float)
    features = extract_features(images, [hog_feature, lambda image: color_histogram_hsv(image, nbin=10)])
    assert features.shape == (5, 154)
    for image, row in zip(images, features, strict=True):
        np.testing.assert_array_equal(row[:144], hog_feature(image))
        np.testing.assert_array_equal(row[144:], color_histogram_hsv(image))
    assert extract_features(images[:0], [hog_feature]).shape == (0,)
    assert extract_features(images[..., :1], [lambda image: image[0]]).shape == (5, 32)  # grey, without its last axis
    extract_features(np.zeros((2001, 1, 1, 2)), [np.ravel], verbose=True)
    assert capsys.readouterr().out.splitlines() == [
        "Done extracting features for 1000 / 2001 images",
        "Done extracting features for 2000 / 2001 images",
    ]


def test_bad_arguments_of_the_features_are_named():
    with pytest.raises(ArgumentError, match=r"im has shape \(8, 7, 3\); expected .* at least 8 by 8 pixels"):
        hog_feature(np.zeros((8, 7, 3)))
    with pytest.raises(ArgumentError, match=r"im has shape \(3, 32, 32\); expected an image \(H, W, 3\) or \(H, W\)"):
        hog_feature(np.zeros((3, 32, 32)))
    with pytest.raises(ArgumentError, match=r"im has shape \(8, 8\); expected an RGB image \(H, W, 3\)"):
        color_histogram_hsv(np.zeros((8, 8)))
    with pytest.raises(ArgumentError, match=r"im has values from -1\.0 to 300\.0; expected 0 to xmax = 255"):
        color_histogram_hsv(np.array([[[-1.0, 0, 300]]]))
    with pytest.raises(ArgumentError, match="nbin is 0; expected an int, 1 or more"):
        color_histogram_hsv(np.zeros((8, 8, 3)), nbin=0)
    with pytest.raises(ArgumentError, match=r"feature_fns return shapes \(2, 2\); expected one dimension each"):
        extract_features(np.zeros((1, 2, 2)), [lambda image: image])
    with pytest.raises(ArgumentError, match="feature_fns return 1 features for image 1 but 3 for image 0"):
        extract_features(np.array([[3.0], [1.0]]), [lambda image: np.zeros(int(image))])


def test_features_import_no_other_library():
    code = "import sys, xpconv.cs231n.features; print(*({'matplotlib', 'scipy', 'skimage'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"
