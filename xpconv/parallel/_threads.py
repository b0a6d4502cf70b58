"""Workers that are threads of one process, for tests."""

from collections import defaultdict, deque
from collections.abc import Callable
from math import inf
from threading import Condition, Thread
from time import monotonic
from typing import Any

import numpy as np

from xpconv._validation import check_count
from xpconv.errors import WorkerError
from xpconv.parallel._communicator import Communicator

__all__ = ["Threads"]


class _Mail:
    """Arrays that threads have sent and others have not yet received."""

    def __init__(self) -> None:
        self.changed = Condition()
        self.boxes: defaultdict[tuple[int, int], deque[np.ndarray]] = defaultdict(deque)  # by sender and receiver
        self.failure: str | None = None


class Threads(Communicator):
    """Workers that are threads of this process; `run` starts them. Use them for tests only: they share Python's lock.

    Examples
    --------
    >>> Threads.run(
    ...     2, lambda communicator: communicator.gather_objects(communicator.rank)
    ... )
    [[0, 1], [0, 1]]
    """

    def __init__(self, rank: int, size: int, mail: Any) -> None:
        super().__init__()
        self.rank = self.local_rank = rank
        self.size = self.local_size = size
        self._mail = mail

    @classmethod
    def run(cls, size: int, function: Callable[[Communicator], Any]) -> list[Any]:
        """Call ``function(communicator)`` in `size` threads, and return the results in the order of the ranks.

        Raises
        ------
        Exception
            The exception of the first worker that failed.
        """
        mail, results, errors = _Mail(), [None] * check_count("size", size), list[BaseException]()

        def work(communicator: "Threads") -> None:
            try:
                results[communicator.rank] = function(communicator)
            except BaseException as error:
                errors.append(error)
                communicator.abort(error)

        threads = [Thread(target=work, args=(cls(rank, size, mail),)) for rank in range(size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return results

    def _exchange(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        mail, received = self._mail, list[np.ndarray]()
        deadline = monotonic() + self.timeout
        with mail.changed:
            for receiver, array in enumerate(arrays):
                mail.boxes[self.rank, receiver].append(array.copy())
            mail.changed.notify_all()
            boxes = [mail.boxes[sender, self.rank] for sender in range(self.size)]
            while missing := [sender for sender, box in enumerate(boxes) if not box]:
                if mail.failure is not None:
                    raise WorkerError(mail.failure)
                left = deadline - monotonic()
                if left <= 0:
                    raise WorkerError(self._describe_silence(missing))
                mail.changed.wait(None if left == inf else left)
            received += [box.popleft() for box in boxes]
        return received

    def abort(self, error: BaseException) -> None:
        """Tell the other workers that this one has failed."""
        with self._mail.changed:
            self._mail.failure = self._mail.failure or self._describe_failure(error)
            self._mail.changed.notify_all()
