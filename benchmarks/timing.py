"""Interleaved timing: the noise of a shared machine only adds time, so the best call tells most."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

KEPT = 6  # calls of a block that count, after one that does not
PAUSE = 0.05  # seconds before a block, in which a peer's threads stop spinning
ROUNDS = 2  # each A B B A


def interleaved(ours: Callable[[], Any], peer: Callable[[], Any], rounds: int = ROUNDS
                ) -> tuple[list[float], list[float]]:
    """Return the times in milliseconds of `ours` and of `peer`, in blocks A B B A."""
    times: tuple[list[float], list[float]] = ([], [])
    for who in (0, 1, 1, 0) * rounds:
        call = (ours, peer)[who]
        time.sleep(PAUSE)
        call()
        for _ in range(KEPT):
            start = time.perf_counter()
            call()
            times[who].append(1e3 * (time.perf_counter() - start))
    return times


def few(call: Callable[[], Any], calls: int = 2) -> list[float]:
    """Return the times in milliseconds of a slow function."""
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    return times


def summary(times: list[float]) -> tuple[float, float]:
    """Return the best and the median."""
    return min(times), median(times)
