"""The course's layers: its names, dicts and defaults over xpconv's layers, on NumPy arrays."""

import importlib
import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import find_backend
from xpconv import cs231n, save_model
from xpconv import layers as F
from xpconv.cs231n import data_utils, fast_layers, im2col, im2col_cython, layer_utils, layers, optim, vis_utils
from xpconv.cs231n.classifiers.fc_net import FullyConnectedNet
from xpconv.cs231n.gradient_check import (
    eval_numerical_gradient_array,
    eval_numerical_gradient_blobs,
    eval_numerical_gradient_net,
    grad_check_sparse,
)
from xpconv.data import cifar10
from xpconv.errors import ArgumentError, ArgumentTypeError, DatasetError
from xpconv.testing import rel_error

rng = np.random.default_rng(0)


def values(*shape, dtype="float64"):
    return rng.standard_normal(shape).astype(dtype)


# ---- names


SPELLINGS = {
    "layers": "affine_forward affine_backward relu_forward relu_backward softmax_loss svm_loss batchnorm_forward "
    "batchnorm_backward batchnorm_backward_alt layernorm_forward layernorm_backward dropout_forward "
    "dropout_backward conv_forward_naive conv_backward_naive max_pool_forward_naive max_pool_backward_naive "
    "spatial_batchnorm_forward spatial_batchnorm_backward spatial_groupnorm_forward "
    "spatial_groupnorm_backward",
    "fast_layers": " ".join(
        f"{layer}_{way}_{kind}"
        for way in ("forward", "backward")
        for layer, kinds in {"conv": ("fast", "im2col", "strides"), "max_pool": ("fast", "reshape", "im2col")}.items()
        for kind in kinds
    ),
    "im2col_cython": "im2col_cython col2im_cython col2im_6d_cython",
    "im2col": "get_im2col_indices im2col_indices col2im_indices",
    "layer_utils": " ".join(
        f"{name}_{way}"
        for way in ("forward", "backward")
        for name in ("affine_relu", "affine_bn_relu", "affine_ln_relu", "conv_relu", "conv_bn_relu", "conv_relu_pool")
    ),
    "optim": "sgd sgd_momentum rmsprop adam",
    "solver": "Solver",
    "gradient_check": "eval_numerical_gradient eval_numerical_gradient_array eval_numerical_gradient_blobs "
    "eval_numerical_gradient_net grad_check_sparse",
    "data_utils": "load_CIFAR_batch load_CIFAR10 get_CIFAR10_data load_tiny_imagenet load_models load_imagenet_val",
    "vis_utils": "visualize_grid vis_grid",
    "classifiers.fc_net": "TwoLayerNet FullyConnectedNet",
    "classifiers.cnn": "ThreeLayerConvNet",
    "classifiers.neural_net": "TwoLayerNet",
    "classifiers.linear_svm": "svm_loss_naive svm_loss_vectorized",
    "classifiers.softmax": "softmax_loss_naive softmax_loss_vectorized",
    "classifiers.k_nearest_neighbor": "KNearestNeighbor",
    "classifiers.linear_classifier": "LinearClassifier LinearSVM Softmax svm_loss_naive svm_loss_vectorized "
    "softmax_loss_naive softmax_loss_vectorized",
    "classifiers": "TwoLayerNet FullyConnectedNet ThreeLayerConvNet KNearestNeighbor LinearClassifier LinearSVM "
    "Softmax",
    "features": "extract_features rgb2gray hog_feature color_histogram_hsv",
}


@pytest.mark.parametrize("module", SPELLINGS)
def test_every_name_of_the_course_exists(module):
    found = importlib.import_module(f"xpconv.cs231n.{module}")
    assert set(SPELLINGS[module].split()) <= set(found.__all__)
    assert all(callable(getattr(found, name)) for name in found.__all__)


@pytest.mark.parametrize("module", ["layer_utils", "classifiers.fc_net", "classifiers.cnn"])
def test_star_imports_include_the_layers(module):
    namespace = {}
    exec(f"from xpconv.cs231n.{module} import *", namespace)
    for source in ("layers", "fast_layers", "layer_utils"):
        assert set(SPELLINGS[source].split()) <= set(namespace)


# ---- fast against naive


CONVS = [((2, 3, 7, 7), (4, 3, 3, 3), 2, 1), ((2, 3, 6, 5), (2, 3, 2, 4), 1, 0), ((1, 1, 8, 8), (2, 1, 3, 3), 3, 2)]
POOLS = [((2, 3, 6, 6), 2, 2, 2), ((2, 3, 7, 7), 3, 3, 2), ((1, 2, 5, 9), 2, 3, 1), ((2, 1, 7, 6), 3, 2, 3)]


@pytest.mark.parametrize("kind", ["fast", "im2col", "strides"])
@pytest.mark.parametrize(("x_shape", "w_shape", "stride", "pad"), CONVS)
def test_fast_conv_is_naive_conv(kind, x_shape, w_shape, stride, pad):
    x, w, b = values(*x_shape), values(*w_shape), values(w_shape[0])
    conv_param = {"stride": stride, "pad": pad}
    expected, naive_cache = layers.conv_forward_naive(x, w, b, conv_param)
    out, cache = getattr(fast_layers, f"conv_forward_{kind}")(x, w, b, conv_param)
    np.testing.assert_allclose(out, expected, atol=1e-12)
    dout = values(*out.shape)
    naive = layers.conv_backward_naive(dout, naive_cache)
    fast = getattr(fast_layers, f"conv_backward_{kind}")(dout, cache)
    for a, e, given in zip(fast, naive, (x, w, b), strict=True):
        assert a.shape == given.shape
        np.testing.assert_allclose(a, e, atol=1e-12)


@pytest.mark.parametrize("kind", ["fast", "im2col", "reshape"])
@pytest.mark.parametrize(("x_shape", "height", "width", "stride"), POOLS)
def test_fast_pool_is_naive_pool(kind, x_shape, height, width, stride):
    x = np.round(values(*x_shape), 1)  # with ties
    pool_param = {"pool_height": height, "pool_width": width, "stride": stride}
    expected, naive_cache = layers.max_pool_forward_naive(x, pool_param)
    out, cache = getattr(fast_layers, f"max_pool_forward_{kind}")(x, pool_param)
    np.testing.assert_array_equal(out, expected)
    dout = values(*out.shape)
    dx = getattr(fast_layers, f"max_pool_backward_{kind}")(dout, cache)
    np.testing.assert_allclose(dx, layers.max_pool_backward_naive(dout, naive_cache), atol=1e-14)


# ---- types and shapes


def every_layer(dtype):
    """Yield (name, arrays, forward of them, backward) for each layer of the course."""

    def v(*shape):
        return values(*shape, dtype=dtype)

    conv, pool = {"stride": 1, "pad": 1}, {"pool_height": 2, "pool_width": 2, "stride": 2}
    image, filters = v(2, 4, 4, 4), v(3, 4, 3, 3)
    flat, gammas = v(5, 4), (v(4), v(4))
    L, U, fast = layers, layer_utils, fast_layers
    train = {"mode": "train"}
    yield "affine", (v(5, 2, 2), v(4, 3), v(3)), L.affine_forward, L.affine_backward
    yield "relu", (flat,), L.relu_forward, L.relu_backward
    yield "batchnorm", (flat, *gammas), lambda *a: L.batchnorm_forward(*a, dict(train)), L.batchnorm_backward
    yield "batchnorm_alt", (flat, *gammas), lambda *a: L.batchnorm_forward(*a, dict(train)), L.batchnorm_backward_alt
    yield "batchnorm_test", (flat, *gammas), lambda *a: L.batchnorm_forward(*a, {"mode": "test"}), L.batchnorm_backward
    yield "layernorm", (flat, *gammas), lambda *a: L.layernorm_forward(*a, {}), L.layernorm_backward
    dropout = {"mode": "train", "p": 0.6, "seed": 3}
    yield "dropout", (flat,), lambda x: L.dropout_forward(x, dropout), L.dropout_backward
    yield "dropout_test", (flat,), lambda x: L.dropout_forward(x, {"mode": "test", "p": 0.6}), L.dropout_backward
    yield "conv_naive", (image, filters, v(3)), lambda *a: L.conv_forward_naive(*a, conv), L.conv_backward_naive
    yield "conv_fast", (image, filters, v(3)), lambda *a: fast.conv_forward_fast(*a, conv), fast.conv_backward_fast
    yield "pool_naive", (image,), lambda x: L.max_pool_forward_naive(x, pool), L.max_pool_backward_naive
    yield "pool_fast", (image,), lambda x: fast.max_pool_forward_fast(x, pool), fast.max_pool_backward_fast
    yield (
        "spatial_batchnorm",
        (image, *gammas),
        lambda *a: L.spatial_batchnorm_forward(*a, dict(train)),
        L.spatial_batchnorm_backward,
    )
    yield (
        "spatial_groupnorm",
        (image, v(1, 4, 1, 1), v(1, 4, 1, 1)),
        lambda *a: L.spatial_groupnorm_forward(*a, 2, {}),
        L.spatial_groupnorm_backward,
    )
    yield "affine_relu", (flat, v(4, 3), v(3)), U.affine_relu_forward, U.affine_relu_backward
    yield (
        "affine_bn_relu",
        (flat, v(4, 3), v(3), v(3), v(3)),
        lambda *a: U.affine_bn_relu_forward(*a, dict(train)),
        U.affine_bn_relu_backward,
    )
    yield (
        "affine_ln_relu",
        (flat, v(4, 3), v(3), v(3), v(3)),
        lambda *a: U.affine_ln_relu_forward(*a, {}),
        U.affine_ln_relu_backward,
    )
    yield ("conv_relu", (image, filters, v(3)), lambda *a: U.conv_relu_forward(*a, conv), U.conv_relu_backward)
    yield (
        "conv_bn_relu",
        (image, filters, v(3), v(3), v(3)),
        lambda *a: U.conv_bn_relu_forward(*a, conv, dict(train)),
        U.conv_bn_relu_backward,
    )
    yield (
        "conv_relu_pool",
        (image, filters, v(3)),
        lambda *a: U.conv_relu_pool_forward(*a, conv, pool),
        U.conv_relu_pool_backward,
    )


def by_name(dtype):
    return {name: rest for name, *rest in every_layer(dtype)}


NAMES = list(by_name("float64"))


def as_tuple(gradients):
    return gradients if isinstance(gradients, tuple) else (gradients,)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_the_forward_pass(name):
    arrays, forward, backward = by_name("float64")[name]
    out, cache = forward(*arrays)
    dout = values(*out.shape)
    for i, gradient in enumerate(as_tuple(backward(dout, cache))):

        def output(changed, i=i):
            return forward(*arrays[:i], changed, *arrays[i + 1 :])[0]

        numeric = eval_numerical_gradient_array(output, arrays[i], dout)
        assert gradient.shape == arrays[i].shape
        np.testing.assert_allclose(gradient, numeric, rtol=1e-5, atol=1e-6)


REMEMBER_NO_DTYPE = ("relu", "dropout", "dropout_test", "pool_fast")


@pytest.mark.parametrize("name", NAMES)
def test_float32_in_gives_float32_out(name):
    arrays, forward, backward = by_name("float32")[name]
    out, cache = forward(*arrays)
    assert out.dtype == np.float32
    dout = values(*out.shape, dtype="float32" if name in REMEMBER_NO_DTYPE else "float64")
    for gradient, given in zip(as_tuple(backward(dout, cache)), arrays, strict=True):
        assert gradient.shape == given.shape
        assert gradient.dtype == np.float32


@pytest.mark.parametrize("name", NAMES)
def test_integers_are_taken_as_float64(name):
    arrays, forward, backward = by_name("float64")[name]
    whole = [np.round(3 * a).astype(int) for a in arrays]
    out, cache = forward(*whole)
    assert out.dtype == np.float64
    np.testing.assert_array_equal(out, forward(*(a.astype(float) for a in whole))[0])
    gradients = as_tuple(backward(np.ones(out.shape, dtype=int), cache))
    assert {g.dtype for g in gradients} == {np.dtype("float64")}


@pytest.mark.parametrize("name", NAMES)
def test_inputs_are_not_written_to(name):
    arrays, forward, backward = by_name("float64")[name]
    for a in arrays:
        a.flags.writeable = False
    out, cache = forward(*arrays)
    dout = np.ones_like(out)
    dout.flags.writeable = False
    backward(dout, cache)


def test_integer_gammas_of_a_float32_image_keep_float32():
    x = values(2, 3, 4, 5, dtype="float32")
    out, cache = layers.spatial_batchnorm_forward(x, np.array([3, 4, 5]), np.array([6, 7, 8]), {"mode": "train"})
    dx, dgamma, dbeta = layers.spatial_batchnorm_backward(out, cache)
    assert [a.dtype for a in (out, dx, dgamma, dbeta)] == [np.float32] * 4


@pytest.mark.parametrize("shape", [(6,), (1, 6, 1, 1)])
def test_group_norm_gives_gradients_in_the_shape_of_gamma(shape):
    x = values(2, 6, 4, 5)
    gamma, beta = values(6), values(6)
    expected, expected_cache = F.groupnorm_forward(x, gamma, beta, groups=3, eps=1e-3)
    out, cache = layers.spatial_groupnorm_forward(
        x, gamma.reshape(shape), beta.reshape(shape), np.int64(3), {"eps": 1e-3}
    )
    np.testing.assert_array_equal(out, expected)
    gradients = layers.spatial_groupnorm_backward(out, cache)
    assert [g.shape for g in gradients] == [x.shape, shape, shape]
    for g, e in zip(gradients, F.groupnorm_backward(expected, expected_cache), strict=True):
        np.testing.assert_array_equal(g.reshape(-1), e.reshape(-1))


def test_options_may_be_numpy_integers():
    x, w, b = values(1, 1, 5, 5), values(1, 1, 3, 3), values(1)
    numbers = {"stride": np.int64(2), "pad": np.int64(1)}
    plain = {"stride": 2, "pad": 1}
    np.testing.assert_array_equal(
        fast_layers.conv_forward_fast(x, w, b, numbers)[0], fast_layers.conv_forward_fast(x, w, b, plain)[0]
    )


# ---- batch norm's dict


def test_running_averages_are_written_back_into_the_dict():
    x = values(10, 3)
    bn_param = {"mode": "train", "momentum": 0.8}
    layers.batchnorm_forward(x, np.ones(3), np.zeros(3), bn_param)
    np.testing.assert_allclose(bn_param["running_mean"], 0.2 * x.mean(axis=0))
    np.testing.assert_allclose(bn_param["running_var"], 0.2 * x.var(axis=0))
    layers.batchnorm_forward(x, np.ones(3), np.zeros(3), bn_param)
    np.testing.assert_allclose(bn_param["running_mean"], 0.36 * x.mean(axis=0))


def test_testing_uses_the_running_averages_without_changing_them():
    x = values(10, 3)
    bn_param = {"mode": "test", "eps": 0.5, "running_mean": np.array([1, 2, 3]), "running_var": np.array([4, 5, 6])}
    out, _ = layers.batchnorm_forward(x, np.ones(3), np.zeros(3), bn_param)
    np.testing.assert_allclose(out, (x - [1, 2, 3]) / np.sqrt([4.5, 5.5, 6.5]))
    np.testing.assert_array_equal(bn_param["running_mean"], [1, 2, 3])
    np.testing.assert_array_equal(bn_param["running_var"], [4, 5, 6])


def test_both_backward_passes_of_batch_norm_agree():
    x, gamma, beta = values(20, 7), values(7), values(7)
    out, cache = layers.batchnorm_forward(x, gamma, beta, {"mode": "train"})
    dout = values(*out.shape)
    for a, b in zip(layers.batchnorm_backward(dout, cache), layers.batchnorm_backward_alt(dout, cache), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


# ---- dropout


def test_dropout_keeps_float32_whatever_its_probability_is():
    x = np.ones((3, 5), np.float32)
    out, cache = layers.dropout_forward(x, {"mode": "train", "p": np.float64(0.5), "seed": 1})
    assert {out.dtype, layers.dropout_backward(out, cache).dtype} == {np.dtype("float32")}
    net = FullyConnectedNet([10], input_dim=5, dropout_keep_ratio=np.float64(0.5), dtype=np.float32)
    assert net.loss(x, np.arange(3))[0].dtype == np.float32


@pytest.mark.parametrize("seed", [None, 123])
def test_dropout_masks_are_the_draws_of_the_course(seed):
    x = values(30, 20)
    dropout_param = {"mode": "train", "p": 0.3} | ({} if seed is None else {"seed": seed})
    np.random.seed(7)
    out, cache = layers.dropout_forward(x, dropout_param)
    after = np.random.rand()
    np.random.seed(7 if seed is None else seed)
    mask = np.random.rand(30, 20) < 0.3
    assert after == np.random.rand()
    np.testing.assert_allclose(out, x * mask / 0.3, rtol=1e-14)
    assert cache[0] is dropout_param
    np.testing.assert_allclose(cache[1], mask / 0.3)
    np.testing.assert_allclose(layers.dropout_backward(np.ones_like(x), cache), mask / 0.3, rtol=1e-14)


def test_dropout_does_nothing_in_testing():
    x = values(3, 4)
    state = np.random.get_state()[1].copy()
    out, cache = layers.dropout_forward(x, {"mode": "test", "p": 0.3})
    np.testing.assert_array_equal(out, x)
    assert cache[1] is None
    np.testing.assert_array_equal(layers.dropout_backward(x, cache), x)
    np.testing.assert_array_equal(np.random.get_state()[1], state)


# ---- losses


@pytest.mark.parametrize("loss_of", [layers.softmax_loss, layers.svm_loss])
def test_losses_are_plain_floats(loss_of):
    x, y = values(6, 4, dtype="float32"), [0, 1, 2, 3, 0, 1]
    loss, dx = loss_of(x, y)
    assert type(loss) is float
    assert dx.dtype == np.float32
    assert dx.shape == (6, 4)


# ---- im2col


def test_columns_are_gathered_by_their_indices():
    x = values(2, 3, 5, 6)
    k, i, j = im2col.get_im2col_indices(x.shape, 3, 2, padding=1, stride=2)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    gathered = padded[:, k, i, j].transpose(1, 2, 0).reshape(3 * 3 * 2, -1)
    np.testing.assert_array_equal(im2col.im2col_indices(x, 3, 2, padding=1, stride=2), gathered)


def test_columns_make_a_convolution_a_product():
    x, w = values(2, 3, 6, 6), values(4, 3, 3, 3)
    product = w.reshape(4, -1) @ im2col.im2col_indices(x, 3, 3)
    out, _ = layers.conv_forward_naive(x, w, np.zeros(4), {"stride": 1, "pad": 1})
    np.testing.assert_allclose(product.reshape(4, 6, 6, 2).transpose(3, 0, 1, 2), out, atol=1e-12)


def test_col2im_adds_to_the_pixels_that_im2col_took():
    x = values(2, 3, 5, 6)
    cols = im2col.im2col_indices(x, 3, 2, padding=1, stride=2)
    other = values(*cols.shape)
    back = im2col.col2im_indices(other, x.shape, 3, 2, padding=1, stride=2)
    assert back.shape == x.shape
    assert np.sum(back * x) == pytest.approx(np.sum(other * cols))


def test_the_cython_module_has_the_courses_kernels():
    x = values(2, 3, 5, 6)
    cols = im2col_cython.im2col_cython(x, 3, 2, 1, 2)
    np.testing.assert_array_equal(cols, im2col.im2col_indices(x, 3, 2, padding=1, stride=2))
    expected = im2col.col2im_indices(cols, x.shape, 3, 2, padding=1, stride=2)
    np.testing.assert_array_equal(im2col_cython.col2im_cython(cols, 2, 3, 5, 6, 3, 2, 1, 2), expected)
    by_image = cols.reshape(3, 3, 2, 3, 4, 2).transpose(0, 1, 2, 5, 3, 4)
    np.testing.assert_array_equal(im2col_cython.col2im_6d_cython(by_image, 2, 3, 5, 6, 3, 2, 1, 2), expected)


def test_a_window_that_fits_nowhere_is_refused():
    with pytest.raises(ArgumentError, match=r"the window's height is 9 but the padded image's is 7"):
        im2col.im2col_indices(values(1, 1, 5, 5), 9, 3)


# ---- update rules, gradient checks, pictures


@pytest.mark.parametrize(
    ("name", "defaults"),
    [
        ("sgd", {"learning_rate": 1e-2}),
        ("sgd_momentum", {"learning_rate": 1e-2, "momentum": 0.9}),
        ("rmsprop", {"learning_rate": 1e-2, "decay_rate": 0.99, "epsilon": 1e-8}),
        ("adam", {"learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "t": 1}),
    ],
)
def test_update_rules_keep_the_courses_keys_and_defaults(name, defaults):
    w, dw = values(4, 5), values(4, 5)
    before = w.copy()
    next_w, config = getattr(optim, name)(w, dw)
    memory = {"sgd": (), "sgd_momentum": ("velocity",), "rmsprop": ("cache",), "adam": ("m", "v")}[name]
    assert {key: config[key] for key in config if key not in memory} == defaults
    assert all(config[key].shape == w.shape for key in memory)
    assert next_w.shape == w.shape
    np.testing.assert_array_equal(w, before)


@pytest.mark.parametrize("rule", optim.__all__)
def test_update_rules_take_the_names_of_every_edition(rule):
    w, dw = values(4, 5), values(4, 5)
    expected, _ = getattr(optim, rule)(w, dw, {"learning_rate": 0.1})
    for names in ("x", "dx"), ("w", "dw"):
        next_w, _ = getattr(optim, rule)(**dict(zip(names, (w, dw), strict=True)), config={"learning_rate": 0.1})
        np.testing.assert_array_equal(next_w, expected)


def test_an_update_without_a_gradient_is_refused():
    with pytest.raises(ArgumentTypeError, match=r"adam takes a parameter and its gradient: adam\(w, dw\) or adam\(x"):
        optim.adam(x=values(3))


def test_sparse_check_prints_slopes_and_leaves_x(capsys):
    x = values(3, 4)
    before = x.copy()
    grad_check_sparse(lambda x: float(np.sum(x**3)), x, 3 * x**2, num_checks=4)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    for line in lines:
        start, _, error = line.rpartition("relative error: ")
        assert start.startswith("numerical: ")
        assert " analytic: " in start
        assert float(error) < 1e-6
    np.testing.assert_array_equal(x, before)


def test_sparse_check_shows_a_wrong_gradient(capsys):
    x = np.ones((2, 2))
    grad_check_sparse(lambda x: float(np.sum(x**3)), x, 2 * x, num_checks=1)
    assert float(capsys.readouterr().out.rpartition(" ")[2]) == pytest.approx(0.2, rel=1e-6)


def test_grids_share_one_scale_or_not():
    images = np.stack([np.zeros((2, 3, 3)), np.ones((2, 3, 3)), np.full((2, 3, 3), 0.5)])
    grid = vis_utils.vis_grid(images)
    assert grid.shape == (6, 8, 3)
    np.testing.assert_array_equal(grid[:2, 4:7], 1)
    np.testing.assert_array_equal(grid[3:5, :3], 0.5)
    assert vis_utils.visualize_grid(values(4, 2, 3, 3), ubound=1.0, padding=2).max() == 1.0
    np.testing.assert_array_equal(vis_utils.vis_grid(np.full((1, 2, 2, 1), 7)), 0)
    with pytest.raises(ArgumentError, match=r"Xs has shape \(2, 3, 3\); expected images \(N, H, W, C\)"):
        vis_utils.vis_grid(images[0])


class Blob:
    def __init__(self, *shape):
        self.vals, self.diffs = values(*shape), values(*shape)


def test_gradients_of_blobs():
    x, w, out = Blob(3, 4), Blob(4, 2), Blob(3, 2)

    def forward(x, w, out):
        out.vals[...] = x.vals @ w.vals

    class Net:
        def forward(self):
            forward(x, w, out)

    before = x.vals.copy()
    for dx, dw in (
        eval_numerical_gradient_blobs(forward, (x, w), out),
        eval_numerical_gradient_net(Net(), (x, w), out, h=1e-6),
    ):
        np.testing.assert_allclose(dx, out.diffs @ w.vals.T, rtol=1e-6)
        np.testing.assert_allclose(dw, x.vals.T @ out.diffs, rtol=1e-6)
    np.testing.assert_array_equal(x.vals, before)


# ---- data


def test_models_of_a_folder_are_read_and_other_files_are_named(tmp_path):
    net = FullyConnectedNet([5], 15, 3)
    save_model(net, tmp_path / "one.safetensors")
    (tmp_path / "theirs.pickle").write_bytes(b"\x80\x04N.")
    with pytest.warns(RuntimeWarning, match=r"theirs\.pickle is passed over"):
        models = data_utils.load_models(tmp_path)
    assert list(models) == ["one.safetensors"]
    np.testing.assert_array_equal(models["one.safetensors"].params["W1"], net.params["W1"])


def test_a_folder_of_models_that_is_missing_is_named(tmp_path):
    with pytest.raises(DatasetError, match=r"there is no folder .*nowhere: create it and save models to it"):
        data_utils.load_models(tmp_path / "nowhere")


WNIDS = ("n02124075", "n04067472", "n04540053")
PIXELS = rng.integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)


@pytest.fixture
def tiny_imagenet(tmp_path):
    """Write three classes with two training images each, a validation image each, and three test images.

    Return the folder and the pixels of the training images as NumPy reads them.
    """
    image_module = pytest.importorskip("PIL.Image")

    def save(path, pixels):
        path.parent.mkdir(parents=True, exist_ok=True)
        image_module.fromarray(pixels).save(path, quality=95)
        return np.asarray(image_module.open(path), dtype=float)

    (tmp_path / "wnids.txt").write_text("\n".join(WNIDS) + "\n")
    (tmp_path / "words.txt").write_text(
        "n00001740\tentity\nn04540053\tvolleyball\nn02124075\tEgyptian cat\nn04067472\treel, spool\n"
    )
    train = []
    for pixels, wnid in zip(PIXELS, WNIDS, strict=True):
        colour = save(tmp_path / "train" / wnid / "images" / f"{wnid}_1.JPEG", pixels)
        grey = save(tmp_path / "train" / wnid / "images" / f"{wnid}_0.JPEG", pixels[..., 0])
        boxes = tmp_path / "train" / wnid / f"{wnid}_boxes.txt"
        boxes.write_text(f"{wnid}_1.JPEG\t0\t10\t63\t58\n{wnid}_0.JPEG\t6\t7\t50\t60\n")
        train += [colour, np.repeat(grey[..., None], 3, axis=-1)]
        save(tmp_path / "val" / "images" / f"val_{wnid}.JPEG", pixels)
        save(tmp_path / "test" / "images" / f"test_{wnid}.JPEG", pixels)
    (tmp_path / "val" / "val_annotations.txt").write_text(
        "".join(f"val_{wnid}.JPEG\t{wnid}\t0\t32\t44\t62\n" for wnid in reversed(WNIDS))
    )
    (tmp_path / "test" / "images" / ".DS_Store").touch()
    return tmp_path, np.stack(train).transpose(0, 3, 1, 2)


def test_tiny_imagenet_is_read_in_the_courses_layout(tiny_imagenet):
    folder, train = tiny_imagenet
    data = data_utils.load_tiny_imagenet(folder, dtype=np.float64, subtract_mean=False)
    assert data["class_names"] == [["Egyptian cat"], ["reel", "spool"], ["volleyball"]]
    np.testing.assert_array_equal(data["X_train"], train)
    np.testing.assert_array_equal(data["y_train"], [0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(data["X_val"], train[[4, 2, 0]])
    np.testing.assert_array_equal(data["y_val"], [2, 1, 0])
    np.testing.assert_array_equal(data["X_test"], train[[0, 2, 4]])
    assert data["y_test"] is None
    np.testing.assert_allclose(data["mean_image"], train.mean(axis=0), rtol=1e-14)

    (folder / "test" / "test_annotations.txt").write_text(f"test_{WNIDS[2]}.JPEG\t{WNIDS[2]}\n")
    data = data_utils.load_tiny_imagenet(str(folder))
    assert {data[name].dtype.name for name in ("X_train", "X_val", "X_test", "mean_image")} == {"float32"}
    np.testing.assert_allclose(data["X_test"], train[[4]] - train.mean(axis=0), atol=1e-4)
    np.testing.assert_array_equal(data["y_test"], [2])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "wnids.txt",
            None,
            r"cannot read .*wnids\.txt \(No such file or directory\): extract http.*tiny-imagenet-200\.zip",
        ),
        ("words.txt", "n02124075\n", r"words\.txt \(the line 'n02124075' has no second column\)"),
        ("words.txt", "n02124075\tcat\n", r"words\.txt \(it does not have the class 'n04067472'\)"),
        ("val/val_annotations.txt", "a.JPEG\tn1\t0\n", r"wnids\.txt \(it does not have the class 'n1'\)"),
        ("val/val_annotations.txt", "a.JPEG\tn02124075\n", r"cannot read the image .*val/images/a\.JPEG: No such file"),
        ("words.txt", b"\xff", r"words\.txt \('utf-8' codec"),
    ],
)
def test_damage_of_tiny_imagenet_is_named(tiny_imagenet, name, text, message):
    path = tiny_imagenet[0] / name
    if text is None:
        path.unlink()
    else:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DatasetError, match=message):
        data_utils.load_tiny_imagenet(tiny_imagenet[0])


class Danger:
    """Something that runs code when its pickle is run."""

    def __reduce__(self):
        return pytest.fail, ("the pickle was run",)


@pytest.fixture
def imagenet_val(tmp_path, monkeypatch):
    """Return a function that writes the course's file with a given label map."""
    path = tmp_path / "cs231n" / "datasets" / "imagenet_val_25.npz"
    path.parent.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)

    def write(label_map, protocol=2):
        file = io.BytesIO()
        header = {"descr": "|O", "fortran_order": False, "shape": ()}
        np.lib.format.write_array_header_1_0(file, header)
        pickle.dump(np.array(label_map, dtype=object), file, protocol=protocol)
        np.savez(path, X=PIXELS, y=np.array([281, 2, 517]))
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("label_map.npy", file.getvalue())

    return write


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_validation_images_are_read_without_running_the_pickle_of_their_names(imagenet_val, protocol):
    crane = "crane"  # two classes have this name: the pickle refers back to the first
    label_map = {i: f"class {i}, naïve" for i in range(3000)} | {134: crane, 517: crane, 281: "tabby, tabby cat"}
    imagenet_val(label_map, protocol)
    X, y, class_names = data_utils.load_imagenet_val()
    np.testing.assert_array_equal(X, PIXELS)
    np.testing.assert_array_equal(y, [281, 2, 517])
    assert class_names == label_map
    assert [len(part) for part in data_utils.load_imagenet_val(num=2)] == [2, 2, 3000]
    with pytest.raises(ArgumentError, match="num is 4; expected an int from 1 to 3"):
        data_utils.load_imagenet_val(num=4)


@pytest.mark.parametrize(
    "label_map",
    [Danger(), {0: Danger()}, {Danger(): "cat"}, {"cat": 0}, {}, [0, "cat"], {0: "cat", 1: 2}, {0: ("cat",)}],
)
def test_other_label_maps_are_refused_and_not_run(imagenet_val, label_map):
    imagenet_val(label_map)
    with pytest.raises(DatasetError, match=r"cannot read .*imagenet_val_25\.npz .*label_map is not a dict of ints"):
        data_utils.load_imagenet_val()


def test_missing_and_damaged_validation_images_are_named(imagenet_val):
    with pytest.raises(DatasetError, match=r"there is no file .*imagenet_val_25\.npz: download http.* to the folder"):
        data_utils.load_imagenet_val()
    path = Path("cs231n/datasets/imagenet_val_25.npz")
    path.write_bytes(b"PK")
    with pytest.raises(DatasetError, match=r"cannot read .*imagenet_val_25\.npz \(.*\): download http.* again"):
        data_utils.load_imagenet_val()


@pytest.fixture
def small_cifar(monkeypatch):
    """Replace CIFAR-10 by 300 training and 60 test images."""
    X, y = rng.integers(0, 256, (360, 3, 32, 32), dtype=np.uint8), rng.integers(0, 10, 360)
    monkeypatch.setattr(data_utils, "find_cifar10", lambda root=None: Path("anywhere"))
    monkeypatch.setattr(data_utils, "read_cifar10", lambda folder: (X[:300], y[:300], X[300:], y[300:]))
    return X, y


def test_splits_have_the_mean_training_image_subtracted(small_cifar):
    X, y = small_cifar
    data = data_utils.get_CIFAR10_data(num_training=200, num_validation=50, num_test=40)
    assert {k: (v.shape, v.dtype.name) for k, v in data.items()} == {
        "X_train": ((200, 3, 32, 32), "float64"),
        "y_train": ((200,), "int64"),
        "X_val": ((50, 3, 32, 32), "float64"),
        "y_val": ((50,), "int64"),
        "X_test": ((40, 3, 32, 32), "float64"),
        "y_test": ((40,), "int64"),
    }
    mean = X[:200].mean(axis=0)
    np.testing.assert_array_equal(data["X_train"], X[:200] - mean)
    np.testing.assert_array_equal(data["X_val"], X[200:250] - mean)
    np.testing.assert_array_equal(data["X_test"], X[300:340] - mean)
    np.testing.assert_array_equal(data["y_val"], y[200:250])


@pytest.mark.parametrize("given", [False, True])
def test_the_courses_own_folder_is_searched_before_anything_is_downloaded(tmp_path, monkeypatch, given):
    folder = tmp_path / ("mine" if given else "cs231n/datasets/cifar-10-batches-py")
    folder.mkdir(parents=True)
    (folder / "data_batch_1").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("XPCONV_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cifar10, "_download", lambda cache: pytest.fail("it downloads"))
    with pytest.raises(DatasetError, match=r"^(mine|cs231n/.*)/data_batch_1 is not a complete"):
        data_utils.get_CIFAR10_data(**{"cifar10_dir": "mine"} if given else {})


def test_subtracting_the_mean_is_optional(small_cifar):
    X, _ = small_cifar
    data = data_utils.get_CIFAR10_data(200, 50, 40, subtract_mean=False)
    np.testing.assert_array_equal(data["X_val"], X[200:250])
    assert data["X_val"].dtype == np.float64


def test_whole_batches_have_channels_last(small_cifar):
    X, y = small_cifar
    Xtr, Ytr, Xte, Yte = data_utils.load_CIFAR10("anywhere")
    assert Xtr.dtype == Xte.dtype == np.float64
    np.testing.assert_array_equal(Xtr, X[:300].transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(Xte, X[300:].transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(np.concatenate([Ytr, Yte]), y)


def test_a_batch_file_is_read(tmp_path):
    images = rng.integers(0, 256, (2, 3, 32, 32), dtype=np.uint8)
    path = tmp_path / "data_batch_1.bin"
    path.write_bytes(b"".join(bytes([label]) + image.tobytes() for label, image in zip((4, 9), images, strict=True)))
    X, Y = data_utils.load_CIFAR_batch(path)
    assert (X.shape, X.dtype, Y.tolist()) == ((2, 32, 32, 3), np.float64, [4, 9])
    np.testing.assert_array_equal(X, images.transpose(0, 2, 3, 1))


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"num_training": 50_000}, r"num_training \+ num_validation is 51000; expected at most 50000"),
        ({"num_test": 10_001}, r"num_test is 10001; expected at most 10000"),
        ({"num_validation": 0}, r"num_validation is 0; expected 1 or more"),
    ],
)
def test_impossible_numbers_of_images_are_refused(counts, message):
    with pytest.raises(ArgumentError, match=message):
        data_utils.get_CIFAR10_data(**counts)


# ---- mistakes


def ones(*shape):
    return np.ones(shape)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: layers.batchnorm_forward(ones(2, 3), ones(3), ones(3), {"mode": "eval"}),
            'Invalid forward batchnorm mode "eval"',
        ),
        (
            lambda: layers.spatial_batchnorm_forward(ones(2, 3, 4, 4), ones(3), ones(3), {"mode": 1}),
            'Invalid forward batchnorm mode "1"',
        ),
        (
            lambda: layers.batchnorm_forward(ones(2, 3), ones(3), ones(3), {}),
            r"bn_param is \{\}, without 'mode'; expected the keys 'mode'",
        ),
        (lambda: layers.dropout_forward(ones(2), {"mode": "eval", "p": 0.5}), 'Invalid forward dropout mode "eval"'),
        (
            lambda: layers.dropout_forward(ones(2), {"mode": "train", "p": 0}),
            "p is 0; expected the probability of keeping",
        ),
        (
            lambda: layers.conv_forward_naive(ones(1, 1, 3, 3), ones(1, 1, 2, 2), ones(1), {"stride": 1}),
            r"conv_param is \{'stride': 1\}, without 'pad'; expected the keys 'stride', 'pad'",
        ),
        (
            lambda: fast_layers.max_pool_forward_fast(ones(1, 1, 3, 3), {"pool_height": 2}),
            "without 'pool_width', 'stride'; expected the keys",
        ),
        (
            lambda: layers.conv_forward_naive(ones(1, 3, 3), ones(1, 1, 2, 2), ones(1), {"stride": 1, "pad": 0}),
            r"x has shape \(1, 3, 3\); expected \(N, C, H, W\)",
        ),
        (
            lambda: layers.conv_forward_naive(ones(1, 2, 3, 3), ones(1, 1, 2, 2), ones(1), {"stride": 1, "pad": 0}),
            r"w has shape \(1, 1, 2, 2\); expected \(F, 2, HH, WW\)",
        ),
        (
            lambda: layers.conv_forward_naive(ones(1, 8, 8, 3), ones(1, 3, 2, 2), ones(1), {"stride": 1, "pad": 0}),
            r"x has shape \(1, 8, 8, 3\), with its 3 channels last",
        ),
        (
            lambda: layers.spatial_batchnorm_forward(ones(2, 3), ones(3), ones(3), {"mode": "train"}),
            r"x has shape \(2, 3\); expected \(N, C, H, W\)",
        ),
        (
            lambda: layers.spatial_groupnorm_forward(ones(2, 6, 2, 2), ones(6), ones(6), 4, {}),
            "groups is 4; expected a divisor of the 6 channels of x",
        ),
        (
            lambda: layers.layernorm_forward(ones(2, 3), ones(4), ones(3), {}),
            r"gamma has shape \(4,\); expected \(3,\)",
        ),
        (lambda: layers.softmax_loss(ones(2, 3), np.array([0, 3])), "y has labels from 0 to 3; expected 0 to 2"),
    ],
)
def test_mistakes_are_value_errors_that_name_them(call, message):
    with pytest.raises(ArgumentError, match=message) as caught:
        call()
    assert isinstance(caught.value, ValueError)


def test_the_pair_that_forward_returns_is_no_array():
    pair = layers.affine_forward(ones(2, 3), ones(3, 4), ones(4))
    with pytest.raises(ArgumentTypeError, match=r"x is a pair of ndarray and tuple; expected an array: a forward pass"):
        layers.relu_forward(pair)


def test_a_probability_that_is_no_number_is_named():
    with pytest.raises(ArgumentTypeError, match="p is None; expected a probability from 0 to 1"):
        layers.dropout_forward(ones(2), {"mode": "train", "p": None})


def test_arrays_of_other_libraries_are_refused():
    x = find_backend("array_api_strict").asarray(ones(2, 3))
    with pytest.raises(ArgumentTypeError, match=r"x is on array_api_strict; the course's functions take NumPy arrays"):
        layers.relu_forward(x)


def test_relative_errors_of_the_fast_pool_are_zero():
    x, pool_param = values(3, 2, 8, 8), {"pool_height": 2, "pool_width": 2, "stride": 2}
    assert (
        rel_error(fast_layers.max_pool_forward_fast(x, pool_param)[0], layers.max_pool_forward_naive(x, pool_param)[0])
        == 0
    )


@pytest.mark.parametrize("forward", [layers.conv_forward_naive, fast_layers.conv_forward_fast])
def test_strides_are_whole_numbers_in_every_version(forward):
    with pytest.raises(ArgumentTypeError, match=r"stride is 1\.0; expected an int or a pair of ints"):
        forward(ones(1, 1, 3, 3), ones(1, 1, 2, 2), ones(1), {"stride": 1.0, "pad": 0})


@pytest.mark.parametrize("forward", [layers.max_pool_forward_naive, fast_layers.max_pool_forward_fast])
def test_windows_have_to_fit_in_every_version(forward):
    with pytest.raises(ArgumentError, match=r"the window's height is 4 but the padded image's is 3"):
        forward(ones(1, 1, 3, 3), {"pool_height": 4, "pool_width": 2, "stride": 1})


# ---- editions


@pytest.fixture
def edition_2017(monkeypatch):
    monkeypatch.setattr(cs231n, "edition", 2017)


@pytest.mark.parametrize("p", [0.3, 0.6, 0.75])
def test_p_is_the_probability_to_drop_in_the_2017_edition(edition_2017, p):
    np.random.seed(231)
    x = np.random.randn(500, 500) + 10
    dropout_param = {"mode": "train", "p": p}
    out, cache = layers.dropout_forward(x, dropout_param)
    assert np.mean(out == 0) == pytest.approx(p, abs=2e-3)
    assert out.mean() == pytest.approx(x.mean(), abs=0.05)
    np.testing.assert_allclose(layers.dropout_backward(x, cache), out)


def test_p_of_0_drops_nothing_in_the_2017_edition(edition_2017):
    x = values(3, 4)
    np.testing.assert_array_equal(layers.dropout_forward(x, {"mode": "train", "p": 0})[0], x)
    with pytest.raises(ArgumentError, match="p is 1; expected the probability of dropping a value, at least 0 and"):
        layers.dropout_forward(x, {"mode": "train", "p": 1})


def test_p_of_0_names_the_switch_of_editions():
    with pytest.raises(ArgumentError, match=r"of 2016 and 2017 it is that of dropping one; for these set xpconv\.cs23"):
        layers.dropout_forward(ones(2), {"mode": "train", "p": 0})


def test_an_edition_is_a_year(monkeypatch):
    monkeypatch.setattr(cs231n, "edition", "2017")
    with pytest.raises(ArgumentTypeError, match=r"xpconv\.cs231n\.edition is '2017'; expected a year"):
        layers.dropout_forward(ones(2), {"mode": "train", "p": 0.5})


# ---- caches are the course's, so that forward and backward may be replaced one at a time


def test_caches_are_the_tuples_of_the_starter_code():
    x, w, b = values(2, 3, 4, 4), values(2, 3, 3, 3), values(2)
    conv, pool = {"stride": 1, "pad": 1}, {"pool_height": 2, "pool_width": 2, "stride": 2}
    flat = values(2, 12), values(12, 5), values(5)
    for given, (_, cache) in [
        ((*flat,), layers.affine_forward(*flat)),
        ((x, w, b, conv), layers.conv_forward_naive(x, w, b, conv)),
        ((x, pool), layers.max_pool_forward_naive(x, pool)),
    ]:
        assert all(kept is a for kept, a in zip(cache, given, strict=True))
    assert layers.relu_forward(x)[1] is x


def test_our_backward_takes_the_cache_of_a_students_forward():
    x, w, b = values(2, 3, 4, 4), values(2, 3, 3, 3), values(2)
    conv, pool = {"stride": 1, "pad": 1}, {"pool_height": 2, "pool_width": 2, "stride": 2}
    for backward, cache, (out, own) in [
        (layers.conv_backward_naive, (x, w, b, conv), layers.conv_forward_naive(x, w, b, conv)),
        (layers.max_pool_backward_naive, (x, pool), layers.max_pool_forward_naive(x, pool)),
        (layers.relu_backward, x, layers.relu_forward(x)),
        (
            layers.affine_backward,
            (x, np.ones((48, 5)), np.zeros(5)),
            layers.affine_forward(x, np.ones((48, 5)), np.zeros(5)),
        ),
    ]:
        dout = values(*out.shape)
        for theirs, ours in zip(backward(dout, cache), backward(dout, own), strict=True):
            np.testing.assert_array_equal(theirs, ours)


def test_dropout_and_a_students_dropout_take_each_others_caches():
    x, param = values(30, 20), {"mode": "train", "p": 0.3, "seed": 5}
    np.random.seed(5)
    mask = (np.random.rand(30, 20) < 0.3) / 0.3
    out, (_, ours) = layers.dropout_forward(x, param)
    np.testing.assert_allclose(x * ours, out)
    np.testing.assert_allclose(layers.dropout_backward(x, (param, mask)), out)
