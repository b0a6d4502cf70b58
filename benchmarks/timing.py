"""Alternating timing. Noise on a shared machine only adds time, so the fastest call is the best estimate."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

CALLS = 6  # timed calls in a block, after one warm-up call
PAUSE = 0.05  # seconds before a block, so that the other library's threads stop spinning
ROUNDS = 2  # of four blocks: ours, peer, peer, ours

Call = Callable[[], Any]


def host_ms(call: Call) -> float:
    """Return the time in milliseconds of a call that finishes its work before it returns."""
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


def interleaved(
    ours: Call, peer: Call, rounds: int = ROUNDS, measure: Callable[[Call], float] = host_ms
) -> tuple[list[float], list[float]]:
    """Return the times in milliseconds of `ours` and `peer`, timed in alternating blocks."""
    times: tuple[list[float], list[float]] = ([], [])
    for index in (0, 1, 1, 0) * rounds:
        call = (ours, peer)[index]
        time.sleep(PAUSE)
        call()
        times[index].extend(measure(call) for _ in range(CALLS))
    return times


def repeated(call: Call, calls: int = 2, measure: Callable[[Call], float] = host_ms) -> list[float]:
    """Return the times in milliseconds of consecutive calls without warm-up, for slow functions."""
    return [measure(call) for _ in range(calls)]


def summary(times: list[float]) -> tuple[float, float]:
    """Return the shortest and the median time."""
    return min(times), median(times)
