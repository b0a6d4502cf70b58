"""The course's nets."""

import numpy as np
import pytest

from tests.helpers import find_backend
from xpconv import cs231n, load_model, nn, save_model
from xpconv.cs231n import layers, optim
from xpconv.cs231n.classifiers import FullyConnectedNet, ThreeLayerConvNet, TwoLayerNet
from xpconv.cs231n.gradient_check import eval_numerical_gradient
from xpconv.errors import ArgumentError, CheckpointError
from xpconv.nn import BatchNorm, Conv, Dropout, LayerNorm


def batch(N=4, D=15, C=10):
    return np.random.randn(N, D), np.random.randint(C, size=N)


# ---- how they are made


def test_weights_are_drawn_as_the_course_draws_them():
    np.random.seed(231)
    net = ThreeLayerConvNet((3, 8, 8), 4, 3, 5, 6, 1e-2)
    np.random.seed(231)
    for name, shape in {"W1": (4, 3, 3, 3), "W2": (4 * 4 * 4, 5), "W3": (5, 6)}.items():
        expected = (np.random.randn(*shape) * 1e-2).astype("float32")
        assert net.params[name].dtype == np.float32
        np.testing.assert_array_equal(net.params[name], expected)
    assert not any(net.params[name].any() for name in ("b1", "b2", "b3"))


def test_two_layer_net_is_float64():
    net = TwoLayerNet(5, 50, 7, 1e-2, 0.1)
    assert {w.dtype for w in net.params.values()} == {np.dtype("float64")}
    assert {name: w.shape for name, w in net.params.items()} == {"W1": (5, 50), "b1": (50,), "W2": (50, 7), "b2": (7,)}
    assert net.reg == 0.1


def test_positional_arguments_are_in_the_courses_order():
    net = FullyConnectedNet([20, 30], 15, 10, 0.5, "layernorm", 0.1, 5e-2, np.float64, 123)
    assert (net.reg, net.dtype, net.seed) == (0.1, "float64", 123)
    assert [layer.keep_prob for layer in net.layers if isinstance(layer, Dropout)] == [0.5, 0.5]
    assert sum(isinstance(layer, LayerNorm) for layer in net.layers) == 2
    assert net.params["gamma2"].shape == (30,)
    conv = ThreeLayerConvNet((3, 8, 8), 4, 3, 5, 6, 1e-2, 0.2, np.float64)
    assert (conv.reg, conv.dtype, conv.num_classes) == (0.2, "float64", 6)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dropout_keep_ratio": 1},
        {"dropout": 1},
        {"dropout": 0},
        {"dropout": None},
        {"normalization": None},
        {"use_batchnorm": False},
    ],
)
def test_every_spelling_of_no_dropout_and_no_norm(options):
    net = FullyConnectedNet([6], input_dim=5, **options)
    assert not any(isinstance(layer, Dropout | BatchNorm | LayerNorm) for layer in net.layers)
    assert sorted(net.params) == ["W1", "W2", "b1", "b2"]


@pytest.mark.parametrize(
    "options", [{"dropout_keep_ratio": 0.25}, {"dropout": 0.25}, {"dropout": 0.25, "dropout_keep_ratio": 0.25}]
)
def test_both_spellings_of_dropout(options):
    (dropout,) = [layer for layer in FullyConnectedNet([6], **options).layers if isinstance(layer, Dropout)]
    assert dropout.keep_prob == 0.25


def keep_probs(net):
    return [layer.keep_prob for layer in net.layers if isinstance(layer, Dropout)]


@pytest.mark.parametrize(
    ("edition", "options", "kept"),
    [
        (None, {"dropout": 0.75}, 0.75),
        (2019, {"dropout": 0.75}, 0.75),
        (2017, {"dropout": 0.75}, 0.25),
        (None, {"dropout": 0.75, "use_batchnorm": False}, 0.25),
        (2019, {"dropout": 0.75, "use_batchnorm": True}, 0.25),
        (2017, {"dropout_keep_ratio": 0.75}, 0.75),
    ],
)
def test_the_edition_or_use_batchnorm_tells_what_dropout_means(monkeypatch, edition, options, kept):
    monkeypatch.setattr(cs231n, "edition", edition)
    assert keep_probs(FullyConnectedNet([6], **options)) == [kept]


def test_positional_arguments_of_the_2017_edition_are_recognised():
    net = FullyConnectedNet([20, 30], 15, 10, 0.75, True, 0.1, 5e-2, np.float64, 123)
    assert keep_probs(net) == [0.25, 0.25]
    assert sum(isinstance(layer, BatchNorm) for layer in net.layers) == 2
    assert (net.reg, net.dtype, net.seed) == (0.1, "float64", 123)
    assert keep_probs(FullyConnectedNet([20], 15, 10, 0, False)) == []


@pytest.mark.parametrize(
    "options",
    [{"use_batchnorm": True}, {"normalization": "batchnorm"}, {"use_batchnorm": True, "normalization": "batchnorm"}],
)
def test_both_spellings_of_batch_norm(options):
    net = FullyConnectedNet([6], **options)
    assert any(isinstance(layer, BatchNorm) for layer in net.layers)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"dropout": 0.3, "dropout_keep_ratio": 0.5},
            "dropout is 0.3 but dropout_keep_ratio is 0.5; expected one of them",
        ),
        (
            {"dropout": 1, "use_batchnorm": False},
            "dropout is 1; expected the probability of dropping a value, at least 0 and below 1",
        ),
        ({"dropout_keep_ratio": 0}, "dropout_keep_ratio is 0; expected the probability of keeping a value, above 0"),
        (
            {"use_batchnorm": True, "normalization": "layernorm"},
            "use_batchnorm is True but normalization is 'layernorm'",
        ),
        ({"normalization": "batch"}, "normalization is 'batch'; expected one of None, 'batchnorm', 'layernorm'"),
    ],
)
def test_contradictions_are_refused(options, message):
    with pytest.raises(ArgumentError, match=message):
        FullyConnectedNet([6], **options)


def test_convolutions_of_the_course_are_im2col():
    assert [layer.algorithm for layer in ThreeLayerConvNet().layers if isinstance(layer, Conv)] == ["im2col"]


def test_nets_are_on_numpy_whatever_backend_is_selected(monkeypatch):
    monkeypatch.setenv("XP_BACKEND", "array_api_strict")
    for net in (TwoLayerNet(4, 5, 3), FullyConnectedNet([5], 4), ThreeLayerConvNet((1, 4, 4), 2, 3, 5)):
        assert all(type(w) is np.ndarray for w in net.params.values())


def test_attributes_of_the_course_describe_the_net():
    net = FullyConnectedNet([7, 6], 15, dropout_keep_ratio=0.6, normalization="batchnorm", seed=3)
    assert (net.num_layers, net.normalization, net.use_batchnorm, net.use_dropout) == (3, "batchnorm", True, True)
    assert net.dropout_param == {"mode": "train", "p": 0.6, "seed": 3}
    net.loss(*batch())
    assert [sorted(bn_param) for bn_param in net.bn_params] == [["mode", "running_mean", "running_var"]] * 2
    np.testing.assert_array_equal(net.bn_params[1]["running_mean"], net.state["running_mean2"])
    np.testing.assert_array_equal(net.bn_params[1]["running_var"], net.state["running_var2"])
    plain = FullyConnectedNet([7], 15)
    assert (plain.num_layers, plain.normalization, plain.use_batchnorm, plain.use_dropout) == (2, None, False, False)
    assert (plain.dropout_param, plain.bn_params) == ({}, [])
    assert FullyConnectedNet([7], 15, normalization="layernorm").bn_params == [{}]


def test_dropout_param_has_the_p_of_its_edition(monkeypatch):
    monkeypatch.setattr(cs231n, "edition", 2017)
    assert FullyConnectedNet([7], 15, dropout=0.75).dropout_param == {"mode": "train", "p": 0.75}


# ---- what they compute


@pytest.mark.parametrize("reg", [0, 3.14])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"normalization": "batchnorm"},
        {"normalization": "layernorm"},
        {"dropout_keep_ratio": 0.5, "seed": 123},
        {"use_batchnorm": True, "dropout": 0.75, "seed": 5},
    ],
    ids=str,
)
def test_fully_connected_gradients_are_those_of_the_loss(options, reg):
    np.random.seed(231)
    X, y = batch(2)
    net = FullyConnectedNet(
        [7, 6], input_dim=15, num_classes=10, reg=reg, weight_scale=5e-2, dtype=np.float64, **options
    )
    loss, grads = net.loss(X, y)
    assert loss == net.loss(X, y)[0]
    assert sorted(grads) == sorted(net.params)
    for name in net.params:
        numeric = eval_numerical_gradient(lambda _: net.loss(X, y)[0], net.params[name], verbose=False, h=1e-5)
        np.testing.assert_allclose(grads[name], numeric, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("seed", [None, 42])
def test_net_masks_are_the_courses_layer_after_layer(seed):
    np.random.seed(231)
    X, y = batch()
    net = FullyConnectedNet([7, 6], 15, dropout_keep_ratio=0.6, weight_scale=0.1, dtype=np.float64, seed=seed)
    np.random.seed(8)
    loss, _ = net.loss(X, y)
    after = np.random.rand()

    np.random.seed(8)
    dropout_param = {"mode": "train", "p": 0.6} | ({} if seed is None else {"seed": seed})
    h = X
    for i in ("1", "2"):
        h, _ = layers.affine_forward(h, net.params["W" + i], net.params["b" + i])
        h, _ = layers.dropout_forward(layers.relu_forward(h)[0], dropout_param)
    scores, _ = layers.affine_forward(h, net.params["W3"], net.params["b3"])
    assert loss == pytest.approx(layers.softmax_loss(scores, y)[0], rel=1e-12)
    assert after == np.random.rand()


def test_scores_draw_nothing():
    net = FullyConnectedNet([7], 15, dropout_keep_ratio=0.6)
    X, _ = batch()
    np.random.seed(8)
    first = net.loss(X)
    np.testing.assert_array_equal(first, net.loss(X))
    state = np.random.rand()
    np.random.seed(8)
    assert state == np.random.rand()


def test_another_backend_gives_the_same_net():
    X, y = batch()
    losses = []
    for backend in (find_backend("numpy"), find_backend("array_api_strict:device1")):
        np.random.seed(3)
        net = FullyConnectedNet([7], 15, dropout_keep_ratio=0.6, weight_scale=0.1, dtype=np.float64, backend=backend)
        assert net.backend == backend
        loss, grads = net.loss(X, y)
        losses.append([float(backend.to_host(loss)), backend.to_host(grads["W1"]), backend.to_host(net.loss(X))])
    for ours, theirs in zip(*losses, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)


@pytest.mark.parametrize(
    "make",
    [
        lambda: TwoLayerNet(48, 5, 3),
        lambda: ThreeLayerConvNet((3, 4, 4), 2, 3, 5, 3),
        lambda: FullyConnectedNet([5], 48, 3, 0.5, "batchnorm", seed=1),
    ],
)
def test_nets_of_the_course_survive_a_file(make, tmp_path):
    net = make()
    path = tmp_path / "net.safetensors"
    save_model(net, path)
    X = np.random.randn(2, 3, 4, 4)
    np.testing.assert_array_equal(load_model(path).loss(X), net.loss(X))


@pytest.mark.parametrize("name", ["best.npy", "best", "best.safetensors"])
def test_a_net_is_saved_and_loaded_by_name(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    net, other = (FullyConnectedNet([5], 15, 3, normalization="batchnorm") for _ in range(2))
    X, y = batch(C=3)
    net.loss(X, y)
    net.save(name)
    assert other.load(name) is True
    np.testing.assert_array_equal(other.loss(X), net.loss(X))
    assert other.load("nothing.npy") is False
    assert capsys.readouterr().out.splitlines() == [f"{name} saved.", f"{name} loaded.", "nothing.npy not available."]


def test_parameters_of_a_native_net_are_loaded_without_its_count_of_batches(tmp_path):
    native = nn.FullyConnectedNet([5], input_dim=15, num_classes=3, normalization="batchnorm", rng=0, backend="numpy")
    X, y = batch(C=3)
    native.loss(X, y)
    save_model(native, tmp_path / "native")
    net = FullyConnectedNet([5], 15, 3, normalization="batchnorm")
    assert net.load(tmp_path / "native") is True
    assert sorted(net.state) == ["running_mean1", "running_var1"]
    np.testing.assert_array_equal(net.loss(X), native.loss(X))


def test_running_averages_start_from_zeros_as_in_the_course():
    net = FullyConnectedNet([5], 15, 3, normalization="batchnorm", dtype=np.float64)
    X, y = batch(C=3)
    net.loss(X, y)
    np.testing.assert_allclose(net.state["running_mean1"], 0.1 * (X @ net.params["W1"]).mean(axis=0))
    np.testing.assert_allclose(net.state["running_var1"], 0.1 * (X @ net.params["W1"]).var(axis=0))


def test_pickled_parameters_are_refused_with_what_to_do(tmp_path):
    np.save(tmp_path / "theirs.npy", {"W1": np.ones((15, 5))})
    with pytest.raises(CheckpointError, match=r"theirs\.npy is a pickle.*allow_pickle=True\)\.item\(\) and call save"):
        TwoLayerNet(15, 5).load(tmp_path / "theirs.npy")


def test_a_net_of_other_sizes_is_not_loaded(tmp_path):
    TwoLayerNet(15, 6).save(tmp_path / "net")
    net = TwoLayerNet(15, 5)
    with pytest.raises(CheckpointError, match=r"W1 has shape \(15, 6\); expected \(15, 5\)"):
        net.load(tmp_path / "net")
    assert net.params["W1"].shape == (15, 5)


# ---- what notebooks assign to params


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "assigned",
    [np.arange(5), np.arange(5.0), np.arange(5.0, dtype="float32"), [0, 1, 2, 3, 4]],
    ids=["int", "float64", "float32", "list"],
)
@pytest.mark.parametrize("backend", ["numpy", "array_api_strict:device1"])
def test_params_take_arrays_of_any_real_dtype(assigned, dtype, backend):
    backend = find_backend(backend)
    net = FullyConnectedNet([5], 15, dtype=dtype, backend=backend)
    X, y = batch()
    net.params["b1"] = assigned
    loss, grads = net.loss(X, y)
    assert all(a.dtype == backend.dtype(dtype) for a in (loss, net.params["b1"], *grads.values()))
    np.testing.assert_array_equal(backend.to_host(net.params["b1"]), np.arange(5))
    net.params = {name: backend.to_host(w).astype("float64") * 0 for name, w in net.params.items()}
    assert float(net.loss(X, y)[0]) == pytest.approx(np.log(10))


def test_an_array_of_the_nets_dtype_stays_the_same_array():
    net = TwoLayerNet(15, 5)
    W, (X, y) = np.ones((15, 5)), batch()
    net.params["W1"] = W
    before = net.loss(X, y)[0]
    assert net.params["W1"] is W
    W[0] = 7.0
    net.params["W2"] += np.arange(10)
    assert net.loss(X, y)[0] != before


def test_updates_by_hand_lower_the_loss():
    net = FullyConnectedNet([8], 15, weight_scale=0.1)
    X, y = batch(20)
    before, configs = net.loss(X, y)[0], {}
    for _ in range(50):
        _, grads = net.loss(X, y)
        for name, w in net.params.items():
            net.params[name], configs[name] = optim.adam(w, grads[name].astype("float64"), configs.get(name))
    assert net.loss(X, y)[0] < before
