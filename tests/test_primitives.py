"""What the layers are built on: windows and their adjoints on every backend, tiles, threads and memory settings."""

import os
import subprocess
import sys
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from tests.helpers import LAYOUTS, assert_array, contiguous, find_backend, read_only
from xpconv import layers
from xpconv.errors import ArgumentError
from xpconv.ops.dispatch import accelerated_versions
from xpconv.ops.norm import normalise
from xpconv.ops.numpy import _winograd as winograd
from xpconv.ops.numpy import _workers as threads
from xpconv.ops.numpy._workers import num_threads
from xpconv.ops.pool import max_pool, max_pool_backward
from xpconv.ops.tiling import (
    for_each_block,
    for_each_tile,
    matmul,
    sum_in_blocks,
    sum_of_squares,
    sum_over_tiles,
    workspace_bytes,
)
from xpconv.ops.windows import fold, output_size, unfold

GEOMETRIES = {  # image, size, stride, padding
    "tiling": ((6, 4), (2, 2), (2, 2), (0, 0)),
    "overlapping": ((6, 5), (3, 2), (1, 1), (0, 0)),
    "not tiling": ((7, 5), (2, 3), (3, 2), (0, 1)),
    "padded": ((4, 5), (3, 3), (2, 1), (1, 2)),
    "gaps": ((5, 7), (1, 2), (3, 3), (0, 0)),
    "one window": ((3, 4), (3, 4), (1, 1), (0, 0)),
}
every_geometry = pytest.mark.parametrize(("image", "size", "stride", "padding"), GEOMETRIES.values(), ids=GEOMETRIES)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def columns_by_loops(x, size, stride, padding, value=0.0):
    """Return every window as one column, (C, KH * KW, N, OH, OW)."""
    (N, C, *image), (PH, PW) = x.shape, padding
    OH, OW = output_size(tuple(image), size, stride, padding)
    padded = np.pad(x, ((0, 0), (0, 0), (PH, PH), (PW, PW)), constant_values=value)
    out = np.empty((C, size[0] * size[1], N, OH, OW))
    for i in range(OH):
        for j in range(OW):
            window = padded[:, :, i * stride[0] : i * stride[0] + size[0], j * stride[1] : j * stride[1] + size[1]]
            out[..., i, j] = window.reshape(N, C, -1).transpose(1, 2, 0)
    return out


# ---- windows and their adjoints


@every_geometry
def test_unfold_lays_every_window_out_as_a_column(backend, image, size, stride, padding):
    x = draw(2, 3, *image)
    expected = columns_by_loops(x, size, stride, padding)
    cols = unfold(backend.asarray(x), size, stride, padding)
    assert_array(cols, expected.reshape(3 * size[0] * size[1], -1), backend, "float64", tolerance=0)


@pytest.mark.parametrize(("shape", "size"), [((1, 2, 3, 4), (1, 1)), ((1, 1, 3, 3), (3, 3)), ((2, 2, 3, 4), (1, 1))])
def test_what_is_written_to_columns_leaves_the_image_alone(shape, size, backend):
    x = backend.asarray(draw(*shape))
    before = backend.to_host(x).copy()
    cols = unfold(x, size, (1, 1), (0, 0))
    cols += 1
    assert_array(x, before, backend, "float64", tolerance=0)


@every_geometry
def test_fold_is_the_adjoint_of_unfold(backend, image, size, stride, padding):
    x = draw(2, 3, *image)
    cols = columns_by_loops(x, size, stride, padding).reshape(3 * size[0] * size[1], -1)
    other = draw(*cols.shape, seed=1)
    back = fold(backend.asarray(other), x.shape, size, stride, padding)
    assert tuple(back.shape) == x.shape
    assert np.sum(backend.to_host(back) * x) == pytest.approx(np.sum(other * cols), rel=1e-12)


@every_geometry
@pytest.mark.parametrize("tied", [False, True])
def test_max_pool_finds_the_first_maximum_and_unpool_is_its_adjoint(backend, image, size, stride, padding, tied):
    x = np.sign(draw(2, 3, *image)) if tied else draw(2, 3, *image)
    padding = tuple(min(p, k - 1) for p, k in zip(padding, size, strict=True))
    cols = columns_by_loops(x, size, stride, padding, -np.inf)
    out, place = max_pool(backend.asarray(x), size, stride, padding)
    assert_array(out, cols.max(axis=1).swapaxes(0, 1), backend, "float64", tolerance=0)
    assert backend.to_host(place).tolist() == cols.argmax(axis=1).swapaxes(0, 1).tolist()
    dout = draw(*out.shape, seed=1)
    back = max_pool_backward(backend.asarray(dout), place, x.shape, size, stride, padding)
    assert tuple(back.shape) == x.shape
    assert np.sum(backend.to_host(back) * x) == pytest.approx(np.sum(dout * backend.to_host(out)), rel=1e-12)


def test_places_in_large_windows_do_not_wrap(backend):
    x = np.zeros((1, 1, 20, 20))
    x[..., 19, 18] = 1.0
    _, place = max_pool(backend.asarray(x), (20, 20), (1, 1), (0, 0))
    assert backend.to_host(place).tolist() == [[[[19 * 20 + 18]]]]


def test_nan_pixels_are_not_lost_in_a_convolution(backend):
    x = draw(1, 1, 4, 4)
    x[0, 0, 1, 1] = np.nan
    out, _ = layers.conv_forward(backend.asarray(x), backend.asarray(draw(1, 1, 2, 2)), None)
    assert np.isnan(backend.to_host(out)).tolist() == [[[[True, True, False], [True, True, False], [False] * 3]]]


# ---- fast versions


def arguments_of_unfold(place, x, size, stride, padding):
    return place(x), size, stride, padding


def arguments_of_fold(place, x, size, stride, padding):
    cols = columns_by_loops(x, size, stride, padding)
    return place(cols.reshape(x.shape[1] * size[0] * size[1], -1)), x.shape, size, stride, padding


def arguments_of_max_pool_backward(place, x, size, stride, padding):
    out, winners = max_pool(place(x), size, stride, padding)
    return place(draw(*out.shape, seed=1)), winners, x.shape, size, stride, padding


def arguments_of_convolve(place, x, size, stride, padding):
    w = draw(3, x.shape[1], *size, seed=2).astype(x.dtype)
    return place(x), place(w), place(draw(3, seed=3).astype(x.dtype)), stride, padding, "im2col"


def arguments_of_convolve_gradients(place, x, size, stride, padding):
    w = draw(3, x.shape[1], *size, seed=2).astype(x.dtype)
    dout = draw(len(x), 3, *output_size(x.shape[2:], size, stride, padding), seed=3).astype(x.dtype)
    return place(dout), place(x), place(w), stride, padding, "im2col", True


def arguments_of_normalise(place, x, size, stride, padding):
    gamma, beta = draw(2, 1, x.shape[1], 1, 1, seed=2).astype(x.dtype)
    axes, along = ((0, 2, 3), 1) if stride[0] % 2 else ((1, 2, 3), 0)
    return place(x), place(gamma), place(beta), {"axes": axes, "along": along, "eps": 1e-2}


def arguments_of_normalise_backward(place, x, size, stride, padding):
    *most, options = arguments_of_normalise(place, x, size, stride, padding)
    _, mean, _, inv_std = normalise(*most, **options)
    sums = (0, 2, 3) if options["along"] == 1 else (2, 3) if size[0] % 2 else (1, 2, 3)
    dout = draw(*x.shape, seed=4).astype(x.dtype)
    return (
        place(dout),
        most[0],
        mean,
        inv_std,
        most[1],
        {"axes": options["axes"], "along": options["along"], "sums": sums},
    )


def arguments_of_softmax(place, x, size, stride, padding):
    scores = x.reshape(x.shape[0], -1)
    return place(scores), place(np.arange(len(scores)) % scores.shape[1], np.int64)


def arguments_of_relu(place, x, size, stride, padding):
    return (place(x), {})


def arguments_of_relu_backward(place, x, size, stride, padding):
    return place(x), place(draw(*x.shape, seed=2) > 0, bool)


def arguments_of_update_running_average(place, x, size, stride, padding):
    return place(x), place(draw(*x.shape, seed=2)), 0.9


def arguments_of_add_l2_penalty(place, x, size, stride, padding):
    weights = [place(draw(*shape, seed=2)) for shape in ((3, 4), x.shape, (x.size,))]
    grads = [place(draw(*W.shape, seed=3)) for W in weights]
    return place(np.asarray(1.5)), weights, grads, 0.1


def arguments_of_largest_finite(place, x, size, stride, padding):
    return place(np.where(draw(*x.shape, seed=2) > 2 - stride[0] / 2, np.nan, x)), {}


def arguments_of_adam_step(place, x, size, stride, padding):
    return place(x), place(draw(*x.shape, seed=2)), place(draw(*x.shape, seed=3)), place(x * x), 0.9, 0.99, 0.1, 1e-8


ARGUMENTS = {
    "convolve": arguments_of_convolve,
    "convolve_backward": arguments_of_convolve_gradients,
    "normalise": arguments_of_normalise,
    "normalise_backward": arguments_of_normalise_backward,
    "softmax_cross_entropy": arguments_of_softmax,
    "relu": arguments_of_relu,
    "relu_backward": arguments_of_relu_backward,
    "adam_step": arguments_of_adam_step,
    "update_running_average": arguments_of_update_running_average,
    "add_l2_penalty": arguments_of_add_l2_penalty,
    "largest_finite": arguments_of_largest_finite,
    "unfold": arguments_of_unfold,
    "fold": arguments_of_fold,
    "max_pool": arguments_of_unfold,
    "max_pool_backward": arguments_of_max_pool_backward,
}


WRITTEN = {"adam_step": slice(0, 4), "add_l2_penalty": slice(2, 3)}  # arguments that are written to


def _arrays(result):
    """Return the arrays among nested results."""
    if isinstance(result, tuple | list):
        return [array for part in result for array in _arrays(part)]
    return [] if result is None else [result]


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(data=st.data())
@pytest.mark.parametrize("spec", ["numpy", pytest.param("cupy", marks=pytest.mark.gpu)])
def test_every_fast_version_equals_its_portable_one(spec, data):
    backend = find_backend(spec)
    few = st.integers(1, 4)
    size, stride = data.draw(st.tuples(few, few)), data.draw(st.tuples(few, few))
    padding = data.draw(st.tuples(*(st.integers(0, k - 1) for k in size)))
    image = data.draw(st.tuples(*(st.integers(max(1, k - 2 * p), 9) for k, p in zip(size, padding, strict=True))))
    x = draw(data.draw(few), data.draw(few), *image).astype(data.draw(st.sampled_from(["float32", "float64"])))
    if data.draw(st.booleans()):
        x = np.sign(x)  # ties
    layout = data.draw(st.sampled_from(LAYOUTS))
    for name, (portable, fast) in accelerated_versions(backend.library).items():
        assert name in ARGUMENTS, f"say in ARGUMENTS how to call {name}"
        results = []
        place = contiguous if name in WRITTEN and layout is read_only else layout
        for version in (portable, fast):
            *given_arguments, last = ARGUMENTS[name](
                lambda a, dtype=x.dtype, place=place: place(backend, a.astype(dtype)), x, size, stride, padding
            )
            options = last if isinstance(last, dict) else {}
            given_arguments += [] if isinstance(last, dict) else [last]
            result = version(*given_arguments, **options)
            results.append([*_arrays(result), *_arrays(given_arguments[WRITTEN.get(name, slice(0))])])
        for one, other in zip(*results, strict=True):
            dtype = str(backend.to_host(one).dtype)
            assert_array(other, backend.to_host(one), backend, dtype, tolerance=1e-5 if dtype == "float32" else 1e-12)


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
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
    assert winograd.is_applicable(x, w, (1, 1), padding)
    results = []
    for algorithm in ("auto", "im2col"):
        out, cache = layers.conv_forward(x, w, b, padding=padding, algorithm=algorithm)
        gradients = layers.conv_backward(draw(*out.shape, seed=3).astype("float32"), cache)
        results.append([out, *gradients[: 2 + bias]])
        assert layers.conv_backward(out, cache, need_dx=False)[0] is None
    for fast, plain in zip(*results, strict=True):
        assert_array(fast, plain, find_backend("numpy"), "float32", tolerance=1e-4)


def test_winograd_is_left_alone_where_it_loses():
    x, w = np.zeros((2, 64, 8, 8), np.float32), np.zeros((64, 64, 3, 3), np.float32)
    assert winograd.is_applicable(x, w, (1, 1), (1, 1))
    assert not winograd.is_applicable(x.astype("float64"), w.astype("float64"), (1, 1), (1, 1))
    assert not winograd.is_applicable(x, w, (2, 2), (1, 1))
    assert not winograd.is_applicable(x, w, (1, 1), (3, 3))
    assert not winograd.is_applicable(x, np.zeros((64, 64, 5, 5), np.float32), (1, 1), (1, 1))
    assert winograd.is_applicable(x[:, :32], w[:, :32], (1, 1), (1, 1))
    assert not winograd.is_applicable(x[:, :16], w[:, :16], (1, 1), (1, 1))


def test_numpy_has_fast_versions():
    assert {"convolve", "unfold", "max_pool"} <= set(accelerated_versions("numpy"))


def test_libraries_without_fast_versions_run_the_portable_ones():
    assert accelerated_versions("array_api_strict") == {}


# ---- tiles


@pytest.mark.parametrize("spec", ["numpy", "array_api_strict"])
@pytest.mark.parametrize("count", [1, 7, 8, 9, 100])
@pytest.mark.parametrize("item_bytes", [1, 1 << 16, 1 << 40])
def test_tiles_cover_each_image_once(spec, count, item_bytes):
    visits = np.zeros(count, dtype=int)

    def visit(tile):
        visits[tile] += 1

    for_each_tile(visit, count, item_bytes, like=find_backend(spec).asarray([0.0]))
    assert visits.tolist() == [1] * count


def test_sum_over_tiles_has_the_same_bits_for_any_number_of_threads(monkeypatch):
    x = draw(1000, 3).astype("float32")
    sums = set()
    for number in ("1", "2", "3", "8"):
        monkeypatch.setenv("XPCONV_NUM_THREADS", number)
        (total, nothing) = sum_over_tiles(lambda tile: (x[tile].sum(axis=0), None), len(x), 1 << 17, like=x)
        assert nothing is None
        assert total == pytest.approx(x.sum(axis=0), abs=1e-3)
        sums.add(total.tobytes())
    assert len(sums) == 1


@pytest.mark.parametrize("number", ["1", "2", "4"])
def test_error_in_a_tile_reaches_the_caller_and_leaves_the_pool_usable(number, monkeypatch):
    monkeypatch.setenv("XPCONV_NUM_THREADS", number)

    def fail(tile):
        raise ZeroDivisionError(tile.start)

    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            for_each_tile(fail, 50, 1 << 20, like=np.zeros(1))
    test_tiles_cover_each_image_once("numpy", 9, 1)


def test_tiles_run_on_several_threads(monkeypatch):
    monkeypatch.setenv("XPCONV_NUM_THREADS", "2")
    met = threading.Barrier(2, timeout=30)
    for_each_tile(lambda tile: met.wait(), 2, 1 << 30, like=np.zeros(1))
    assert not met.broken


def test_layers_may_be_used_from_several_threads():
    x, w = draw(20, 3, 8, 8), draw(4, 3, 3, 3)
    expected = layers.conv_forward(x, w, None)[0]
    with ThreadPoolExecutor(4) as pool:
        for out, _ in pool.map(lambda _: layers.conv_forward(x, w, None), range(12)):
            assert out.tobytes() == expected.tobytes()


def blas_threads():
    return [library.num_threads for library in threads._blas_libraries()]


@pytest.fixture
def two_blas_threads():
    """BLAS has one thread in these tests, which would hide that it is left so."""
    with threadpool_limits(2, user_api="blas"):
        assert set(blas_threads()) <= {2}
        yield


def with_blas_held(task):
    threads.run_products(lambda k: task(), 1, np.zeros(1))


@pytest.mark.usefixtures("two_blas_threads")
def test_blas_is_held_to_one_thread_inside_and_gets_its_threads_back():
    before, seen = blas_threads(), []
    with_blas_held(lambda: (with_blas_held(lambda: seen.extend(blas_threads())), seen.extend(blas_threads())))
    assert set(seen) <= {1}
    assert blas_threads() == before

    def fail():
        raise KeyError

    with pytest.raises(KeyError):
        with_blas_held(fail)
    assert blas_threads() == before


@pytest.mark.usefixtures("two_blas_threads")
def test_blas_gets_its_threads_back_where_uses_overlap():
    before, inside, leave = blas_threads(), threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: with_blas_held(lambda: (inside.set(), leave.wait(30))))
    with_blas_held(lambda: (thread.start(), inside.wait(30)))
    assert set(blas_threads()) <= {1}  # the other still holds it
    leave.set()
    thread.join()
    assert blas_threads() == before


@pytest.mark.usefixtures("two_blas_threads")
@pytest.mark.parametrize("call", [1, 2])
def test_blas_gets_its_threads_back_whenever_ctrl_c_comes(call, monkeypatch):
    before, real, calls = blas_threads(), threads._set_threads, []

    def interrupted(library, number):
        calls.append(number)
        if len(calls) == call:
            raise KeyboardInterrupt
        real(library, number)

    monkeypatch.setattr(threads, "_set_threads", interrupted)
    with pytest.raises(KeyboardInterrupt):
        with_blas_held(lambda: None)
    assert blas_threads() == before
    assert not threads._blas._users


@pytest.fixture
def slow_turns():
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.25)
    yield 0.25
    sys.setswitchinterval(before)


def test_threads_take_short_turns_until_the_last_call_ends(monkeypatch, slow_turns):
    monkeypatch.setenv("XPCONV_NUM_THREADS", "2")
    seen, inside, leave = [], threading.Event(), threading.Event()

    def run(task):
        threads.run(lambda k: (task(), seen.append(sys.getswitchinterval())), 2, np.zeros(1))

    other = threading.Thread(target=run, args=[lambda: (inside.set(), leave.wait(30))])
    run(lambda: None)
    assert sys.getswitchinterval() == slow_turns
    other.start()
    inside.wait(30)
    with pytest.raises(KeyError):
        run({}.popitem)
    assert sys.getswitchinterval() == pytest.approx(threads._TURN)  # the other goes on
    leave.set()
    other.join()
    assert (sys.getswitchinterval(), seen) == (slow_turns, [pytest.approx(threads._TURN)] * 4)


@pytest.mark.parametrize("call", [1, 2])
def test_turns_are_as_before_whenever_ctrl_c_comes(call, monkeypatch, slow_turns):
    calls = []

    def interrupted(seconds):
        calls.append(seconds)
        if len(calls) == call:
            raise KeyboardInterrupt
        sys.setswitchinterval(seconds)

    monkeypatch.setattr(threads._turns, "_write", interrupted)
    monkeypatch.setenv("XPCONV_NUM_THREADS", "2")
    with pytest.raises(KeyboardInterrupt):
        threads.run(lambda k: None, 2, np.zeros(1))
    assert sys.getswitchinterval() == slow_turns


def test_one_thread_changes_nobodys_turns(monkeypatch, slow_turns):
    monkeypatch.setenv("XPCONV_NUM_THREADS", "1")
    seen = []
    threads.run(lambda k: seen.append(sys.getswitchinterval()), 2, np.zeros(1))
    assert seen == [slow_turns] * 2


def test_all_helpers_have_ended_before_the_error_of_one_is_raised(monkeypatch):
    monkeypatch.setenv("XPCONV_NUM_THREADS", "3")
    begun, ended = threading.Barrier(3, timeout=30), []

    def task(k):
        begun.wait()
        if k == 1:
            raise ZeroDivisionError
        time.sleep(0.1)
        ended.append(k)

    with pytest.raises(ZeroDivisionError):
        threads.run(task, 3, np.zeros(1))
    assert sorted(ended) == [0, 2]


def test_the_callers_error_is_not_replaced_by_a_helpers(monkeypatch):
    monkeypatch.setenv("XPCONV_NUM_THREADS", "2")
    begun = threading.Barrier(2, timeout=30)

    def task(k):
        begun.wait()
        raise ValueError if threading.current_thread().name == "xpconv" else KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        threads.run(task, 2, np.zeros(1))


def test_helpers_handle_floating_point_errors_as_the_caller_does(monkeypatch):
    monkeypatch.setenv("XPCONV_NUM_THREADS", "2")
    begun, seen = threading.Barrier(2, timeout=30), []
    with np.errstate(over="raise"):
        threads.run(lambda k: (begun.wait(), seen.append(np.geterr()["over"])), 2, np.zeros(1))
    assert seen == ["raise"] * 2


@pytest.mark.parametrize("kind", ["contiguous", "reversed", "every other"])
@pytest.mark.parametrize("mean", [0, 100, 1e4])
def test_norms_of_long_rows_are_right_far_from_zero(kind, mean):
    whole = (mean + draw(1, 2, 2, 400_000)).astype("float32")
    x = {"contiguous": whole, "reversed": whole[..., ::-1], "every other": whole[..., ::2]}[kind]
    one, precise = np.ones(2, np.float32), x.astype(float)
    out, cache = layers.groupnorm_forward(x, one, 0 * one, groups=2)
    expected, exactly = layers.groupnorm_forward(precise, np.ones(2), np.zeros(2), groups=2)
    np.testing.assert_allclose(out, expected, atol=2e-5 + 2e-7 * mean)
    dout = draw(*x.shape[:-1], x.shape[-1] + 1)[..., 1:].astype("float32")
    for mine, theirs in zip(
        layers.groupnorm_backward(dout, cache), layers.groupnorm_backward(dout.astype(float), exactly), strict=True
    ):
        np.testing.assert_allclose(mine, theirs, atol=1e-5 * np.abs(theirs).max() + 3e-5 * mean)


@pytest.mark.parametrize(("size", "gradient"), [(1e16, 1e-9), (1e18, 1e-4), (1e18, 1e-6)])
def test_small_gradients_of_norms_of_huge_values_do_not_vanish(size, gradient):
    x, dout, one = draw(64, 4) * size, draw(65, 4)[1:] * gradient, np.ones(4)
    expected = layers.batchnorm_backward(dout, layers.batchnorm_forward(x, one, one, train=True)[1])[0]
    x, dout, one = (a.astype("float32") for a in (x, dout, one))
    dx = layers.batchnorm_backward(dout, layers.batchnorm_forward(x, one, one, train=True)[1])[0]
    np.testing.assert_allclose(dx, expected, rtol=1e-4, atol=1e-6 * np.abs(expected).max())


# ---- settings


def test_number_of_threads_is_the_variable_else_the_cpus(monkeypatch):
    assert num_threads() >= 1
    monkeypatch.setenv("XPCONV_NUM_THREADS", "3")
    assert num_threads() == 3


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", ""])
def test_bad_number_of_threads_is_refused_by_name(text, monkeypatch):
    monkeypatch.setenv("XPCONV_NUM_THREADS", text)
    with pytest.raises(ArgumentError, match=f"XPCONV_NUM_THREADS is '{text}'; expected a number of threads, 1 or more"):
        layers.conv_forward(draw(1, 1, 2, 2), draw(1, 1, 1, 1), None)


@pytest.mark.parametrize(
    ("text", "size"),
    [("64MiB", 64 << 20), ("1 GiB", 1 << 30), ("1.5kib", 1536), ("100", 100), ("2MB", 2_000_000), (" 7B ", 7)],
)
def test_workspace_is_a_size_with_a_unit(text, size, monkeypatch):
    monkeypatch.setenv("XPCONV_WORKSPACE", text)
    assert workspace_bytes() == size


def test_workspace_is_64_mebibytes_and_1_gibibyte_on_a_gpu_unless_set(monkeypatch):
    assert workspace_bytes() == 64 << 20
    assert workspace_bytes("cupy") == 1 << 30
    monkeypatch.setenv("XPCONV_WORKSPACE", "2MiB")
    assert workspace_bytes("cupy") == 2 << 20


@pytest.mark.parametrize("text", ["", "much", "64 Mega", "-1MiB", "1e9"])
def test_bad_workspace_is_refused_by_name(text, monkeypatch):
    monkeypatch.setenv("XPCONV_WORKSPACE", text)
    with pytest.raises(ArgumentError, match=f"XPCONV_WORKSPACE is '{text}'; expected a size such as 64MiB or 1GiB"):
        workspace_bytes()


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
def test_winograds_bands_make_up_the_matrix_of_a_whole_row(kind, blocks, extent, padding):
    T = winograd._KINDS[kind]
    whole = np.zeros((blocks, 6, 4 * blocks + 2 + padding))
    for k in range(blocks):
        whole[k, :, 4 * k : 4 * k + T.shape[1]] = T
    matrix = whole.reshape(6 * blocks, -1)[:, padding : padding + extent]
    for expected, bands in zip((matrix, matrix.T), winograd._across(kind, blocks, extent, padding), strict=True):
        made = np.zeros_like(expected)
        for rows, columns, band in bands:
            made[rows, columns] = band
        np.testing.assert_array_equal(made, expected.astype(np.float32))


needs_two_cpus = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="needs a system that binds threads to CPUs, and two of them",
)


@needs_two_cpus
def test_this_thread_keeps_its_cpu_for_a_call_and_helpers_have_the_others(monkeypatch):
    monkeypatch.setenv("XPCONV_NUM_THREADS", "3")
    threads._crew.cache_clear()
    cpus, all_here, seen = os.sched_getaffinity(0), threading.Barrier(3, timeout=30), {}

    def task(k):
        all_here.wait()
        seen[threading.current_thread()] = os.sched_getaffinity(0)

    threads.run(task, 3, np.zeros(1))
    mine = seen.pop(threading.current_thread())
    assert (len(mine), list(seen.values())) == (1, [cpus - mine] * 2)
    assert os.sched_getaffinity(0) == cpus


@needs_two_cpus
def test_helpers_of_a_thread_that_has_one_cpu_keep_theirs(monkeypatch):
    monkeypatch.setenv("XPCONV_NUM_THREADS", "2")
    cpus, both = os.sched_getaffinity(0), threading.Barrier(2, timeout=30)
    threads.run(lambda k: both.wait(), 2, np.zeros(1))
    helpers = [os.sched_getaffinity(thread.native_id) for thread in threads._crew()._threads]
    try:
        os.sched_setaffinity(0, {min(cpus)})
        threads.run(lambda k: both.wait(), 2, np.zeros(1))
        assert os.sched_getaffinity(0) == {min(cpus)}
    finally:
        os.sched_setaffinity(0, cpus)
    assert [os.sched_getaffinity(thread.native_id) for thread in threads._crew()._threads] == helpers


@pytest.mark.usefixtures("two_blas_threads")
@needs_two_cpus
def test_ctrl_c_before_the_helpers_begin_leaves_everything_as_it_was(monkeypatch):
    x, w = draw(64, 16, 8, 8), draw(16, 16, 3, 3)
    monkeypatch.setenv("XPCONV_NUM_THREADS", "2")
    before, buffers, cpus, take = blas_threads(), np.getbufsize(), os.sched_getaffinity(0), threads._Crew.take
    expected = layers.conv_forward(x, w, None)[0]

    def interrupted(self, jobs, others):
        take(self, jobs, others)
        raise KeyboardInterrupt

    monkeypatch.setattr(threads._Crew, "take", interrupted)
    with pytest.raises(KeyboardInterrupt):
        layers.conv_forward(x, w, None)
    monkeypatch.setattr(threads._Crew, "take", take)
    assert (blas_threads(), np.getbufsize(), os.sched_getaffinity(0)) == (before, buffers, cpus)
    assert layers.conv_forward(x, w, None)[0].tobytes() == expected.tobytes()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
def test_a_forked_child_has_helpers_of_its_own():
    program = """
import os, sys, threading, numpy as np
from xpconv.ops.numpy._workers import run

def meet():
    both = threading.Barrier(2, timeout=30)
    run(lambda k: both.wait(), 2, np.zeros(1))

meet()
child = os.fork()
meet()
if child:
    sys.exit(os.waitpid(child, 0)[1] != 0)
os._exit(0)
"""
    environment = {**os.environ, "XPCONV_NUM_THREADS": "2", "PYTHONWARNINGS": "ignore"}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=120)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
def test_a_child_forked_while_blas_is_held_has_all_its_threads():
    program = """
import os, sys, threading, numpy as np
from threadpoolctl import threadpool_info
from xpconv.ops.numpy._workers import run_products

def threads():
    return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]

before, inside, leave = threads(), threading.Event(), threading.Event()
holder = threading.Thread(target=run_products, args=(lambda k: (inside.set(), leave.wait(30)), 1, np.zeros(1)))
holder.start()
inside.wait(30)
child = os.fork()
if not child:
    run_products(lambda k: None, 1, np.zeros(1))
    os._exit(threads() != before)
leave.set()
holder.join()
sys.exit(os.waitpid(child, 0)[1] != 0)
"""
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "2", "PYTHONWARNINGS": "ignore"}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=120)


def test_layers_work_where_threads_may_not_be_bound_to_cpus(monkeypatch):
    def refuse(thread, cpus):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setenv("XPCONV_NUM_THREADS", "2")
    monkeypatch.setattr(os, "sched_setaffinity", refuse, raising=False)
    threads._crew.cache_clear()
    done = []
    threads.run(done.append, 4, np.zeros(1))
    assert sorted(done) == [0, 1, 2, 3]


def test_the_caller_does_all_the_work_where_no_thread_can_be_started(monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setenv("XPCONV_NUM_THREADS", "2")
    monkeypatch.setattr(threads.Thread, "start", refuse)
    threads._crew.cache_clear()
    done = []
    threads.run(done.append, 4, np.zeros(1))
    assert sorted(done) == [0, 1, 2, 3]
    assert threads._crew()._jobs.empty()  # nothing waits for a helper that is not there


def test_work_that_no_helper_had_time_for_is_called_off(monkeypatch):
    monkeypatch.setenv("XPCONV_NUM_THREADS", "2")
    threads._crew.cache_clear()
    busy, done = threading.Event(), threading.Event()

    def occupy(k):
        if threading.current_thread().name == "xpconv":
            busy.set()
            done.wait(30)
        else:
            busy.wait(30)

    other = threading.Thread(target=lambda: threads.run(occupy, 2, np.zeros(1)))
    other.start()
    busy.wait(30)
    names = []
    threads.run(lambda k: names.append(threading.current_thread().name), 4, np.zeros(1))
    done.set()
    other.join()
    assert names == [threading.current_thread().name] * 4


@pytest.fixture
def peak():
    """Return a function that calls another and returns the bytes it took at most beyond its result's."""

    def measure(call):
        tracemalloc.start()
        try:
            result = call()
            return tracemalloc.get_traced_memory()[1] - getattr(result, "nbytes", 0)
        finally:
            tracemalloc.stop()

    return measure


@pytest.mark.parametrize(
    ("M", "K", "N"), [(512, 512, 512), (500, 512, 60), (60, 512, 500), (50, 2048, 500), (256, 2000, 260)]
)
def test_products_need_no_more_memory_than_their_factors(M, K, N, peak, monkeypatch):
    a, b = draw(M, K), draw(K, N, seed=1)
    assert peak(lambda: matmul(a, b)) < max(a.nbytes, b.nbytes) + 2**16
    results = []
    for number in ("1", "2", "4"):
        monkeypatch.setenv("XPCONV_NUM_THREADS", number)
        results.append(matmul(a, b))
    np.testing.assert_allclose(results[0], a @ b, atol=1e-10)
    assert all(np.array_equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize(("M", "K", "N"), [(256, 2000, 260), (260, 2000, 256), (50, 2048, 500), (2048, 50, 60)])
def test_products_are_cut_in_eight_like_blocks(M, K, N, monkeypatch):
    work, product = [], np.matmul

    def record(a, b, out):
        work.append(len(a) * len(b) * out.shape[1])
        return product(a, b, out=out)

    monkeypatch.setattr(np, "matmul", record)
    matmul(draw(M, K), draw(K, N, seed=1))
    assert len(work) == 8
    assert min(work) >= 0.8 * M * K * N / 8
    assert sum(work) == M * K * N


@pytest.mark.parametrize("layout", LAYOUTS[:-1])
def test_updates_need_little_memory_in_any_layout(layout, peak, monkeypatch):
    monkeypatch.setenv("XPCONV_NUM_THREADS", "2")
    W, plain = (place(find_backend("numpy"), np.ones((4096, 513), np.float32)) for place in (layout, contiguous))
    with threadpool_limits(1):
        total = sum_in_blocks(sum_of_squares, W)
        assert peak(lambda: for_each_block(lambda part: np.subtract(part, part * part * 0.5, out=part), W)) < 3 * 2**20
    np.testing.assert_allclose(total, W.size, rtol=1e-6)
    np.testing.assert_array_equal(W, plain * np.float32(0.5))


@pytest.mark.parametrize("scale", [1e18, 1e19, 1e25, 1e30])
@pytest.mark.parametrize("shape", [(64, 4), (256, 4), (600, 64), (32, 8, 16, 16)])
@pytest.mark.parametrize("accelerated", ["1", "0"])
def test_norms_of_huge_values_raise_no_floating_point_error(scale, shape, accelerated, monkeypatch):
    monkeypatch.setenv("XPCONV_ACCELERATE", accelerated)
    x, ones = (draw(*shape) * scale).astype("float32"), np.ones(shape[1], np.float32)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        for out, _ in (
            layers.batchnorm_forward(x, ones, 0 * ones, train=True),
            layers.groupnorm_forward(x, ones, 0 * ones, groups=2),
        ):
            assert float(np.std(out.astype("float64"))) == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("scale", [1.0, 1e10, 1e15, 1e18])
def test_the_gradient_of_norms_is_right_for_huge_values(scale):
    x, dout = (draw(64, 4, seed=seed).astype("float32") for seed in (0, 1))
    ones, zeros = np.ones(4, np.float32), np.zeros(4, np.float32)
    dx = layers.batchnorm_backward(dout, layers.batchnorm_forward(x, ones, zeros, train=True, eps=1e-30)[1])[0]
    x *= np.float32(scale)
    scaled = layers.batchnorm_backward(dout, layers.batchnorm_forward(x, ones, zeros, train=True, eps=1e-30)[1])[0]
    np.testing.assert_allclose(scaled * np.float32(scale), dx, rtol=1e-4, atol=1e-5)
