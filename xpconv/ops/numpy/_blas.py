"""BLAS held to one thread while tiles that call it run on threads of our own.

BLAS's own threads cut a product by their number, which changes the last bits of the result, and calls from several
threads would wait for one another. So BLAS works on one thread from the first such call of xpconv to the end of the
last one. OpenBLAS has one number of threads for the whole process. threadpoolctl lets one thread at a time control it:

- a limit that another live thread has set stays in force, and results may then differ in their last bits;
- a limit that another thread asks for while BLAS is held here is refused, as threadpoolctl refuses it whenever two
  threads overlap. When that thread leaves its ``with`` block it would put back the number that it found, which is
  ours: `_Holder` lets threadpoolctl refuse that as well.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from threading import Lock, Thread, current_thread
from typing import Any
from weakref import WeakSet

import threadpoolctl

__all__ = ["blas_threads", "single_threaded_blas"]


class _Holder:
    """Stands where threadpoolctl keeps the thread that controls OpenBLAS, while and after BLAS is held here."""

    def __init__(self) -> None:
        self.holds = False
        self.refused: WeakSet[Thread] = WeakSet()

    def is_alive(self) -> bool:
        """Tell threadpoolctl, in a thread that asks for a limit, whether to refuse it."""
        thread = current_thread()
        if self.holds:
            self.refused.add(thread)
            return True
        in_a_block = threadpoolctl.CONTROLLING_THREAD_OWNERSHIP.count > 0  # of the thread that asks
        if thread in self.refused and in_a_block:
            return True
        self.refused.discard(thread)
        return False


class _Hold:
    """What the calls that hold BLAS share."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.calls: set[object] = set()
        self.numbers: list[int] | None = None  # of threads of each library, before BLAS was held
        self.owner: Thread | None = None  # a thread whose own limit was in force then
        self.holder = _Holder()

    def begin(self, call: object) -> None:
        """Let BLAS work on one thread, unless another live thread limits it."""
        with self.lock:
            self.calls.add(call)
            if self.numbers is None and self._take_control():
                self.numbers = [library.num_threads for library in _libraries()]
                self._set([1] * len(self.numbers))

    def end(self, call: object) -> None:
        """Give BLAS its threads back when the last call ends, or the one of the thread whose limit was in force."""
        with self.lock:
            self.calls.discard(call)
            if self.numbers is not None and (not self.calls or self.owner is current_thread()):
                self._set(self.numbers)
                self.numbers = None
                self._give_control_back()

    def _take_control(self) -> bool:
        if (state := _control()) is None:
            return True
        with state.lock:
            thread = state.controlling_thread
            mine = thread is current_thread()
            if not mine and thread is not None and thread is not self.holder and thread.is_alive():
                return False
            self.owner = thread if mine else None
            state.controlling_thread, self.holder.holds = self.holder, True
        return True

    def _give_control_back(self) -> None:
        self.holder.holds = False
        if (state := _control()) is not None:
            with state.lock:
                if state.controlling_thread is self.holder:
                    state.controlling_thread = self.owner or (self.holder if self.holder.refused else None)
        self.owner = None

    def _set(self, numbers: list[int]) -> None:
        for library, number in zip(_libraries(), numbers, strict=True):
            getattr(library, "_real_set_num_threads", library.set_num_threads)(number)


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Hold BLAS to one thread inside a ``with`` block, unless another live thread has limited it."""
    hold, call = _hold, object()
    try:
        hold.begin(call)
        yield
    finally:
        try:
            hold.end(call)
        except BaseException:  # a second Ctrl-C, which may come here
            hold.end(call)
            raise


def blas_threads() -> int | None:
    """Return how many threads BLAS may use, apart from what is held here; None without a BLAS that tells.

    That is its limit: by ``OMP_NUM_THREADS`` and the like when the process starts, by ``threadpool_limits`` later.
    """
    numbers = _hold.numbers
    return min(numbers or (library.num_threads for library in _libraries()), default=None)


def _control() -> Any:
    """Return threadpoolctl's record of the thread that controls OpenBLAS; None where it keeps none."""
    return getattr(threadpoolctl.OpenBLASController, "_SHARED_STATE", None)


@lru_cache
def _libraries() -> list[Any]:
    return list(threadpoolctl.ThreadpoolController().select(user_api="blas").lib_controllers)


_hold = _Hold()


def _begin_anew() -> None:
    """Give BLAS its threads back in a forked child, where no other thread is left."""
    global _hold
    inherited, _hold = _hold, _Hold()
    if inherited.numbers is not None:
        inherited.lock, inherited.owner = Lock(), None
        inherited.holder.refused.clear()
        inherited.calls.clear()
        inherited.end(None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
