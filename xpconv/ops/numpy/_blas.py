"""Limit BLAS to one thread while xpconv's own threads call it.

With several threads, BLAS splits a product by the number of threads, so that number would change the last bits of the
result, and concurrent calls would wait for one another. BLAS is therefore limited to one thread from the beginning of
the first of several overlapping calls to the end of the last.

OpenBLAS has a single thread count for the whole process. threadpoolctl lets one thread at a time control it:

- If another live thread has set a limit, that limit stays in force; results may then differ in their last bits.
- If another thread asks for a limit during our calls, threadpoolctl refuses it. On leaving its ``with`` block, that
  thread would restore the count that it found, which is our 1: `_StandInThread` makes threadpoolctl refuse this, too.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from threading import Lock, Thread, current_thread
from typing import Any
from weakref import WeakSet

import threadpoolctl

__all__ = ["blas_threads", "has_small_products", "single_threaded_blas"]


class _StandInThread:
    """Takes the place of the controlling thread in threadpoolctl's record, while and after BLAS is limited here."""

    def __init__(self) -> None:
        self.in_control = False
        self.refused: WeakSet[Thread] = WeakSet()

    def is_alive(self) -> bool:
        """Tell threadpoolctl, in a thread that asks for a limit, whether to refuse it."""
        thread = current_thread()
        if self.in_control:
            self.refused.add(thread)
            return True
        inside_a_limit = threadpoolctl.CONTROLLING_THREAD_OWNERSHIP.count > 0  # thread-local: of the thread that asks
        if thread in self.refused and inside_a_limit:
            return True
        self.refused.discard(thread)
        return False


class _SharedLimit:
    """The limit that overlapping calls share: set by the first, removed after the last."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.calls: set[object] = set()
        self.previous_counts: list[int] | None = None  # of threads, for each BLAS library; None without our limit
        self.previous_controller: Thread | None = None  # the calling thread, if its own limit was in force
        self.stand_in = _StandInThread()

    def begin(self, call: object) -> None:
        """Limit BLAS to one thread, unless another live thread controls it."""
        with self.lock:
            self.calls.add(call)
            if self.previous_counts is None and self._take_control():
                self.previous_counts = [library.num_threads for library in _libraries()]
                self._set([1] * len(self.previous_counts))

    def end(self, call: object) -> None:
        """Restore the thread counts when the last call ends, or one of the previous controlling thread."""
        with self.lock:
            self.calls.discard(call)
            if self.previous_counts is not None and (not self.calls or self.previous_controller is current_thread()):
                self._set(self.previous_counts)
                self.previous_counts = None
                self._give_control_back()

    def _take_control(self) -> bool:
        if (state := _control()) is None:
            return True
        with state.lock:
            thread = state.controlling_thread
            mine = thread is current_thread()
            if not mine and thread is not None and thread is not self.stand_in and thread.is_alive():
                return False
            self.previous_controller = thread if mine else None
            state.controlling_thread, self.stand_in.in_control = self.stand_in, True
        return True

    def _give_control_back(self) -> None:
        self.stand_in.in_control = False
        if (state := _control()) is not None:
            with state.lock:
                if state.controlling_thread is self.stand_in:
                    stand_in = self.stand_in if self.stand_in.refused else None
                    state.controlling_thread = self.previous_controller or stand_in
        self.previous_controller = None

    def _set(self, counts: list[int]) -> None:
        for library, count in zip(_libraries(), counts, strict=True):
            getattr(library, "_real_set_num_threads", library.set_num_threads)(count)


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Limit BLAS to one thread inside a ``with`` block, unless another live thread controls it."""
    limit, call = _shared_limit, object()
    try:
        limit.begin(call)
        yield
    finally:
        try:
            limit.end(call)
        except BaseException:  # such as a second Ctrl-C
            limit.end(call)
            raise


def blas_threads() -> int | None:
    """Return how many threads BLAS may use outside `single_threaded_blas`; None if no loaded BLAS reports it.

    The process starts with the count in ``OMP_NUM_THREADS`` or a similar variable; ``threadpool_limits`` changes it.
    """
    return min(_shared_limit.previous_counts or (library.num_threads for library in _libraries()), default=None)


@lru_cache
def has_small_products() -> bool:
    """Return whether BLAS multiplies small matrices without packing them first, as OpenBLAS does with AVX-512."""
    kernels = {getattr(library, "architecture", None) for library in _libraries()}
    return not kernels.isdisjoint({"SkylakeX", "Cooperlake", "SapphireRapids"})


def _control() -> Any:
    """Return threadpoolctl's record of the thread that controls OpenBLAS; None if this version keeps none."""
    return getattr(threadpoolctl.OpenBLASController, "_SHARED_STATE", None)


@lru_cache
def _libraries() -> list[Any]:
    return list(threadpoolctl.ThreadpoolController().select(user_api="blas").lib_controllers)


_shared_limit = _SharedLimit()


def _reset_after_fork() -> None:
    """Restore the thread counts in a forked child, which has none of the threads that would do so."""
    global _shared_limit
    inherited, _shared_limit = _shared_limit, _SharedLimit()
    if inherited.previous_counts is not None:
        inherited.lock, inherited.previous_controller = Lock(), None
        inherited.stand_in.refused.clear()
        inherited.calls.clear()
        inherited.end(None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)
