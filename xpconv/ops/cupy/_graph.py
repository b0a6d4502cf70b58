"""CUDA graphs: work that is captured once and replayed, and the numbers that change from one replay to the next."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import cupy
import numpy as np

from xpconv._deferred import NotCapturableError, Tape
from xpconv.ops.cupy._gemm import release_workspace
from xpconv.ops.cupy._launch import Array

_PINNED_BUFFERS = 4  # The host may be this many replays ahead of the device.


class GraphMemory:
    """The stream and the memory pool with which the graphs of one owner are captured.

    The graphs share the pool, since only one of them runs at a time. It must live as long as the graphs.
    """

    def __init__(self) -> None:
        self._stream, self._device = cupy.cuda.Stream(non_blocking=True), cupy.cuda.runtime.getDevice()
        # When memory runs out, a pool frees blocks that no array uses. Captured graphs use such blocks, so hold them.
        self._blocks = blocks = list[_Block]()

        def allocate(size: int) -> Any:
            blocks.append(_Block(size))
            memory = cupy.cuda.UnownedMemory(blocks[-1].pointer, size, blocks[-1], cupy.cuda.runtime.getDevice())
            return cupy.cuda.MemoryPointer(memory, 0)

        self._pool = cupy.cuda.MemoryPool(allocate)  # no reference to self, so that no cycle keeps the pool alive

    def free(self) -> None:
        """Free all memory now; the graphs and the arrays that they made must not be used any more.

        CuPy frees a pool's memory only when nothing refers to the pool any more, which some versions never reach.
        """
        with cupy.cuda.Device(self._device):
            for block in self._blocks:
                block.free()

    def capture(self, work: Callable[[], Any]) -> tuple[Any, Any]:
        """Return a graph of the work that a function gives to the device, and what the function returns.

        The device does the work only at replays. Other graphs may overwrite arrays that the function allocates.
        """
        release_workspace()
        cupy.get_default_memory_pool().free_all_blocks()
        with self._stream, cupy.cuda.using_allocator(self._pool.malloc):
            self._stream.begin_capture()
            try:
                result = work()
            except BaseException:
                with suppress(Exception):  # an illegal operation has ended the capture
                    self._stream.end_capture()
                raise
            finally:
                release_workspace()
            return self._stream.end_capture(), result


class _Block:
    """Memory on the current device, which is freed with the object or before."""

    def __init__(self, size: int) -> None:
        self.pointer = cupy.cuda.runtime.malloc(size)

    def free(self) -> None:
        """Free the memory, unless that was done before."""
        pointer, self.pointer = self.pointer, 0
        if pointer:
            cupy.cuda.runtime.free(pointer)

    def __del__(self) -> None:
        with suppress(Exception):  # when Python ends, the driver may be gone
            self.free()


class Numbers:
    """Numbers in the device's memory that the host writes before each replay, by one copy from pinned memory.

    Parameters
    ----------
    rows : int
        Number of integers at the front, which are the row numbers of a minibatch.
    capacity : int
        Number of further numbers, of 8 bytes at most.
    """

    def __init__(self, rows: int, capacity: int) -> None:
        self._count, self._capacity = rows, capacity
        self._block = cupy.zeros(rows + capacity, "int64")
        self.rows = self._block[:rows]
        self._buffers = [_Buffer(rows + capacity) for _ in range(_PINNED_BUFFERS)]

    def place(self, number: int, dtype: str) -> Array:
        """Return the array () of number `number`, for `Tape.place`."""
        if number >= self._capacity:
            raise NotCapturableError(f"the step needs more than {self._capacity} numbers that change from step to step")
        cell = self._block[self._count + number : self._count + number + 1]
        return cell.view(dtype)[:1].reshape(())

    def write(
        self, rows: np.ndarray | None, groups: Sequence[tuple[str, np.ndarray, list[int]]], values: list[Any]
    ) -> None:
        """Write the row numbers, and the values of a tape whose `number_groups` are given."""
        buffer = self._buffers.pop(0)
        self._buffers.append(buffer)
        buffer.wait()
        used = self._count
        if rows is not None:
            buffer.cells[:used] = rows
        for dtype, numbers, positions in groups:
            view = buffer.cells.view(dtype)
            stride = view.shape[0] // buffer.cells.shape[0]
            view[(self._count + numbers) * stride] = [values[position] for position in positions]
            used = max(used, self._count + int(numbers[-1]) + 1)
        buffer.upload(self._block, used)


class _Buffer:
    """Pinned host memory, which must not be written while the device reads it."""

    def __init__(self, size: int) -> None:
        self._memory = cupy.cuda.alloc_pinned_memory(8 * size)
        self.cells = np.frombuffer(self._memory, np.int64, size)
        self.cells[...] = 0
        self._read = cupy.cuda.Event(disable_timing=True)
        self._in_use = False

    def wait(self) -> None:
        """Wait until the device has read the buffer."""
        if self._in_use:
            self._read.synchronize()

    def upload(self, block: Array, count: int) -> None:
        """Copy the first `count` cells to an array, without waiting."""
        block.data.copy_from_host_async(self._memory.ptr, 8 * count)
        self._read.record()
        self._in_use = True


def number_groups(tape: Tape) -> list[tuple[str, np.ndarray, list[int]]]:
    """Return each dtype with the places of its numbers on the device and their positions on the tape."""
    groups: dict[str, list[tuple[int, int]]] = {}
    for place, (position, dtype) in enumerate(tape.cells):
        groups.setdefault(dtype, []).append((place, position))
    return [
        (dtype, np.array([place for place, _ in pairs]), [position for _, position in pairs])
        for dtype, pairs in groups.items()
    ]


def wait_for_stream() -> None:
    """Wait for the current stream, before whose end graphs and their memory must not be freed."""
    cupy.cuda.get_current_stream().synchronize()
