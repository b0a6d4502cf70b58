"""CuPy's kernels on a GPU: correct on large shapes, repeatable, without waits, with clear errors when memory runs out.

tests/test_ops_parity.py compares each kernel with the portable version on small shapes.
"""

import os
import re
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import xpconv
from tests.helpers import assert_array, contiguous, draw, fortran_ordered
from tests.helpers import find_backend as find
from tests.operation_table import ARGUMENTS, WRITTEN, arrays_in, compared
from xpconv import Solver, layers
from xpconv.backend import Backend, to_host
from xpconv.backend._memory import peak_bytes
from xpconv.errors import OutOfMemoryError
from xpconv.nn import Affine, BatchNorm, Conv, GlobalAvgPool, GroupNorm, LayerNorm, MaxPool, Relu, Sequential
from xpconv.ops import tiling
from xpconv.ops.tiling import matmul
from xpconv.ops.windows import Window
from xpconv.testing import check_equivalence

gpu = pytest.mark.gpu
OPS = Path(xpconv.__file__).parent / "ops" / "cupy"


@pytest.fixture
def backend():
    return find("cupy")


@pytest.fixture
def cupy(backend):
    return pytest.importorskip("cupy")


def images(n=60, seed=0):
    """Return noisy images (n, 3, 16, 16) of three classes, each class with its own bright row, and their labels."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    X = rng.standard_normal((n, 3, 16, 16)).astype(np.float32)
    X[np.arange(n), :, 4 * y] += 2
    return X, y


def make_net(backend, dtype="float32"):
    return Sequential(
        [
            Conv(8, padding="same", bias=False),
            BatchNorm(),
            Relu(),
            MaxPool(3, 2, padding=1),
            Conv(12, 5, stride=2, padding="same"),
            GroupNorm(groups=4),
            Relu(),
            Conv(6, 1),
            LayerNorm(),
            GlobalAvgPool(),
            Affine(3),
        ],
        input_shape=(3, 16, 16),
        reg=1e-2,
        rng=0,
        backend=backend,
        dtype=dtype,
    )


def make_solver(backend, **options):
    (X, y), (X_val, y_val) = images(), images(30, seed=1)
    data = {"X_train": X, "y_train": y, "X_val": X_val, "y_val": y_val}
    net = make_net(backend)
    return Solver(
        net,
        {name: net.backend.asarray(a) for name, a in data.items()},
        update_rule="adam",
        rng=3,
        **{"batch_size": 6, "num_epochs": 10, "verbose": False, **options},
    )


# ---- the kernels


def test_every_kernel_is_launched_and_every_launch_names_a_kernel():
    code = "".join(path.read_text(encoding="utf-8") for path in OPS.glob("*.py"))
    launched, texts = (set(re.findall(pattern, code)) for pattern in (r'launch\w*\(\s*"(\w+)"', r'"(\w+)"'))
    kernels = re.findall(r"__global__ void (\w+)\(", (OPS / "kernels.cu").read_text(encoding="utf-8"))
    assert launched <= set(kernels) <= texts


@gpu
def test_every_operation_except_tiling_has_a_kernel(backend):
    plain = {"add"}  # One kernel of CuPy's own computes it.
    parted = {"moments", "apply_moments", "gradient_sums", "input_gradient"}  # for batches in parts: portable only
    assert set(compared("cupy")) == (set(ARGUMENTS) - set(tiling.__all__) - plain - parted) | {"matmul"}


@gpu
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("layout", [contiguous, fortran_ordered])
@pytest.mark.parametrize(
    ("shape", "window"),
    [
        ((70, 5, 40, 37), Window((3, 3), padding=((1, 1), (1, 1)))),
        ((33, 64, 13, 17), Window((3, 2), (2, 3), ((0, 0), (1, 1)))),
        ((3, 2, 300, 257), Window((5, 7), (1, 2), ((2, 2), (3, 3)))),
        ((3, 4, 200, 257), Window((3, 3), (1, 2), ((2, 1), (0, 3)), (2, 3))),
        ((1030, 3, 5, 4), Window((2, 2), (2, 2))),
        ((2, 700, 8, 8), Window((1, 1))),
        ((2, 1, 64, 64), Window((20, 20), (3, 3), ((7, 7), (0, 0)))),
    ],
)
def test_kernels_equal_the_portable_versions_on_shapes_that_need_many_blocks(backend, layout, dtype, shape, window):
    x = draw(*shape).astype(dtype)
    for name, versions in compared("cupy").items():
        results = []
        for version in versions:
            *given, last = ARGUMENTS[name](lambda a, kind=dtype: layout(backend, a.astype(kind)), x, window)
            options = last if isinstance(last, dict) else {}
            given += [] if isinstance(last, dict) else [last]
            result = version(*given, **options)
            results.append([*arrays_in(result), *arrays_in(given[WRITTEN.get(name, slice(0))])])
        for one, other in zip(*results, strict=True):
            expected = to_host(one)
            tolerance = 1e-4 if expected.dtype == np.float32 else 1e-11
            assert_array(other, expected, backend, str(expected.dtype), tolerance=tolerance)


@gpu
def test_statistics_far_from_zero_are_accurate(backend):
    x = (1e4 + draw(64, 3, 32, 32)).astype(np.float32)
    gamma, beta = (backend.asarray(np.full(3, value), "float32") for value in (1, 0))
    out, cache = layers.batchnorm_forward(backend.asarray(x), gamma, beta, train=True)
    exact = x.astype(np.float64)
    mean, var = (f(exact, axis=(0, 2, 3), keepdims=True) for f in (np.mean, np.var))
    assert np.max(np.abs(to_host(cache.mean).ravel() - mean.ravel())) < 1e-2  # 1e-6 relative to the values
    assert np.max(np.abs(to_host(out) - (exact - mean) / np.sqrt(var + 1e-5))) < 1e-2


@gpu
def test_scores_that_would_overflow_give_a_finite_loss(backend):
    scores = np.array([[1e4, 0, -1e4], [0, 0, 0]])
    loss, dx = layers.softmax_loss(backend.asarray(scores), backend.asarray(np.array([1, 2])))
    assert float(to_host(loss)) == pytest.approx((1e4 + np.log(3)) / 2)
    assert to_host(dx)[0] == pytest.approx([0.5, -0.5, 0])


# ---- matrix products


@pytest.fixture
def gemm(cupy):
    from xpconv.ops.cupy import _gemm

    library, text = _gemm.load()
    assert library is not None, text
    yield _gemm
    _gemm.release_workspace()


@gpu
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("batch", [(), (5,)])
@pytest.mark.parametrize("shape", [(1, 1, 1), (64, 300, 27), (33, 17, 1000), (256, 1024, 512)])
def test_products_equal_those_of_numpy(gemm, cupy, dtype, batch, shape):
    M, N, K = shape
    a, b, out = (draw(*batch, *size, seed=seed).astype(dtype) for seed, size in enumerate(((M, K), (K, N), (M, N))))
    tolerance = {"float16": 2e-3, "float32": 1e-5, "float64": 1e-13}[dtype] * 10 * K**0.5

    def by_columns(x):
        return cupy.asarray(np.ascontiguousarray(x.swapaxes(-1, -2))).swapaxes(-1, -2)

    for layout_a in (cupy.asarray, by_columns):
        for layout_b in (cupy.asarray, by_columns):
            for layout_out in (cupy.asarray, by_columns):
                for beta in (0.0, 1.0):
                    result = layout_out(out)
                    gemm.gemm(layout_a(a), layout_b(b), result, beta=beta)
                    expected = a.astype(float) @ b.astype(float) + beta * out
                    np.testing.assert_allclose(result.get(), expected, rtol=0, atol=tolerance)
    single = gemm.gemm(cupy.asarray(a[..., ::-1])[..., ::-1], cupy.asarray(b), cupy.empty((*batch, M, N), dtype))
    np.testing.assert_allclose(single.get(), a.astype(float) @ b.astype(float), rtol=0, atol=tolerance)


@gpu
def test_float16_sums_are_added_in_float32(gemm, cupy):
    a, b = cupy.ones((1, 4096), "float16"), cupy.full((4096, 1), 0.25, "float16")
    assert gemm.gemm(a, b).item() == 1024
    large = cupy.full((1, 2), 300, "float16")
    assert gemm.gemm(large, large.T, cupy.empty((1, 1), "float32")).item() == 180000


@gpu
def test_tf32_rounds_the_inputs_of_float32_products_only(gemm, cupy, monkeypatch):
    from xpconv.backend import _tf32

    monkeypatch.setattr(_tf32, "_chosen", None)
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((256, 256)) for _ in range(2))
    errors = {}
    for enabled in (False, True):
        xpconv.set_tf32(enabled)
        for dtype in ("float32", "float64"):
            product = gemm.gemm(cupy.asarray(a, dtype), cupy.asarray(b, dtype)).get()
            errors[enabled, dtype] = np.max(np.abs(product - a @ b))
    assert errors[False, "float32"] < 1e-3 < errors[True, "float32"] < 1e-1
    assert max(errors[enabled, "float64"] for enabled in (False, True)) < 1e-11


@gpu
def test_a_captured_product_is_replayed_with_new_values(gemm, cupy):
    pool, stream = cupy.cuda.MemoryPool(), cupy.cuda.Stream(non_blocking=True)
    a, b, out = cupy.ones((3, 64, 32), "float32"), cupy.ones((3, 32, 16), "float32"), cupy.empty((3, 64, 16), "float32")
    cupy.cuda.Device().synchronize()
    gemm.release_workspace()
    with stream, cupy.cuda.using_allocator(pool.malloc):
        gemm.gemm(a, b, out)
        stream.begin_capture()
        gemm.gemm(a, b, out)
        gemm.gemm(a[0], b[0], out[0], beta=1.0)
        graph = stream.end_capture()
    gemm.release_workspace()
    assert pool.used_bytes() == 0
    a *= 2
    expected = gemm.gemm(a, b)  # in another workspace
    cupy.cuda.Device().synchronize()
    graph.launch(stream)
    stream.synchronize()
    np.testing.assert_array_equal(out[1:].get(), expected[1:].get())
    np.testing.assert_array_equal(out[0].get(), 2 * expected[0].get())


@gpu
def test_products_in_two_streams_repeat_bit_for_bit(gemm, cupy):
    rng = np.random.default_rng(0)
    a, b = (cupy.asarray(rng.standard_normal(shape), "float32") for shape in ((64, 20000), (20000, 64)))
    expected = gemm.gemm(a, b).get()
    cupy.cuda.Device().synchronize()
    streams, results = [cupy.cuda.Stream(non_blocking=True) for _ in range(2)], []
    for k in range(20):
        with streams[k % 2]:
            results.append(gemm.gemm(a, b))
    cupy.cuda.Device().synchronize()
    assert all(np.array_equal(result.get(), expected) for result in results)


@gpu
def test_labels_out_of_range_give_a_loss_of_nan_and_finite_gradients(backend):
    scores = backend.asarray(np.zeros((3, 4)))
    for labels in ([0, 1, 4], [0, -1, 2]):
        y = backend.asarray(np.array(labels))
        for loss, dx in (layers.softmax_loss(scores, y), layers.softmax_loss(scores, y, label_smoothing=0.1)):
            assert np.isnan(to_host(loss))
            assert np.isfinite(to_host(dx)).all()


@gpu
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_is_told_to_spawn(backend, tmp_path):
    x = backend.asarray(np.ones(3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python warns of forks while there are threads
        child = os.fork()
    if child == 0:
        texts = []
        for call in (lambda: xpconv.get_backend("cupy"), lambda: layers.relu_forward(x), lambda: backend.to_host(x)):
            try:
                call()
            except Exception as error:
                texts.append(str(error))
        (tmp_path / "texts").write_text("\n".join(texts))
        os._exit(0)
    os.waitpid(child, 0)
    texts = (tmp_path / "texts").read_text().split("\n")
    assert [text.startswith("cupy was used before this process was forked") for text in texts] == [True] * 3


# ---- the same results everywhere


@gpu
@pytest.mark.torch
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_net_gives_the_same_results_on_numpy_torch_and_cupy(backend, dtype):
    places = ["numpy", find("torch"), find("torch:cuda"), backend]
    X, y = images(20)

    def loss_and_gradients(X, y):
        net = make_net(None, dtype)
        return net.loss(X, y), net.state, net.loss(X)

    check_equivalence(loss_and_gradients, X.astype(dtype), y, backends=places)


@pytest.mark.parametrize("spec", ["numpy", pytest.param("cupy", marks=gpu)])
def test_two_runs_give_the_same_bits(spec):
    runs = []
    for _ in range(2):
        solver = make_solver(find(spec), num_epochs=3)
        solver.train()
        runs.append([solver.loss_history, *(to_host(w).tobytes() for w in solver.model.params.values())])
    assert runs[0] == runs[1]


# ---- no waits for the device


@contextmanager
def refusing_to_wait(monkeypatch):
    """Make CuPy raise an error where it would wait, except in Backend.to_host; yield the arrays given to that."""
    from cupyx import allow_synchronize

    def allowing(allowed):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # CuPy warns that it may miss some waits
            context = allow_synchronize(allowed)
            context.__enter__()
        return context

    calls, plain = [], Backend.to_host

    def counted(self, x):
        calls.append(x)
        context = allowing(True)
        try:
            return plain(self, x)
        finally:
            context.__exit__(None, None, None)

    monkeypatch.setattr(Backend, "to_host", counted)
    context = allowing(False)
    try:
        yield calls
    finally:
        context.__exit__(None, None, None)


@gpu
def test_training_waits_only_to_print_and_to_check_accuracy(backend, monkeypatch, capsys):
    solver = make_solver(backend, verbose=True, print_every=50)
    solver.model.reg = 0  # A loss above that of a guess would be explained, for which the weights are read.
    with refusing_to_wait(monkeypatch) as waits:
        solver.train()
    assert solver.iteration == 100
    checks = len(solver.val_acc_history)
    assert capsys.readouterr().out.count("(Iteration ") == 2
    assert len(waits) == 3 * checks + 1  # a check waits for losses and for two accuracies; the first print reuses one


@gpu
def test_other_waits_raise_an_error(backend, monkeypatch):
    with refusing_to_wait(monkeypatch), pytest.raises(RuntimeError, match="synchronization"):
        float(backend.asarray(1.0))


# ---- memory


@pytest.fixture
def little_memory(cupy):
    """Return a function that limits CuPy to a number of MiB more than it uses now."""
    pool = cupy.get_default_memory_pool()

    def limit(mebibytes):
        matmul(cupy.ones((2, 2)), cupy.ones((2, 2)))  # takes the workspace of cuBLAS
        pool.free_all_blocks()
        pool.set_limit(size=pool.used_bytes() + (mebibytes << 20))

    yield limit
    pool.set_limit(size=0)


def snapshot(model):
    return {name: to_host(a).tobytes() for name, a in [*model.params.items(), *model.state.items()]}


class Hungry(Relu):
    """A layer whose backward pass runs out of memory."""

    def backward(self, dout, cache, *, need_dx):
        raise MemoryError("8 GiB")


def test_out_of_memory_in_a_backward_pass_leaves_running_statistics_unchanged():
    net = Sequential(
        [Conv(2, padding="same"), BatchNorm(), Hungry(), GlobalAvgPool(), Affine(3)],
        input_shape=(3, 4, 4),
        rng=0,
        backend="array_api_strict",
    )
    before = snapshot(net)
    with pytest.raises(
        OutOfMemoryError,
        match=r"array_api_strict has not enough memory for 5 samples at once \(8 GiB\)"
        r": take a smaller batch, .* XPCONV_WORKSPACE, which is now 64MiB",
    ):
        net.loss(np.ones((5, 3, 4, 4)), np.zeros(5, int))
    assert snapshot(net) == before


@gpu
def test_out_of_memory_names_the_workspace_and_leaves_the_model_unchanged(backend, little_memory, monkeypatch):
    net = Sequential(
        [Conv(4, 7, padding="same"), BatchNorm(), Relu(), GlobalAvgPool(), Affine(3)],
        input_shape=(3, 32, 32),
        rng=0,
        backend=backend,
    )
    X, y = np.zeros((256, 3, 32, 32), np.float32), np.zeros(256, int)
    before = snapshot(net)
    little_memory(120)  # the columns of all images take 147 MiB, everything else less than 80
    with pytest.raises(
        OutOfMemoryError,
        match=r"cupy:0 has not enough memory for 256 samples at once \(.*\): take a "
        r"smaller batch, .* XPCONV_WORKSPACE, which is now 1024MiB",
    ):
        net.loss(X, y)
    assert snapshot(net) == before
    net.loss(X[:64], y[:64])
    monkeypatch.setenv("XPCONV_WORKSPACE", "8MiB")
    net.loss(X, y)


@gpu
def test_training_goes_on_after_running_out_of_memory(backend, little_memory, monkeypatch):
    expected = make_solver(backend, batch_size=60, num_epochs=4)
    expected.train()
    solver = make_solver(backend, batch_size=60, num_epochs=4)

    def shrink(solver):
        if solver.iteration == 2:
            little_memory(1)

    monkeypatch.setenv("XPCONV_CAPTURE", "0")  # A captured step has its memory already.

    with pytest.raises(OutOfMemoryError):
        solver.train(shrink)
    assert solver.iteration == 2
    little_memory(1 << 10)
    solver.train()
    assert solver.iteration == 4
    assert np.isfinite(solver.loss_history).all()
    assert solver.loss_history[:2] == expected.loss_history[:2]


@gpu
@pytest.mark.parametrize(("batch", "workspace"), [(64, 2), (256, 2), (256, 16)])
def test_a_convolution_takes_no_more_memory_than_the_workspace(backend, monkeypatch, batch, workspace):
    monkeypatch.setenv("XPCONV_WORKSPACE", f"{workspace}MiB")
    monkeypatch.delenv("XPCONV_ACCELERATE", raising=False)
    x, w = (backend.xp.ones(shape, dtype="float32") for shape in ((batch, 16, 16, 16), (16, 16, 3, 3)))
    results = []

    def both_passes():
        out, cache = layers.conv_forward(x, w, None, padding=1)
        results.extend([out, *layers.conv_backward(out, cache)[:2]])

    both_passes()  # takes the workspace of cuBLAS
    results.clear()
    peak = peak_bytes(backend, both_passes)
    assert peak - sum(a.nbytes for a in results) <= (workspace << 20) + (1 << 19)


@gpu
def test_a_net_trained_on_the_gpu_gives_the_same_scores_on_the_host(backend, tmp_path):
    solver = make_solver(backend, num_epochs=2)
    solver.train()
    xpconv.save_model(solver.model, tmp_path / "net.safetensors")
    X, _ = images(20, seed=2)
    on_host = xpconv.load_model(tmp_path / "net.safetensors", "numpy").loss(X)
    assert_array(xpconv.load_model(tmp_path / "net.safetensors", backend).loss(X), on_host, backend, "float32")


# ---- the documentation


@pytest.mark.parametrize("spec", ["numpy", pytest.param("cupy", marks=gpu)])
def test_the_code_of_the_gpu_page_runs(spec, capsys):
    find(spec)
    page = (Path(__file__).parents[1] / "docs" / "gpu.md").read_text(encoding="utf-8")
    names = {}
    for code in re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S):
        exec(compile(code.replace('"cupy"', repr(spec)), "gpu.md", "exec"), names)
    assert len(names["solver"].loss_history) == 4
    assert capsys.readouterr().out.endswith(" s for a loss and its gradients\n")
