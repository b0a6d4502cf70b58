"""Transposed convolutions: the adjoint of convolutions, their options, and their initial weights."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xpconv import nn
from xpconv.errors import ArgumentError
from xpconv.layers import conv_forward, conv_transpose_forward
from xpconv.nn import Sequential

pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))
sides = st.tuples(*[st.tuples(st.integers(0, 2), st.integers(0, 2))] * 2)


@settings(max_examples=100)
@given(
    size=pairs,
    stride=pairs,
    dilation=pairs,
    padding=sides,
    groups=st.integers(1, 2),
    more=st.tuples(st.integers(0, 5), st.integers(0, 5)),
)
def test_it_is_the_adjoint_of_the_convolution_for_every_size_of_images(size, stride, dilation, padding, groups, more):
    """``<conv(images), x> = <images, conv_transpose(x)>``, where output_padding gives the size of the images."""
    rng, options = np.random.default_rng(0), {"stride": stride, "padding": padding, "dilation": dilation}
    least = [max(1 + (k - 1) * d - sum(p), 1) for k, d, p in zip(size, dilation, padding, strict=True)]
    images = rng.standard_normal((2, 2 * groups, least[0] + more[0], least[1] + more[1]))
    w = rng.standard_normal((3 * groups, 2, *size))
    out, cache = conv_forward(images, w, None, groups=groups, **options)
    x = rng.standard_normal(out.shape)
    left_over = tuple(
        (n - extent) % s
        for n, extent, s in zip(cache.window.padded_size(images.shape[2:]), cache.window.extent, stride, strict=True)
    )
    enlarged, _ = conv_transpose_forward(x, w, None, output_padding=left_over, groups=groups, **options)
    assert enlarged.shape == images.shape
    np.testing.assert_allclose(np.sum(out * x), np.sum(images * enlarged), rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output_padding": 1}, r"output_padding is 1; expected less than the stride, \(1, 1\)"),
        ({"output_padding": (0, 2), "stride": (3, 2)}, r"output_padding is \(0, 2\); expected less than the stride"),
        (
            {"padding": 3},
            r"padding is \(\(3, 3\), \(3, 3\)\); expected less, since it leaves no output: 0 rows, -1 col",
        ),
        ({"stride": 65536}, r"stride is \(65536, 65536\) with dilation \(1, 1\); expected less, since an image of the"),
        ({"dilation": 65536}, r"stride is \(1, 1\) with dilation \(65536, 65536\); expected less"),
        ({"groups": 2}, r"groups is 2; expected a divisor of the 3 channels of x"),
        ({"dilation": 0}, r"dilation is 0; expected 1 or more"),
    ],
)
def test_impossible_options_are_refused(options, message):
    x, w, filters = np.ones((2, 3, 4, 3)), np.ones((3, 5, 3, 3)), 5 * options.get("groups", 1)
    with pytest.raises(ArgumentError, match=message):
        conv_transpose_forward(x, w, np.zeros(filters), **options)
    with pytest.raises(ArgumentError, match=message.replace("of x", "of the input")):
        Sequential([nn.ConvTranspose(filters, **options), nn.Affine(2)], input_shape=x.shape[1:], backend="numpy")


def test_wrong_shapes_are_refused():
    x, w = np.ones((2, 3, 4, 4)), np.ones((3, 5, 3, 3))
    with pytest.raises(ArgumentError, match=r"w has shape \(5, 3, 3, 3\); expected \(3, F / groups, KH, KW\)"):
        conv_transpose_forward(x, np.ones((5, 3, 3, 3)), None)
    with pytest.raises(ArgumentError, match=r"b has shape \(3,\); expected \(5,\)"):
        conv_transpose_forward(x, w, np.zeros(3))
    with pytest.raises(ArgumentError, match=r"its 3 channels last \(NHWC\)"):
        conv_transpose_forward(np.ones((2, 4, 4, 3)), w, None)


@pytest.mark.parametrize("options", [{"stride": 2, "padding": 1}, {}, {"stride": 2, "groups": 4}], ids=str)
def test_initial_weights_give_every_stride_the_variance_of_he(options):
    layer, rng = nn.ConvTranspose(64, 4, **options), np.random.default_rng(0)
    net = Sequential(
        [layer, nn.GlobalAvgPool(), nn.Affine(2)], input_shape=(32, 16, 16), rng=0, dtype="float64", backend="numpy"
    )
    p = {"W": net.params["W1"], "b": net.params["b1"]}
    out, _ = layer.forward(rng.standard_normal((4, 32, 16, 16)), p, train=True, seed=0)
    inner = out[:, :, 4:-4, 4:-4]  # without pixels that fewer windows reach
    assert np.var(inner) == pytest.approx(2, rel=0.1)
