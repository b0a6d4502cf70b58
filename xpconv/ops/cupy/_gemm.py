"""Matrix products of CuPy arrays by direct calls of cuBLAS.

CuPy's own products cannot be captured in a CUDA graph; these can.

cuBLAS stores matrices by columns. A matrix stored by rows has the same memory as its transpose stored by columns, so
C = A @ B is computed as C' = B' A'. A transposed view is passed with an op flag and not copied.
"""

import ctypes
import importlib
import threading
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import cupy

from xpconv.backend import tf32_enabled
from xpconv.ops.cupy._launch import Array, Shape, sum_dtype
from xpconv.ops.dispatch import accelerate

# Constants of cublas_api.h and library_types.h
_TYPES = {"f": 0, "d": 1, "e": 2}  # CUDA_R_32F, CUDA_R_64F and CUDA_R_16F by the dtype's character
_COMPUTE_32F, _COMPUTE_64F, _COMPUTE_32F_FAST_TF32 = 68, 70, 77
_DEFAULT_ALGORITHM = -1
_SUM_IN_COMPUTE_TYPE = 16  # CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION: no partial sums in float16
_ALLOCATION_FAILED = 3

_WORKSPACE_BYTES = 32 << 20  # what NVIDIA recommends for its largest GPUs
_TF32_CAPABILITY = 80

_INT, _LONG, _POINTER = ctypes.c_int, ctypes.c_longlong, ctypes.c_void_p
_SIGNATURES = {
    "cublasCreate_v2": (_POINTER,),
    "cublasGetProperty": (_INT, _POINTER),
    "cublasSetMathMode": (_POINTER, _INT),
    "cublasSetStream_v2": (_POINTER, _POINTER),
    "cublasSetWorkspace_v2": (_POINTER, _POINTER, ctypes.c_size_t),
    "cublasGemmEx": (
        *(_POINTER, _INT, _INT, _INT, _INT, _INT),  # handle, op of A, op of B, m, n, k
        *(_POINTER, _POINTER, _INT, _INT),  # alpha, A, its type, leading dimension
        *(_POINTER, _INT, _INT),  # B
        *(_POINTER, _POINTER, _INT, _INT),  # beta, C
        *(_INT, _INT),  # compute type, algorithm
    ),
    "cublasGemmStridedBatchedEx": (
        *(_POINTER, _INT, _INT, _INT, _INT, _INT),
        *(_POINTER, _POINTER, _INT, _INT, _LONG),  # and the distance from one matrix to the next
        *(_POINTER, _INT, _INT, _LONG),
        *(_POINTER, _POINTER, _INT, _INT, _LONG),
        *(_INT, _INT, _INT),  # count of matrices, compute type, algorithm
    ),
}


def gemm(a: Array, b: Array, out: Array | None = None, *, beta: float = 0.0) -> Array:
    """Return ``a @ b + beta * out``, written to `out` if that is given.

    float16 products are summed in float32. float32 products use TF32 if `tf32_enabled` returns True. With beta 0, `out`
    is not read.

    Parameters
    ----------
    a : array (M, K) or (G, M, K)
    b : array (K, N) or (G, K, N)
    out : array (M, N) or (G, M, N), optional
        Has the inputs' dtype, or float32 for inputs in float16. By default a new array of the inputs' dtype.
    beta : float
    """
    if load()[0] is None:
        return _multiply_by_cupy(a, b, out, beta)
    given, out = out, cupy.empty((*a.shape[:-1], b.shape[-1]), a.dtype) if out is None else out
    plan = _plan(*((x.dtype.char, x.shape, x.strides, x.itemsize) for x in (a, b, out)))
    if plan is None:
        return _multiply_by_cupy(a, b, given, beta)
    kind, handle = out.dtype.char, _handle()
    operands = [cupy.ascontiguousarray(x) if copied else x for x, copied in zip((a, b), plan.copied, strict=True)]
    first, second = operands[:: -1 if plan.by_rows else 1]
    compute = _COMPUTE_64F if kind == "d" else _COMPUTE_32F
    if a.dtype.char == "f" and handle.tf32 and tf32_enabled():
        compute = _COMPUTE_32F_FAST_TF32
    with handle.lock:
        handle.use_current_stream()
        handle.call(
            plan.function,
            *(handle.pointer, *plan.operation),
            *(_scalar(kind, 1.0), first.data.ptr, *plan.first, second.data.ptr, *plan.second),
            *(_scalar(kind, beta), out.data.ptr, *plan.out),
            *(*plan.batch, compute, _DEFAULT_ALGORITHM),
        )
    return out


@accelerate("cupy")
def matmul(a: Array, b: Array) -> Array:
    """Multiply without copying transposed views.

    With float16 activations: their product with parameters in float32 is float16, and the product of two of them, the
    gradient of parameters, is float32.
    """
    if a.dtype != b.dtype:
        return gemm(a.astype("float16", copy=False), b.astype("float16", copy=False))
    return gemm(a, b, cupy.empty((*a.shape[:-1], b.shape[-1]), sum_dtype(a.dtype)))


def release_workspace() -> None:
    """Release cuBLAS's workspaces; the next product takes a new one from CuPy's current allocator.

    Call this before a capture, so that the workspace comes from the pool of the graph, and after it, so that no other
    product uses the workspace of the graph.
    """
    for handle in list(_handles.values()):
        with handle.lock:
            handle.current = handle.workspace = None


@lru_cache
def load() -> tuple[Any, str]:
    """Return cuBLAS and its version, or None and the reason why it cannot be loaded."""
    name = f"libcublas.so.{cupy.cuda.runtime.runtimeGetVersion() // 1000}"
    version, part = [], ctypes.c_int()
    try:
        library = _open(name)
        for function, parameters in _SIGNATURES.items():
            getattr(library, function).argtypes = parameters
        for kind in range(3):  # major, minor, patch
            _check(library.cublasGetProperty(kind, ctypes.byref(part)), "cublasGetProperty")
            version.append(str(part.value))
    except Exception as error:  # cuda-pathfinder defines its own error classes
        return None, f"{name} cannot be loaded ({error})"
    return library, ".".join(version)


def _open(name: str) -> Any:
    """Open the library that CuPy has loaded, otherwise the one that NVIDIA's cuda-pathfinder finds."""
    try:
        return ctypes.CDLL(name)
    except OSError:
        pathfinder = importlib.import_module("cuda.pathfinder")
        return ctypes.CDLL(pathfinder.load_nvidia_dynamic_lib("cublas").abs_path)


def _check(status: int, function: str) -> None:
    if status == _ALLOCATION_FAILED:
        raise MemoryError(f"{function} has not enough memory")
    if status:
        raise RuntimeError(f"{function} returned status {status} of cuBLAS")


class _Handle:
    """cuBLAS on one device; `lock` must be held from `use_current_stream` until the product is launched."""

    def __init__(self, device: int) -> None:
        self.library, self.pointer = load()[0], _POINTER()
        self.lock = threading.Lock()
        self.tf32 = int(cupy.cuda.Device(device).compute_capability) >= _TF32_CAPABILITY
        self.current: tuple[int, int] | None = None  # The stream and the thread that the workspace belongs to.
        self.workspace: Any = None
        self.call("cublasCreate_v2", ctypes.byref(self.pointer))
        self.call("cublasSetMathMode", self.pointer, _SUM_IN_COMPUTE_TYPE)

    def call(self, function: str, *arguments: Any) -> None:
        """Call a function of cuBLAS and raise an error if it fails."""
        _check(getattr(self.library, function)(*arguments), function)

    def use_current_stream(self) -> None:
        """Let products run in CuPy's current stream, with a workspace that no other stream uses.

        Streams are identified by pointer and thread: the per-thread default stream has one pointer in all threads.
        """
        current = cupy.cuda.get_current_stream().ptr, threading.get_ident()
        if current == self.current:
            return
        self.current = None
        self.workspace = cupy.cuda.alloc(_WORKSPACE_BYTES)
        self.call("cublasSetStream_v2", self.pointer, current[0])  # First, since it resets the workspace.
        self.call("cublasSetWorkspace_v2", self.pointer, self.workspace.ptr, _WORKSPACE_BYTES)
        self.current = current


_handles: dict[int, _Handle] = {}
_creation = threading.Lock()


def _handle() -> _Handle:
    """Return the handle of the current device."""
    device = cupy.cuda.runtime.getDevice()
    if device not in _handles:
        with _creation:
            if device not in _handles:
                _handles[device] = _Handle(device)
    return _handles[device]


@lru_cache(maxsize=64)
def _scalar(kind: str, value: float) -> Any:
    """Return a pointer to alpha or beta in host memory, in the type of the sums."""
    return ctypes.pointer(ctypes.c_double(value) if kind == "d" else ctypes.c_float(value))


Description = tuple[str, Shape, Shape, int]  # the dtype's character, the shape, the strides, and bytes per element


class _Plan(NamedTuple):
    """The arguments of a cuBLAS call that depend only on dtypes, shapes and strides."""

    copied: tuple[bool, bool]  # whether a and b must be copied first
    by_rows: bool  # whether `out` is stored by rows; then b is the first operand, otherwise a
    function: str
    operation: tuple[int, ...]  # op of the first and of the second operand, m, n, k
    first: tuple[int, ...]  # type, leading dimension and, in a batch, the distance from one matrix to the next
    second: tuple[int, ...]
    out: tuple[int, ...]
    batch: tuple[int, ...]  # the number of matrices, in a batch


@lru_cache(maxsize=4096)
def _plan(a: Description, b: Description, out: Description) -> _Plan | None:
    """Return how to call cuBLAS for a product, or None if it cannot compute it."""
    layouts = [_layout(*x[1:]) for x in (a, b, out)]
    kinds, (M, K), N = a[0] + b[0] + out[0], a[1][-2:], b[1][-1]
    if kinds not in ("fff", "ddd", "eee", "eef") or layouts[2] is None or not K * prod(out[1]):
        return None
    copied, by_rows = (layouts[0] is None, layouts[1] is None), not layouts[2].by_columns
    batch = out[1][:-2] if out[1][:-2] != (1,) else ()

    def matrix(x: Description, layout: _Layout | None) -> tuple[tuple[int, ...], bool]:
        """Return the arguments that describe a matrix, and whether it is stored by columns."""
        kind, (*_, rows, columns), strides, size = x
        by_columns, leading = layout or (False, columns)
        apart = rows * columns if layout is None else strides[0] // size
        return (_TYPES[kind], leading, *((apart,) if batch else ())), by_columns

    (one, a_by_columns), (two, b_by_columns) = matrix(a, layouts[0]), matrix(b, layouts[1])
    if by_rows:
        operands, operation = (two, one), (int(b_by_columns), int(a_by_columns), N, M, K)
    else:
        operands, operation = (one, two), (int(not a_by_columns), int(not b_by_columns), M, N, K)
    function = "cublasGemmStridedBatchedEx" if batch else "cublasGemmEx"
    return _Plan(copied, by_rows, function, operation, *operands, matrix(out, layouts[2])[0], batch)


class _Layout(NamedTuple):
    by_columns: bool
    leading: int  # elements from the start of one row (or column) to the next


def _layout(shape: Shape, strides: Shape, size: int) -> _Layout | None:
    """Return how matrices of elements of `size` bytes are stored; None if neither by rows nor by columns."""
    (rows, columns), (down, across) = shape[-2:], strides[-2:]
    if len(shape) == 3 and strides[0] < 0:
        return None
    if (columns == 1 or across == size) and (rows == 1 or down >= columns * size):
        return _Layout(False, columns if rows == 1 else down // size)
    if (rows == 1 or down == size) and (columns == 1 or across >= rows * size):
        return _Layout(True, rows if columns == 1 else across // size)
    return None


def _multiply_by_cupy(a: Array, b: Array, out: Array | None, beta: float) -> Array:
    """Multiply other dtypes and empty matrices, and all matrices if cuBLAS cannot be loaded."""
    if out is not None and out.dtype != a.dtype:
        a, b = a.astype(out.dtype), b.astype(out.dtype)
    product = a.dot(b) if a.ndim == 2 else cupy.matmul(a, b)
    if out is None:
        return product
    out[...] = product if beta == 0 else product + beta * out
    return out
