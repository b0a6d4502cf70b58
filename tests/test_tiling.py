"""Tiles, blocks and matrix products: results, threads and memory."""

import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from tests.helpers import LAYOUTS, contiguous, draw, find_backend
from xpconv import layers
from xpconv.errors import ArgumentError
from xpconv.ops.tiling import (
    for_each_block,
    for_each_tile,
    matmul,
    sum_in_blocks,
    sum_of_squares,
    sum_over_tiles,
    workspace_bytes,
)


@pytest.mark.parametrize("spec", ["numpy", "array_api_strict"])
@pytest.mark.parametrize("count", [1, 7, 8, 9, 100])
@pytest.mark.parametrize("item_bytes", [1, 1 << 16, 1 << 40])
def test_tiles_cover_each_image_once(spec, count, item_bytes):
    visits = np.zeros(count, dtype=int)

    def visit(tile):
        visits[tile] += 1

    for_each_tile(find_backend(spec).asarray([0.0]), visit, count, item_bytes)
    assert visits.tolist() == [1] * count


def test_sum_over_tiles_has_the_same_bits_for_any_number_of_threads(monkeypatch):
    x = draw(1000, 3).astype("float32")
    sums = set()
    for number in ("1", "2", "3", "8"):
        monkeypatch.setenv("XPCONV_NUM_THREADS", number)
        (total, nothing) = sum_over_tiles(x, lambda tile: (x[tile].sum(axis=0), None), len(x), 1 << 17)
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
            for_each_tile(np.zeros(1), fail, 50, 1 << 20)
    test_tiles_cover_each_image_once("numpy", 9, 1)


def test_tiles_run_on_several_threads(monkeypatch):
    monkeypatch.setenv("XPCONV_NUM_THREADS", "2")
    met = threading.Barrier(2, timeout=30)
    for_each_tile(np.zeros(1), lambda tile: met.wait(), 2, 1 << 30)
    assert not met.broken


def test_layers_may_be_used_from_several_threads():
    x, w = draw(20, 3, 8, 8), draw(4, 3, 3, 3)
    expected = layers.conv_forward(x, w, None)[0]
    with ThreadPoolExecutor(4) as pool:
        for out, _ in pool.map(lambda _: layers.conv_forward(x, w, None), range(12)):
            assert out.tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("text", "size"),
    [("64MiB", 64 << 20), ("1 GiB", 1 << 30), ("1.5kib", 1536), ("100", 100), ("2MB", 2_000_000), (" 7B ", 7)],
)
def test_workspace_is_a_size_with_a_unit(text, size, monkeypatch):
    monkeypatch.setenv("XPCONV_WORKSPACE", text)
    assert workspace_bytes("numpy") == size


def test_workspace_is_64_mebibytes_and_1_gibibyte_on_a_gpu_unless_set(monkeypatch):
    assert workspace_bytes("numpy") == 64 << 20
    assert workspace_bytes("cupy") == 1 << 30
    monkeypatch.setenv("XPCONV_WORKSPACE", "2MiB")
    assert workspace_bytes("cupy") == 2 << 20


@pytest.mark.parametrize("text", ["", "much", "64 Mega", "-1MiB", "1e9", "9" * 400])
def test_bad_workspace_is_refused_by_name(text, monkeypatch):
    monkeypatch.setenv("XPCONV_WORKSPACE", text)
    with pytest.raises(ArgumentError, match=f"XPCONV_WORKSPACE is '{text}'; expected a size such as 64MiB or 1GiB"):
        workspace_bytes("numpy")


@pytest.fixture
def peak():
    """Return a function that calls another one and returns its peak memory in bytes, less that of its result."""

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
def test_products_are_cut_into_eight_equal_blocks(M, K, N, monkeypatch):
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
        total = sum_in_blocks(W, term=sum_of_squares)
        halve = lambda part: np.subtract(part, part * part * 0.5, out=part)  # noqa: E731
        assert peak(lambda: for_each_block(W, update=halve)) < 5 * 2**20
    np.testing.assert_allclose(total, W.size, rtol=1e-6)
    np.testing.assert_array_equal(W, plain * np.float32(0.5))
