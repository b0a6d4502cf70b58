"""What a GPU needs to be measured: events instead of clocks, its own rates, its memory and its launches."""

import subprocess
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.cases import Case

GROUP_MS = 5.0  # a group of calls between two events takes about so long, so that the host's noise averages out
MOST_CALLS = 100
MATRIX = 8192  # rows and columns of the products whose rate counts as the card's
COPIED = 1 << 29  # bytes of the copy whose rate counts as the card's

Call = Callable[[], Any]


def device_ms(call: Call) -> float:
    """Return the time in milliseconds of one call among several, between two events in the device's own queue.

    Calls follow each other without waiting, so the result is the larger of what the host takes to launch a call's
    work and what the device takes to do it.
    """
    once = _between_events(call, 1)
    return _between_events(call, max(1, min(MOST_CALLS, int(GROUP_MS / max(once, 1e-3)))))


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
    """Let float32 products on tensor cores round their inputs to 10 bits, or not: in CuPy and in PyTorch."""
    import cupy
    from cupy._core import _routines_linalg as linalg

    linalg.set_compute_type(cupy.float32, linalg.COMPUTE_TYPE_TF32 if on else linalg.COMPUTE_TYPE_DEFAULT)
    try:
        import torch
    except ImportError:
        return
    for place in (torch.backends.cuda.matmul, torch.backends.cudnn.conv):
        place.fp32_precision = "tf32" if on else "ieee"


def describe() -> dict[str, Any]:
    """Return the card, and what it reaches: products in TFLOP/s without and with TF32, and copying in GB/s."""
    return {"card": card(), "rates": rates()}


def rates() -> dict[str, float]:
    """Measure what the card reaches."""
    import cupy

    a, b = (cupy.asarray(np.random.default_rng(seed).standard_normal((MATRIX, MATRIX), np.float32)) for seed in (0, 1))
    out, found = cupy.empty_like(a), {}
    for name, tf32 in (("tf32_tflops", True), ("float32_tflops", False)):
        set_tf32(tf32)
        best = min(device_ms(lambda: a.dot(b, out)) for _ in range(5))
        found[name] = round(2 * MATRIX**3 / best / 1e9, 2)
    source = cupy.zeros(COPIED // 4, "float32")
    target = cupy.empty_like(source)
    best = min(device_ms(lambda: cupy.copyto(target, source)) for _ in range(5))
    return {**found, "copy_gb_s": round(2 * COPIED / best / 1e6, 1)}


def card() -> dict[str, str]:
    """Describe the card and its driver."""
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


def shares(case: Case, name: str, ms: float, tf32: bool, rates: dict[str, float]) -> dict[str, float]:
    """Return which share of the card's rates a pass reached."""
    found = {}
    if flops := case.flops(name):
        rate = rates["tf32_tflops" if tf32 else "float32_tflops"]
        if case.dtype == "float32":  # the rates are of float32
            found["share_of_products"] = round(flops / ms / 1e9 / rate, 3)
    if traffic := case.traffic(name):
        found["share_of_copying"] = round(traffic / ms / 1e6 / rates["copy_gb_s"], 3)
    return found


def weigh(ours: Call, peer: Call, our_peak: Callable[[Call], int], peer_peak: Callable[[Call], int]) -> dict[str, Any]:
    """Return how many launches, and how much memory beyond what stays, a step of each takes."""
    return {
        "ours_launches": launches(ours),
        "peer_launches": launches(peer),
        "ours_peak_mib": round(our_peak(ours) / 2**20, 1),
        "peer_peak_mib": round(peer_peak(peer) / 2**20, 1),
    }


def launches(call: Call) -> int:
    """Return how many kernels, copies and fills a call gives to the GPU, as CUDA's profiler sees them; 0 if it fails.

    The profiler is PyTorch's, which sees the launches of the whole process.
    """
    import torch
    from torch.profiler import ProfilerActivity, profile

    call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as seen:
        call()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in seen.events())
