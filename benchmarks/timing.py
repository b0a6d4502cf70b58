"""Interleaved timing: the noise of a shared machine only adds time, so the best call tells most."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

KEPT = 6  # calls of a block that count, after one that does not
PAUSE = 0.05  # seconds before a block, in which a peer's threads stop spinning
ROUNDS = 2  # each A B B A

Call = Callable[[], Any]


def host_ms(call: Call) -> float:
    """Return the time in milliseconds of one call that has done its work when it returns."""
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


def interleaved(
    ours: Call, peer: Call, rounds: int = ROUNDS, measure: Callable[[Call], float] = host_ms
) -> tuple[list[float], list[float]]:
    """Return the times in milliseconds of `ours` and of `peer`, in blocks A B B A."""
    times: tuple[list[float], list[float]] = ([], [])
    for who in (0, 1, 1, 0) * rounds:
        call = (ours, peer)[who]
        time.sleep(PAUSE)
        call()
        times[who].extend(measure(call) for _ in range(KEPT))
    return times


def few(call: Call, calls: int = 2, measure: Callable[[Call], float] = host_ms) -> list[float]:
    """Return the times in milliseconds of a slow function."""
    return [measure(call) for _ in range(calls)]


def summary(times: list[float]) -> tuple[float, float]:
    """Return the best and the median."""
    return min(times), median(times)
