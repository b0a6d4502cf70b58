"""The arrays, kernels, graphs and memory of the emulated CuPy."""

import importlib.util
import sys
import threading
import weakref
from collections import deque
from contextlib import contextmanager
from functools import lru_cache
from itertools import count
from pathlib import Path

import numpy as np

PRODUCTS_MAY_BE_CAPTURED = False  # those of CuPy itself, which refuses

_thread = threading.local()
_lock = threading.RLock()
_queue = deque()  # work that the device has not done yet


@lru_cache
def _kernels():
    """Return the emulated CuPy of tests/emulated."""
    path = Path(__file__).parents[2] / "emulated" / "cupy" / "__init__.py"
    spec = importlib.util.spec_from_file_location("emulated_kernels", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---- the device's work


def _stream():
    return cuda.get_current_stream()


def _refuse_while_capturing(what):
    if _stream().is_capturing():
        raise RuntimeError(f"the current stream is capturing, so {what} are disallowed")


def _finish():
    """Let the device do all work that waits."""
    with _lock:
        while _queue:
            _queue.popleft()()


def _plain(value):
    """Return NumPy arrays in place of those on the device."""
    if isinstance(value, ndarray):
        return value._a
    if isinstance(value, list | tuple):
        return type(value)(map(_plain, value)) if not hasattr(value, "_fields") else value
    return value


def _arrays(*values):
    for value in values:
        if isinstance(value, ndarray):
            yield value
        elif isinstance(value, list | tuple):
            yield from _arrays(*value)
        elif isinstance(value, dict):
            yield from _arrays(*value.values())


def _check_host_arrays(*values):
    for value in values:
        if isinstance(value, np.ndarray) and value.ndim:
            raise TypeError("Unsupported type <class 'numpy.ndarray'>")
        if isinstance(value, list | tuple):
            _check_host_arrays(*value)


def _run(function, *args, **kwargs):
    """Do an operation that returns new arrays or views, or record it."""
    _check_host_arrays(*args)
    _finish()
    inputs = list(_arrays(args, kwargs))
    plain, options = [_plain(a) for a in args], {key: _plain(a) for key, a in kwargs.items()}
    with np.errstate(all="ignore"):
        result = function(*plain, **options)
    graph = _stream().graph
    if graph is None:
        return _wrap(result, inputs)
    wrapped = _wrap(result, inputs)
    outs = [a for a in _arrays(wrapped if isinstance(wrapped, tuple) else (wrapped,)) if a._is_new]
    if outs:
        for out in outs:
            out._poison()

        targets = [a._a for a in outs]

        def repeat():
            with np.errstate(all="ignore"):
                again = function(*plain, **options)
            for out, value in zip(targets, again if isinstance(again, tuple) else (again,), strict=True):
                out[...] = value

        graph.add(repeat, inputs + outs)
    return wrapped


def _write(function, out, *args):
    """Do, or record, an operation ``function(out, *args)`` that writes to an array."""
    _check_host_arrays(*args)
    _finish()
    plain = [_plain(a) for a in args]

    def work():
        with np.errstate(all="ignore"):
            function(out, *plain)

    graph = _stream().graph
    if graph is None:
        work()
    else:
        graph.add(work, list(_arrays(args)))
    return out


def _wrap(result, inputs):
    if isinstance(result, tuple | list):
        return tuple(_wrap(part, inputs) for part in result)
    if isinstance(result, np.ndarray | np.generic):
        base = None
        if isinstance(result, np.ndarray):
            base = next((a for a in inputs if np.may_share_memory(a._a, result)), None)
        if base is not None:
            return ndarray._of(result, base._memory)
        return _new(np.array(result))
    return result


def _new(a):
    made = ndarray._of(a, cuda.alloc(max(a.nbytes, 1)).mem)
    made._is_new = True
    return made


class ndarray:
    """An array on the emulated device."""

    __array_priority__ = 100
    _is_new = False

    def __init__(self, shape, dtype=float):
        made = _new(np.empty(shape, dtype))
        made._poison()
        self._a, self._memory = made._a, made._memory

    @classmethod
    def _of(cls, a, memory):
        self = object.__new__(cls)
        self._a, self._memory = a, memory
        return self

    def _poison(self):
        self._a.reshape(-1).view(np.uint8)[...] = 0xFF

    shape = property(lambda self: self._a.shape)
    dtype = property(lambda self: self._a.dtype)
    ndim = property(lambda self: self._a.ndim)
    size = property(lambda self: self._a.size)
    nbytes = property(lambda self: self._a.nbytes)
    itemsize = property(lambda self: self._a.itemsize)
    strides = property(lambda self: self._a.strides)
    flags = property(lambda self: self._a.flags)
    T = property(lambda self: _run(np.transpose, self))
    device = property(lambda self: cuda.Device(0))
    data = property(lambda self: cuda.MemoryPointer(self._memory, 0, self._a))

    def __array__(self, *args, **kwargs):
        raise TypeError("Implicit conversion to a NumPy array is not allowed")

    def __len__(self):
        return len(self._a)

    def get(self):
        _refuse_while_capturing("D2H transfers")
        _finish()
        return self._a.copy()

    def item(self):
        return self.get().item()

    def tolist(self):
        return self.get().tolist()

    def __bool__(self):
        return bool(self.get())

    def __int__(self):
        return int(self.get())

    def __float__(self):
        return float(self.get())

    def __index__(self):
        return self.get().__index__()

    def __format__(self, spec):
        return format(self.get(), spec)

    def __getitem__(self, key):
        return _run(lambda a, key: a[key], self, key) if not isinstance(key, tuple) else self._getitems(key)

    def _getitems(self, key):
        return _run(lambda a, *key: a[key], self, *key)

    def __setitem__(self, key, value):
        def assign(out, value):
            out[key] = value

        if list(_arrays((key,))):
            raise NotImplementedError
        _write(assign, self._a, value)

    def fill(self, value):
        self[...] = value

    def view(self, dtype):
        return ndarray._of(self._a.view(dtype), self._memory)

    def astype(self, dtype, copy=True):
        return self if not copy and self.dtype == np.dtype(dtype) else _run(lambda a: a.astype(dtype), self)

    def copy(self, order="C"):
        return _run(lambda a: a.copy(order), self)

    def sum(self):
        return _run(np.sum, self)

    def dot(self, other):
        return _product(self, other)

    __matmul__ = dot

    def reshape(self, *shape):
        return _run(np.reshape, self, shape[0] if len(shape) == 1 else shape)

    def transpose(self, *axes):
        return _run(np.transpose, self, axes[0] if len(axes) == 1 else axes or None)

    def swapaxes(self, one, other):
        return _run(np.swapaxes, self, one, other)

    def __array_namespace__(self, *, api_version=None):
        return sys.modules["cupy"]

    __hash__ = None


def _is_deferred(value):
    return getattr(type(value), "__array_ufunc__", ()) is None


def _forward(function):
    return lambda self, other: NotImplemented if _is_deferred(other) else _run(function, self, other)


def _reflected(function):
    return lambda self, other: _run(function, other, self)


def _in_place(function):
    def method(self, other):
        if not isinstance(other, ndarray | int | float | np.generic):
            raise TypeError(f"Unsupported type {type(other)}")
        return _write_in_place(function, self, other)

    return method


def _write_in_place(function, a, b):
    _write(lambda out, a, b: function(a, b, out=out, casting="same_kind"), a._a, a, b)
    return a


def _unary(function):
    return lambda self: _run(function, self)


_ARITHMETIC = {
    **{"add": np.add, "sub": np.subtract, "mul": np.multiply, "pow": np.power, "truediv": np.true_divide},
    **{"floordiv": np.floor_divide, "mod": np.remainder, "and": np.bitwise_and, "or": np.bitwise_or},
    **{"xor": np.bitwise_xor, "lshift": np.left_shift, "rshift": np.right_shift},
}
_COMPARISONS = {
    **{"eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater},
    **{"ge": np.greater_equal},
}
for _name, _ufunc in _ARITHMETIC.items():
    setattr(ndarray, f"__{_name}__", _forward(_ufunc))
    setattr(ndarray, f"__r{_name}__", _reflected(_ufunc))
    setattr(ndarray, f"__i{_name}__", _in_place(_ufunc))
for _name, _ufunc in _COMPARISONS.items():
    setattr(ndarray, f"__{_name}__", _forward(_ufunc))
for _name, _ufunc in {"neg": np.negative, "pos": np.positive, "abs": np.absolute, "invert": np.invert}.items():
    setattr(ndarray, f"__{_name}__", _unary(_ufunc))


def _product(a, b):
    if _stream().is_capturing() and not PRODUCTS_MAY_BE_CAPTURED:
        raise NotImplementedError("calling cuBLAS API during stream capture is currently unsupported")
    return _run(np.matmul, a, b)


# ---- functions


def asarray(a, dtype=None, order=None, **kwargs):
    return array(a, dtype, copy=False, order=order)


def array(a, dtype=None, copy=True, order=None, **kwargs):
    if isinstance(a, ndarray):
        return a.astype(dtype or a.dtype, copy=copy)
    a = np.array(a, dtype)
    if a.ndim:
        _refuse_while_capturing("H2D transfers")
    _finish()
    made = empty(a.shape, a.dtype)
    made[...] = a if a.ndim == 0 else _new(a)
    return made


def empty(shape, dtype=float, order="C"):
    return ndarray(shape, dtype)


def full(shape, value, dtype=None, order="C"):
    made = empty(shape, np.asarray(_plain(value)).dtype if dtype is None else dtype)
    made[...] = value
    return made


def zeros(shape, dtype=float, order="C"):
    return full(shape, 0, dtype)


def ones(shape, dtype=float, order="C"):
    return full(shape, 1, dtype)


def empty_like(a, dtype=None, **kwargs):
    return empty(a.shape, dtype or a.dtype)


def zeros_like(a, dtype=None, **kwargs):
    return zeros(a.shape, dtype or a.dtype)


def ones_like(a, dtype=None, **kwargs):
    return ones(a.shape, dtype or a.dtype)


def full_like(a, value, dtype=None, **kwargs):
    return full(a.shape, value, dtype or a.dtype)


def arange(start, stop=None, step=1, dtype=None):
    return _run(lambda: np.arange(start, stop, step, dtype=dtype))


def matmul(a, b):
    return _product(a, b)


def dot(a, b):
    return _product(a, b)


def take(a, indices, axis=None):
    return _run(lambda a, indices: np.take(a, indices, axis, mode="wrap"), a, indices)


def ascontiguousarray(a, dtype=None):
    if a.flags.c_contiguous and dtype in (None, a.dtype):
        return a
    return _run(lambda a: np.array(a, dtype, order="C"), a)


def copyto(target, source):
    _write(np.copyto, target._a, source)


def concatenate(arrays, axis=0, **kwargs):
    if len(arrays) > 8:
        _refuse_while_capturing("H2D transfers")  # of the arrays' addresses
    return _run(lambda *arrays: np.concatenate(arrays, axis), *arrays)


def stack(arrays, axis=0, **kwargs):
    return concatenate([_run(np.expand_dims, a, axis) for a in arrays], axis)


# ---- kernels


class RawModule:
    def __init__(self, *, code, options=()):
        self._module = _kernels().RawModule(code=code, options=options)

    def get_function(self, name):
        return _Function(self._module.get_function(name))


def _for_kernels(a):
    return a._a.view(_kernels().ndarray) if isinstance(a, ndarray) else a


class _Function:
    def __init__(self, function):
        self._function = function

    def __call__(self, grid, block, args):
        _finish()
        plain = tuple(map(_for_kernels, args))

        def launch():
            self._function(grid, block, plain)

        if (graph := _stream().graph) is None:
            launch()
        else:
            graph.add(launch, list(_arrays(args)))


class ElementwiseKernel:
    def __init__(self, in_params, out_params, operation, name, options=()):
        self._declared = in_params, out_params, operation, name, options
        self._count = len(in_params.split(", "))

    def __call__(self, *args):
        _finish()
        for a in args:
            if not isinstance(a, ndarray | int | float | np.generic):
                raise TypeError(f"Unsupported type {type(a)}")
        kernel, count = _kernels().ElementwiseKernel(*self._declared), self._count
        outs = args[count:]
        if not outs:
            arrays = [a for a in args if isinstance(a, ndarray)]
            shape = np.broadcast_shapes(*(a.shape for a in arrays))
            kinds = [param.split()[0] for param in self._declared[1].split(", ")]
            dtype = next(a.dtype for a in arrays if a.dtype != bool)
            outs = tuple(empty(shape, dtype if kind == "T" else kind) for kind in kinds)
        plain = tuple(map(_for_kernels, (*args[:count], *outs)))

        def launch():
            kernel(*plain)

        if (graph := _stream().graph) is None:
            launch()
        else:
            graph.add(launch, list(_arrays(args, outs)))
        return outs if len(outs) > 1 else outs[0]


# ---- streams, graphs and memory


class _Graph:
    """Recorded operations."""

    launches = 0

    def __init__(self):
        self._work, self._memory = [], {}

    def add(self, work, arrays):
        self._work.append(work)
        for a in arrays:
            self._memory[id(a._memory)] = weakref.ref(a._memory), a._memory.pool_of_graph

    def launch(self, stream=None):
        for memory, pool in self._memory.values():
            if memory() is None and (pool is None or pool() is None):
                raise RuntimeError("the graph uses memory that was freed")
        type(self).launches += 1
        _queue.append(self._replay)

    def _replay(self):
        for work in self._work:
            work()


class _Memory:
    """Memory of the device. That of a pool lives as long as the pool."""

    def __init__(self, size, free=None, pool=None):
        self.size, self.pool_of_graph = size, pool
        if free is not None:
            weakref.finalize(self, free, size)


class OutOfMemoryError(MemoryError):
    pass


class _Pool:
    """A pool that keeps blocks, by size, for later arrays."""

    def __init__(self, allocator=None):
        self._free, self._allocator, self._used, self._total, self._limit = {}, allocator, 0, 0, 0

    def malloc(self, size):
        size = -(-size // 512) * 512
        blocks = self._free.setdefault(size, [])
        if not blocks:
            if self._limit and self._total + size > self._limit:
                self.free_all_blocks()
            if self._limit and self._total + size > self._limit:
                raise OutOfMemoryError(f"Out of memory allocating {size:,} bytes")
            blocks.append(self._allocator(size) if self._allocator else None)
            self._total += size
        block = blocks.pop()
        self._used += size
        memory = _Memory(size, None, weakref.ref(self) if self._allocator else None)
        weakref.finalize(memory, _Pool._give_back, weakref.ref(self), size, block)
        return cuda.MemoryPointer(memory, 0, None)

    @staticmethod
    def _give_back(pool, size, block):
        if pool() is not None:
            pool()._used -= size
            pool()._free[size].append(block)

    def free_all_blocks(self):
        for size, blocks in self._free.items():
            self._total -= size * len(blocks)
            blocks.clear()

    def used_bytes(self):
        return self._used

    def total_bytes(self):
        return self._total

    def free_bytes(self):
        return self._total - self._used

    def set_limit(self, size=None):
        self._limit = size or 0


_default_pool = _Pool()


def get_default_memory_pool():
    return _default_pool


class _Pinned(np.ndarray):
    """Bytes in pinned memory."""

    @property
    def ptr(self):
        _pinned[id(self)] = self
        return id(self)


_pinned = weakref.WeakValueDictionary()


class _UnownedMemory:
    """Memory at a pointer of `cuda.runtime.malloc`."""

    def __init__(self, ptr, size, owner, device_id):
        assert _allocated[ptr] == size
        self.owner = owner


_pointers, _allocated = count(), {}  # the second: sizes by pointer


class cuda:
    """A single device."""

    UnownedMemory = _UnownedMemory

    MemoryPool = _Pool
    Graph = _Graph

    class MemoryPointer:
        def __init__(self, mem, offset, array=None):
            self.mem, self._array = mem, array
            self.ptr = 0 if array is None else array.ctypes.data

        def copy_from_host_async(self, ptr, size):
            _refuse_while_capturing("H2D transfers")
            source, target = _pinned[ptr], self._array

            def copy():
                target.reshape(-1).view(np.uint8)[:size] = source[:size]

            _queue.append(copy)

    class runtime:
        @staticmethod
        def malloc(size):
            pointer = 512 * (1 + next(_pointers))
            _allocated[pointer] = size
            return pointer

        @staticmethod
        def free(pointer):
            del _allocated[pointer]

        @staticmethod
        def getDevice():
            return 0

        @staticmethod
        def getDeviceCount():
            return 1

        @staticmethod
        def runtimeGetVersion():
            return 99000

        @staticmethod
        def driverGetVersion():
            return 99000

        @staticmethod
        def getDeviceProperties(device):
            return {"name": b"emulated", "totalGlobalMem": 1 << 40}

        @staticmethod
        def memGetInfo():
            return 1 << 40, 1 << 40

    class Device:
        compute_capability = "90"

        def __init__(self, device=0):
            self.id = 0 if device is None or isinstance(device, cuda.Device) else device
            self.attributes = {"MultiProcessorCount": 132}

        def __eq__(self, other):
            return isinstance(other, cuda.Device)

        def __hash__(self):
            return 0

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def synchronize(self):
            _refuse_while_capturing("waits")
            _finish()

    class Event:
        def __init__(self, disable_timing=False):
            pass

        def record(self, stream=None):
            _refuse_while_capturing("events")
            self._pending = len(_queue)

        def synchronize(self):
            _finish()

    class Stream:
        count = 0

        def __init__(self, *, null=False, non_blocking=False):
            cuda.Stream.count += not null
            self.ptr, self.graph = (0 if null else cuda.Stream.count), None

        def __enter__(self):
            _streams().append(self)
            return self

        def __exit__(self, *error):
            assert _streams().pop() is self

        def begin_capture(self):
            assert self.ptr
            self.graph = _Graph()

        def end_capture(self):
            graph, self.graph = self.graph, None
            return graph

        def is_capturing(self):
            return self.graph is not None

        def synchronize(self):
            _refuse_while_capturing("waits")
            _finish()

    @staticmethod
    def get_current_stream():
        return _streams()[-1]

    @staticmethod
    def alloc(size):
        return getattr(_thread, "allocator", _default_pool.malloc)(size)

    @staticmethod
    @contextmanager
    def using_allocator(allocator):
        before = getattr(_thread, "allocator", _default_pool.malloc)
        _thread.allocator = allocator
        try:
            yield
        finally:
            _thread.allocator = before

    @staticmethod
    def alloc_pinned_memory(size):
        return np.zeros(size, np.uint8).view(_Pinned)


_null_stream = cuda.Stream(null=True)


def _streams():
    if not hasattr(_thread, "streams"):
        _thread.streams = [_null_stream]
    return _thread.streams
