"""An emulated CuPy on the CPU, with what xpconv.ops.cupy calls: g++ compiles the kernels, and block.h runs them.

Arrays are a subclass of NumPy's. New arrays hold NaN, which shows elements that a kernel fails to write. Kernels take
arguments as CuPy 14 passes them; an argument must have exactly the type of its parameter.
"""

import ctypes
import re
import subprocess
from functools import lru_cache
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

__version__ = "14.0.0"
emulated = True
finfo = np.finfo

_MAX_GRID = (2**31 - 1, 65535, 65535)
_FLAGS = (
    "-std=c++17",
    "-O1",
    "-g",
    "-fPIC",
    "-w",
    "-fno-gnu-unique",
    "-fsanitize=thread,undefined",
    "-fsanitize-undefined-trap-on-error",
    "-include",
    str(Path(__file__).with_name("cuda.h")),
)


class ndarray(np.ndarray):
    """An array of the emulated CuPy."""

    @property
    def data(self):
        return _MemoryPointer(self, self.ctypes.data)

    def __matmul__(self, other):
        _refuse_while_capturing()
        return super().__matmul__(other)

    def dot(self, other):
        _refuse_while_capturing()
        return super().dot(other)


class _MemoryPointer:
    """The address of memory that stays allocated as long as the pointer lives."""

    def __init__(self, owner, ptr):
        self._owner, self.ptr = owner, ptr


def asarray(a, dtype=None):
    return np.array(a, dtype, order="K").view(ndarray)


def empty(shape, dtype=float):
    a = np.ndarray.__new__(ndarray, shape, dtype)
    a.reshape(-1).view(np.uint8)[...] = 0xFF
    return a


def ascontiguousarray(a, dtype=None):
    if not isinstance(a, ndarray):
        raise TypeError(f"{type(a)} is not a CuPy array")
    return a if a.flags.c_contiguous and dtype in (None, a.dtype) else np.array(a, dtype, order="C", subok=True)


def matmul(a, b):
    _refuse_while_capturing()
    return np.matmul(a, b)


def _refuse_while_capturing():
    """Raise the error of CuPy's wrapper of cuBLAS."""
    if cuda.get_current_stream().is_capturing():
        raise NotImplementedError("calling cuBLAS API during stream capture is currently unsupported")


class cuda:
    """A single device, which is an H200."""

    class runtime:
        @staticmethod
        def getDevice():
            return 0

        @staticmethod
        def runtimeGetVersion():
            return 99000  # No cuBLAS has this version, so cuda/pathfinder.py is asked for it.

    class Device:
        compute_capability = "90"

        def __init__(self, device):
            self.attributes = {"MultiProcessorCount": 132}

    class Stream:
        """A stream; work is done at once whatever the stream is. `ptr` of the default stream is 0."""

        current, count = [], 0

        def __init__(self, *, null=False, non_blocking=False):
            cuda.Stream.count += not null
            self.ptr, self._capturing = (0 if null else cuda.Stream.count), False

        def __enter__(self):
            self.current.append(self)
            return self

        def __exit__(self, *error):
            self.current.pop()

        def is_capturing(self):
            return self._capturing

    @staticmethod
    def get_current_stream():
        return cuda.Stream.current[-1] if cuda.Stream.current else cuda.Stream(null=True)

    @staticmethod
    def alloc(size):
        """Allocate memory whose address is a multiple of 512, as CuPy's memory pool does."""
        memory = np.empty(size + 512, np.uint8)
        return _MemoryPointer(memory, -(-memory.ctypes.data // 512) * 512)


class _Range(ctypes.Structure):
    """The struct Range of block.h."""

    _fields_ = [
        ("start", ctypes.c_void_p),
        ("end", ctypes.c_void_p),
        ("item", ctypes.c_uint),
        ("constant", ctypes.c_uint),
        ("cells", ctypes.c_void_p),
    ]


@lru_cache
def _compile(code, options):
    kernels = re.findall(r"__global__ void (\w+)\(", code)
    with TemporaryDirectory() as folder:
        source, parts, library = (Path(folder) / name for name in ("kernels.cpp", "kernels.o", "kernels.so"))
        source.write_text(code + "".join(f"\nEXPORT({name})" for name in kernels), encoding="utf-8")
        options = [option for option in options if not option.startswith("-std")]
        subprocess.run(["g++", *_FLAGS, *options, "-c", source, "-o", parts], check=True)
        subprocess.run(["g++", "-shared", parts, "-o", library], check=True)  # without the sanitizers' libraries
        return ctypes.PyDLL(str(library))


class RawModule:
    """The kernels of one source text."""

    def __init__(self, *, code, options=()):
        self._library = _compile(code, tuple(options))

    def get_function(self, name):
        return _Function(self._library, name)


class _Function:
    """A kernel, which can be launched."""

    def __init__(self, library, name):
        parameters, self._launch = (getattr(library, f"{what}_{name}") for what in ("parameters_of", "launch"))
        parameters.restype = self._launch.restype = ctypes.c_char_p
        self._name, self._parameters = name, parameters().decode().split()

    def __call__(self, grid, block, args):
        grid, block = (
            [max(1, size) for size in (*sizes, 1, 1)[:3]] for sizes in (grid, block)
        )  # CuPy fills up with 1, too.
        if any(size > limit for size, limit in zip(grid, _MAX_GRID, strict=True)) or prod(block) > 1024:
            raise ValueError(f"{self._name}: no GPU has a grid {grid} of blocks {block}")
        if len(args) != len(self._parameters):
            raise TypeError(f"{self._name} takes {len(self._parameters)} arguments, not {len(args)}")
        values = [self._value(*pair) for pair in zip(args, self._parameters, strict=True)]
        arrays = [(a, p[0] == "&") for a, p in zip(args, self._parameters, strict=True) if isinstance(a, ndarray)]
        for a, constant in arrays:
            if not constant and sum(np.may_share_memory(a, other) for other, _ in arrays) > 1:
                raise ValueError(f"{self._name} writes to an array that shares memory with another one")
        ranges = (_Range * len(arrays))(
            *((a.ctypes.data, a.ctypes.data + a.nbytes, a.itemsize, constant, None) for a, constant in arrays)
        )
        error = self._launch(
            (ctypes.c_uint * 6)(*grid, *block),
            (ctypes.c_void_p * len(values))(*(value.ctypes.data for value in values)),
            ranges,
            len(arrays),
        )
        if error:
            raise RuntimeError(f"{self._name}: {error.decode()}")

    def _value(self, value, parameter):
        """Check an argument and return the bytes that the kernel gets for it."""
        kind = parameter.lstrip("*&")
        if isinstance(value, ndarray):
            given = "*" + value.dtype.str[1:]
            if not value.flags.c_contiguous or value.ctypes.data % value.itemsize:
                raise ValueError(f"{self._name} gets an array with strides {value.strides}")
            value = np.array(value.ctypes.data)
        elif value is None:
            given, value = "*" + kind, np.array(0)
        elif isinstance(value, np.ndarray) and value.size != 1:
            raise TypeError(f"{self._name} gets a NumPy array of shape {value.shape}")
        else:
            value = np.asarray(value)
            given = value.dtype.str[1:]
        if given != parameter.replace("&", "*"):
            raise TypeError(f"{self._name} gets {given} for a parameter {parameter}")
        return value


class ElementwiseKernel:
    """A kernel that runs for each element of broadcast arrays; T is the dtype of all arrays declared with it."""

    def __init__(self, in_params, out_params, operation, name, options=()):
        self._ins, self._outs = ([param.split() for param in params.split(", ")] for params in (in_params, out_params))
        self._operation, self._name = operation, name

    def __call__(self, *args):
        declared, count = self._ins + self._outs, len(self._ins)
        arrays = [(a, kind) for a, (kind, _) in zip(args, declared, strict=False) if isinstance(a, np.ndarray)]
        kinds = {a.dtype for a, kind in arrays if kind == "T"}
        dtypes = {"T": next(iter(kinds)), "bool": np.dtype(bool), "float64": np.dtype(float)}
        if (
            len(args) not in (count, len(declared))
            or len(kinds) > 1
            or any(not isinstance(a, ndarray) or a.dtype != dtypes[kind] for a, kind in arrays)
        ):
            raise TypeError(f"{self._name} gets {[getattr(a, 'dtype', type(a)) for a in args]}")
        shape = np.broadcast_shapes(*(a.shape for a, _ in arrays))
        outs = args[count:] or tuple(empty(shape, dtypes[kind]) for kind, _ in self._outs)
        copies = [
            asarray(np.broadcast_to(np.asarray(a, dtypes[kind]), shape)).copy(order="C")
            for a, (kind, _) in zip((*args[:count], *outs), declared, strict=True)
        ]
        size = prod(shape)
        RawModule(code=self._code(dtypes["T"])).get_function(self._name)((-(-size // 256),), (256,), (*copies, size))
        for out, copy in zip(outs, copies[count:], strict=True):
            out[...] = copy.reshape(out.shape)  # an error if the shapes differ
        return outs if len(outs) > 1 else outs[0]

    def _code(self, dtype):
        ins = [(f"const {kind}* _{name}", f"const {kind} {name} = _{name}[_i];") for kind, name in self._ins]
        outs = [(f"{kind}* _{name}", f"{kind}& {name} = _{name}[_i];") for kind, name in self._outs]
        parameters, values = zip(*ins, *outs, strict=True)
        return f"""typedef double float64; typedef { {"e": "Half", "f": "float", "d": "double"}[dtype.char] } T;
            extern "C" __global__ void {self._name}({", ".join(parameters)}, long long _count) {{
                const long long _i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
                if (_i >= _count) return;
                {" ".join(values)}
                {self._operation};
            }}"""
