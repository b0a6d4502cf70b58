"""Run an array library on a device; each probe returns the device or raises an error that says what is missing."""

import importlib
import os
from collections.abc import Callable
from typing import Any

from xpconv.errors import ArgumentError, BackendUnavailableError, printable

__all__ = ["PROBES", "check_not_forked", "note_cuda_process"]


_cuda_process: int | None = None  # id of the first process that used a GPU through CuPy


def note_cuda_process() -> None:
    """Remember that this process uses a GPU through CuPy, unless a process that it was forked from did before."""
    global _cuda_process
    if _cuda_process is None:
        _cuda_process = os.getpid()


def check_not_forked() -> None:
    """Raise an error in a process that was forked from one that had used a GPU: CUDA does not work there."""
    if _cuda_process not in (None, os.getpid()):
        raise BackendUnavailableError(_FORKED)


_FORKED = (
    "cupy was used before this process was forked, and CUDA does not work in a forked process: start processes by "
    "multiprocessing.get_context('spawn'), or use cupy only after the fork"
)


def _probe_numpy(device: str | None) -> str:
    if device not in (None, "cpu"):
        raise BackendUnavailableError(f"numpy has no device {device!r}: use numpy, or cupy for a GPU")
    return "cpu"


def _probe_cupy(device: str | None) -> Any:
    """Run a kernel and a GEMM, since both can fail although CuPy can be imported."""
    check_not_forked()
    cupy = _import("cupy", "pip install 'cupy-cuda13x[ctk]' (CUDA 13 driver) or 'cupy-cuda12x[ctk]' (12)")
    index = _device_index("cupy", device)
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:
        raise BackendUnavailableError(f"cupy {cupy.__version__} {_why_no_device(cupy, error)}") from error
    if index >= count:
        raise BackendUnavailableError(
            f"cupy sees {count} CUDA device(s), so there is no device {index}: "
            "choose a smaller number or check CUDA_VISIBLE_DEVICES"
        )
    chosen = cupy.cuda.Device(index)
    try:
        with chosen:
            step = "launch a kernel, which NVRTC compiles,"
            x = cupy.arange(4, dtype=cupy.float32).reshape(2, 2)
            works = float((x + x).sum()) == 12
            step = "multiply matrices, which cuBLAS does,"
            works = works and float((x @ x).sum()) == 22
    except Exception as error:
        raise BackendUnavailableError(
            f"cupy cannot {step} on device {index} ({type(error).__name__}: {error}): its CUDA libraries must match "
            "the driver; pip install 'cupy-cuda13x[ctk]' or 'cupy-cuda12x[ctk]', one of them only"
        ) from error
    if not works:
        raise BackendUnavailableError(f"cupy computes wrong results on device {index}: check the driver")
    note_cuda_process()
    return chosen


def _why_no_device(cupy: Any, error: Exception) -> str:
    """Return a text that says what is missing: a driver, a newer driver, or a GPU."""
    runtime = cupy.cuda.runtime
    if "cudaErrorInitializationError" in str(error):
        return f"finds no GPU ({error}): {_FORKED}"
    driver, built = (number // 1000 for number in (runtime.driverGetVersion(), runtime.runtimeGetVersion()))
    if 0 < driver < built:
        return (
            f"needs CUDA {built} but the NVIDIA driver supports CUDA {driver} at most ({error}): pip install "
            f"'cupy-cuda{driver}x[ctk]' instead of cupy-cuda{built}x, or install a newer driver"
        )
    if driver:
        return f"finds an NVIDIA driver but no GPU ({error}): check nvidia-smi and CUDA_VISIBLE_DEVICES"
    return (
        f"finds no usable NVIDIA driver ({error}): install the driver, check with nvidia-smi, and take the "
        "cupy-cuda12x or cupy-cuda13x package that the driver supports"
    )


def _probe_torch(device: str | None) -> Any:
    torch = _import("torch", "pip install torch")
    try:
        chosen = torch.device(device or "cpu")
        if chosen.type == "cuda" and chosen.index is None:
            chosen = torch.device("cuda", torch.cuda.current_device())
        torch.zeros(1, device=chosen) + 1
    except Exception as error:
        raise BackendUnavailableError(
            f"torch {torch.__version__} cannot use device {device!r} ({error}): "
            "choose torch for its CPU, or install the driver or the build of torch that the device needs"
        ) from error
    return chosen


def _probe_strict(device: str | None) -> Any:
    strict = _import("array_api_strict", "pip install array-api-strict")
    try:
        return strict.Device(device or "CPU_DEVICE")
    except ValueError as error:
        raise BackendUnavailableError(
            f"array_api_strict has no device {device!r}: choose array_api_strict, "
            "array_api_strict:device1 or array_api_strict:device2"
        ) from error


def _import(package: str, hint: str) -> Any:
    try:
        return importlib.import_module(package)
    except Exception as error:  # an incompatible library may raise anything
        missing = isinstance(error, ModuleNotFoundError) and error.name == package
        what = (
            f"the package {package} is not installed" if missing else f"importing {package} failed ({printable(error)})"
        )
        raise BackendUnavailableError(f"{what}: {hint}") from error


def _device_index(library: str, device: str | None) -> int:
    if device is None:
        return 0
    if not device.isdecimal():
        raise ArgumentError(f"{library} device is {device!r}; expected a number, as in {library}:0")
    return int(device)


PROBES: dict[str, Callable[[str | None], Any]] = {
    "numpy": _probe_numpy,
    "cupy": _probe_cupy,
    "torch": _probe_torch,
    "array_api_strict": _probe_strict,
}
