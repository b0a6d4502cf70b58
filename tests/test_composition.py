"""Nets made of blocks: residual blocks, frozen layers, new heads, features, predictions, and layers of one's own."""

from dataclasses import dataclass

import numpy as np
import pytest

from tests.helpers import assert_array
from tests.nets import IMAGE, NETS
from xpconv import nn
from xpconv.backend import to_host
from xpconv.errors import ArgumentError, ArgumentTypeError, CheckpointError
from xpconv.io.model import load_model, save_model
from xpconv.nn import ConvNet, Residual, Sequential, TwoLayerNet, register_layer
from xpconv.training import Solver

RNG = np.random.default_rng


def residual_net(**options):
    return NETS["residual"](rng=0, dtype="float64", **{"backend": "numpy", **options})


def batch(N=6):
    return RNG(1).standard_normal((N, *IMAGE)), np.arange(N) % 5


def assert_is_on(a, backend, shape):
    """Check the shape, and the dtype, library and device."""
    assert_array(a, to_host(a), backend, "float64")
    assert tuple(a.shape) == shape


def assert_is_numerical_gradient(net, X, y, key, grad):
    """Compare a gradient with the slope of the loss along a random direction."""
    w = net.params[key]
    values, direction = to_host(w).copy(), RNG(2).standard_normal(tuple(w.shape))
    ends = []
    for step in (1e-6, -1e-6):
        net.params[key] = net.backend.asarray(values + step * direction)
        ends.append(float(net.loss(X, y)[0]))
    net.params[key] = w
    assert np.sum(to_host(grad) * direction) == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-5, abs=1e-8)


# ---- residual blocks


def test_parameters_are_numbered_in_the_order_of_their_first_use():
    net = residual_net()
    assert [keys.get("W") for keys in net.layer_keys if "W" in keys] == ["W1", "W5"]
    assert net.layer_keys[3] == {
        "body.0.W": "W2",
        "body.0.b": "b2",
        "body.1.gamma": "gamma2",
        "body.1.beta": "beta2",
        "body.1.running_mean": "running_mean2",
        "body.1.running_var": "running_var2",
        "body.1.num_batches": "num_batches2",
        "body.2.body.1.W": "W3",
        "body.2.body.1.b": "b3",
        "shortcut.0.W": "W4",
        "shortcut.1.gamma": "gamma4",
        "shortcut.1.beta": "beta4",
        "shortcut.1.running_mean": "running_mean4",
        "shortcut.1.running_var": "running_var4",
        "shortcut.1.num_batches": "num_batches4",
    }


def test_gradients_of_a_residual_net_are_the_numerical_ones(backend):
    net = residual_net(backend=backend, reg=0.1)
    X, y = batch()
    _, grads = net.loss(X, y)
    assert set(grads) == set(net.params)
    for key, grad in grads.items():
        w = net.params[key]
        assert_is_on(grad, backend, tuple(w.shape))
        assert_is_numerical_gradient(net, X, y, key, grad)


def test_a_residual_block_computes_the_sum_of_its_branches():
    x = RNG(0).standard_normal((2, 3, 5, 5))
    block = Residual([nn.Relu(), nn.AvgPool(3, 1, padding=1)])
    out, _ = block.forward(x, {}, train=False, seed=0)
    np.testing.assert_allclose(
        out, nn.AvgPool(3, 1, padding=1).forward(np.maximum(x, 0), {}, train=False, seed=0)[0] + x
    )


def test_dropouts_of_a_block_drop_different_elements_and_repeat_them_for_the_same_seed():
    block = Residual([nn.Dropout(0.5)], [nn.Dropout(0.5)])
    x = np.ones((1, 4000))
    out, again = (block.forward(x, {}, train=True, seed=7)[0] for _ in range(2))
    assert np.array_equal(out, again)
    assert np.mean(out == 2) == pytest.approx(0.5, abs=0.05)  # kept in one branch, where it counts twice, but not both
    assert Residual([nn.Relu()]).stochastic is False


def test_lists_and_models_count_as_their_layers():
    inner = ConvNet([4], input_dim=IMAGE, num_classes=5, rng=3, backend="numpy")
    net = Sequential([[nn.Relu(), [nn.Relu()]], inner, nn.Affine(2)], input_shape=IMAGE, rng=0, backend="numpy")
    assert [type(layer) for layer in net.layers[:2]] == [nn.Relu, nn.Relu]
    assert net.layers[2:-1] == inner.layers
    np.testing.assert_array_equal(net.params["W1"], inner.params["W1"])
    assert net.params["W1"] is not inner.params["W1"]


def test_a_model_inside_a_model_must_have_parameters_that_fit():
    inner = ConvNet([4], input_dim=IMAGE, num_classes=5, rng=3, backend="numpy")
    with pytest.raises(
        ArgumentError, match=r"W1 of ConvNet has shape \(4, 3, 3, 3\), but W1 here needs \(4, 2, 3, 3\)"
    ):
        Sequential([inner], input_shape=(2, 6, 8), rng=0, backend="numpy")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Residual([]), "body is empty; expected at least one layer"),
        (lambda: Residual(nn.Relu()), r"body is Relu\(\); expected a list of layers"),
        (lambda: Residual([nn.Relu(), 3]), r"body\[1\] is 3; expected a Layer such as Relu\(\)"),
        (lambda: Residual([nn.Relu()], [[3]]), r"shortcut\[0\]\[0\] is 3; expected a Layer"),
        (
            lambda: Residual([nn.Conv(4, padding=1)]).output_shape((3, 8, 8)),
            r"body returns samples of shape \(4, 8, 8\), but the shortcut returns \(3, 8, 8\); expected equal shapes",
        ),
    ],
)
def test_what_is_no_residual_block_is_refused(make, message):
    with pytest.raises((ArgumentError, ArgumentTypeError), match=message):
        make()


def test_an_error_inside_a_block_names_the_layer_and_its_place():
    net = residual_net()
    net.params["W3"] = net.params["W3"][:, :2]
    with pytest.raises(ArgumentError) as caught:
        net.loss(batch()[0])
    assert [note.partition(",")[0] for note in caught.value.__notes__] == ["in body[1]", "in body[2]", "in layers[3]"]


def test_a_residual_net_is_the_same_after_saving_and_loading(tmp_path):
    net, (X, y) = residual_net(), batch()
    net.loss(X, y)
    net.freeze("residual1")
    save_model(net, tmp_path / "net.safetensors")
    loaded = load_model(tmp_path / "net.safetensors", "numpy")
    assert loaded.layers == net.layers
    np.testing.assert_array_equal(loaded.loss(X), net.loss(X))
    assert sorted(loaded.loss(X, y)[1]) == sorted(net.loss(X, y)[1])


# ---- features and predictions


def test_features_of_a_sample_do_not_depend_on_the_others(backend):
    net, (X, y) = residual_net(backend=backend), batch()
    net.loss(X, y)
    for name in net.layer_names.values():
        together, alone = net.features(X, name), net.features(X[:1], name)
        np.testing.assert_allclose(to_host(together)[:1], to_host(alone), rtol=1e-12, atol=1e-12)
        assert_is_on(together, backend, tuple(together.shape))
    np.testing.assert_array_equal(to_host(net.features(X, -1)), to_host(net.loss(X)))
    np.testing.assert_array_equal(to_host(net.features(X, 3, batch_size=4)), to_host(net.features(X, "residual1")))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("conv9", "layer is 'conv9'; expected one of conv1, batchnorm1, relu1, residual1, conv2,"),
        (7, "layer is 7; expected a name, or a position from -7 to 6"),
        (True, "layer is True; expected a name"),
    ],
)
def test_features_of_an_unknown_layer_are_refused(layer, message):
    with pytest.raises(ArgumentError, match=message):
        residual_net().features(batch()[0], layer)


def test_predictions_are_those_of_the_scores(backend):
    net, (X, y) = residual_net(backend=backend), batch(7)
    net.loss(X, y)  # so that the running averages are those of some data
    scores = to_host(net.loss(X))
    for samples in (X, backend.asarray(X), list(X)):
        labels, probs = net.predict(samples, batch_size=3), net.predict_proba(samples, batch_size=3)
        np.testing.assert_array_equal(to_host(labels), scores.argmax(axis=1))
        exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
        np.testing.assert_allclose(to_host(probs), exponentials / exponentials.sum(axis=1, keepdims=True), rtol=1e-12)
        assert_is_on(probs, backend, (7, 5))


def test_predictions_of_no_samples_are_refused():
    with pytest.raises(ArgumentError, match=r"X has shape \(0, 3, 6, 8\); expected \(N, 3, 6, 8\) with N at least 1"):
        residual_net().predict(np.zeros((0, *IMAGE)))


# ---- frozen layers


def test_frozen_layers_have_no_gradients_and_keep_their_statistics():
    net, (X, y) = residual_net(reg=0.1), batch()
    net.loss(X, y)  # so that the running averages are those of some data
    full = net.loss(X, y)[1]
    net.freeze("conv1|batchnorm1|conv2", "batchnorm2")
    before = {key: value.copy() for key, value in net.state.items()}
    grads = net.loss(2 * X, y)[1]
    assert set(full) - set(grads) == {"W1", "gamma1", "beta1", "W2", "b2", "gamma2", "beta2"}
    changed = {key for key, value in net.state.items() if not np.array_equal(value, before[key])}
    assert changed == {"running_mean4", "running_var4", "num_batches4"}
    net.unfreeze("*")
    assert set(net.loss(X, y)[1]) == set(full)


def test_the_backward_pass_stops_below_the_lowest_trained_layer(monkeypatch):
    net, (X, y) = residual_net(), batch()
    called = []
    for kind in (nn.Conv, nn.Relu, nn.BatchNorm, nn.Affine):
        original = kind.backward
        monkeypatch.setattr(
            kind,
            "backward",
            lambda self, *args, original=original, **kwargs: called.append(self) or original(self, *args, **kwargs),
        )
    net.freeze("*")
    net.unfreeze("affine1")
    assert sorted(net.loss(X, y)[1]) == ["W5", "b5"]
    assert called == [net.layers[-1]]
    net.freeze("*")
    assert net.loss(X, y)[1] == {}


def test_filters_that_are_not_trained_get_no_gradient_above_a_trained_layer(backend, monkeypatch):
    layers = [nn.Conv(4, padding=1), nn.Residual([nn.Conv(4, padding=1, fixed="W")]), nn.Affine(7), nn.Affine(5)]
    net, (X, y) = Sequential(layers, input_shape=IMAGE, dtype="float64", rng=0, backend=backend), batch()
    expected = net.loss(X, y)[1]
    net.freeze("affine1")
    computed = []
    for name in ("affine_backward", "conv_backward"):
        original = getattr(nn.layers.F, name)
        monkeypatch.setattr(
            nn.layers.F,
            name,
            lambda *args, original=original, **options: computed.append(original(*args, **options)) or computed[-1],
        )
    grads = net.loss(X, y)[1]
    assert set(expected) - set(grads) == {"W3", "b3"}
    for key, grad in grads.items():
        np.testing.assert_allclose(to_host(grad), to_host(expected[key]), rtol=1e-12, atol=1e-14)
    assert [[gradient is not None for gradient in gradients] for gradients in computed] == [
        [True, True, True],  # the last layer
        [True, False, False],  # a frozen one
        [True, False, True],  # fixed filters, and a bias that is trained
        [False, True, True],  # the first layer
    ]


def test_a_frozen_block_freezes_the_layers_in_it():
    block = Residual([nn.Conv(3, padding=1), nn.BatchNorm()], trainable=False)
    assert [layer.trainable for layer in block.body] == [False, False]


def test_a_pattern_that_fits_no_layer_is_refused():
    net = TwoLayerNet(input_dim=4, rng=0)
    with pytest.raises(ArgumentError, match=r"'conv\*' fits no layer; expected a pattern for affine1, relu1, affine2"):
        net.freeze("affine1|conv*")
    assert all(layer.trainable for layer in net.layers)


# ---- new heads


def test_a_new_head_has_new_weights_and_the_rest_stays(backend):
    net, (X, _) = residual_net(backend=backend), batch()
    before = {key: to_host(w).copy() for key, w in net.params.items()}
    net.freeze("*")
    net.loss_options = {"class_weights": [1, 2, 3, 4, 5], "label_smoothing": 0.1}
    net.replace_head(3, class_names=["cat", "dog", "owl"], rng=1)
    assert (net.num_classes, net.class_names, net.layers[-1]) == (3, ("cat", "dog", "owl"), nn.Affine(3))
    assert net.loss_options == {"label_smoothing": 0.1}
    assert_is_on(net.loss(X), backend, (6, 3))
    for key in before.keys() - {"W5", "b5"}:
        np.testing.assert_array_equal(to_host(net.params[key]), before[key])
    assert sorted(net.loss(X, np.arange(6) % 3)[1]) == ["W5", "b5"]
    assert load_and_save(net).num_classes == 3


def load_and_save(net):
    return Sequential.from_config(net.config(), "numpy")


def test_a_head_that_cannot_be_replaced_is_refused():
    net = Sequential([nn.Conv(4), nn.GlobalAvgPool()], input_shape=IMAGE, rng=0)
    with pytest.raises(ArgumentError, match=r"the last layer is GlobalAvgPool\(\); expected an Affine"):
        net.replace_head(3)
    net = TwoLayerNet(input_dim=4, rng=0)
    with pytest.raises(ArgumentError, match="class_names has 2 names; expected 3"):
        net.replace_head(3, class_names=["a", "b"])
    assert (net.num_classes, net.class_names) == (10, ())


# ---- the table of layers


def test_the_summary_lists_every_layer_and_counts_every_parameter():
    net = residual_net()
    net.freeze("conv1")
    lines = repr(net).splitlines()
    assert lines[0] == "ResidualNet: samples (3, 6, 8), 5 classes, float64 on numpy"
    assert lines[1].split() == ["name", "layer", "output", "parameters", "bytes"]
    assert [line[:24].split("  ")[0] for line in lines[2:-1] if not line.startswith(" ")] == [
        *("conv1", "batchnorm1", "relu1", "residual1", "relu3", "globalavgpool1", "affine1")
    ]
    assert [line.split("  ")[1] for line in lines if line.startswith("  shortcut")] == [
        "shortcut: conv4",
        "shortcut: batchnorm3",
    ]
    total = sum(w.size for w in net.params.values())
    assert (
        lines[-1] == f"total: {total:,} parameters, {8 * total:,} bytes, of which {net.params['W1'].size:,} are frozen"
    )


# ---- layers of one's own


@register_layer
@dataclass(frozen=True)
class ChannelScale(nn.Layer):
    """Multiply each channel by a parameter."""

    start: float = 2.0

    def parameters(self, shape):
        return {"gamma": (shape[:1], self.start)}

    def forward(self, x, p, *, train, seed):
        return x * p["gamma"][:, None, None], (x, p["gamma"])

    def backward(self, dout, cache, *, need_dx):
        x, gamma = cache
        return dout * gamma[:, None, None], {"gamma": (dout * x).sum((0, 2, 3))}


@register_layer
@dataclass(frozen=True)
class Twice(nn.Layer):
    """Run a branch twice, with the same parameters."""

    once: tuple[nn.Layer, ...]

    def forward(self, x, p, *, train, seed):
        inner = {name.removeprefix("once.0."): a for name, a in p.items()}
        middle, first = self.once[0].forward(x, inner, train=train, seed=seed)
        out, second = self.once[0].forward(middle, inner, train=train, seed=seed)
        return out, (first, second)

    def backward(self, dout, cache, *, need_dx):
        dmiddle, grads = self.once[0].backward(dout, cache[1], need_dx=True)
        dx, more = self.once[0].backward(dmiddle, cache[0], need_dx=need_dx)
        return dx, {f"once.0.{name}": grads[name] + more[name] for name in grads}

    def __post_init__(self):
        object.__setattr__(self, "once", tuple(self.once))


def test_registered_layers_of_a_users_own_are_saved_frozen_and_differentiated(tmp_path):
    net = Sequential(
        [Residual([ChannelScale(3.0), nn.Conv(3, padding=1)]), Twice([ChannelScale()]), nn.Affine(5)],
        input_shape=IMAGE,
        rng=0,
        dtype="float64",
        backend="numpy",
    )
    X, y = batch()
    for key, grad in net.loss(X, y)[1].items():
        assert_is_numerical_gradient(net, X, y, key, grad)
    save_model(net, tmp_path / "net.safetensors")
    loaded = load_model(tmp_path / "net.safetensors", "numpy")
    assert loaded.layers == net.layers
    np.testing.assert_array_equal(loaded.loss(X), net.loss(X))
    net.freeze("twice1")
    assert sorted(net.loss(X, y)[1]) == ["W1", "W2", "b1", "b2", "gamma0"]


@dataclass(frozen=True)
class Unregistered(nn.Layer):
    def forward(self, x, p, *, train, seed):
        return x, None


def test_a_layer_that_is_not_registered_is_not_saved_and_the_error_says_how(tmp_path):
    net = Sequential([Residual([Unregistered()]), nn.Affine(5)], input_shape=IMAGE, rng=0)
    message = (
        r"layers\[0\] \(at body.0 inside it\) is Unregistered\(\), whose type is not registered; expected .* @xpconv"
    )
    with pytest.raises(CheckpointError, match=message):
        save_model(net, tmp_path / "net.safetensors")
    assert not list(tmp_path.iterdir())


def test_types_that_cannot_be_registered_are_refused():
    with pytest.raises(ArgumentTypeError, match="kind is 3; expected a subclass of Layer that is a frozen dataclass"):
        register_layer(3)

    @dataclass(frozen=True)
    class Relu(nn.Layer):
        pass

    with pytest.raises(
        ArgumentError, match=r"Relu of tests.test_composition has the name of a layer of xpconv.nn.layers"
    ):
        register_layer(Relu)


# ---- training


def test_training_changes_only_what_is_not_frozen():
    net, (X, y) = residual_net(reg=0.1), batch(12)
    net.freeze("*")
    net.unfreeze("residual1|affine1")
    before = {key: w.copy() for key, w in {**net.params, **net.state}.items()}
    data = {"X_train": X, "y_train": y, "X_val": X, "y_val": y}
    options = {"update_rule": "adam", "batch_size": 4, "num_epochs": 2, "verbose": False, "rng": 0}
    Solver(net, data, preflight=True, **options).train()
    kept = {"W1", "beta1", "gamma1", "num_batches1", "running_mean1", "running_var1"}
    changed = {key for key, w in {**net.params, **net.state}.items() if not np.array_equal(w, before[key])}
    assert changed == before.keys() - kept


def test_a_net_whose_layers_are_all_frozen_is_not_trained():
    net, (X, y) = residual_net(), batch(12)
    net.freeze("*")
    solver = Solver(net, {"X_train": X, "y_train": y, "X_val": X, "y_val": y}, batch_size=4, verbose=False)
    with pytest.raises(ArgumentError, match="all layers of the model are frozen: unfreeze those to train"):
        solver.train()
