"""The course's nets, and notebooks of the course run with nothing but the package's name changed."""

from pathlib import Path

import numpy as np
import pytest

from tests.helpers import find_backend
from xpconv import load_model, save_model
from xpconv.cs231n import data_utils, layers
from xpconv.cs231n.classifiers import FullyConnectedNet, ThreeLayerConvNet, TwoLayerNet
from xpconv.cs231n.gradient_check import eval_numerical_gradient
from xpconv.errors import ArgumentError
from xpconv.nn import BatchNorm, Conv, Dropout, LayerNorm
from xpconv.testing import rel_error


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
    assert {name: w.shape for name, w in net.params.items()} == {
        "W1": (5, 50), "b1": (50,), "W2": (50, 7), "b2": (7,)}
    assert net.reg == 0.1


def test_positions_of_arguments_are_the_courses():
    net = FullyConnectedNet([20, 30], 15, 10, 0.5, "layernorm", 0.1, 5e-2, np.float64, 123)
    assert (net.reg, net.dtype, net.seed) == (0.1, "float64", 123)
    assert [layer.keep for layer in net.layers if isinstance(layer, Dropout)] == [0.5, 0.5]
    assert sum(isinstance(layer, LayerNorm) for layer in net.layers) == 2
    assert net.params["gamma2"].shape == (30,)
    conv = ThreeLayerConvNet((3, 8, 8), 4, 3, 5, 6, 1e-2, 0.2, np.float64)
    assert (conv.reg, conv.dtype, conv.num_classes) == (0.2, "float64", 6)


@pytest.mark.parametrize("options", [
    {}, {"dropout_keep_ratio": 1}, {"dropout": 1}, {"dropout": 0}, {"dropout": None}, {"normalization": None},
    {"use_batchnorm": False}])
def test_spellings_of_nothing_extra(options):
    net = FullyConnectedNet([6], input_dim=5, **options)
    assert not any(isinstance(layer, Dropout | BatchNorm | LayerNorm) for layer in net.layers)
    assert sorted(net.params) == ["W1", "W2", "b1", "b2"]


@pytest.mark.parametrize("options", [{"dropout_keep_ratio": 0.25}, {"dropout": 0.25},
                                     {"dropout": 0.25, "dropout_keep_ratio": 0.25}])
def test_both_spellings_of_dropout(options):
    (dropout,) = [layer for layer in FullyConnectedNet([6], **options).layers if isinstance(layer, Dropout)]
    assert dropout.keep == 0.25


@pytest.mark.parametrize("options", [{"use_batchnorm": True}, {"normalization": "batchnorm"},
                                     {"use_batchnorm": True, "normalization": "batchnorm"}])
def test_both_spellings_of_batch_norm(options):
    net = FullyConnectedNet([6], **options)
    assert any(isinstance(layer, BatchNorm) for layer in net.layers)


@pytest.mark.parametrize(("options", "message"), [
    ({"dropout": 0.3, "dropout_keep_ratio": 0.5}, "dropout is 0.3 but dropout_keep_ratio is 0.5; expected one of them"),
    ({"use_batchnorm": True, "normalization": "layernorm"}, "use_batchnorm is True but normalization is 'layernorm'"),
    ({"normalization": "batch"}, "normalization is 'batch'; expected one of None, 'batchnorm', 'layernorm'"),
])
def test_contradictions_are_refused(options, message):
    with pytest.raises(ArgumentError, match=message):
        FullyConnectedNet([6], **options)


def test_convolutions_of_the_course_are_im2col():
    assert [layer.algorithm for layer in ThreeLayerConvNet().layers if isinstance(layer, Conv)] == ["im2col"]


def test_nets_are_on_numpy_whatever_is_selected(monkeypatch):
    monkeypatch.setenv("XP_BACKEND", "array_api_strict")
    for net in (TwoLayerNet(4, 5, 3), FullyConnectedNet([5], 4), ThreeLayerConvNet((1, 4, 4), 2, 3, 5)):
        assert all(type(w) is np.ndarray for w in net.params.values())


# ---- what they compute


@pytest.mark.parametrize("reg", [0, 3.14])
@pytest.mark.parametrize("options", [
    {}, {"normalization": "batchnorm"}, {"normalization": "layernorm"}, {"dropout_keep_ratio": 0.5, "seed": 123},
    {"use_batchnorm": True, "dropout": 0.75, "seed": 5}], ids=str)
def test_fully_connected_gradients_are_those_of_the_loss(options, reg):
    np.random.seed(231)
    X, y = batch(2)
    net = FullyConnectedNet([7, 6], input_dim=15, num_classes=10, reg=reg, weight_scale=5e-2, dtype=np.float64,
                            **options)
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


@pytest.mark.parametrize("make", [
    lambda: TwoLayerNet(48, 5, 3), lambda: ThreeLayerConvNet((3, 4, 4), 2, 3, 5, 3),
    lambda: FullyConnectedNet([5], 48, 3, 0.5, "batchnorm", seed=1)])
def test_nets_of_the_course_survive_a_file(make, tmp_path):
    net = make()
    path = tmp_path / "net.safetensors"
    save_model(net, path)
    X = np.random.randn(2, 3, 4, 4)
    np.testing.assert_array_equal(load_model(path).loss(X), net.loss(X))


# ---- notebooks


FULLY_CONNECTED = """
import numpy as np
from cs231n.classifiers.fc_net import *
from cs231n.data_utils import get_CIFAR10_data
from cs231n.gradient_check import eval_numerical_gradient, eval_numerical_gradient_array
from cs231n.solver import Solver
from cs231n.optim import sgd_momentum, rmsprop, adam
from cs231n.layer_utils import affine_relu_forward, affine_relu_backward

data = get_CIFAR10_data(num_training=200, num_validation=50, num_test=50)
np.random.seed(231)

# one layer by hand
x, w, b, dout = np.random.randn(10, 2, 3), np.random.randn(6, 5), np.random.randn(5), np.random.randn(10, 5)
_, cache = affine_forward(x, w, b)
dx, dw, db = affine_backward(dout, cache)
errors['affine dx'] = rel_error(eval_numerical_gradient_array(lambda x: affine_forward(x, w, b)[0], x, dout), dx)
errors['affine db'] = rel_error(eval_numerical_gradient_array(lambda b: affine_forward(x, w, b)[0], b, dout), db)
out, cache = affine_relu_forward(x, w, b)
dx, dw, db = affine_relu_backward(dout, cache)
errors['sandwich dw'] = rel_error(
    eval_numerical_gradient_array(lambda w: affine_relu_forward(x, w, b)[0], w, dout), dw)

# both losses
scores, labels = 0.001 * np.random.randn(50, 10), np.random.randint(10, size=50)
for loss_of in (svm_loss, softmax_loss):
    loss, dx = loss_of(scores, labels)
    numeric = eval_numerical_gradient(lambda x: loss_of(x, labels)[0], scores, verbose=False)
    errors[loss_of.__name__] = rel_error(numeric, dx)
    print('loss: ', loss)

# two layers: initial weights, gradients with and without regularization, training
std = 1e-3
model = TwoLayerNet(input_dim=5, hidden_dim=50, num_classes=7, weight_scale=std)
assert abs(model.params['W1'].std() - std) < std / 10
assert np.all(model.params['b1'] == 0)
model.params['W1'], model.params['W2'] = 0.1 * np.random.randn(5, 50), 0.1 * np.random.randn(50, 7)
X, y = np.random.randn(3, 5), np.random.randint(7, size=3)
for reg in [0.0, 0.7]:
    model.reg = reg
    loss, grads = model.loss(X, y)
    for name in sorted(grads):
        f = lambda _: model.loss(X, y)[0]
        errors[f'two-layer {name} {reg}'] = rel_error(
            eval_numerical_gradient(f, model.params[name], verbose=False), grads[name])
model = TwoLayerNet(hidden_dim=20)
solver = Solver(model, data, update_rule='sgd', optim_config={'learning_rate': 1e-3}, lr_decay=0.95, num_epochs=2,
                batch_size=50, print_every=100)
solver.train()
y_test_pred = np.argmax(model.loss(data['X_test']), axis=1)
print('test accuracy', (y_test_pred == data['y_test']).mean())

# any depth
small_data = {'X_train': data['X_train'][:50], 'y_train': data['y_train'][:50],
              'X_val': data['X_val'], 'y_val': data['y_val']}
model = FullyConnectedNet([100, 100], weight_scale=1e-2, dtype=np.float64)
solver = Solver(model, small_data, print_every=10, num_epochs=10, batch_size=25, update_rule='sgd',
                optim_config={'learning_rate': 1e-2})
solver.train()
results['overfit'] = max(solver.train_acc_history)

# update rules, by hand and in the solver
w, dw = np.linspace(-0.4, 0.6, 20).reshape(4, 5), np.linspace(-0.6, 0.4, 20).reshape(4, 5)
next_w, config = sgd_momentum(w, dw, config={'learning_rate': 1e-3, 'velocity': np.ones((4, 5))})
next_w, config = rmsprop(w, dw, config={'learning_rate': 1e-2, 'cache': np.ones((4, 5))})
next_w, config = adam(w, dw, config={'learning_rate': 1e-2, 'm': np.zeros((4, 5)), 'v': np.ones((4, 5)), 't': 5})
results['t'] = config['t']
for update_rule in ['sgd', 'sgd_momentum', 'adam', 'rmsprop']:
    model = FullyConnectedNet([30, 30], weight_scale=5e-2)
    solver = Solver(model, small_data, num_epochs=2, batch_size=25, update_rule=update_rule,
                    optim_config={'learning_rate': 1e-4}, verbose=False)
    solver.train()
    results[update_rule] = solver.loss_history

# batch norm, layer norm and dropout
bn_param = {'mode': 'train'}
a = np.random.randn(200, 60).dot(np.random.randn(60, 3))
a_norm, _ = batchnorm_forward(a, np.ones(3), np.zeros(3), bn_param)
assert np.allclose(a_norm.mean(axis=0), 0)
dx1, dgamma1, dbeta1 = batchnorm_backward(a, batchnorm_forward(a, np.ones(3), np.zeros(3), bn_param)[1])
dx2, dgamma2, dbeta2 = batchnorm_backward_alt(a, batchnorm_forward(a, np.ones(3), np.zeros(3), bn_param)[1])
errors['dx difference'] = rel_error(dx1, dx2)
out, cache = layernorm_forward(a, np.ones(3), np.zeros(3), {})
layernorm_backward(out, cache)
for p in [0.25, 0.4, 0.7]:
    out = dropout_forward(np.random.randn(500, 500) + 10, {'mode': 'train', 'p': p})[0]
    assert abs(np.mean(out) - 10) < 0.2 and abs(np.mean(out == 0) - (1 - p)) < 0.01
for options in ({'normalization': 'batchnorm'}, {'normalization': 'layernorm'}, {'dropout_keep_ratio': 0.5, 'seed': 1}):
    model = FullyConnectedNet([20], weight_scale=2e-2, **options)
    solver = Solver(model, small_data, num_epochs=1, batch_size=25, update_rule='adam',
                    optim_config={'learning_rate': 1e-3}, verbose=True, print_every=20)
    solver.train()
"""

CONVOLUTIONAL = """
import numpy as np
from cs231n.classifiers.cnn import *
from cs231n.data_utils import get_CIFAR10_data
from cs231n.gradient_check import eval_numerical_gradient_array, eval_numerical_gradient
from cs231n.layers import *
from cs231n.fast_layers import *
from cs231n.solver import Solver
from cs231n.vis_utils import visualize_grid
from cs231n.fast_layers import conv_forward_fast, conv_backward_fast, max_pool_forward_fast, max_pool_backward_fast
from cs231n.layer_utils import conv_relu_forward, conv_relu_backward
from cs231n.layer_utils import conv_relu_pool_forward, conv_relu_pool_backward

data = get_CIFAR10_data(num_training=200, num_validation=50, num_test=50)
np.random.seed(231)

# two filters over pictures: gray and edges
w = np.zeros((2, 3, 3, 3))
w[0, :, 1, 1] = [0.3, 0.6, 0.1]
w[1, 2] = [[1, 2, 1], [0, 0, 0], [-1, -2, -1]]
out, _ = conv_forward_naive(data['X_train'][:1], w, np.array([0, 128]), {'stride': 1, 'pad': 1})
assert out.shape == (1, 2, 32, 32)

# naive against fast
x, w, b = np.random.randn(3, 3, 9, 9), np.random.randn(4, 3, 3, 3), np.random.randn(4)
dout = np.random.randn(3, 4, 5, 5)
conv_param = {'stride': 2, 'pad': 1}
out_naive, cache_naive = conv_forward_naive(x, w, b, conv_param)
out_fast, cache_fast = conv_forward_fast(x, w, b, conv_param)
errors['conv'] = rel_error(out_naive, out_fast)
for name, naive, fast in zip(('dx', 'dw', 'db'), conv_backward_naive(dout, cache_naive),
                             conv_backward_fast(dout, cache_fast)):
    errors['conv ' + name] = rel_error(naive, fast)
pool_param = {'pool_height': 2, 'pool_width': 2, 'stride': 2}
x, dout = np.random.randn(3, 2, 8, 8), np.random.randn(3, 2, 4, 4)
out_naive, cache_naive = max_pool_forward_naive(x, pool_param)
out_fast, cache_fast = max_pool_forward_fast(x, pool_param)
errors['pool'] = rel_error(out_naive, out_fast)
errors['pool dx'] = rel_error(max_pool_backward_naive(dout, cache_naive), max_pool_backward_fast(dout, cache_fast))

# sandwiches
x, w, b = np.random.randn(2, 3, 6, 6), np.random.randn(3, 3, 3, 3), np.random.randn(3)
conv_param = {'stride': 1, 'pad': 1}
out, cache = conv_relu_pool_forward(x, w, b, conv_param, pool_param)
dout = np.random.randn(*out.shape)
dx, dw, db = conv_relu_pool_backward(dout, cache)
numeric = eval_numerical_gradient_array(lambda w: conv_relu_pool_forward(x, w, b, conv_param, pool_param)[0], w, dout)
errors['sandwich dw'] = rel_error(numeric, dw)

# a small net: first loss, gradients, overfitting a few pictures, its filters
model = ThreeLayerConvNet()
X, y = np.random.randn(10, 3, 32, 32), np.random.randint(10, size=10)
loss, grads = model.loss(X, y)
assert abs(loss - np.log(10)) < 1e-3
model.reg = 0.5
assert model.loss(X, y)[0] > loss
model = ThreeLayerConvNet(num_filters=2, filter_size=3, input_dim=(3, 6, 6), hidden_dim=4, weight_scale=0.1,
                          dtype=np.float64)
X, y = np.random.randn(2, 3, 6, 6), np.random.randint(10, size=2)
loss, grads = model.loss(X, y)
for name in sorted(grads):
    f = lambda _: model.loss(X, y)[0]
    numeric = eval_numerical_gradient(f, model.params[name], verbose=False, h=1e-6)
    results['gradient ' + name] = np.abs(numeric - grads[name]).max()
small_data = {'X_train': data['X_train'][:20], 'y_train': data['y_train'][:20],
              'X_val': data['X_val'], 'y_val': data['y_val']}
model = ThreeLayerConvNet(num_filters=4, weight_scale=1e-2)
solver = Solver(model, small_data, num_epochs=10, batch_size=10, update_rule='adam',
                optim_config={'learning_rate': 1e-3}, verbose=True, print_every=1)
solver.train()
results['overfit'] = solver.check_accuracy(small_data['X_train'], small_data['y_train'])
grid = visualize_grid(model.params['W1'].transpose(0, 2, 3, 1))
assert grid.shape == (15, 15, 3)

# spatial batch norm and group norm
x = 4 * np.random.randn(2, 6, 4, 5) + 10
bn_param = {'mode': 'train'}
out, _ = spatial_batchnorm_forward(x, np.ones(6), np.zeros(6), bn_param)
bn_param['mode'] = 'test'
out, cache = spatial_batchnorm_forward(x, np.ones(6), np.zeros(6), bn_param)
spatial_batchnorm_backward(out, cache)
gamma, beta, gn_param = np.random.randn(1, 6, 1, 1), np.random.randn(1, 6, 1, 1), {}
out, cache = spatial_groupnorm_forward(x, gamma, beta, 2, gn_param)
dx, dgamma, dbeta = spatial_groupnorm_backward(out, cache)
errors['group norm dgamma'] = rel_error(
    eval_numerical_gradient_array(lambda a: spatial_groupnorm_forward(x, a, beta, 2, gn_param)[0], gamma, out), dgamma)
"""


@pytest.fixture
def small_cifar(monkeypatch):
    rng = np.random.default_rng(0)
    X, y = rng.integers(0, 256, (350, 3, 32, 32), dtype=np.uint8), rng.integers(0, 10, 350)
    monkeypatch.setattr(data_utils, "find_cifar10", lambda root=None: Path("anywhere"))
    monkeypatch.setattr(data_utils, "read_cifar10", lambda folder: (X[:300], y[:300], X[300:], y[300:]))


@pytest.mark.usefixtures("small_cifar")
@pytest.mark.parametrize("script", [FULLY_CONNECTED, CONVOLUTIONAL], ids=["fully-connected", "convolutional"])
def test_a_notebook_runs_with_only_the_package_renamed(script, capsys):
    errors, results = {}, {}
    exec(script.replace("cs231n", "xpconv.cs231n"), {"errors": errors, "results": results, "rel_error": rel_error})
    assert max(errors.values()) < 1e-5, errors
    assert results.get("t", 6) == 6
    assert results["overfit"] >= 0.8
    assert all(value < 1e-6 for name, value in results.items() if name.startswith("gradient")), results
    assert "(Iteration 1 / " in capsys.readouterr().out
