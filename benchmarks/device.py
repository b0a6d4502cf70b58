"""Measurements on a GPU: times from CUDA events, peak rates, peak memory and kernel launches."""

import subprocess
from collections.abc import Callable
from typing import Any

import numpy as np

import xpconv
from benchmarks.cases import Case

TARGET_MS = 5.0  # target time of a group of calls between two events; averages out the host's noise
MAX_CALLS = 100
MATRIX_SIZE = 8192  # rows and columns of the matrices whose product measures the peak FLOP rate
COPY_BYTES = 1 << 29  # size of the copy that measures the memory bandwidth

Call = Callable[[], Any]


def device_ms(call: Call) -> float:
    """Return the mean time of a call in milliseconds, from two CUDA events around several calls.

    The calls do not wait for each other, so the result is the launch time on the host or the run time on the device,
    whichever is longer.
    """
    once = _between_events(call, 1)
    return _between_events(call, max(1, min(MAX_CALLS, int(TARGET_MS / max(once, 1e-3)))))


def _between_events(call: Call, calls: int) -> float:
    import cupy

    start, stop = cupy.cuda.Event(), cupy.cuda.Event()
    start.record()
    for _ in range(calls):
        call()
    stop.record()
    stop.synchronize()
    return float(cupy.cuda.get_elapsed_time(start, stop)) / calls


def set_tf32(on: bool) -> None:
    """Turn TF32 on or off in xpconv, CuPy and PyTorch: float32 products whose inputs are rounded to 10 bits."""
    import cupy
    from cupy._core import _routines_linalg as linalg

    xpconv.set_tf32(on)
    linalg.set_compute_type(cupy.float32, linalg.COMPUTE_TYPE_TF32 if on else linalg.COMPUTE_TYPE_DEFAULT)
    try:
        import torch
    except ImportError:
        return
    for setting in (torch.backends.cuda.matmul, torch.backends.cudnn.conv):
        setting.fp32_precision = "tf32" if on else "ieee"


def describe() -> dict[str, Any]:
    """Return the GPU's description and its measured peak rates."""
    return {"card": card(), "rates": rates()}


def rates() -> dict[str, float]:
    """Measure the GPU's matrix products in TFLOP/s, without and with TF32, and its copies in GB/s."""
    import cupy

    a, b = (
        cupy.asarray(np.random.default_rng(seed).standard_normal((MATRIX_SIZE, MATRIX_SIZE), np.float32))
        for seed in (0, 1)
    )
    out, found = cupy.empty_like(a), {}
    for name, tf32 in (("tf32_tflops", True), ("float32_tflops", False)):
        set_tf32(tf32)
        best = min(device_ms(lambda: a.dot(b, out)) for _ in range(5))
        found[name] = round(2 * MATRIX_SIZE**3 / best / 1e9, 2)
    source = cupy.zeros(COPY_BYTES // 4, "float32")
    target = cupy.empty_like(source)
    best = min(device_ms(lambda: cupy.copyto(target, source)) for _ in range(5))
    return {**found, "copy_gb_s": round(2 * COPY_BYTES / best / 1e6, 1)}


def card() -> dict[str, str]:
    """Describe the GPU and its driver."""
    import cupy

    index = cupy.cuda.Device().id
    properties = cupy.cuda.runtime.getDeviceProperties(index)
    driver, runtime = (
        f"{v // 1000}.{v % 1000 // 10}"
        for v in (cupy.cuda.runtime.driverGetVersion(), cupy.cuda.runtime.runtimeGetVersion())
    )
    described = {
        "name": properties["name"].decode(),
        "memory": f"{properties['totalGlobalMem'] / 2**30:.0f} GiB",
        "processors": str(properties["multiProcessorCount"]),
        "cuda_of_driver": driver,
        "cuda": runtime,
    }
    try:
        query = subprocess.run(
            ["nvidia-smi", f"--id={index}", "--query-gpu=driver_version,clocks.max.sm", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        described["driver"], described["clock"] = query.stdout.strip().split(", ")
    except (OSError, subprocess.SubprocessError, ValueError):
        described["driver"] = described["clock"] = "unknown"
    return described


def rate_fractions(case: Case, name: str, ms: float, tf32: bool, rates: dict[str, float]) -> dict[str, float]:
    """Return the fractions of the GPU's measured rates that a pass reaches."""
    found = {}
    if flops := case.flops(name):
        rate = rates["tf32_tflops" if tf32 else "float32_tflops"]
        if case.dtype == "float32":  # the rates were measured in float32
            found["share_of_products"] = round(flops / ms / 1e9 / rate, 3)
    if traffic := case.traffic(name):
        found["share_of_copying"] = round(traffic / ms / 1e6 / rates["copy_gb_s"], 3)
    return found


def launches_and_memory(
    ours: Call, peer: Call, our_peak: Callable[[Call], int], peer_peak: Callable[[Call], int]
) -> dict[str, Any]:
    """Return the kernel launches and the peak temporary memory of a step, ours and the peer's."""
    return {
        "ours_launches": count_launches(ours),
        "peer_launches": count_launches(peer),
        "ours_peak_mib": round(our_peak(ours) / 2**20, 1),
        "peer_peak_mib": round(peer_peak(peer) / 2**20, 1),
    }


def count_launches(call: Call) -> int:
    """Return the number of kernels, copies and fills that a call launches on the GPU; 0 if profiling fails.

    PyTorch's profiler counts the launches of the whole process, CuPy's included.
    """
    import torch
    from torch.profiler import ProfilerActivity, profile

    call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as seen:
        call()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in seen.events())
