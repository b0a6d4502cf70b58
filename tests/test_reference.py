"""The loop layers against the published values, and their gradients against finite differences."""

import numpy as np
import pytest

from xpconv.errors import ArgumentError, ArgumentTypeError
from xpconv.layers import reference as ref
from xpconv.testing import eval_numerical_gradient, eval_numerical_gradient_array, rel_error


def linspace(start, stop, *shape):
    return np.linspace(start, stop, np.prod(shape, dtype=int)).reshape(shape)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def running(C, seed=9):
    return draw(C, seed=seed), draw(C, seed=seed + 1) ** 2 + 0.5


MASK = draw(3, 4, seed=5) > 0
X2, X4, X5 = draw(4, 5), draw(2, 3, 5, 6), draw(2, 4, 3, 2, 2)

# name of the layer: inputs with gradients, and options
CASES = {
    "affine": ([draw(3, 2, 4), draw(8, 5, seed=1), draw(5, seed=2)], {}),
    "relu": ([X2], {}),
    "leaky_relu": ([X2], {"negative_slope": 0.3}),
    "scale": ([X2], {"factor": 0.3}),
    "gelu": ([X2], {}),
    "gelu, tanh": ([X2], {"approximate": "tanh"}),
    "silu": ([X2], {}),
    "conv": ([draw(4, 3, 5, 5), draw(2, 3, 3, 3, seed=1), draw(2, seed=2)], {"padding": 1}),
    "conv, pairs": ([X4, draw(2, 3, 2, 3, seed=1), draw(2, seed=2)], {"stride": (2, 3), "padding": (1, 2)}),
    "conv, strides that do not tile": ([X4, draw(2, 3, 2, 2, seed=1), draw(2, seed=2)], {"stride": 2}),
    "conv_transpose": ([X4, draw(3, 2, 3, 2, seed=1), draw(2, seed=2)], {"stride": 2, "padding": 1}),
    "max_pool": ([X4], {"kernel_size": 2}),
    "max_pool, overlapping": ([X4], {"kernel_size": 3, "stride": 1}),
    "max_pool, pairs": ([X4], {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 1)}),
    "avg_pool": ([X4], {"kernel_size": 2}),
    "avg_pool, pairs": ([X4], {"kernel_size": (3, 2), "stride": (1, 3), "padding": (1, 0)}),
    "global_avg_pool": ([X4], {}),
    "global_max_pool": ([X4], {}),
    "pad_channels": ([X4], {"channels": 5}),
    "batchnorm, train": ([X2, draw(5, seed=1), draw(5, seed=2)], {"running": None, "train": True}),
    "batchnorm, eval": ([X2, draw(5, seed=1), draw(5, seed=2)], {"running": running(5), "train": False}),
    "batchnorm, images, train": ([X4, draw(3, seed=1), draw(3, seed=2)], {"running": running(3), "train": True}),
    "batchnorm, images, eval": ([X4, draw(3, seed=1), draw(3, seed=2)], {"running": running(3), "train": False}),
    "layernorm": ([X2, draw(5, seed=1), draw(5, seed=2)], {}),
    "layernorm, images": ([X4, draw(3, 5, 6, seed=1), draw(3, 5, 6, seed=2)], {}),
    "groupnorm": ([X5, draw(4, seed=1), draw(4, seed=2)], {"groups": 2}),
    "groupnorm, one group": ([X5, draw(4, seed=1), draw(4, seed=2)], {"groups": 1}),
    "groupnorm, a group each channel": ([X5, draw(4, seed=1), draw(4, seed=2)], {"groups": 4}),
    "dropout": ([draw(3, 4)], {"keep_prob": 0.7, "mask": MASK, "train": True}),
    "dropout, eval": ([draw(3, 4)], {"keep_prob": 0.7, "mask": MASK, "train": False}),
}


@pytest.fixture(params=CASES)
def case(request):
    """Return forward, backward and inputs."""
    name = request.param.partition(",")[0]
    inputs, options = CASES[request.param]

    def backward(dout, cache):
        gradients = getattr(ref, f"{name}_backward")(dout, cache)
        return gradients if isinstance(gradients, tuple) else (gradients,)

    return lambda *inputs: getattr(ref, f"{name}_forward")(*inputs, **options), backward, inputs


# ---- every layer


def test_gradients_match_finite_differences(case):
    forward, backward, inputs = case
    inputs = [x.copy() for x in inputs]
    out, cache = forward(*inputs)
    dout = draw(*out.shape, seed=7)
    for x, gradient in zip(inputs, backward(dout, cache), strict=True):
        numeric = eval_numerical_gradient_array(lambda _: forward(*inputs)[0], x, dout)
        np.testing.assert_allclose(gradient, numeric, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_outputs_keep_the_dtype_and_gradients_have_the_shape_of_their_inputs(case, dtype):
    forward, backward, inputs = case
    inputs = [x.astype(dtype) for x in inputs]
    out, cache = forward(*inputs)
    gradients = backward(np.ones_like(out), cache)
    assert type(cache) is tuple
    assert out.dtype == dtype
    assert [(g.dtype, g.shape) for g in gradients] == [(dtype, x.shape) for x in inputs]


def test_inputs_are_never_written_to(case):
    forward, backward, inputs = case
    inputs = [x.copy() for x in inputs]
    for x in inputs:
        x.flags.writeable = False
    out, cache = forward(*inputs)
    out.flags.writeable = False
    backward(out, cache)


def test_memory_layout_does_not_matter(case):
    forward, backward, inputs = case
    out, cache = forward(*inputs)
    again, cache_again = forward(*(np.asfortranarray(x) for x in inputs))
    np.testing.assert_allclose(again, out, rtol=1e-12)
    for a, b in zip(backward(out, cache), backward(np.asfortranarray(out), cache_again), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


# ---- published values


def test_affine_gives_the_published_values():
    x, w, b = linspace(-0.1, 0.5, 2, 4, 5, 6), linspace(-0.2, 0.3, 120, 3), linspace(-0.3, 0.1, 3)
    expected = np.array([[1.49834967, 1.70660132, 1.91485297], [3.25553199, 3.5141327, 3.77273342]])
    out, _ = ref.affine_forward(x, w, b)
    assert out.shape == (2, 3)
    assert rel_error(out, expected) < 2e-9


def test_relu_gives_the_published_values():
    expected = np.array([[0, 0, 0, 0], [0, 0, 0.04545455, 0.13636364], [0.22727273, 0.31818182, 0.40909091, 0.5]])
    assert rel_error(ref.relu_forward(linspace(-0.5, 0.5, 3, 4))[0], expected) < 1e-7


def test_conv_gives_the_published_values():
    x, w, b = linspace(-0.1, 0.5, 2, 3, 4, 4), linspace(-0.2, 0.3, 3, 3, 4, 4), linspace(-0.1, 0.2, 3)
    expected = np.array(
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
        ]
    )
    assert rel_error(ref.conv_forward(x, w, b, stride=2, padding=1)[0], expected) < 3e-8


def test_max_pool_gives_the_published_values():
    expected = np.array(
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
        ]
    )
    out, _ = ref.max_pool_forward(linspace(-0.3, 0.4, 2, 3, 4, 4), kernel_size=2, stride=2)
    assert rel_error(out, expected) < 5e-8


def test_spatial_batchnorm_gives_the_published_statistics():
    x = 4 * np.random.RandomState(231).randn(2, 3, 4, 5) + 10
    np.testing.assert_allclose(x.mean(axis=(0, 2, 3)), [9.33463814, 8.90909116, 9.11056338], rtol=1e-8)
    out, _ = ref.batchnorm_forward(x, np.ones(3), np.zeros(3), None, train=True)
    np.testing.assert_allclose(out.mean(axis=(0, 2, 3)), 0, atol=3e-15)
    np.testing.assert_allclose(out.std(axis=(0, 2, 3)), [0.99999962, 0.99999951, 0.9999996], atol=1e-8)
    out, _ = ref.batchnorm_forward(x, np.array([3, 4, 5]), np.array([6, 7, 8]), None, train=True)
    np.testing.assert_allclose(out.mean(axis=(0, 2, 3)), [6, 7, 8], rtol=1e-14)
    np.testing.assert_allclose(out.std(axis=(0, 2, 3)), [2.99999885, 3.99999804, 4.99999798], atol=1e-8)


def test_running_statistics_give_the_published_test_time_outputs():
    rng, averages = np.random.RandomState(231), None
    ones, zeros = np.ones(4), np.zeros(4)
    for _ in range(50):
        _, cache = ref.batchnorm_forward(2.3 * rng.randn(10, 4, 11, 12) + 13, ones, zeros, averages, train=True)
        averages = cache[-1]
    out, cache = ref.batchnorm_forward(2.3 * rng.randn(10, 4, 11, 12) + 13, ones, zeros, averages, train=False)
    np.testing.assert_allclose(out.mean(axis=(0, 2, 3)), [-0.08034406, 0.07562881, 0.05716371, 0.04378383], atol=1e-8)
    np.testing.assert_allclose(out.std(axis=(0, 2, 3)), [0.96718744, 1.0299714, 1.02887624, 1.00585577], atol=1e-8)
    for before, after in zip(averages, cache[-1], strict=True):
        np.testing.assert_array_equal(before, after)


def test_group_norm_gives_the_published_statistics():
    x = 4 * np.random.RandomState(231).randn(2, 6, 4, 5) + 10
    out, _ = ref.groupnorm_forward(x, np.ones(6), np.zeros(6), groups=2)
    groups = out.reshape(4, -1)
    np.testing.assert_allclose(groups.mean(axis=1), 0, atol=3e-15)
    np.testing.assert_allclose(groups.std(axis=1), [0.99999963, 0.99999948, 0.99999973, 0.99999968], atol=1e-8)


def test_the_two_layer_net_gives_the_published_scores_and_losses():
    x = linspace(-5.5, 4.5, 5, 3).T
    w1, b1 = linspace(-0.7, 0.3, 5, 50), linspace(-0.1, 0.9, 50)
    w2, b2 = linspace(-0.3, 0.4, 50, 7), linspace(-0.9, 0.1, 7)
    hidden, _ = ref.relu_forward(ref.affine_forward(x, w1, b1)[0])
    scores, _ = ref.affine_forward(hidden, w2, b2)
    expected = [
        [11.53165108, 12.2917344, 13.05181771, 13.81190102, 14.57198434, 15.33206765, 16.09215096],
        [12.05769098, 12.74614105, 13.43459113, 14.1230412, 14.81149128, 15.49994135, 16.18839143],
        [12.58373087, 13.20054771, 13.81736455, 14.43418138, 15.05099822, 15.66781506, 16.2846319],
    ]
    assert np.sum(np.abs(scores - expected)) < 1e-6
    loss, _ = ref.softmax_loss(scores, np.array([0, 5, 1]))
    assert loss == pytest.approx(3.4702243556, abs=1e-10)
    assert loss + 0.5 * (np.sum(w1**2) + np.sum(w2**2)) == pytest.approx(26.5948426952, abs=1e-10)


# ---- the losses


@pytest.mark.parametrize("loss_function", [ref.softmax_loss, ref.svm_loss])
def test_loss_gradients_match_finite_differences(loss_function):
    x, y = draw(6, 4), np.array([0, 1, 2, 3, 0, 2])
    loss, dx = loss_function(x, y)
    assert type(loss) is float
    np.testing.assert_allclose(dx, eval_numerical_gradient(lambda x: loss_function(x, y)[0], x), atol=1e-8)


@pytest.mark.parametrize("loss_function", [ref.softmax_loss, ref.svm_loss])
def test_loss_gradients_keep_float32(loss_function):
    loss, dx = loss_function(draw(6, 4).astype(np.float32), np.array([0, 1, 2, 3, 0, 2]))
    assert type(loss) is float
    assert dx.dtype == np.float32
    assert dx.shape == (6, 4)


def test_equal_scores_give_the_expected_losses():
    y = np.array([1, 2])
    assert ref.softmax_loss(np.zeros((2, 10)), y)[0] == pytest.approx(np.log(10))
    assert ref.svm_loss(np.zeros((2, 10)), y)[0] == pytest.approx(9)


def test_softmax_does_not_overflow():
    loss, dx = ref.softmax_loss(np.array([[1e4, 0.0], [-1e4, 0.0]]), np.array([0, 1]))
    assert loss == 0
    assert np.all(dx == 0)


# ---- common mistakes


def test_relu_gives_no_gradient_at_exactly_zero():
    _, cache = ref.relu_forward(np.array([-1.0, 0.0, 1.0]))
    assert ref.relu_backward(np.ones(3), cache).tolist() == [0, 0, 1]


def test_relu_and_max_pool_propagate_nan():
    x = np.array([[[[np.nan, 1.0], [2.0, 3.0]]]])
    assert np.isnan(ref.relu_forward(x)[0][0, 0, 0, 0])
    assert np.isnan(ref.max_pool_forward(x, kernel_size=2)[0]).all()


def test_tied_maxima_give_the_gradient_to_the_first():
    _, cache = ref.max_pool_forward(np.ones((1, 1, 2, 4)), kernel_size=2)
    assert ref.max_pool_backward(np.ones((1, 1, 1, 2)), cache).tolist() == [[[[1, 0, 1, 0], [0, 0, 0, 0]]]]


def test_overlapping_windows_add_their_gradients():
    x = np.zeros((1, 1, 3, 3))
    x[0, 0, 1, 1] = 1
    _, cache = ref.max_pool_forward(x, kernel_size=2, stride=1)
    assert ref.max_pool_backward(np.ones((1, 1, 2, 2)), cache)[0, 0].tolist() == [[0, 0, 0], [0, 4, 0], [0, 0, 0]]


def test_max_pool_padding_is_minus_infinity_and_avg_pool_padding_counts_as_zeros():
    x = -np.ones((1, 1, 2, 2))
    assert ref.max_pool_forward(x, kernel_size=2, padding=1)[0].tolist() == [[[[-1, -1], [-1, -1]]]]
    assert ref.avg_pool_forward(x, kernel_size=2, padding=1)[0].tolist() == [[[[-0.25, -0.25], [-0.25, -0.25]]]]


def test_output_sizes_round_down_and_unused_pixels_get_no_gradient():
    _, cache = ref.conv_forward(np.ones((1, 1, 4, 5)), np.ones((1, 1, 3, 3)), None, stride=2)
    dx, dw, db = ref.conv_backward(np.ones((1, 1, 1, 2)), cache)
    assert dx.shape == (1, 1, 4, 5)
    assert dx[0, 0, 3].tolist() == [0] * 5
    assert dw[0, 0, 0].tolist() == [2, 2, 2]
    assert db is None


def test_a_missing_bias_counts_as_zero():
    x, w, b = CASES["conv"][0]
    out, cache = ref.conv_forward(x, w, None, padding=1)
    with_zero, cache_with_zero = ref.conv_forward(x, w, 0 * b, padding=1)
    np.testing.assert_array_equal(out, with_zero)
    dout = draw(*out.shape)
    (dx, dw, db), (dx_zero, dw_zero, _) = ref.conv_backward(dout, cache), ref.conv_backward(dout, cache_with_zero)
    assert db is None
    np.testing.assert_array_equal(dx, dx_zero)
    np.testing.assert_array_equal(dw, dw_zero)


def test_running_averages_decay_and_do_not_include_eps():
    x, old = X4, running(3)
    _, cache = ref.batchnorm_forward(x, np.ones(3), np.zeros(3), old, train=True, momentum=0.8, eps=10.0)
    new_mean, new_var = cache[-1]
    np.testing.assert_allclose(new_mean, 0.8 * old[0] + 0.2 * x.mean(axis=(0, 2, 3)))
    np.testing.assert_allclose(new_var, 0.8 * old[1] + 0.2 * x.var(axis=(0, 2, 3)))
    first = ref.batchnorm_forward(x, np.ones(3), np.zeros(3), None, train=True)[1][-1]
    np.testing.assert_allclose(first[0], 0.1 * x.mean(axis=(0, 2, 3)))


def test_running_averages_keep_float32():
    x = X4.astype(np.float32)
    *_, averages = ref.batchnorm_forward(x, np.ones(3), np.zeros(3), None, train=True)[1]
    assert [a.dtype for a in averages] == [np.float32, np.float32]


def test_dropout_masks_and_scales_in_training_only():
    x = np.ones((3, 4))
    np.testing.assert_array_equal(ref.dropout_forward(x, keep_prob=0.5, mask=MASK, train=True)[0], 2 * MASK)
    np.testing.assert_array_equal(ref.dropout_forward(x, keep_prob=0.5, mask=MASK, train=False)[0], x)


# ---- bad input


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: ref.affine_forward(X2, draw(4, 3), draw(3)), r"w has shape \(4, 3\); expected \(5, 3\)"),
        (lambda: ref.affine_forward(X2, draw(5, 3), draw(1)), r"b has shape \(1,\); expected \(3,\)"),
        (lambda: ref.conv_forward(X4, draw(2, 1, 3, 3), None), r"w has shape \(2, 1, 3, 3\); expected \(2, 3, 3, 3\)"),
        (lambda: ref.conv_forward(X4, draw(2, 3, 3, 3), draw(1)), r"b has shape \(1,\); expected \(2,\)"),
        (lambda: ref.conv_forward(X4, draw(2, 3, 7, 3), None), "window is 7 but the padded image is 5: add padding"),
        (lambda: ref.max_pool_forward(X4, kernel_size=2, stride=0), "stride 0.*expected >= 1"),
        (
            lambda: ref.batchnorm_forward(X2, np.ones(5), np.zeros(5), None, train=False),
            "running is None with train=False",
        ),
        (lambda: ref.batchnorm_forward(X2, np.ones(4), np.zeros(5), None, train=True), r"gamma has shape \(4,\)"),
        (lambda: ref.layernorm_forward(X4, np.ones(6), np.zeros(6)), r"gamma has shape \(6,\); expected \(3, 5, 6\)"),
        (
            lambda: ref.groupnorm_forward(X4, np.ones(3), np.zeros(3), groups=2),
            "groups is 2; expected a divisor of the 3",
        ),
        (
            lambda: ref.dropout_forward(X2, keep_prob=0.5, mask=MASK, train=True),
            r"mask has shape \(3, 4\); expected \(4, 5\)",
        ),
        (
            lambda: ref.dropout_forward(draw(3, 4), keep_prob=0, mask=MASK, train=True),
            "keep_prob is 0; expected a probability",
        ),
        (lambda: ref.softmax_loss(X2, np.array([0, 1, 2, 5])), "y has labels from 0 to 5; expected 0 to 4"),
        (lambda: ref.svm_loss(X2, np.array([0, 1, 2, -1])), "y has labels from -1 to 2; expected 0 to 4"),
        (lambda: ref.svm_loss(X2, np.array([0, 1])), r"y has shape \(2,\); expected \(4,\)"),
    ],
)
def test_bad_input_is_refused_with_what_was_expected(call, text):
    with pytest.raises(ArgumentError, match=text):
        call()


def test_integers_are_refused_and_the_error_suggests_a_cast():
    with pytest.raises(ArgumentTypeError, match="x has dtype int64; expected floats: cast it"):
        ref.max_pool_forward(np.ones((1, 1, 2, 2), np.int64), kernel_size=2)
