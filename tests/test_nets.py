"""Nets: parameters, losses and gradients, against the loop versions chained by hand and numerical gradients."""

import json
import re
from dataclasses import KW_ONLY, dataclass, field

import numpy as np
import pytest

from tests.helpers import assert_array, find_backend
from tests.nets import IMAGE, NETS
from xpconv import ConvNet, FullyConnectedNet, Preprocessing, Sequential, ThreeLayerConvNet, TwoLayerNet, layers, nn
from xpconv.errors import ArgumentError, ArgumentTypeError, DeviceMismatchError, OutOfMemoryError
from xpconv.io.model import load_model, save_model
from xpconv.layers import reference
from xpconv.nn._parts import run_pass
from xpconv.testing import eval_numerical_gradient, rel_error


@pytest.fixture(params=NETS, ids=lambda name: name.replace(" ", "-"))
def make(request):
    return NETS[request.param]


@pytest.fixture
def batch():
    rng = np.random.default_rng(5)
    return rng.standard_normal((4, *IMAGE)), rng.integers(0, 5, 4)


def test_gradients_are_those_of_the_loss(make, batch):
    X, y = batch
    net = make(dtype="float64", rng=0, reg=0.3, backend="numpy")
    _, grads = net.loss(X, y)
    assert grads.keys() == net.params.keys()
    rng = np.random.default_rng(0)
    for name, w in net.params.items():
        direction = rng.standard_normal(w.shape)
        start = w.copy()
        losses = []
        for h in (1e-6, -1e-6):
            w[...] = start + h * direction
            losses.append(float(net.loss(X, y)[0]))
        w[...] = start
        slope, expected = (losses[0] - losses[1]) / 2e-6, float(np.sum(grads[name] * direction))
        assert abs(slope - expected) < 1e-5 * max(1, abs(expected)), name


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_every_backend_gives_the_loss_and_gradients_of_numpy(make, batch, backend, dtype):
    X, y = batch
    with np.errstate(all="raise"):
        loss, grads = make(dtype=dtype, rng=0, reg=0.3, backend="numpy").loss(X, y)
    net = make(dtype=dtype, rng=0, reg=0.3, backend=backend)
    other_loss, other_grads = net.loss(X, y)
    assert_array(other_loss, loss, backend, dtype)
    for name in grads:
        assert_array(other_grads[name], grads[name], backend, dtype)
    assert_array(net.loss(X), backend.to_host(net.loss(X)), backend, dtype)
    for value in net.state.values():
        assert_array(value, backend.to_host(value), backend, dtype)


def test_three_layer_net_is_its_loop_layers_in_a_row(batch):
    X, y = batch
    net = NETS["three layers"](dtype="float64", rng=0, backend="numpy")
    p = net.params
    out, conv = reference.conv_forward(X, p["W1"], p["b1"], padding=1)
    out, relu1 = reference.relu_forward(out)
    out, pool = reference.max_pool_forward(out, kernel_size=2)
    out, affine1 = reference.affine_forward(out, p["W2"], p["b2"])
    out, relu2 = reference.relu_forward(out)
    scores, affine2 = reference.affine_forward(out, p["W3"], p["b3"])
    expected_loss, dout = reference.softmax_loss(scores, y)
    dout, dW3, db3 = reference.affine_backward(dout, affine2)
    dout, dW2, db2 = reference.affine_backward(reference.relu_backward(dout, relu2), affine1)
    dout = reference.relu_backward(reference.max_pool_backward(dout, pool), relu1)
    _, dW1, db1 = reference.conv_backward(dout, conv)
    loss, grads = net.loss(X, y)
    assert rel_error(loss, np.asarray(expected_loss)) < 1e-12
    for name, expected in {"W1": dW1, "b1": db1, "W2": dW2, "b2": db2, "W3": dW3, "b3": db3}.items():
        assert rel_error(grads[name], expected) < 1e-8, name
    np.testing.assert_allclose(net.loss(X), scores, rtol=1e-12)


def test_weights_start_from_the_same_bits_everywhere(make, backend):
    here, there = make(rng=0, backend="numpy"), make(rng=0, backend=backend)
    for name, w in here.params.items():
        assert np.array_equal(w, backend.to_host(there.params[name])), name


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_results_have_the_same_bits_for_any_number_of_threads(dtype, monkeypatch):
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((20, 3, 16, 16)), rng.integers(0, 10, 20)
    bits = {}
    for threads in ("1", "2", "4"):
        monkeypatch.setenv("XPCONV_NUM_THREADS", threads)
        nets = [
            ConvNet([32, "pool", 40], input_dim=(3, 16, 16), dtype=dtype, rng=0, backend="numpy"),
            ConvNet([16, 24], input_dim=(3, 16, 16), normalization="groupnorm", dtype=dtype, rng=0, backend="numpy"),
            ThreeLayerConvNet(input_dim=(3, 16, 16), hidden_dim=300, dtype=dtype, rng=0, backend="numpy"),
        ]
        results = [net.loss(X, y) for net in nets]
        bits[threads] = [np.asarray(a).tobytes() for loss, grads in results for a in (loss, *grads.values())]
    assert bits["1"] == bits["2"] == bits["4"]


def test_weights_follow_the_global_seed_in_layer_order():
    np.random.seed(231)
    net = ThreeLayerConvNet(
        input_dim=(2, 4, 4),
        num_filters=3,
        filter_size=3,
        hidden_dim=5,
        weight_scale=0.5,
        dtype=np.float64,
        backend="numpy",
    )
    np.random.seed(231)
    for name, shape in {"W1": (3, 2, 3, 3), "W2": (12, 5), "W3": (5, 10)}.items():
        np.testing.assert_array_equal(net.params[name], 0.5 * np.random.randn(*shape))
        assert not net.params[name.replace("W", "b")].any()


@pytest.mark.parametrize("assign", ["entry", "dict", "element"])
def test_assigned_parameters_take_effect(assign, batch):
    X, _ = batch
    net = NETS["two"](dtype="float64", rng=0, backend="numpy")
    bias = np.asarray([1.0, 2, 3, 4, 5])
    if assign == "entry":
        net.params["b2"] = bias
    elif assign == "dict":
        net.params = {**net.params, "b2": bias}
    else:
        net.params["b2"][...] = bias
    net.params["W2"] = np.zeros((7, 5))
    np.testing.assert_array_equal(net.loss(X), np.tile(bias, (4, 1)))


@pytest.mark.parametrize("reg", [float("nan"), float("inf"), -0.1, "0.1", None])
def test_regularisation_that_is_not_finite_or_negative_is_refused(reg):
    with pytest.raises((ArgumentError, ArgumentTypeError), match=r"reg is .*; expected a finite number, 0 or more"):
        TwoLayerNet(input_dim=4, reg=reg)
    net = TwoLayerNet(input_dim=4, rng=0)
    with pytest.raises((ArgumentError, ArgumentTypeError), match=r"reg is .*; expected a finite number, 0 or more"):
        net.reg = reg


def test_regularisation_may_be_set_later_and_counts_weights_only(batch):
    X, y = batch
    net = NETS["deep batchnorm"](dtype="float64", rng=0, backend="numpy")
    loss, grads = net.loss(X, y)
    net.reg = 0.5
    more, other = net.loss(X, y)
    weights = [net.params[name] for name in ("W1", "W2", "W3")]
    assert float(more - loss) == pytest.approx(0.25 * sum(np.sum(w * w) for w in weights))
    np.testing.assert_allclose(other["W2"] - grads["W2"], 0.5 * net.params["W2"], atol=1e-12)
    np.testing.assert_array_equal(other["gamma1"], grads["gamma1"])
    np.testing.assert_array_equal(other["b1"], grads["b1"])


def test_scores_do_not_move_running_statistics_or_drop_anything(batch):
    X, y = batch
    net = FullyConnectedNet([6], input_dim=144, normalization="batchnorm", keep_prob=0.5, rng=0, backend="numpy")
    first = net.loss(X)
    assert np.array_equal(first, net.loss(X))
    assert {name: set(a.flat) for name, a in net.state.items()} == {
        "running_mean1": {0},
        "running_var1": {1},
        "num_batches1": {0},
    }
    net.loss(X, y)
    assert net.state["running_mean1"].all()
    assert net.state["num_batches1"] == 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 0.9999])
def test_running_averages_are_corrected_as_adam_corrects_its_moments(momentum, dtype, backend):
    net = Sequential(
        [nn.BatchNorm(momentum=momentum), nn.Affine(2)], input_shape=(3,), dtype=dtype, rng=0, backend=backend
    )
    rng, (mean, var) = np.random.default_rng(0), np.zeros((2, 3))
    for t in range(1, 8):
        X = rng.standard_normal((5, 3)) * t + t
        net.loss(X, np.arange(5) % 2)
        mean, var = (
            momentum * old + (1 - momentum) * new for old, new in ((mean, X.mean(axis=0)), (var, X.var(axis=0)))
        )
        correction = 1 - momentum**t
        tolerance = 1e-12 if dtype == "float64" else 1e-6
        assert_array(net.state["running_mean0"], mean / correction, backend, dtype, tolerance=tolerance)
        assert_array(net.state["running_var0"], var / correction, backend, dtype, tolerance=tolerance)
        assert_array(net.state["num_batches0"], np.full(1, t), backend, dtype, tolerance=tolerance)


def test_running_averages_with_a_momentum_of_1_stay():
    net = Sequential([nn.BatchNorm(momentum=1), nn.Affine(2)], input_shape=(3,), rng=0, backend="numpy")
    net.loss(np.arange(12).reshape(4, 3), np.arange(4) % 2)
    assert net.state["running_mean0"].tolist() == [0, 0, 0]
    assert net.state["running_var0"].tolist() == [1, 1, 1]


def test_after_one_batch_evaluation_gives_the_scores_of_training(batch):
    X, y = batch
    net = ConvNet([3, "pool", 4], input_dim=X.shape[1:], num_classes=5, dtype="float64", rng=0, backend="numpy")
    loss, _ = net.loss(X, y)
    np.testing.assert_allclose(layers.softmax_loss(net.loss(X), y)[0], loss, rtol=1e-12)


def test_without_bias_correction_running_averages_start_from_zeros(batch):
    X, y = batch
    X = X.reshape(len(X), -1)
    options = {"input_shape": X.shape[1:], "dtype": "float64", "rng": 0, "backend": "numpy"}
    net = Sequential([nn.BatchNorm(bias_correction=False), nn.Affine(5)], **options)
    net.loss(X, y)
    assert sorted(net.state) == ["running_mean0", "running_var0"]
    np.testing.assert_allclose(net.state["running_mean0"], 0.1 * X.mean(axis=0))
    np.testing.assert_allclose(net.state["running_var0"], 0.1 * X.var(axis=0))


def test_dropout_draws_new_masks_unless_seeded(batch):
    X, y = batch
    losses = {}
    for seed in (None, 7):
        net = FullyConnectedNet([50], input_dim=144, keep_prob=0.5, weight_scale=0.3, rng=0, seed=seed, backend="numpy")
        losses[seed] = {float(net.loss(X, y)[0]) for _ in range(3)}
    assert len(losses[None]) == 3
    assert len(losses[7]) == 1


def test_images_may_be_uint8_and_are_preprocessed_on_the_device(backend):
    images = np.random.default_rng(0).integers(0, 256, (3, *IMAGE), dtype=np.uint8)
    mean, std = np.full((3, 1, 1), 120.0), np.full((3, 1, 1), 60.0)
    net = NETS["conv plain"](rng=0, dtype="float64", backend=backend, preprocessing=Preprocessing(mean, std))
    plain = NETS["conv plain"](rng=0, dtype="float64", backend="numpy")
    assert_array(net.loss(images), plain.loss((images - mean) / std), backend, "float64")


@pytest.mark.parametrize(
    ("mean", "std", "text"),
    [
        (0.0, 0.0, "std has values that float32 rounds to 0, or below 0; expected values above 0: take 1 where"),
        (0.0, 1e-50, "std has values that float32 rounds to 0, or below 0"),
        (0.0, -1.0, "std has values that float32 rounds to 0, or below 0"),
        (0.0, np.nan, "std has NaN or infinite values"),
        (np.array([[[0.0]], [[np.inf]], [[0.0]]]), 1.0, "mean has NaN or infinite values"),
        (1e39, 1.0, "mean has NaN or infinite values"),
        (
            np.zeros((5, *IMAGE)),
            1.0,
            r"mean has shape \(5, 3, 6, 8\); expected one that broadcasts to samples",
        ),
        (
            0.0,
            np.ones((2, 1, 1)),
            r"std has shape \(2, 1, 1\); expected one that broadcasts to samples",
        ),
        (None, 1.0, "mean is None; expected a number or an array"),
        ("128", 1.0, "mean is '128'; expected a number or an array"),
        (np.array("128"), 1.0, "mean has dtype <U3; expected real numbers"),
        (0.0, np.ones(1, complex), "std has dtype complex128; expected real numbers"),
        (10**400, 1.0, "mean has NaN or infinite values"),
    ],
)
def test_preprocessing_that_cannot_be_used_is_refused_when_it_is_assigned(backend, mean, std, text):
    net = NETS["conv plain"](rng=0, backend=backend)
    with np.errstate(over="ignore"), pytest.raises((ArgumentError, ArgumentTypeError), match=f"preprocessing.{text}"):
        net.preprocessing = Preprocessing(mean, std)
    assert net.preprocessing is None


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (None, "X is a NoneType; expected an array"),
        (iter([1.0]), "X is a list_iterator; expected an array"),
        ([[1.0], [1.0, 2.0]], r"X is no array of numbers \(.*\); expected samples of one shape"),
        ([["a"] * 4], r"X is no array of numbers \(.*\); expected samples of one shape"),
        ([[1.0, 2.0]], r"X has shape \(1, 2\); expected \(N, 4\)"),
    ],
)
def test_samples_that_are_no_array_are_refused_by_name(X, message):
    net = TwoLayerNet(input_dim=4, rng=0)
    with pytest.raises((ArgumentError, ArgumentTypeError), match=message):
        net.loss(X)


@dataclass(frozen=True)
class _Own(nn.Layer):
    first: float | None = None
    second: float = 1
    _: KW_ONLY
    values: np.ndarray = field(default_factory=lambda: np.zeros(2))


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (nn.Relu(), "Relu()"),
        (nn.Affine(10), "Affine(10)"),
        (nn.Affine(10, bias=False), "Affine(10, bias=False)"),
        (nn.Conv(16), "Conv(16, 3)"),
        (
            nn.Conv(filters=16, kernel_size=(5, 3), stride=2, padding="same"),
            "Conv(16, (5, 3), stride=2, padding='same')",
        ),
        (nn.MaxPool(), "MaxPool(2)"),
        (nn.MaxPool(3, 2, dilation=2), "MaxPool(3, 2, dilation=2)"),
        (nn.AvgPool(count_include_pad=False), "AvgPool(2, count_include_pad=False)"),
        (nn.GroupNorm(groups=4, eps=0.5), "GroupNorm(4, eps=0.5)"),
        (nn.BatchNorm(momentum=0.99), "BatchNorm(momentum=0.99)"),
        (_Own(second=2), "_Own(second=2)"),
        (_Own(2, values=np.ones(2)), "_Own(2, 1, values=array([1., 1.]))"),
    ],
)
def test_repr_has_the_positional_options_and_those_that_differ_from_their_defaults(layer, text):
    assert repr(layer) == text


@pytest.mark.parametrize(
    "call",
    [
        lambda net: net.loss(np.ones((2, 4))),
        lambda net: net.loss(np.ones((2, 4)), np.zeros(2, np.int64)),
        lambda net: list(net.outputs(np.ones((2, 4)))),
    ],
)
def test_an_error_inside_a_net_names_the_layer(call):
    net = Sequential([nn.Affine(5), nn.Relu(), nn.Affine(3)], input_shape=(4,), rng=0)
    net.params["W2"] = net.params["W2"][:4]
    with pytest.raises(ArgumentError) as caught:
        call(net)
    assert caught.value.__notes__ == ["in layers[2], Affine(3)"]


@pytest.mark.parametrize(
    ("shape", "layers", "message", "note"),
    [
        (
            (1, 4, 4),
            [nn.MaxPool()] * 3,
            r"the window's height is 2 but the padded image's is 1",
            "in layers[2], MaxPool(",
        ),
        (
            (4,),
            [nn.Affine(5), nn.Conv(3)],
            r"samples have shape \(5,\); expected images \(C, H, W\)",
            "in layers[1], Conv(",
        ),
        ((4, 8), [nn.AvgPool()], r"samples have shape \(4, 8\); expected images \(C, H, W\)", "in layers[0], AvgPool("),
    ],
)
def test_an_error_that_a_net_is_built_with_names_the_layer(shape, layers, message, note):
    with pytest.raises(ArgumentError, match=message) as caught:
        Sequential([*layers, nn.Affine(3)], input_shape=shape)
    (named,) = caught.value.__notes__
    assert named.startswith(note)


@pytest.mark.parametrize("seed", [None, 7])
def test_two_dropouts_drop_different_elements(seed):
    net = Sequential(
        [nn.Dropout(0.5), nn.Dropout(0.5), nn.Affine(2000, bias=False)], input_shape=(2000,), rng=0, seed=seed
    )
    net.params["W1"] = np.eye(2000, dtype=np.float32)
    scores, _, _ = run_pass(net._forward(np.ones((1, 2000), np.float32), net._draw_seeds()))
    assert np.mean(scores != 0) == pytest.approx(0.25, abs=0.04)


def test_outputs_are_those_of_evaluation():
    net = Sequential(
        [nn.Affine(5), nn.BatchNorm(), nn.Dropout(), nn.Affine(3)], input_shape=(4,), dtype="float64", rng=0
    )
    X = 3 + np.random.default_rng(0).standard_normal((50, 4))
    net.loss(X, np.arange(50) % 3)
    outputs = {name: out for name, _, out in net.outputs(X)}
    mean, var = net.state["running_mean1"], net.state["running_var1"]
    np.testing.assert_allclose(outputs["batchnorm1"], (outputs["affine1"] - mean) / np.sqrt(var + 1e-5))
    np.testing.assert_array_equal(outputs["dropout1"], outputs["batchnorm1"])
    np.testing.assert_array_equal(outputs["affine2"], net.loss(X))


def test_initial_weights_of_a_convolution_count_its_window():
    net = Sequential([nn.Conv(64, (3, 5)), nn.GlobalAvgPool(), nn.Affine(3)], input_shape=(8, 9, 9), rng=0)
    assert np.std(net.params["W1"]) == pytest.approx(np.sqrt(2 / (8 * 3 * 5)), rel=0.05)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_net_for_images_whose_channels_are_last_warns(channels):
    hint = re.escape(
        f"{(8, 8, channels)}, which means 8 channels of 8 by {channels} pixels: if the channels are last, "
    )
    with pytest.warns(UserWarning, match=hint + re.escape(f"pass {(channels, 8, 8)}, and images as xp.moveaxis")):
        Sequential([nn.Conv(4, padding="same"), nn.Affine(3)], input_shape=(8, 8, channels), rng=0)
    with pytest.raises(ArgumentError, match=r"or more padding \(images are \(C, H, W\), here \(8, 8, 1\)\)$"):
        layers.max_pool_forward(np.ones((2, 8, 8, 1)), kernel_size=2)


@pytest.mark.parametrize("shape", [(3, 8, 8), (8, 8, 8), (8, 6, 3), (4, 4, 3), (3, 3, 3)])
def test_a_net_for_other_shapes_does_not_warn_of_channels(shape):
    Sequential([nn.Conv(4, padding="same"), nn.Affine(3)], input_shape=shape, rng=0)
    Sequential([nn.Affine(3)], input_shape=(8, 8, 3), rng=0)


def test_preprocessing_must_be_a_preprocessing():
    with pytest.raises(ArgumentTypeError, match=r"preprocessing is \(128, 64\); expected a Preprocessing\(mean, std\)"):
        TwoLayerNet(input_dim=4, preprocessing=(128, 64))


def test_first_layer_computes_no_gradient_of_its_input(batch, monkeypatch):
    X, y = batch
    wanted = []
    plain = nn.Conv.backward

    def spy(self, dout, cache, *, need_dx):
        wanted.append(need_dx)
        return plain(self, dout, cache, need_dx=need_dx)

    monkeypatch.setattr(nn.Conv, "backward", spy)
    NETS["conv plain"](rng=0, backend="numpy").loss(X, y)
    assert wanted == [True, False]


def test_a_net_survives_json(make, batch):
    X, _ = batch
    net = make(dtype="float64", rng=0, reg=0.1, backend="numpy")
    again = Sequential.from_config(json.loads(json.dumps(net.config())), backend="numpy")
    assert again.config() == net.config()
    assert {name: w.shape for name, w in again.params.items()} == {name: w.shape for name, w in net.params.items()}
    again.params, again.state = net.params, net.state
    np.testing.assert_array_equal(again.loss(X), net.loss(X))


def test_fresh_net_has_the_loss_of_a_guess():
    np.random.seed(0)
    net = ThreeLayerConvNet(dtype="float64", backend="numpy")
    X, y = np.random.randn(50, 3, 32, 32), np.random.randint(10, size=50)
    assert float(net.loss(X, y)[0]) == pytest.approx(np.log(10), abs=1e-4)
    net.reg = 0.5
    assert float(net.loss(X, y)[0]) == pytest.approx(2.509, abs=2e-3)


def test_published_gradient_check_of_the_three_layer_net():
    np.random.seed(231)
    net = ThreeLayerConvNet(
        num_filters=3, filter_size=3, input_dim=(3, 16, 16), hidden_dim=7, dtype=np.float64, backend="numpy"
    )
    X, y = np.random.randn(2, 3, 16, 16), np.random.randint(10, size=2)
    _, grads = net.loss(X, y)
    for name in ("W1", "b1", "b2", "W3", "b3"):
        numeric = eval_numerical_gradient(lambda _: net.loss(X, y)[0], net.params[name], h=1e-6)
        assert rel_error(numeric, grads[name]) < 2e-2, name


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: Sequential([nn.Conv(3)], input_shape=(3, 8, 8)),
            r"samples of shape \(3, 6, 6\); expected scores \(C,\)",
        ),
        (
            lambda: Sequential([nn.Affine(3)], input_shape=(4,), loss="mse"),
            "loss is 'mse'; expected one of softmax, svm",
        ),
        (lambda: Sequential([nn.Affine(3)], input_shape=(4,), dtype="float16"), "dtype is 'float16'; expected float32"),
        (lambda: Sequential([nn.Affine(3)], input_shape=(4,), class_names="ab"), "class_names has 2 names; expected 3"),
        (lambda: Sequential([nn.MaxPool(9), nn.Affine(3)], input_shape=(1, 4, 4)), "the window's height is 9 but"),
        (
            lambda: FullyConnectedNet([3], normalization="groupnorm"),
            "normalization is 'groupnorm'; expected one of None",
        ),
        (lambda: ConvNet([3, "pol"]), r"stages\[1\] is 'pol'; expected a number of filters or 'pool'"),
        (lambda: ConvNet([3], normalization="x"), "normalization is 'x'; expected one of None, 'batchnorm'"),
        (lambda: Sequential.from_config({"layers": [{"type": "System"}], "input_shape": [3]}), r"layers\[0\] is"),
    ],
)
def test_nets_that_cannot_be_built_say_why(build, message):
    with pytest.raises(ArgumentError, match=message):
        build()


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Conv(3, 16, 3),
        lambda: nn.Affine(3, 16),
        lambda: nn.MaxPool(3, 2, 1),
        lambda: nn.AvgPool(3, 2, 1),
        lambda: nn.BatchNorm(16),
        lambda: nn.LayerNorm(16),
        lambda: nn.GroupNorm(4, 16),
        lambda: nn.Dropout(0.5, 1),
    ],
)
def test_pytorchs_order_of_arguments_is_refused(make):
    with pytest.raises(TypeError, match="positional argument"):
        make()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: nn.Conv(3, padding="full"), ArgumentError, "padding is 'full'; expected 'same' or an int, a pair"),
        (lambda: nn.Conv(3, groups=2), ArgumentError, "groups is 2; expected a divisor of the 3 filters"),
        (
            lambda: nn.Conv(4, groups=2).parameters((3, 8, 8)),
            ArgumentError,
            "groups is 2; expected a divisor of the 3 channels of the input",
        ),
        (lambda: nn.Conv(3, algorithm="fft"), ArgumentError, "algorithm is 'fft'; expected auto or im2col"),
        (lambda: nn.Conv(2.5), ArgumentTypeError, "filters is 2.5; expected an int, 1 or more"),
        (lambda: nn.AvgPool(2, padding=-1), ArgumentError, "padding is -1; expected 0 or more"),
        (lambda: nn.MaxPool("3"), ArgumentTypeError, "kernel_size is '3'; expected an int or a pair of ints"),
    ],
)
def test_layers_check_their_options(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_same_padding_keeps_the_size_of_an_image_at_stride_1():
    for kernel_size, padding in [(1, ((0, 0), (0, 0))), ((5, 7), ((2, 2), (3, 3))), ((2, 4), ((0, 1), (1, 2)))]:
        layer = nn.Conv(4, kernel_size, padding="same")
        assert layer.window.padding == padding
        assert layer.output_shape((3, 9, 8)) == (4, 9, 8)
    assert nn.Conv(4, (3, 2), padding="same", dilation=2).output_shape((3, 9, 8)) == (4, 9, 8)


def test_a_stochastic_layer_gets_a_seed_of_its_own_in_each_training_pass():
    class Noise(nn.Layer):
        stochastic = True

        def forward(self, x, p, *, train, seed):
            seeds.append((train, seed))
            return x, None

        def backward(self, dout, cache, *, need_dx):
            return dout, {}

    X, y, seeds = np.ones((2, 5)), np.array([0, 1]), []
    layers = [nn.Affine(4), Noise(), nn.Relu(), Noise(), nn.Affine(3)]
    net = Sequential(layers, input_shape=(5,), rng=0)
    for _ in range(3):
        net.loss(X, y)
    assert len(set(seeds)) == 6
    assert all(train and 0 < seed < 2**32 for train, seed in seeds)
    seeds.clear()
    net.loss(X)
    assert seeds == [(False, 0)] * 2
    seeds.clear()
    net = Sequential(layers, input_shape=(5,), rng=0, seed=2**32 - 2)
    net.loss(X, y)
    net.loss(X, y)
    assert seeds == [(True, 2**32 - 1), (True, 1)] * 2


def test_layers_that_only_remember_have_a_state_each(batch):
    class Count(nn.Layer):
        def state(self, shape):
            return {"seen": ((1,), 0.0)}

        def forward(self, x, p, *, train, seed):
            return x, p["seen"] + 1

        def backward(self, dout, cache, *, need_dx):
            return dout, {}

        def new_state(self, cache):
            return {"seen": cache}

    net = Sequential([nn.Affine(4), Count(), nn.Relu(), Count(), nn.Affine(3)], input_shape=(5,), rng=0)
    assert sorted(net.state) == ["seen1", "seen1_2"]
    net.loss(np.ones((2, 5)), np.array([0, 1]))
    assert [float(seen[0]) for seen in net.state.values()] == [1.0, 1.0]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Sequential(
            [
                nn.Conv(np.int32(4), (np.int64(3), np.uint8(3)), stride=np.int64(1), padding=np.int64(1)),
                nn.GroupNorm(np.int64(2)),
                nn.MaxPool(np.int64(2), np.int32(2), padding=np.int64(0)),
                nn.Affine(np.int64(3)),
            ],
            input_shape=np.array([1, 8, 8]),
            rng=0,
            seed=np.int64(7),
        ),
        lambda: ConvNet(list(np.array([4, 8])), input_dim=(1, 8, 8), num_classes=np.array([0, 2]).max() + 1, rng=0),
        lambda: nn.TwoLayerNet(input_dim=np.int64(64), hidden_dim=np.array([5, 9])[0], num_classes=np.int32(3), rng=0),
    ],
)
def test_counts_and_sizes_may_be_integers_of_numpy(make):
    net = make()
    assert Sequential.from_config(json.loads(json.dumps(net.config()))).config() == net.config()
    loss, _ = net.loss(np.ones((2, 1, 8, 8)), np.array([0, 1]))
    assert np.isfinite(float(loss))


def test_options_may_be_numbers_of_numpy(tmp_path):
    net = Sequential(
        [
            nn.Affine(4),
            nn.BatchNorm(eps=np.float32(1e-5), momentum=np.float32(0.5)),
            nn.Dropout(np.float32(0.5)),
            nn.LayerNorm(eps=np.float64(1e-5)),
            nn.Affine(3),
        ],
        input_shape=(5,),
        reg=np.float64(0.25),
        rng=0,
    )
    loss, grads = net.loss(np.ones((2, 5)), np.array([0, 1]))
    assert {a.dtype for a in (loss, *grads.values())} == {np.dtype("float32")}
    save_model(net, tmp_path / "model.safetensors")
    assert load_model(tmp_path / "model.safetensors").config() == net.config()


@pytest.mark.parametrize("dtype", [">f4", ">f8", "float16", "longdouble", "uint16", ">i4", "bool"])
def test_samples_may_have_any_real_dtype(backend, dtype):
    X = np.arange(15).reshape(3, 5).astype(dtype)
    net = Sequential([nn.Affine(4)], input_shape=(5,), rng=0, backend=backend)
    assert_array(net.loss(X), net.backend.to_host(net.loss(X.astype("float32"))), backend, "float32")


@pytest.mark.parametrize("dtype", [">i4", ">u8", "uint16", "int8"])
def test_labels_may_have_any_integer_dtype(backend, dtype):
    net = Sequential([nn.Affine(4)], input_shape=(5,), rng=0, backend=backend)
    X, y = np.ones((3, 5)), np.array([0, 3, 2])
    assert float(net.loss(X, y.astype(dtype))[0]) == float(net.loss(X, y)[0])


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("32 GiB"),
        RuntimeError("CUDA out of memory. Tried to allocate 32 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_too_little_memory_is_told_with_what_to_do(error, monkeypatch):
    def forward(*arguments, **options):
        raise error

    net = Sequential([nn.Affine(4)], input_shape=(5,), rng=0)
    monkeypatch.setattr(nn.Affine, "forward", forward)
    with pytest.raises(
        OutOfMemoryError, match=r"numpy has not enough memory for 3 samples at once .* smaller batch"
    ) as caught:
        net.loss(np.ones((3, 5)))
    assert caught.value.__notes__ == ["in layers[0], Affine(4)"]


def test_other_errors_are_not_taken_for_too_little_memory(monkeypatch):
    def forward(*arguments, **options):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    net = Sequential([nn.Affine(4)], input_shape=(5,), rng=0)
    monkeypatch.setattr(nn.Affine, "forward", forward)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        net.loss(np.ones((3, 5)))


LOSS_OPTIONS = {"label_smoothing": 0.1, "class_weights": [0.5, 2.0, 1.0], "reduction": "sum"}


def test_loss_options_are_those_of_the_loss_function_on_every_backend(backend):
    net = Sequential([nn.Affine(3)], input_shape=(5,), rng=0, backend=backend, loss_options=LOSS_OPTIONS)
    X, y = np.random.default_rng(0).standard_normal((6, 5)), np.array([0, 1, 2, 0, 1, 2])
    loss, grads = net.loss(X, y)
    expected, dscores = reference.softmax_loss(net.backend.to_host(net.loss(X)).astype("float64"), y, **LOSS_OPTIONS)
    assert_array(loss, expected, backend, "float32")
    assert_array(grads["b1"], dscores.sum(axis=0), backend, "float32")
    net.loss_options = {}
    assert float(net.loss(X, y)[0]) == float(
        Sequential([nn.Affine(3)], input_shape=(5,), rng=0, backend=backend).loss(X, y)[0]
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_labels_may_be_probabilities_of_any_float_dtype(backend, dtype):
    net = Sequential([nn.Affine(3)], input_shape=(5,), rng=0, backend=backend)
    X, y = np.random.default_rng(0).standard_normal((4, 5)), np.array([0, 2, 1, 2])
    loss, grads = net.loss(X, np.eye(3, dtype=dtype)[y])
    hard_loss, hard_grads = net.loss(X, y)
    assert_array(loss, net.backend.to_host(hard_loss), backend, "float32")
    assert_array(grads["W1"], net.backend.to_host(hard_grads["W1"]), backend, "float32")


def test_loss_options_are_saved_with_the_model(tmp_path):
    options = {"label_smoothing": np.float32(0.5), "class_weights": np.array([1, 2, 0]), "reduction": None}
    net = Sequential([nn.Affine(3)], input_shape=(5,), rng=0, loss_options=options)
    save_model(net, tmp_path / "model.safetensors")
    loaded = load_model(tmp_path / "model.safetensors")
    assert loaded.loss_options == net.loss_options == {"label_smoothing": 0.5, "class_weights": [1.0, 2.0, 0.0]}
    X, y = np.ones((2, 5)), np.array([0, 1])
    assert float(loaded.loss(X, y)[0]) == float(net.loss(X, y)[0])
    assert "loss_options" not in Sequential([nn.Affine(3)], input_shape=(5,), rng=0).config()


@pytest.mark.parametrize(
    ("loss", "options", "message"),
    [
        (
            "softmax",
            {"smoothing": 0.1},
            "expected options of the softmax loss: label_smoothing, class_weights, reduction",
        ),
        ("softmax", [("label_smoothing", 0.1)], "loss_options is [('label_smoothing', 0.1)]; expected options of the"),
        ("svm", {"label_smoothing": 0.1}, "expected none: the svm loss has no options"),
        ("softmax", {"label_smoothing": 2}, "label_smoothing is 2; expected a number from 0 to 1"),
        ("softmax", {"reduction": "none"}, "reduction is 'none'; expected mean or sum"),
        ("softmax", {"class_weights": "balanced"}, "class_weights is 'balanced'; expected a sequence of 3 numbers"),
        ("softmax", {"class_weights": [1, 2]}, "class_weights has 2 weights; expected 3, one for each class"),
        ("softmax", {"class_weights": [1, 2, -1]}, "class_weights is -1; expected a finite number, 0 or more"),
        ("softmax", {"class_weights": [0, 0, 0]}, "class_weights has only zeros; expected a weight above 0"),
    ],
)
def test_bad_loss_options_are_refused(loss, options, message):
    net = Sequential([nn.Affine(3)], input_shape=(5,), loss=loss, rng=0)
    with pytest.raises((ArgumentError, ArgumentTypeError), match=re.escape(message)):
        net.loss_options = options
    with pytest.raises((ArgumentError, ArgumentTypeError), match=re.escape(message)):
        Sequential([nn.Affine(3)], input_shape=(5,), loss=loss, loss_options=options)


def test_loss_options_cannot_be_changed_in_place():
    net = Sequential([nn.Affine(3)], input_shape=(5,), rng=0)
    with pytest.raises(TypeError, match="does not support item assignment"):
        net.loss_options["label_smoothing"] = 0.1


def test_layers_must_be_layer_objects():
    with pytest.raises(ArgumentTypeError, match=r"layers\[0\] is 'relu'; expected a Layer such as Relu\(\)"):
        Sequential(["relu"], input_shape=(3,))


@pytest.mark.parametrize("shape", [(2, 3, 8, 6), (2, 3, 6), (0, *IMAGE)])
def test_images_of_another_shape_are_refused(shape):
    net = NETS["three layers"](rng=0, backend="numpy")
    with pytest.raises(ArgumentError, match=r"X has shape .*; expected \(N, 3, 6, 8\) with N at least 1"):
        net.loss(np.zeros(shape))


@pytest.mark.parametrize(
    ("image", "given", "hint"),
    [
        ((3, 6, 8), (2, 6, 8, 3), r"its channels are last \(NHWC\) but must come first \(NCHW\): pass xp.moveaxis"),
        ((1, 6, 8), (2, 6, 8), r"pass X\[:, None, ...\]"),
        ((3, 6, 8), (3, 6, 8), r"for a batch of one sample, pass X\[None, ...\]"),
        ((3, 6, 8), (2, 8, 6, 3), "as Sequential was built for$"),
    ],
)
def test_images_in_another_layout_are_told_how_to_fit(image, given, hint):
    net = Sequential([nn.Conv(2, padding="same"), nn.Affine(3)], input_shape=image, rng=0, backend="numpy")
    with pytest.raises(ArgumentError, match=hint):
        net.loss(np.zeros(given))


def test_the_pair_that_a_layer_returns_is_no_batch():
    net = TwoLayerNet(input_dim=4, rng=0, backend="numpy")
    with pytest.raises(ArgumentTypeError, match="X is a pair of ndarray and ReluCache; expected an array"):
        net.loss(layers.relu_forward(np.ones((2, 4))))
    assert net.loss((np.ones(4), np.ones(4))).shape == (2, 10)  # a tuple of two samples


def test_data_of_another_device_is_refused():
    net = NETS["three layers"](rng=0, backend="array_api_strict")
    X = find_backend("array_api_strict:device1").asarray(np.zeros((2, *IMAGE)))
    with pytest.raises(
        DeviceMismatchError,
        match=r"X is on array_api_strict:device1 but the model is on "
        r"array_api_strict: pass get_backend\('array_api_strict'\)",
    ):
        net.loss(X)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: nn.Sequential([nn.Relu()], input_shape=(3, 8.0)),
            ArgumentTypeError,
            "a size in input_shape is 8.0; expected an int, 1 or more",
        ),
        (lambda: nn.Sequential([nn.Relu()], input_shape=(3, 0)), ArgumentError, "a size in input_shape is 0; expected"),
        (
            lambda: nn.Sequential([nn.Relu()], input_shape=8),
            ArgumentTypeError,
            r"input_shape is 8; expected the shape of one sample, such as \(3, 32, 32\)",
        ),
        (
            lambda: nn.TwoLayerNet(input_dim=(1, 8, 8)),
            ArgumentTypeError,
            r"input_dim is \(1, 8, 8\); expected an int, 1 or more",
        ),
    ],
)
def test_the_shape_of_a_sample_is_checked(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FullyConnectedNet(5), "hidden_dims is 5; expected a sequence of ints, each 1 or more"),
        (lambda: FullyConnectedNet([4, 0]), r"hidden_dims\[1\] is 0; expected an int, 1 or more"),
        (lambda: FullyConnectedNet([4], weight_scale=np.nan), "weight_scale is nan; expected a finite number"),
        (lambda: FullyConnectedNet([4], weight_scale=(1, 2)), r"weight_scale is \(1, 2\); expected a finite number"),
        (
            lambda: FullyConnectedNet([4], normalization=[8]),
            r"normalization is \[8\]; expected one of None, 'batchnorm'",
        ),
        (lambda: TwoLayerNet(num_classes=0), "num_classes is 0; expected an int, 1 or more"),
        (lambda: TwoLayerNet(hidden_dim=2.5), "hidden_dim is 2.5; expected an int, 1 or more"),
        (lambda: ThreeLayerConvNet(num_filters=0), "num_filters is 0; expected an int, 1 or more"),
        (lambda: ThreeLayerConvNet(filter_size="7"), "filter_size is '7'; expected an int or a pair of ints"),
        (lambda: ThreeLayerConvNet(input_dim=(3, 8)), r"input_dim is \(3, 8\); expected channels, height and width"),
        (lambda: ConvNet(5), "stages is 5; expected a sequence of numbers of filters and 'pool'"),
        (lambda: ConvNet(filter_size=0), "filter_size is 0; expected 1 or more"),
        (lambda: ConvNet(input_dim=32), "input_dim is 32; expected a sequence of ints, each 1 or more"),
        (lambda: nn.ResNet(num_classes="a"), "num_classes is 'a'; expected an int, 1 or more"),
        (lambda: nn.ResNet9(input_dim=(3, 0, 8)), r"input_dim\[1\] is 0; expected an int, 1 or more"),
        (lambda: nn.Airbench(64), "widths is 64; expected a sequence of ints, each 1 or more"),
        (lambda: nn.Airbench("64"), "widths is '64'; expected a sequence of ints, each 1 or more"),
        (lambda: nn.Airbench((64, 0)), r"widths\[1\] is 0; expected an int, 1 or more"),
        (lambda: nn.Airbench(input_dim=()), r"input_dim is \(\); expected channels, height and width"),
        (lambda: nn.Airbench(input_dim=(0, 32, 32)), r"input_dim\[0\] is 0; expected an int, 1 or more"),
        (lambda: nn.Airbench(score_scale=np.nan), "score_scale is nan; expected a finite number above 0"),
    ],
)
def test_models_name_the_argument_that_they_refuse(make, message):
    with pytest.raises((ArgumentError, ArgumentTypeError), match=message):
        make()
