"""Selecting a backend, moving arrays, and what is said where either cannot be done."""

import os
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from types import SimpleNamespace

import array_api_compat
import numpy as np
import pytest

from tests.helpers import LAYOUTS, assert_array, find_backend
from xpconv import Solver, TwoLayerNet
from xpconv.backend import (
    LIBRARIES,
    Backend,
    _array,
    _probes,
    _tf32,
    array_namespace,
    backend_of,
    get_backend,
    library_of,
    on_host,
    set_tf32,
    to_host,
    use_backend,
)
from xpconv.backend import _backend as module
from xpconv.cli._info import diagnose
from xpconv.data.batches import Batches
from xpconv.errors import (
    ArgumentError,
    ArgumentTypeError,
    BackendUnavailableError,
    DeviceMismatchError,
    PreflightError,
    XpconvError,
)
from xpconv.training.preflight import check_training

STRICT, DEVICE1 = "array_api_strict", "array_api_strict:device1"
DTYPES = ["bool", "int8", "uint8", "int16", "int32", "int64", "float32", "float64"]


@pytest.fixture(autouse=True)
def _nothing_found_yet(monkeypatch):
    """Take away what the machine's variables select and what earlier tests found, and what these tests find."""
    monkeypatch.delenv("XP_BACKEND", raising=False)
    module._find.cache_clear()
    module._namespace.cache_clear()
    yield
    module._find.cache_clear()
    module._namespace.cache_clear()


# ---- precedence


def test_numpy_is_the_default():
    assert str(get_backend()) == "numpy"


def test_variable_sets_the_default(monkeypatch):
    monkeypatch.setenv("XP_BACKEND", STRICT)
    assert str(get_backend()) == STRICT


def test_empty_variable_counts_as_unset(monkeypatch):
    monkeypatch.setenv("XP_BACKEND", "")
    assert str(get_backend()) == "numpy"


def test_context_comes_before_the_variable(monkeypatch):
    monkeypatch.setenv("XP_BACKEND", STRICT)
    with use_backend(DEVICE1) as inner:
        assert get_backend() is inner
        assert str(inner) == DEVICE1
    assert str(get_backend()) == STRICT


def test_argument_comes_before_the_context():
    with use_backend(STRICT):
        assert str(get_backend("numpy")) == "numpy"


def test_contexts_nest_and_end_with_an_error_too():
    with use_backend(STRICT):
        with pytest.raises(KeyError), use_backend(DEVICE1):
            raise KeyError
        assert str(get_backend()) == STRICT
    assert str(get_backend()) == "numpy"


def test_context_does_not_reach_other_threads():
    seen = []
    with use_backend(STRICT):
        thread = threading.Thread(target=lambda: seen.append(str(get_backend())))
        thread.start()
        thread.join()
    assert seen == ["numpy"]


def backend_in_another_thread():
    with ThreadPoolExecutor(1) as pool:
        return str(pool.submit(get_backend).result())


def test_everywhere_reaches_threads_until_the_block_ends():
    with ThreadPoolExecutor(1) as pool:
        assert str(pool.submit(get_backend).result()) == "numpy"
        with use_backend(STRICT, everywhere=True) as backend:
            assert pool.submit(get_backend).result() is backend  # in a thread that is older than the block
            net = pool.submit(TwoLayerNet, input_dim=4, rng=0).result()
            assert library_of(net.params["W1"]) == STRICT
            assert get_backend() is backend
        assert str(pool.submit(get_backend).result()) == "numpy"


def test_everywhere_ends_with_an_error_too():
    with pytest.raises(KeyError), use_backend(STRICT, everywhere=True):
        raise KeyError
    assert (str(get_backend()), backend_in_another_thread()) == ("numpy", "numpy")


def test_a_thread_prefers_its_own_block_to_everywhere():
    def select():
        with use_backend(DEVICE1):
            return str(get_backend())

    with use_backend(STRICT, everywhere=True), ThreadPoolExecutor(1) as pool:
        assert pool.submit(select).result() == DEVICE1
        with use_backend(DEVICE1):
            assert (str(get_backend()), backend_in_another_thread()) == (DEVICE1, STRICT)
        with use_backend(DEVICE1, everywhere=True):
            assert (str(get_backend()), backend_in_another_thread()) == (DEVICE1, DEVICE1)
        assert (str(get_backend()), backend_in_another_thread()) == (STRICT, STRICT)


def test_everywhere_comes_before_the_environment(monkeypatch):
    monkeypatch.setenv("XP_BACKEND", DEVICE1)
    with use_backend(STRICT, everywhere=True):
        assert backend_in_another_thread() == STRICT
    assert backend_in_another_thread() == DEVICE1


def test_overlapping_blocks_everywhere_end_in_any_order():
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        first, second, third = (use_backend(spec, everywhere=True) for spec in (STRICT, DEVICE1, STRICT))
        one.submit(first.__enter__).result()
        other.submit(second.__enter__).result()
        one.submit(third.__enter__).result()
        assert backend_in_another_thread() == STRICT
        one.submit(third.__exit__, None, None, None).result()
        assert backend_in_another_thread() == DEVICE1  # not the equal backend that was selected before it
        one.submit(first.__exit__, None, None, None).result()
        assert backend_in_another_thread() == DEVICE1
        other.submit(second.__exit__, None, None, None).result()
        assert backend_in_another_thread() == "numpy"


def test_everywhere_must_be_true_or_false():
    with (
        pytest.raises(ArgumentTypeError, match="everywhere is 'yes'; expected True or False"),
        use_backend(STRICT, everywhere="yes"),
    ):
        pass


def test_backend_stands_for_itself():
    backend = get_backend(STRICT)
    assert get_backend(backend) is backend
    with use_backend(backend):
        assert get_backend() is backend


def test_text_of_a_backend_selects_it_again(backend):
    again = get_backend(str(backend))
    assert again == backend
    assert hash(again) == hash(backend)
    assert library_of(again.asarray(np.ones(2))) == backend.library


def test_namespace_belongs_to_the_library(backend):
    x = backend.xp.asarray([1.0, 2.0], device=backend.device)
    assert library_of(x) == backend.library
    assert backend_of(x) == backend


# ---- what cannot be selected


@pytest.mark.parametrize("spec", ["jax", "", ":0", "NumPy", "numpy 0"])
def test_unknown_library_is_refused_with_those_there_are(spec, monkeypatch):
    text = rf"backend is '{spec}'; expected auto or one of numpy, cupy, torch, array_api_strict"
    with pytest.raises(ArgumentError, match=text), use_backend(spec):
        pass
    if spec:
        monkeypatch.setenv("XP_BACKEND", spec)
        with pytest.raises(ArgumentError, match=text):
            get_backend()


@pytest.mark.parametrize("spec", [0, np, ["numpy"]])
def test_backend_must_be_text(spec):
    with pytest.raises(ArgumentTypeError, match="expected a string such as 'cupy:0' or a Backend"):
        get_backend(spec)


def test_unknown_device_is_refused():
    with pytest.raises(BackendUnavailableError, match="numpy has no device 'gpu': use numpy, or cupy for a GPU"):
        get_backend("numpy:gpu")
    assert str(get_backend("numpy:cpu")) == "numpy"
    with pytest.raises(BackendUnavailableError, match="array_api_strict has no device 'device9': choose"):
        get_backend("array_api_strict:device9")


@pytest.mark.torch
def test_torch_names_the_device_it_cannot_use():
    find_backend("torch")
    with pytest.raises(
        BackendUnavailableError, match=r"torch \d\S* cannot use device 'nonsense'.*torch for its CPU, or install"
    ):
        get_backend("torch:nonsense")


@pytest.mark.parametrize(
    ("package", "hint"),
    [
        ("cupy", r"pip install 'cupy-cuda13x\[ctk\]' \(CUDA 13 driver\) or 'cupy-cuda12x\[ctk\]' \(12\)"),
        ("torch", "pip install torch"),
        ("array_api_strict", "pip install array-api-strict"),
    ],
)
def test_missing_package_is_named_with_how_to_install_it(package, hint, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(BackendUnavailableError, match=f"the package {package} is not installed: {hint}"):
        get_backend(package)


@pytest.mark.parametrize(
    "error",
    [
        "ImportError('libcuda.so is missing')",
        "OSError('libcuda.so is missing')",
        "ModuleNotFoundError('libcuda.so is missing', name='other')",
        "AttributeError('libcuda.so is missing')",
    ],
)
def test_package_that_fails_to_import_is_told_from_a_missing_one(error, monkeypatch, tmp_path):
    (tmp_path / "cupy.py").write_text(f"raise {error}")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    with pytest.raises(BackendUnavailableError, match=r"importing cupy failed \(libcuda.so is missing\): pip install"):
        get_backend("cupy")
    assert diagnose("cupy").version == "-"


# ---- CuPy, played by a stand-in


class Stage(np.ndarray):
    """A stand-in for CuPy's arrays, of a class of its own; products may be made wrong."""

    factor = 1

    def __matmul__(self, other):
        return (np.asarray(self) @ np.asarray(other) * Stage.factor).view(Stage)


@pytest.fixture
def cupy(monkeypatch):
    """A working CuPy 14 with two devices."""
    devices, streams = [0], ["null"]

    class Device:
        __hash__ = None
        current = devices

        def __init__(self, index):
            self.id, self.waits = index, 0

        def __enter__(self):
            devices.append(self.id)

        def __exit__(self, *error):
            devices.pop()

        def synchronize(self):
            self.waits += 1

    class Stream:
        current = streams

        def __enter__(self):
            streams.append(self)

        def __exit__(self, *error):
            streams.pop()

    runtime = SimpleNamespace(
        getDeviceCount=lambda: 2,
        driverGetVersion=lambda: 13010,
        runtimeGetVersion=lambda: 13020,
        getDeviceProperties=lambda index: {"name": b"Pretended GPU", "totalGlobalMem": 3 << 30},
    )
    fake = SimpleNamespace(
        __version__="14.0.0",
        float32=np.float32,
        ndarray=Stage,
        arange=lambda count, dtype: np.arange(count, dtype=dtype).view(Stage),
        cuda=SimpleNamespace(runtime=runtime, Device=Device, Stream=Stream, get_current_stream=lambda: streams[-1]),
    )
    monkeypatch.setitem(sys.modules, "cupy", fake)
    monkeypatch.setattr(Stage, "factor", 1)
    return fake


def raising(error):
    def fail(*_):
        raise error

    return fail


def test_cupy_is_found_where_its_kernels_run(cupy):
    for spec, text in (("cupy", "cupy:0"), ("cupy:1", "cupy:1")):
        backend = get_backend(spec)
        assert (backend.library, str(backend)) == ("cupy", text)
        assert {backend: text}[get_backend(spec)] == text  # though devices have no hash
        backend.synchronize()
        assert backend.device.waits == 1


def test_cupy_is_described(cupy):
    found = diagnose("cupy:1")
    assert (found.available, found.version) == (True, "14.0.0")
    assert found.detail == "Pretended GPU, 3 GiB, CUDA driver 13.1"


@pytest.mark.parametrize(
    ("driver", "error", "text"),
    [
        (
            12080,
            "cudaErrorInsufficientDriver",
            r"cupy 14.0.0 needs CUDA 13 but the NVIDIA driver supports CUDA 12 at most "
            r"\(cudaErrorInsufficientDriver\): pip install 'cupy-cuda12x\[ctk\]' instead of cupy-cuda13x",
        ),
        (13010, "cudaErrorNoDevice", r"finds an NVIDIA driver but no GPU \(cudaErrorNoDevice\): check nvidia-smi"),
    ],
)
def test_cupy_with_an_old_driver_or_without_a_gpu_says_which(cupy, driver, error, text):
    cupy.cuda.runtime.getDeviceCount = raising(RuntimeError(error))
    cupy.cuda.runtime.driverGetVersion = lambda: driver
    with pytest.raises(BackendUnavailableError, match=text):
        get_backend("cupy")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_process_forked_after_cupy_was_used_is_told_to_spawn(cupy, monkeypatch, tmp_path):
    monkeypatch.setattr(_probes, "_cuda_process", None)
    backend, x = get_backend("cupy"), np.zeros(2).view(Stage)
    monkeypatch.setattr(_array, "library_of", lambda x: "cupy" if isinstance(x, Stage) else "numpy")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python warns of forks while there are threads
        child = os.fork()
    if child == 0:
        calls = [
            lambda: get_backend("cupy"),
            lambda: get_backend("auto"),
            lambda: backend.asarray(np.zeros(2)),
            lambda: backend.to_host(SimpleNamespace()),
            lambda: backend.current().__enter__(),
            backend.stream,
            lambda: array_namespace(x=x),
        ]
        texts = []
        for call in calls:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error")
                    call()
                texts.append("no error")
            except Exception as error:
                texts.append(str(error))
        (tmp_path / "texts").write_text("\n".join(texts))
        os._exit(0)
    os.waitpid(child, 0)
    text = (
        "cupy was used before this process was forked, and CUDA does not work in a forked process: start processes by "
        "multiprocessing.get_context('spawn'), or use cupy only after the fork"
    )
    texts = (tmp_path / "texts").read_text().split("\n")
    assert texts == [text, f"backend auto: using numpy, since {text}", *[text] * 5]
    get_backend("cupy").synchronize()  # the parent goes on


def test_cuda_that_was_started_before_a_fork_by_others_is_explained(cupy, monkeypatch):
    cupy.cuda.runtime.getDeviceCount = raising(RuntimeError("cudaErrorInitializationError: initialization error"))
    text = (
        r"cupy 14.0.0 finds no GPU \(cudaErrorInitializationError: .*\): cupy was used before this process was forked"
    )
    with pytest.raises(BackendUnavailableError, match=text):
        get_backend("cupy")


def test_cupy_without_a_driver_says_so(cupy):
    cupy.cuda.runtime.getDeviceCount = raising(RuntimeError("cudaErrorInsufficientDriver"))
    cupy.cuda.runtime.driverGetVersion = lambda: 0
    text = r"cupy 14.0.0 finds no usable NVIDIA driver \(cudaErrorInsufficientDriver\): install the driver"
    with pytest.raises(BackendUnavailableError, match=text):
        get_backend("cupy")
    found = diagnose("cupy")
    assert (found.available, found.version) == (False, "14.0.0")
    assert "no usable NVIDIA driver" in found.detail


def test_cupy_without_that_device_says_how_many_there_are(cupy):
    with pytest.raises(BackendUnavailableError, match=r"cupy sees 2 CUDA device\(s\), so there is no device 2"):
        get_backend("cupy:2")
    cupy.cuda.runtime.getDeviceCount = lambda: 0
    with pytest.raises(BackendUnavailableError, match=r"sees 0 CUDA device\(s\).*check CUDA_VISIBLE_DEVICES"):
        get_backend("cupy")


@pytest.mark.parametrize(
    ("operation", "library", "step"),
    [
        ("__add__", "libnvrtc.so", "launch a kernel, which NVRTC compiles,"),
        ("__matmul__", "libcublas.so", "multiply matrices, which cuBLAS does,"),
    ],
)
def test_cupy_without_a_cuda_library_says_which(cupy, monkeypatch, operation, library, step):
    monkeypatch.setattr(Stage, operation, raising(OSError(f"{library} not found")), raising=False)
    text = rf"cupy cannot {step} on device 1 \(OSError: {library} not found\): its CUDA libraries must match"
    with pytest.raises(BackendUnavailableError, match=text) as caught:
        get_backend("cupy:1")
    assert isinstance(caught.value.__cause__, OSError)
    assert isinstance(caught.value, XpconvError | RuntimeError)


def test_cupy_that_computes_wrong_results_is_refused(cupy, monkeypatch):
    monkeypatch.setattr(Stage, "factor", 2)
    with pytest.raises(BackendUnavailableError, match="cupy computes wrong results on device 0"):
        get_backend("cupy")


def test_cupy_device_must_be_a_number(cupy):
    with pytest.raises(ArgumentError, match="cupy device is 'gpu'; expected a number, as in cupy:0"):
        get_backend("cupy:gpu")


def test_cupy_arrays_are_read_back_by_their_own_method(cupy):
    values = np.arange(3.0)
    host = get_backend("cupy").to_host(SimpleNamespace(get=lambda: values))
    assert host is values


def test_cupy_namespace_is_found_without_touching_a_device(cupy):
    assert get_backend("cupy").xp.float32 is not None


def test_nets_solvers_and_checks_compute_on_their_device(monkeypatch):
    """CuPy computes on the current device, whichever one the arrays are on."""
    backend, seen = get_backend("array_api_strict"), []

    @contextmanager
    def current(self, stream=None):
        seen.append("in")
        yield
        seen.append("out")

    @contextmanager
    def inside():
        seen.clear()
        yield
        assert (seen[0], seen[-1]) == ("in", "out")

    monkeypatch.setattr(Backend, "current", current)
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((8, 5)), np.arange(8) % 3
    with inside():
        net = TwoLayerNet(input_dim=5, num_classes=3, rng=0, backend=backend)
    with inside():
        net.loss(X, y)
    with inside():
        list(net.outputs(X))
    data = {"X_train": X, "y_train": y, "X_val": X, "y_val": y}
    solver = Solver(net, data, batch_size=4, num_epochs=1, verbose=False)
    with inside():
        solver.train()
    with inside():
        solver.check_accuracy(X, y)
    with inside(), suppress(PreflightError):
        check_training(net, X, y)


def test_cupy_computes_on_its_device_and_moves_minibatches_on_the_callers_stream(cupy, monkeypatch):
    backend, Device, Stream = get_backend("cupy:1"), cupy.cuda.Device, cupy.cuda.Stream
    assert Device.current == [0]
    with backend.current():
        assert Device.current == [0, 1]
    mine, seen = Stream(), []
    monkeypatch.setattr(Backend, "asarray", lambda self, x: seen.append((Device.current[-1], Stream.current[-1])) or x)
    with mine:
        batches = Batches(np.ones((4, 2)), np.arange(4), lambda: np.arange(2), backend)
    with batches:
        next(batches)
    assert set(seen) == {(1, mine)}
    assert (Device.current, Stream.current) == ([0], ["null"])


def test_auto_takes_a_cupy_that_works(cupy):
    assert str(get_backend("auto")) == "cupy:0"


def test_auto_falls_back_to_numpy_and_says_why(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.warns(UserWarning, match="backend auto: using numpy, since the package cupy is not installed"):
        assert str(get_backend("auto")) == "numpy"
    monkeypatch.setenv("XP_BACKEND", "auto")
    with pytest.warns(UserWarning, match="using numpy"):
        assert str(get_backend()) == "numpy"


def test_named_backend_never_falls_back(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setenv("XP_BACKEND", "cupy")
    with pytest.raises(BackendUnavailableError):
        get_backend()


# ---- torch on CUDA, played by a stand-in


def test_torch_on_cuda_is_one_numbered_device(monkeypatch):
    waits = []

    class Device(SimpleNamespace):
        def __str__(self):
            return self.type if self.index is None else f"{self.type}:{self.index}"

    def device(text, index=None):
        kind, _, number = text.partition(":")
        return Device(type=kind, index=int(number) if number else index)

    class Tensor:
        def __add__(self, other):
            return self

        def detach(self):
            return self

        def cpu(self):
            return self

        def numpy(self):
            return np.arange(2.0)

    monkeypatch.setitem(
        sys.modules,
        "torch",
        SimpleNamespace(
            __version__="2.9",
            device=device,
            Tensor=Tensor,
            zeros=lambda *_, **__: Tensor(),
            cuda=SimpleNamespace(
                current_device=lambda: 1,
                synchronize=waits.append,
                get_device_name=lambda chosen: f"Pretended GPU {chosen.index}",
            ),
        ),
    )
    backend = get_backend("torch:cuda")
    assert str(backend) == "torch:cuda:1"
    assert diagnose("torch:cuda:0").detail == "Pretended GPU 0"
    backend.synchronize()
    assert waits == [backend.device]
    assert backend.to_host(Tensor()).tolist() == [0.0, 1.0]


# ---- diagnosis


def test_diagnosis_of_a_working_backend(backend):
    found = diagnose(str(backend))
    assert found.spec == str(backend)
    assert found.available
    assert found.version[0].isdecimal()
    assert found.detail


@pytest.mark.parametrize("spec", ["", "auto", "os", "numpy:gpu", "cupy:gpu", "array_api_strict:device9"])
def test_diagnosis_never_raises(spec):
    found = diagnose(spec)
    assert not found.available
    assert found.detail
    if ":" not in spec:
        assert found.detail == f"{spec!r} is none of {', '.join(LIBRARIES)}"


def test_every_library_can_be_diagnosed():
    assert LIBRARIES == ("numpy", "cupy", "torch", "array_api_strict")
    assert all(diagnose(library).detail for library in LIBRARIES)


# ---- moving arrays


@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_go_there_and_back_unchanged(backend, dtype):
    host = np.array([[0, 1, 2], [100, 0, 1]]).astype(dtype)
    there = backend.asarray(host)
    assert_array(there, host, backend, dtype, tolerance=0)
    back = backend.to_host(there)
    assert type(back) is np.ndarray
    assert back.dtype == host.dtype
    assert back.tolist() == host.tolist()
    assert to_host(there).tolist() == host.tolist()


@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_are_cast_on_the_way(backend, dtype):
    for given in ([[0, 1], [1, 0]], np.eye(2)[::-1].astype(np.uint8), backend.asarray(np.eye(2)[::-1])):
        assert_array(backend.asarray(given, dtype), np.eye(2)[::-1], backend, dtype, tolerance=0)


def test_numbers_and_lists_become_arrays(backend):
    assert_array(backend.asarray(2.5), 2.5, backend, "float64", tolerance=0)
    assert_array(backend.asarray([True, False]), [1, 0], backend, "bool", tolerance=0)
    assert_array(backend.asarray(np.float32(2.5)), 2.5, backend, "float32", tolerance=0)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_host_arrays_of_any_layout_can_be_moved(backend, layout):
    values = np.random.default_rng(0).standard_normal((3, 4))
    host = layout(get_backend("numpy"), values)
    assert_array(backend.asarray(host), values, backend, "float64", tolerance=0)
    assert backend.to_host(layout(backend, values)).tolist() == values.tolist()


def test_array_that_is_there_already_is_returned_itself(backend):
    x = backend.asarray(np.ones(3))
    assert backend.asarray(x) is x
    assert backend.asarray(x, "float64") is x
    assert backend.asarray(x, "float32") is not x


@pytest.mark.parametrize("source", ["numpy", STRICT, DEVICE1])
def test_arrays_move_between_any_two_backends(backend, source):
    x = get_backend(source).asarray(np.array([[1, 2], [3, 4]]), "float32")
    assert_array(backend.asarray(x), [[1, 2], [3, 4]], backend, "float32", tolerance=0)
    assert_array(backend.asarray(x, "int32"), [[1, 2], [3, 4]], backend, "int32", tolerance=0)
    assert_array(get_backend(source).asarray(backend.asarray(x)), [[1, 2], [3, 4]], get_backend(source), "float32")


def test_reading_a_numpy_array_back_copies_nothing():
    x = np.ones(3)
    assert get_backend("numpy").to_host(x) is x
    assert to_host(x) is x


@pytest.mark.parametrize("value", [3, 2.5, [1, 2], np.float32(1.5), np.float64(2), True])
def test_numbers_and_lists_are_on_the_host(value):
    host = to_host(value)
    assert type(host) is np.ndarray
    assert host.tolist() == np.asarray(value).tolist()
    assert get_backend("numpy").to_host(value).tolist() == host.tolist()


def test_only_arrays_in_host_memory_are_on_the_host(backend):
    x = backend.asarray(np.ones(2))
    assert on_host(x) == (str(backend) in ("numpy", STRICT, "torch:cpu"))


def test_synchronize_is_there_for_every_backend(backend):
    backend.synchronize()


def test_dtypes_are_called_by_name(backend):
    assert backend.xp.zeros(1, dtype=backend.dtype("float32")).dtype == backend.asarray([1], "float32").dtype
    with pytest.raises(ArgumentError, match=rf"dtype is 'float7', which {backend.library} does not have"):
        backend.dtype("float7")
    with pytest.raises(ArgumentError, match="dtype is 32, which"):
        backend.dtype(32)


def test_upload_takes_host_data_and_its_own(backend):
    for given in (np.ones(2), [1.0, 1.0], backend.asarray(np.ones(2))):
        assert_array(backend.upload("X", given, "float32"), [1, 1], backend, "float32")


def test_upload_refuses_data_of_another_device():
    x = get_backend(DEVICE1).asarray(np.ones(2))
    text = r"X is on array_api_strict:device1 but the model is on numpy: pass get_backend\('numpy'\).asarray\(X\)"
    with pytest.raises(DeviceMismatchError, match=text):
        get_backend("numpy").upload("X", x)


# ---- whose array is it


def test_backend_of_an_array_is_where_it_lives(backend):
    x = backend.asarray(np.ones(2))
    assert backend_of(x) == backend
    assert array_namespace(x=x, b=None) is backend.xp


def test_subclasses_of_numpy_arrays_are_numpy_arrays(tmp_path):
    x = np.memmap(tmp_path / "x", shape=(2,), mode="w+", dtype=np.float32)
    assert backend_of(x) == get_backend("numpy")


@pytest.mark.parametrize("value", [[1.0], 2.5, None, "x", np.float64(1)])
def test_what_is_no_array_is_refused(value):
    if value is None:
        assert array_namespace(x=None) is get_backend().xp
        return
    text = rf"x is a {type(value).__name__}; expected an array: pass get_backend\(\)\.asarray\(x\)"
    with pytest.raises(ArgumentTypeError, match=text):
        backend_of(value)


def test_mixed_libraries_are_named_with_the_call_that_fixes_it():
    x, b = np.ones(2), get_backend(STRICT).asarray(np.ones(2))
    text = (
        r"x is on numpy \(cpu\) but b is on array_api_strict \(array_api_strict.Device\('CPU_DEVICE'\)\): "
        r"move one of them, as in b = xpconv\.backend\.backend_of\(x\)\.asarray\(b\)"
    )
    with pytest.raises(DeviceMismatchError, match=text):
        array_namespace(x=x, w=None, b=b)
    b = backend_of(x).asarray(b)
    assert array_namespace(x=x, b=b) is get_backend("numpy").xp


def test_mixed_devices_are_named_with_the_call_that_fixes_it():
    x, b = (get_backend(spec).asarray(np.ones(2)) for spec in (DEVICE1, STRICT))
    with pytest.raises(DeviceMismatchError, match=r"Device\('device1'\)\) but b is on array_api_strict \(.*CPU_DEVICE"):
        array_namespace(x=x, b=b)
    b = backend_of(x).asarray(b)
    assert array_api_compat.device(b) == array_api_compat.device(x)
    assert array_namespace(x=x, b=b) is get_backend(STRICT).xp


def test_errors_are_also_the_built_in_ones_a_caller_expects():
    assert issubclass(BackendUnavailableError, RuntimeError)
    assert issubclass(DeviceMismatchError, ValueError)
    assert issubclass(ArgumentTypeError, TypeError)
    assert isinstance(get_backend("numpy"), Backend)


# ---- TF32


@pytest.mark.parametrize(
    ("variables", "chosen", "expected"),
    [
        ({}, None, False),
        ({"XPCONV_TF32": "1"}, None, True),
        ({"CUPY_TF32": "1"}, None, True),
        ({"CUPY_TF32": "1", "XPCONV_TF32": "0"}, None, False),
        ({"XPCONV_TF32": "1"}, False, False),
        ({}, True, True),
    ],
)
def test_tf32_follows_set_tf32_then_the_variables(monkeypatch, variables, chosen, expected):
    monkeypatch.setattr(_tf32, "_chosen", chosen)
    for name in ("XPCONV_TF32", "CUPY_TF32"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert _tf32.tf32_enabled() is expected


def test_wrong_values_of_tf32_are_refused(monkeypatch):
    with pytest.raises(ArgumentTypeError, match="enabled is 1; expected True or False"):
        set_tf32(1)
    monkeypatch.setattr(_tf32, "_chosen", None)
    monkeypatch.setenv("XPCONV_TF32", "on")
    with pytest.raises(ArgumentError, match="XPCONV_TF32 is 'on'; expected 0 or 1"):
        _tf32.tf32_enabled()
