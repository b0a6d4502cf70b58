"""Matrix products by cuBLAS without a GPU: the emulated cuBLAS in cuda/ checks each call and computes the product."""

import ctypes
import shutil
import threading

import numpy as np
import pytest

try:
    import cupy
except ImportError:
    cupy = None
if not hasattr(cupy, "emulated"):
    pytest.skip("CuPy is not the emulated one: run nox -s kernels", allow_module_level=True)
if shutil.which("g++") is None:
    pytest.skip("g++ is not installed", allow_module_level=True)

import xpconv
from xpconv.backend import _tf32
from xpconv.cli import _info
from xpconv.ops import tiling
from xpconv.ops.cupy import _conv, _gemm
from xpconv.ops.cupy._gemm import gemm
from xpconv.ops.windows import Window

TOLERANCE = {"float16": 2e-3, "float32": 2e-6, "float64": 1e-13}  # relative to the sum of the terms' magnitudes
COMPUTE_32F, COMPUTE_64F, COMPUTE_32F_FAST_TF32 = 68, 70, 77


class Product(ctypes.Structure):
    """The struct Product of cublas.cpp."""

    NUMBERS = "workspace_bytes number batched math_mode op_a op_b m n k type_a type_b type_c lda ldb ldc count compute"
    _fields_ = [
        ("stream", ctypes.c_void_p),
        ("workspace", ctypes.c_void_p),
        *((name, ctypes.c_longlong) for name in NUMBERS.split()),
    ]


def last_product():
    return Product.in_dll(_gemm.load()[0], "last_product")


@pytest.fixture(autouse=True)
def default_settings(monkeypatch):
    monkeypatch.setattr(_tf32, "_chosen", None)
    for name in ("XPCONV_TF32", "CUPY_TF32"):
        monkeypatch.delenv(name, raising=False)


def cases(count=150):
    return (np.random.default_rng((16, k)) for k in range(count))


def draw(rng, shape, dtype):
    return cupy.asarray(rng.standard_normal(shape), dtype)


LAYOUTS = {
    "rows": lambda x: x,
    "columns": lambda x: x.swapaxes(-1, -2).copy().swapaxes(-1, -2),
    "part of the rows": lambda x: wider(x, 0, 3)[..., : x.shape[-1]],
    "part of the columns": lambda x: wider(x.swapaxes(-1, -2), 0, 2)[..., : x.shape[-2]].swapaxes(-1, -2),
    "batch inside": lambda x: np.moveaxis(np.moveaxis(x, 0, -2).copy(), -2, 0),
    "every other row": lambda x: wider(x.swapaxes(-1, -2), 1, x.shape[-2])[..., ::2].swapaxes(-1, -2),
    "every other element": lambda x: wider(x, 1, x.shape[-1])[..., ::2],
    "backwards": lambda x: x[..., ::-1].copy()[..., ::-1],
    "rows backwards": lambda x: x[..., ::-1, :].copy()[..., ::-1, :],
    "batch backwards": lambda x: x[::-1].copy()[::-1],
}
WELL_STORED = list(LAYOUTS)[:6]


def wider(x, every_other, more):
    """Return an array whose rows have `more` further elements, which are NaN."""
    wide = cupy.empty((*x.shape[:-1], x.shape[-1] + more), x.dtype)
    wide[..., : wide.shape[-1] : 1 + every_other][..., : x.shape[-1]] = x
    return wide


def check(rng, a, b, out, beta):
    dtype = str(a.dtype)
    exact = [np.array(x, np.float64) for x in (a, b)]
    old = 0.0 if out is None or beta == 0 else beta * np.array(out, np.float64)
    expected, scale = exact[0] @ exact[1] + old, np.abs(exact[0]) @ np.abs(exact[1]) + np.abs(old)
    result = gemm(a, b, out, beta=beta)
    assert isinstance(result, cupy.ndarray)
    assert result.shape == expected.shape
    assert result.dtype == (a.dtype if out is None else out.dtype)
    assert out is None or result is out
    assert (np.abs(np.array(result, np.float64) - expected) <= TOLERANCE[dtype] * scale).all()
    for x, before in zip((a, b), exact, strict=True):
        assert np.array_equal(x, before)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_products_equal_those_of_numpy(dtype):
    for rng in cases():
        M, N, K, G = (int(n) for n in rng.integers(1, 9, 4))
        batch = (G,) if rng.integers(2) else ()
        names = [LAYOUTS[rng.choice(list(LAYOUTS)[: None if batch else -1])] for _ in range(2)]
        a, b = (
            layout(draw(rng, (*batch, *shape), dtype)) for layout, shape in zip(names, ((M, K), (K, N)), strict=True)
        )
        out, beta = None, 0.0
        if rng.integers(4):
            beta = float(rng.choice([0.0, 1.0, 0.5]))
            kind = "float32" if dtype == "float16" and rng.integers(2) else dtype
            out = LAYOUTS[rng.choice(WELL_STORED)](draw(rng, (*batch, M, N), kind))
            if beta == 0:
                out[...] = np.nan  # which must not be read
        check(rng, a, b, out, beta)


def test_one_matrix_may_be_shared_by_the_whole_batch():
    rng = np.random.default_rng(3)
    a, b = draw(rng, (3, 4), "float32"), draw(rng, (5, 4, 2), "float32")
    check(rng, np.broadcast_to(a, (5, 3, 4), subok=True), b, None, 0.0)
    assert last_product().count == 5


@pytest.mark.parametrize("name", WELL_STORED)
def test_matrices_with_contiguous_rows_or_columns_are_not_copied(monkeypatch, name):
    rng = np.random.default_rng(4)
    a, b, out = (LAYOUTS[name](draw(rng, (3, *shape), "float32")) for shape in ((4, 5), (5, 6), (4, 6)))
    monkeypatch.setattr(cupy, "ascontiguousarray", None)
    check(rng, a, b, out, 1.0)
    product, columns = last_product(), "columns" in name
    assert (product.m, product.n, product.k) == ((4, 6, 5) if columns else (6, 4, 5))
    # rows and columns both stored well need no op flag; if the output is stored by columns, so are the operands here
    assert (product.op_a, product.op_b) == (0, 0)


def test_a_transposed_view_is_passed_with_an_op_flag():
    rng = np.random.default_rng(5)
    a, b = draw(rng, (4, 5), "float32"), draw(rng, (6, 5), "float32")
    check(rng, a, b.T, None, 0.0)
    product = last_product()
    assert (product.op_a, product.op_b, product.lda, product.ldb, product.ldc) == (1, 0, 5, 5, 6)


def test_elements_around_an_output_keep_their_values():
    rng = np.random.default_rng(6)
    whole = draw(rng, (2, 6, 9), "float64")
    before = whole.copy()
    gemm(draw(rng, (2, 4, 3), "float64"), draw(rng, (2, 3, 5), "float64"), whole[:, 1:5, 2:7])
    whole[:, 1:5, 2:7] = before[:, 1:5, 2:7]
    assert np.array_equal(whole, before)


@pytest.mark.parametrize(
    ("dtype", "compute"), [("float16", COMPUTE_32F), ("float32", COMPUTE_32F), ("float64", COMPUTE_64F)]
)
def test_sums_are_computed_in_float32_or_float64(dtype, compute):
    a, b = cupy.asarray(np.ones((1, 4096)), dtype), cupy.asarray(np.full((4096, 1), 0.25), dtype)
    assert gemm(a, b).item() == 1024  # a sum in float16 stops at 512
    assert last_product().compute == compute
    assert last_product().math_mode == 16  # no partial sums in float16


def test_float16_products_may_be_returned_in_float32():
    a = cupy.asarray(np.full((1, 2), 300), "float16")
    assert np.isinf(gemm(a, a.T)).all()
    assert gemm(a, a.T, cupy.empty((1, 1), "float32")).item() == 180000


@pytest.mark.parametrize(("dtype", "shape"), [("int64", (2, 3)), ("float32", (0, 3)), ("float64", (2, 0))])
def test_products_that_cublas_does_not_compute_are_those_of_cupy(dtype, shape):
    number, a = last_product().number, cupy.asarray(np.arange(np.prod(shape)).reshape(shape), dtype)
    expected = np.asarray(a) @ np.asarray(a).T
    out = cupy.asarray(np.ones(expected.shape), dtype)
    assert np.array_equal(gemm(a, a.T), expected)
    assert np.array_equal(gemm(a, a.T, out, beta=1.0), expected + 1)
    assert last_product().number == number


# ---- streams and workspaces


def product():
    gemm(cupy.asarray(np.ones((2, 2))), cupy.asarray(np.ones((2, 2))))
    return last_product()


def test_each_stream_gets_a_workspace_of_its_own():
    used = []
    with cupy.cuda.Stream(non_blocking=True) as one, cupy.cuda.Stream(non_blocking=True) as other:
        for stream in (one, one, other, one):
            with stream:
                found = product()
                assert found.stream == stream.ptr
                assert found.workspace_bytes == 32 << 20
                used.append(_gemm._handles[0].workspace)
                assert used[-1].ptr == found.workspace
    assert used[0] is used[1]
    assert len({id(workspace) for workspace in used}) == 3
    created = ctypes.c_longlong.in_dll(_gemm.load()[0], "created_handles").value
    assert created == 1


def test_each_thread_gets_a_workspace_of_its_own():
    product()
    mine, others = _gemm._handles[0].workspace, []
    thread = threading.Thread(target=lambda: others.append((product(), _gemm._handles[0].workspace)[1]))
    thread.start()
    thread.join()
    assert others[0] is not mine


def test_a_released_workspace_is_freed_and_replaced():
    product()
    allocated = []
    _gemm.release_workspace()
    assert _gemm._handles[0].workspace is None
    with pytest.MonkeyPatch.context() as patch:
        alloc = cupy.cuda.alloc
        patch.setattr(cupy.cuda, "alloc", lambda size: allocated.append(size) or alloc(size))
        product()
        product()
    assert allocated == [32 << 20]


def test_a_failed_allocation_of_the_workspace_is_tried_again(monkeypatch):
    def fail(size):
        raise MemoryError("the pool is full")

    _gemm.release_workspace()
    with monkeypatch.context() as patch:
        patch.setattr(cupy.cuda, "alloc", fail)
        for _ in range(2):
            with pytest.raises(MemoryError, match="the pool is full"):
                product()
    product()


def test_products_are_legal_while_a_stream_is_captured(monkeypatch):
    a = cupy.asarray(np.ones((3, 3)))
    with cupy.cuda.Stream(non_blocking=True) as stream:
        monkeypatch.setattr(stream, "_capturing", True)
        assert gemm(a, a)[0, 0] == 3
        assert gemm(np.stack([a, a]).view(cupy.ndarray), np.stack([a, a]).view(cupy.ndarray)).shape == (2, 3, 3)
        for refused in (lambda: a.dot(a), lambda: a @ a, lambda: cupy.matmul(a, a)):
            with pytest.raises(NotImplementedError, match="during stream capture"):
                refused()


def test_the_emulated_cublas_notices_a_stream_that_is_set_after_the_workspace(monkeypatch):
    _gemm.release_workspace()
    call = _gemm._Handle.call
    delayed = []

    def in_the_wrong_order(self, function, *arguments):
        if function == "cublasSetStream_v2":
            delayed.append(arguments)
            return
        call(self, function, *arguments)
        if function == "cublasSetWorkspace_v2":
            call(self, "cublasSetStream_v2", *delayed.pop())

    with monkeypatch.context() as patch:
        patch.setattr(_gemm._Handle, "call", in_the_wrong_order)
        with pytest.raises(RuntimeError, match="cublasGemmEx returned status 14 of cuBLAS"):
            product()
    _gemm.release_workspace()


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [(3, MemoryError, "cublasGemmEx has not enough memory"), (13, RuntimeError, "cublasGemmEx returned status 13")],
)
def test_a_failed_call_raises_an_error_that_names_it(status, error, message):
    with pytest.raises(error, match=message):
        _gemm._check(status, "cublasGemmEx")


# ---- TF32


def rounding_error(dtype="float32"):
    a = cupy.asarray(np.full((1, 1), 1 + 2.0**-12), dtype)
    return abs(gemm(a, cupy.asarray(np.ones((1, 1)), dtype)).item() - (1 + 2.0**-12))


@pytest.mark.parametrize(
    ("variables", "chosen", "expected"),
    [
        ({}, None, False),
        ({"XPCONV_TF32": "1"}, None, True),
        ({"CUPY_TF32": "1"}, None, True),
        ({"CUPY_TF32": "1", "XPCONV_TF32": "0"}, None, False),
        ({"CUPY_TF32": "0"}, True, True),
        ({"XPCONV_TF32": "1"}, False, False),
    ],
)
def test_tf32_follows_the_function_then_the_variables(monkeypatch, variables, chosen, expected):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if chosen is not None:
        xpconv.set_tf32(chosen)
    assert (rounding_error() > 0) == expected
    assert last_product().compute == (COMPUTE_32F_FAST_TF32 if expected else COMPUTE_32F)
    assert rounding_error("float64") == 0


def test_older_gpus_do_not_use_tf32(monkeypatch):
    xpconv.set_tf32(True)
    product()
    monkeypatch.setattr(cupy.cuda.Device, "compute_capability", "75")
    monkeypatch.setattr(_gemm, "_handles", {})
    assert rounding_error() == 0


# ---- without the library


@pytest.fixture
def no_cublas(monkeypatch):
    monkeypatch.setattr(_gemm, "load", lambda: (None, "libcublas.so.99 cannot be loaded (no such file)"))


def test_without_cublas_products_are_those_of_cupy(no_cublas):
    for rng in cases(20):
        a, b, out = (draw(rng, (2, *shape), "float32") for shape in ((3, 4), (4, 5), (3, 5)))
        check(rng, a, b, out, 0.5)
        check(rng, a[0], b[0], None, 0.0)
    a = cupy.asarray(np.full((1, 2), 300), "float16")
    assert gemm(a, a.T, cupy.empty((1, 1), "float32")).item() == 180000


def test_a_library_that_is_missing_is_named(monkeypatch):
    _gemm.load.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr("cuda.pathfinder.load_nvidia_dynamic_lib", lambda name: 1 / 0)
        assert _gemm.load() == (None, "libcublas.so.99 cannot be loaded (division by zero)")
    _gemm.load.cache_clear()
    assert _gemm.load()[1] == "13.9.5"


def test_info_tells_what_multiplies_matrices(monkeypatch):
    assert _info._products() == "by cuBLAS 13.9.5, TF32 off"
    xpconv.set_tf32(True)
    assert _info._products() == "by cuBLAS 13.9.5, TF32 on"
    monkeypatch.setattr(_gemm, "load", lambda: (None, "libcublas.so.99 cannot be loaded (no such file)"))
    assert _info._products().endswith("TF32 only if CUPY_TF32 is 1: libcublas.so.99 cannot be loaded (no such file)")


# ---- convolutions


def test_gradients_of_tiles_are_added_up_by_cublas(monkeypatch):
    rng = np.random.default_rng(7)
    x, w, dout = (draw(rng, shape, "float32") for shape in ((6, 4, 5, 5), (4, 2, 3, 3), (6, 4, 3, 3)))
    monkeypatch.setenv("XPCONV_ACCELERATE", "0")  # the emulated arrays are NumPy's, but get CuPy's tiles
    monkeypatch.setattr(tiling, "library_of", lambda a: "cupy")
    results = []
    for workspace, tiles in (("1GiB", 1), ("1B", 6), ("1B", 6)):
        monkeypatch.setenv("XPCONV_WORKSPACE", workspace)
        number = last_product().number
        results.append(_conv.convolve_backward(dout, x, w, Window((3, 3)), 2, "auto", True, True))
        assert last_product().number - number == 2 * tiles
    for whole, one, other in zip(*results, strict=True):
        np.testing.assert_allclose(whole, one, rtol=0, atol=1e-5)
        assert one.tobytes() == other.tobytes()
