"""Published results of the assignment, reproduced through the course's own names.

The last tests train on CIFAR-10: set ``XPCONV_DATA`` to a folder that holds it.
"""

import os

import numpy as np
import pytest

from xpconv.cs231n.classifiers.cnn import ThreeLayerConvNet
from xpconv.cs231n.classifiers.fc_net import TwoLayerNet
from xpconv.cs231n.data_utils import get_CIFAR10_data
from xpconv.cs231n.fast_layers import conv_forward_fast, max_pool_forward_fast
from xpconv.cs231n.gradient_check import eval_numerical_gradient, eval_numerical_gradient_array
from xpconv.cs231n.layer_utils import conv_relu_pool_backward, conv_relu_pool_forward
from xpconv.cs231n.layers import (
    affine_forward,
    conv_backward_naive,
    conv_forward_naive,
    max_pool_backward_naive,
    max_pool_forward_naive,
    relu_forward,
    spatial_batchnorm_backward,
    spatial_batchnorm_forward,
    spatial_groupnorm_backward,
    spatial_groupnorm_forward,
)
from xpconv.cs231n.solver import Solver
from xpconv.testing import rel_error


def linspace(start, stop, *shape):
    return np.linspace(start, stop, num=int(np.prod(shape))).reshape(shape)


@pytest.fixture(autouse=True)
def _seed():
    np.random.seed(231)


# ---- single layers


def test_affine_forward():
    out, _ = affine_forward(linspace(-0.1, 0.5, 2, 4, 5, 6), linspace(-0.2, 0.3, 120, 3), linspace(-0.3, 0.1, 3))
    assert rel_error(out, [[1.49834967, 1.70660132, 1.91485297], [3.25553199, 3.5141327, 3.77273342]]) < 5e-9


def test_relu_forward():
    out, _ = relu_forward(linspace(-0.5, 0.5, 3, 4))
    expected = [[0, 0, 0, 0], [0, 0, 0.04545455, 0.13636364], [0.22727273, 0.31818182, 0.40909091, 0.5]]
    assert rel_error(out, expected) < 1e-7


@pytest.mark.parametrize("forward", [conv_forward_naive, conv_forward_fast])
def test_conv_forward(forward):
    x, w, b = linspace(-0.1, 0.5, 2, 3, 4, 4), linspace(-0.2, 0.3, 3, 3, 4, 4), linspace(-0.1, 0.2, 3)
    out, _ = forward(x, w, b, {"stride": 2, "pad": 1})
    assert (
        rel_error(
            out,
            [
                [
                    [[-0.08759809, -0.10987781], [-0.18387192, -0.2109216]],
                    [[0.21027089, 0.21661097], [0.22847626, 0.23004637]],
                    [[0.50813986, 0.54309974], [0.64082444, 0.67101435]],
                ],
                [
                    [[-0.98053589, -1.03143541], [-1.19128892, -1.24695841]],
                    [[0.69108355, 0.66880383], [0.59480972, 0.56776003]],
                    [[2.36270298, 2.36904306], [2.38090835, 2.38247847]],
                ],
            ],
        )
        < 3e-8
    )


@pytest.mark.parametrize("forward", [max_pool_forward_naive, max_pool_forward_fast])
def test_max_pool_forward(forward):
    out, _ = forward(linspace(-0.3, 0.4, 2, 3, 4, 4), {"pool_height": 2, "pool_width": 2, "stride": 2})
    assert (
        rel_error(
            out,
            [
                [
                    [[-0.26315789, -0.24842105], [-0.20421053, -0.18947368]],
                    [[-0.14526316, -0.13052632], [-0.08631579, -0.07157895]],
                    [[-0.02736842, -0.01263158], [0.03157895, 0.04631579]],
                ],
                [
                    [[0.09052632, 0.10526316], [0.14947368, 0.16421053]],
                    [[0.20842105, 0.22315789], [0.26736842, 0.28210526]],
                    [[0.32631579, 0.34105263], [0.38526316, 0.4]],
                ],
            ],
        )
        < 5e-8
    )


# ---- gradient checks


def gradient_errors(forward, backward, *arrays):
    """Return the relative error of each gradient against differences of the forward pass."""
    out, cache = forward(*arrays)
    dout = np.random.randn(*out.shape)
    gradients = backward(dout, cache)
    gradients = gradients if isinstance(gradients, tuple) else (gradients,)
    errors = []
    for i, gradient in enumerate(gradients):

        def changed(a, i=i):
            return forward(*arrays[:i], a, *arrays[i + 1 :])[0]

        errors.append(rel_error(eval_numerical_gradient_array(changed, arrays[i], dout), gradient))
    return errors


def test_conv_gradients():
    x, w, b = np.random.randn(4, 3, 5, 5), np.random.randn(2, 3, 3, 3), np.random.randn(2)
    conv_param = {"stride": 1, "pad": 1}
    out, cache = conv_forward_naive(x, w, b, conv_param)
    dout = np.random.randn(*out.shape)
    for i, gradient in enumerate(conv_backward_naive(dout, cache)):

        def changed(a, i=i):  # the fast forward: the naive one takes seconds
            return conv_forward_fast(*(a if k == i else given for k, given in enumerate((x, w, b))), conv_param)[0]

        assert rel_error(eval_numerical_gradient_array(changed, (x, w, b)[i], dout), gradient) < 5e-8


def test_max_pool_gradient():
    pool_param = {"pool_height": 2, "pool_width": 2, "stride": 2}
    (error,) = gradient_errors(
        lambda x: max_pool_forward_naive(x, pool_param), max_pool_backward_naive, np.random.randn(3, 2, 8, 8)
    )
    assert error < 1e-11


def test_conv_relu_pool_gradients():
    conv_param, pool_param = {"stride": 1, "pad": 1}, {"pool_height": 2, "pool_width": 2, "stride": 2}
    errors = gradient_errors(
        lambda x, w, b: conv_relu_pool_forward(x, w, b, conv_param, pool_param),
        conv_relu_pool_backward,
        np.random.randn(2, 3, 16, 16),
        np.random.randn(3, 3, 3, 3),
        np.random.randn(3),
    )
    assert max(errors) < 1e-7


def test_spatial_batch_norm_gradients():
    dx, dgamma, dbeta = gradient_errors(
        lambda x, gamma, beta: spatial_batchnorm_forward(x, gamma, beta, {"mode": "train"}),
        spatial_batchnorm_backward,
        5 * np.random.randn(2, 3, 4, 5) + 12,
        np.random.randn(3),
        np.random.randn(3),
    )
    assert dx < 1e-6
    assert dgamma < 1e-10
    assert dbeta < 1e-10


def test_group_norm_gradients():
    errors = gradient_errors(
        lambda x, gamma, beta: spatial_groupnorm_forward(x, gamma, beta, 2, {}),
        spatial_groupnorm_backward,
        5 * np.random.randn(2, 6, 4, 5) + 12,
        np.random.randn(1, 6, 1, 1),
        np.random.randn(1, 6, 1, 1),
    )
    assert max(errors) < 1e-7


def test_three_layer_net_gradients():
    X, y = np.random.randn(2, 3, 16, 16), np.random.randint(10, size=2)
    model = ThreeLayerConvNet(num_filters=3, filter_size=3, input_dim=(3, 16, 16), hidden_dim=7, dtype=np.float64)
    _, grads = model.loss(X, y)
    assert sorted(grads) == ["W1", "W2", "W3", "b1", "b2", "b3"]
    for name, gradient in grads.items():
        numeric = eval_numerical_gradient(lambda _: model.loss(X, y)[0], model.params[name], verbose=False, h=1e-6)
        assert rel_error(numeric, gradient) < 2e-2


# ---- normalisation


def moments(x):
    return x.mean(axis=(0, 2, 3)), x.std(axis=(0, 2, 3))


def assert_moments(x, means, stds, digits=8):
    np.testing.assert_allclose(moments(x)[0], means, atol=10.0**-digits)
    np.testing.assert_allclose(moments(x)[1], stds, atol=10.0**-digits)


def test_spatial_batch_norm_in_training():
    x = 4 * np.random.randn(2, 3, 4, 5) + 10
    assert_moments(x, [9.33463814, 8.90909116, 9.11056338], [3.61447857, 3.19347686, 3.5168142])
    bn_param = {"mode": "train"}
    out, _ = spatial_batchnorm_forward(x, np.ones(3), np.zeros(3), bn_param)
    assert_moments(out, [0, 0, 0], [0.99999962, 0.99999951, 0.9999996])
    assert abs(moments(out)[0]).max() < 1e-15
    out, _ = spatial_batchnorm_forward(x, np.asarray([3, 4, 5]), np.asarray([6, 7, 8]), bn_param)
    assert_moments(out, [6, 7, 8], [2.99999885, 3.99999804, 4.99999798])


def test_spatial_batch_norm_after_training():
    bn_param = {"mode": "train"}
    for _ in range(50):
        spatial_batchnorm_forward(2.3 * np.random.randn(10, 4, 11, 12) + 13, np.ones(4), np.zeros(4), bn_param)
    bn_param["mode"] = "test"
    out, _ = spatial_batchnorm_forward(2.3 * np.random.randn(10, 4, 11, 12) + 13, np.ones(4), np.zeros(4), bn_param)
    assert_moments(
        out, [-0.08034406, 0.07562881, 0.05716371, 0.04378383], [0.96718744, 1.0299714, 1.02887624, 1.00585577]
    )


def test_group_norm():
    x, G = 4 * np.random.randn(2, 6, 4, 5) + 10, 2
    out, _ = spatial_groupnorm_forward(x, np.ones((1, 6, 1, 1)), np.zeros((1, 6, 1, 1)), G, {"mode": "train"})
    groups = out.reshape(2 * G, -1)
    assert abs(groups.mean(axis=1)).max() < 2e-15
    np.testing.assert_allclose(groups.std(axis=1), [0.99999963, 0.99999948, 0.99999973, 0.99999968], atol=1e-8)


# ---- nets


def test_two_layer_net():
    N, D, H, C = 3, 5, 50, 7
    model = TwoLayerNet(input_dim=D, hidden_dim=H, num_classes=C)
    model.params["W1"] = linspace(-0.7, 0.3, D, H)
    model.params["b1"] = linspace(-0.1, 0.9, H)
    model.params["W2"] = linspace(-0.3, 0.4, H, C)
    model.params["b2"] = linspace(-0.9, 0.1, C)
    X = linspace(-5.5, 4.5, D, N).T
    expected = [
        [11.53165108, 12.2917344, 13.05181771, 13.81190102, 14.57198434, 15.33206765, 16.09215096],
        [12.05769098, 12.74614105, 13.43459113, 14.1230412, 14.81149128, 15.49994135, 16.18839143],
        [12.58373087, 13.20054771, 13.81736455, 14.43418138, 15.05099822, 15.66781506, 16.2846319],
    ]
    scores = model.loss(X)
    assert scores.dtype == np.float64
    assert np.abs(scores - expected).sum() < 1e-6
    y = np.asarray([0, 5, 1])
    assert abs(model.loss(X, y)[0] - 3.4702243556) < 1e-10
    model.reg = 1.0
    assert abs(model.loss(X, y)[0] - 26.5948426952) < 1e-10


def test_loss_of_a_fresh_net():
    model = ThreeLayerConvNet()
    X, y = np.random.randn(50, 3, 32, 32), np.random.randint(10, size=50)
    assert model.loss(X, y)[0] == pytest.approx(np.log(10), abs=1e-5)
    model.reg = 0.5
    assert model.loss(X, y)[0] == pytest.approx(2.509, abs=1e-3)


# ---- training on CIFAR-10


@pytest.fixture(scope="module")
def cifar():
    if not os.environ.get("XPCONV_DATA"):
        pytest.skip("XPCONV_DATA is not set to a folder that holds CIFAR-10")
    return get_CIFAR10_data()


def test_data_has_the_published_shapes(cifar):
    assert {name: a.shape for name, a in cifar.items()} == {
        "X_train": (49000, 3, 32, 32),
        "y_train": (49000,),
        "X_val": (1000, 3, 32, 32),
        "y_val": (1000,),
        "X_test": (1000, 3, 32, 32),
        "y_test": (1000,),
    }
    assert cifar["X_train"].dtype == np.float64
    assert abs(cifar["X_train"][:, 0, 0, 0].mean()) < 1e-9


def test_training_trace(cifar, capsys):
    small = {**cifar, "X_train": cifar["X_train"][:100], "y_train": cifar["y_train"][:100]}
    model = ThreeLayerConvNet(weight_scale=1e-2)
    solver = Solver(
        model,
        small,
        num_epochs=2,
        batch_size=50,
        update_rule="adam",
        optim_config={"learning_rate": 1e-3},
        verbose=True,
        print_every=1,
    )
    solver.train()
    published = [2.414060, 3.102925, 2.270330, 2.096705]
    # Of a reconstruction of the data, with an approximate mean image; two independent implementations agree on these.
    reconstructed = [2.413974, 3.098699, 2.266355, 2.084625]
    assert any(solver.loss_history == pytest.approx(losses, rel=5e-3) for losses in (published, reconstructed))
    assert solver.train_acc_history == [0.20, 0.14, 0.24]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("(Iteration 1 / 4) loss: 2.41")
    assert lines[1].startswith("(Epoch 0 / 2) train acc: 0.200000; val_acc: 0.1")


@pytest.mark.slow
def test_one_epoch(cifar):
    model = ThreeLayerConvNet(weight_scale=1e-3, hidden_dim=500, reg=1e-3)
    solver = Solver(
        model,
        cifar,
        num_epochs=1,
        batch_size=50,
        update_rule="adam",
        optim_config={"learning_rate": 1e-3},
        verbose=False,
    )
    solver.train()
    assert len(solver.loss_history) == 980
    assert solver.loss_history[0] == pytest.approx(2.3047, abs=1e-3)
    assert solver.train_acc_history[-1] > 0.40
