"""Numbers that have no value while a step is captured, since the host computes them before each replay.

A captured step repeats the same work on a device with the same arguments. What changes from step to step, such as the
learning rate or a seed, is a `Deferred` during the capture. Arithmetic with Python's numbers gives another `Deferred`,
and a `Tape` records how to compute it. Arithmetic with an array reads the number from the device's memory, where the
host writes it before each replay. Anything that needs the value itself raises a `NotCapturableError`.
"""

import operator
from collections.abc import Callable
from typing import Any, NoReturn

__all__ = ["Deferred", "DeferredStream", "NotCapturableError", "Tape", "as_operand", "derive", "settle"]


class NotCapturableError(TypeError):
    """A step does something that cannot be captured; the text says what.

    Examples
    --------
    >>> int(Tape(lambda position, dtype: None).source(lambda: 7))
    Traceback (most recent call last):
    xpconv._deferred.NotCapturableError: the step needs the value of a number that changes from step to step
    """


class Tape:
    """The computations of deferred numbers, in the order in which they were recorded.

    Parameters
    ----------
    place : callable
        ``place(number, dtype)`` returns the array () on the device to which the host writes number `number`.

    Examples
    --------
    >>> tape, steps = Tape(lambda number, dtype: None), iter([4, 6])
    >>> half = tape.source(lambda: next(steps)) / 2
    >>> tape.evaluate()[half.position], tape.evaluate()[half.position]
    (2.0, 3.0)
    """

    def __init__(self, place: Callable[[int, str], Any]) -> None:
        self.place = place
        self.cells: dict[tuple[int, str], Any] = {}  # by position and dtype: the arrays on the device
        self.choices: list[tuple[int, bool]] = []  # the conditions that the capture depends on, and their outcomes
        self._nodes: list[tuple[Callable[..., Any], tuple[int, ...]]] = []
        self._repeatable: list[bool] = []

    def source(self, function: Callable[[], Any], *, repeatable: bool = False) -> "Deferred":
        """Return the number that ``function()`` returns before each replay.

        A `repeatable` function has no side effects, so conditions on its number may be evaluated at any time.
        """
        return self._add(function, (), repeatable)

    def derive(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> "Deferred":
        """Return the value of a function of deferred and other numbers, computed before each replay."""
        parents = tuple(a.position for a in arguments if isinstance(a, Deferred))
        repeatable = all(self._repeatable[position] for position in parents)
        if len(parents) == len(arguments):
            return self._add(function, parents, repeatable)

        def filled(*values: Any) -> Any:
            remaining = iter(values)
            return function(*(next(remaining) if isinstance(a, Deferred) else a for a in arguments))

        return self._add(filled, parents, repeatable)

    def _add(self, function: Callable[..., Any], parents: tuple[int, ...], repeatable: bool) -> "Deferred":
        self._nodes.append((function, parents))
        self._repeatable.append(repeatable)
        return Deferred(self, len(self._nodes) - 1)

    def on_device(self, position: int, dtype: str) -> Any:
        """Return the array () on the device that holds a number, converted to a dtype, during each replay."""
        if (position, dtype) not in self.cells:
            self.cells[position, dtype] = self.place(len(self.cells), dtype)
        return self.cells[position, dtype]

    def choose(self, condition: "Deferred") -> bool:
        """Return whether a condition holds in this step; only steps with the same outcome replay the capture."""
        if not self._repeatable[condition.position]:
            _refuse()
        outcome = bool(self._now(condition.position))
        self.choices.append((condition.position, outcome))
        return outcome

    def fits(self) -> bool:
        """Return whether in the next step all conditions have the same outcomes as in the captured one."""
        return all(bool(self._now(position)) == outcome for position, outcome in self.choices)

    def _now(self, position: int) -> Any:
        function, parents = self._nodes[position]
        return function(*map(self._now, parents))

    def evaluate(self) -> list[Any]:
        """Return the numbers of the next step, in the order of their positions."""
        values: list[Any] = []
        for function, parents in self._nodes:
            values.append(function(*[values[position] for position in parents]))
        return values


def _refuse(*_: Any) -> NoReturn:
    raise NotCapturableError("the step needs the value of a number that changes from step to step")


def _operator(function: Callable[..., Any], *, reflected: bool = False) -> Callable[["Deferred", Any], Any]:
    def compute(self: "Deferred", other: Any) -> Any:
        first, second = (other, self) if reflected else (self, other)
        if hasattr(other, "shape"):
            return function(as_operand(first, other), as_operand(second, other))
        return derive(function, first, second)

    return compute


class Deferred:
    """A number that is computed before each replay of a captured step.

    Parameters
    ----------
    tape : Tape
    position : int
        The number's place in the order of computation.
    """

    __array_ufunc__ = None  # so that NumPy arrays leave operators to this class

    def __init__(self, tape: Tape, position: int) -> None:
        self.tape, self.position = tape, position

    __add__, __radd__ = _operator(operator.add), _operator(operator.add, reflected=True)
    __sub__, __rsub__ = _operator(operator.sub), _operator(operator.sub, reflected=True)
    __mul__, __rmul__ = _operator(operator.mul), _operator(operator.mul, reflected=True)
    __truediv__, __rtruediv__ = _operator(operator.truediv), _operator(operator.truediv, reflected=True)
    __mod__, __rmod__ = _operator(operator.mod), _operator(operator.mod, reflected=True)
    __pow__, __rpow__ = _operator(operator.pow), _operator(operator.pow, reflected=True)
    __and__, __rand__ = _operator(operator.and_), _operator(operator.and_, reflected=True)
    __xor__, __rxor__ = _operator(operator.xor), _operator(operator.xor, reflected=True)
    __bool__ = __int__ = __float__ = __index__ = __len__ = __iter__ = __array__ = __format__ = _refuse
    __lt__ = __le__ = __gt__ = __ge__ = _refuse
    __hash__ = object.__hash__

    def __eq__(self, other: Any) -> Any:
        """Return where an array equals the number; a comparison with another number is refused."""
        return as_operand(self, other) == other if hasattr(other, "shape") else _refuse()

    def __ne__(self, other: Any) -> Any:
        return as_operand(self, other) != other if hasattr(other, "shape") else _refuse()


def derive(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return the value of a function of numbers, or a `Deferred` if one of the numbers is deferred.

    Examples
    --------
    >>> derive(min, 3, 2)
    2
    """
    for argument in arguments:
        if isinstance(argument, Deferred):
            return argument.tape.derive(function, arguments)
    return function(*arguments)


def as_operand(number: Any, like: Any) -> Any:
    """Return a number, or for a `Deferred` an array (), on the device and in the dtype of `like`.

    Examples
    --------
    >>> as_operand(0.5, like=None)
    0.5
    """
    if not isinstance(number, Deferred):
        return number
    return number.tape.on_device(number.position, str(like.dtype).rpartition(".")[2])


def settle(condition: Any) -> bool:
    """Return whether a condition holds; a captured step is replayed only if its conditions have the same outcomes.

    Examples
    --------
    >>> settle(3 > 2)
    True
    """
    return condition.tape.choose(condition) if isinstance(condition, Deferred) else bool(condition)


class DeferredStream:
    """A stream of random numbers for a captured step, which gets deferred seeds from it.

    Parameters
    ----------
    tape : Tape
    draw : callable
        ``draw()`` draws a seed from the stream.
    """

    def __init__(self, tape: Tape, draw: Callable[[], int]) -> None:
        self._tape, self._draw = tape, draw

    def draw_seed(self) -> Any:
        """Return the seed that is drawn before each replay."""
        return self._tape.source(self._draw)
