"""An emulated CuPy on the CPU on which whole trainings run, with CUDA graphs; NumPy computes its operations.

It imitates what CUDA does with graphs, streams and memory:

- While a stream is captured, nothing is computed: operations are recorded with the memory that they read and write, and
  new arrays hold NaN. Reading an array on the host, copying from the host and waiting raise as they do in CuPy.
- A replay repeats the recorded operations on the same memory, with the Python numbers of the capture.
- A graph does not keep the memory of its arrays alive: a replay raises if some has been freed.
- Copies from pinned memory and replays are done late, when the host waits or gives other work to the device.

The kernels of xpconv.ops.cupy run as in the emulated CuPy of tests/emulated, which compiles them with g++.
"""

import sys
import types

import numpy as np

from . import _device
from ._device import *  # noqa: F403
from ._device import _run

__version__ = "14.0.0"
emulated_graphs = True


def _function_of(name):
    value = getattr(np, name)
    plain = ("result_type", "can_cast", "promote_types", "issubdtype", "errstate")
    if not callable(value) or isinstance(value, type) or name in plain:
        return value
    return lambda *args, **kwargs: _run(value, *args, **kwargs)


def _submodule(name, **names):
    module = types.ModuleType(f"{__name__}.{name}")
    module.__dict__.update(names)
    sys.modules[module.__name__] = module
    return module


for _name in np.__all__:  # but not those of _device
    if not hasattr(_device, _name) and _name not in ("linalg", "fft", "random"):
        globals()[_name] = _function_of(_name)
bool_ = np.bool_
linalg, fft = (
    _submodule(package, **{name: getattr(getattr(np, package), name) for name in getattr(np, package).__all__})
    for package in ("linalg", "fft")
)
_submodule("cuda", **vars(_device.cuda))
_submodule("cuda.device", Device=_device.cuda.Device)
__all__ = [name for name in globals() if not name.startswith("_")]
