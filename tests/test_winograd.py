"""Winograd's algorithm gives the same convolutions as im2col."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import assert_array, draw, find_backend
from xpconv import layers
from xpconv.ops.numpy import _winograd as winograd
from xpconv.ops.windows import Window


def window(padding):
    (height, width) = padding
    return Window((3, 3), padding=((height, height), (width, width)))


@settings(max_examples=25, derandomize=True)
@given(
    st.integers(1, 5),
    st.sampled_from([32, 50]),
    st.sampled_from([24, 53]),
    st.integers(3, 13),
    st.integers(3, 39),
    st.tuples(st.integers(0, 2), st.integers(0, 2)),
    st.booleans(),
)
def test_winograd_equals_im2col(N, C, F, H, W, padding, bias):
    x, w = draw(N, C, H, W).astype("float32"), draw(F, C, 3, 3, seed=1).astype("float32")
    b = draw(F, seed=2).astype("float32") if bias else None
    assert winograd.is_applicable(x, w, window(padding))
    results = []
    for algorithm in ("auto", "im2col"):
        out, cache = layers.conv_forward(x, w, b, padding=padding, algorithm=algorithm)
        gradients = layers.conv_backward(draw(*out.shape, seed=3).astype("float32"), cache)
        results.append([out, *gradients[: 2 + bias]])
        assert layers.conv_backward(out, cache, need_dx=False)[0] is None
    for fast, plain in zip(*results, strict=True):
        assert_array(fast, plain, find_backend("numpy"), "float32", tolerance=1e-4)


def test_the_formula_for_one_block_gives_its_convolution():
    d, g = draw(6, 6), draw(3, 3, seed=1)
    A, B, G = winograd._A, winograd._B, winograd._G
    y = A @ ((G @ g @ G.T) * (B @ d @ B.T)) @ A.T
    expected = [[np.sum(d[i : i + 3, j : j + 3] * g) for j in range(4)] for i in range(4)]
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-12)


def test_winograd_is_used_only_for_float32_3x3_stride_1_and_many_channels():
    x, w = np.zeros((2, 64, 8, 8), np.float32), np.zeros((64, 64, 3, 3), np.float32)
    plain = window((1, 1))
    assert winograd.is_applicable(x, w, plain)
    assert not winograd.is_applicable(x.astype("float64"), w.astype("float64"), plain)
    assert not winograd.is_applicable(x, w, plain._replace(stride=(2, 2)))
    assert not winograd.is_applicable(x, w, plain._replace(dilation=(1, 2)))
    assert not winograd.is_applicable(x, w, plain._replace(padding=((1, 1), (1, 2))))
    assert not winograd.is_applicable(x, w, window((3, 3)))
    assert not winograd.is_applicable(x, np.zeros((64, 64, 5, 5), np.float32), Window((5, 5)))
    assert winograd.is_applicable(x[:, :32], w[:, :32], plain)
    assert not winograd.is_applicable(x[:, :16], w[:, :16], plain)


@pytest.mark.parametrize(
    ("kind", "blocks", "extent", "padding"),
    [
        ("input", 1, 1, 2),
        ("input", 3, 12, 1),
        ("input", 9, 35, 1),
        ("input", 8, 34, 0),
        ("output", 9, 33, 0),
        ("output", 1, 2, 0),
        ("input", 21, 80, 2),
    ],
)
def test_the_bands_together_are_the_matrix_that_transforms_a_row(kind, blocks, extent, padding):
    T = winograd._TRANSFORMS[kind]
    whole = np.zeros((blocks, 6, 4 * blocks + 2 + padding))
    for k in range(blocks):
        whole[k, :, 4 * k : 4 * k + T.shape[1]] = T
    matrix = whole.reshape(6 * blocks, -1)[:, padding : padding + extent]
    for expected, bands in zip((matrix, matrix.T), winograd._row_transform(kind, blocks, extent, padding), strict=True):
        made = np.zeros_like(expected)
        for rows, columns, band in bands:
            made[rows, columns] = band
        np.testing.assert_array_equal(made, expected.astype(np.float32))
