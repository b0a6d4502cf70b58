"""The exceptions that xpconv raises; each derives from the matching built-in exception, too."""

__all__ = [
    "ArgumentError",
    "ArgumentTypeError",
    "BackendUnavailableError",
    "CheckpointError",
    "DatasetError",
    "DeviceMismatchError",
    "FolderInUseError",
    "NonFiniteLossError",
    "OutOfMemoryError",
    "PreflightError",
    "WorkerError",
    "XpconvError",
]


class XpconvError(Exception):
    """Base class of every error that xpconv raises itself.

    Its text is safe to print: control characters in it, such as those in the name of a file, are escaped.

    Examples
    --------
    >>> from xpconv import get_backend
    >>> try:
    ...     get_backend("no_such_library")
    ... except XpconvError as error:
    ...     print(type(error).__name__)
    ArgumentError
    """

    def __str__(self) -> str:
        return printable_lines(super().__str__())


class ArgumentError(XpconvError, ValueError):
    """An argument has a value or a shape that the function cannot work with.

    Examples
    --------
    >>> import numpy as np
    >>> from xpconv.layers import affine_forward
    >>> affine_forward(np.ones((2, 3)), np.ones((4, 5)), None)
    Traceback (most recent call last):
    xpconv.errors.ArgumentError: ...
    """


class ArgumentTypeError(XpconvError, TypeError):
    """An argument has a type or a dtype that the function cannot work with.

    Examples
    --------
    >>> from xpconv.layers import relu_forward
    >>> relu_forward([-1.0, 2.0])
    Traceback (most recent call last):
    xpconv.errors.ArgumentTypeError: x is a list; expected an array: ...
    """


class DeviceMismatchError(XpconvError, ValueError):
    """Arrays of different libraries or devices were given to one function.

    Examples
    --------
    >>> import array_api_strict, numpy
    >>> from xpconv.layers import affine_forward
    >>> affine_forward(numpy.ones((2, 3)), array_api_strict.ones((3, 4)), None)
    Traceback (most recent call last):
    xpconv.errors.DeviceMismatchError: x is on numpy (cpu) but w is on array_api_strict (...): move one of them, ...
    """


class BackendUnavailableError(XpconvError, RuntimeError):
    """A named backend cannot run here: its package, driver, device or kernels are missing.

    Examples
    --------
    >>> from xpconv import get_backend
    >>> get_backend("array_api_strict:no_such_device")
    Traceback (most recent call last):
    xpconv.errors.BackendUnavailableError: ...
    """


class DatasetError(XpconvError, OSError):
    """A dataset is missing, incomplete or not what it claims to be.

    Examples
    --------
    >>> from xpconv.data import load_cifar10
    >>> load_cifar10("no/such/folder")
    Traceback (most recent call last):
    xpconv.errors.DatasetError: ...
    """


class FolderInUseError(XpconvError, OSError):
    """Another process is writing to the folder.

    Examples
    --------
    >>> import tempfile
    >>> from xpconv.io._lock import lock_folder
    >>> with (
    ...     tempfile.TemporaryDirectory() as folder,
    ...     lock_folder(folder),
    ...     lock_folder(folder),
    ... ):
    ...     pass
    Traceback (most recent call last):
    xpconv.errors.FolderInUseError: ... is in use by another run: wait for that run to end, or choose another folder
    """


class CheckpointError(XpconvError, ValueError):
    """A model or checkpoint file is missing, is damaged or does not fit the model.

    Examples
    --------
    >>> from xpconv import load_model
    >>> load_model("no/such/model.safetensors")
    Traceback (most recent call last):
    xpconv.errors.CheckpointError: ...
    """


class NonFiniteLossError(XpconvError, ArithmeticError):
    """The loss or a gradient became NaN or infinite during training.

    Examples
    --------
    >>> import numpy as np
    >>> from xpconv import Solver, TwoLayerNet
    >>> X, y = np.ones((4, 3)), np.zeros(4, dtype=np.int64)
    >>> net = TwoLayerNet(input_dim=3, num_classes=2, rng=0)
    >>> net.params["W2"][...] = np.nan
    >>> Solver(
    ...     net,
    ...     {"X_train": X, "y_train": y, "X_val": X, "y_val": y},
    ...     batch_size=4,
    ...     verbose=False,
    ... ).train()
    Traceback (most recent call last):
    xpconv.errors.NonFiniteLossError: the loss became nan at iteration 1...
    """


class OutOfMemoryError(XpconvError, MemoryError):
    """The device has not enough memory for a batch; the model is unchanged.

    Examples
    --------
    >>> import numpy as np
    >>> from xpconv import TwoLayerNet
    >>> net = TwoLayerNet(input_dim=1, rng=0, backend="numpy")
    >>> net.loss(np.broadcast_to(np.float32(0), (1 << 50, 1)), np.zeros(1, np.int64))
    Traceback (most recent call last):
    xpconv.errors.OutOfMemoryError: numpy has not enough memory for 1125899906842624 samples at once ...
    """


class WorkerError(XpconvError, RuntimeError):
    """One of the workers that train a model together has failed, is silent, or differs from the others.

    Examples
    --------
    >>> from xpconv.parallel import Threads
    >>> def work(communicator):
    ...     if communicator.rank == 1:
    ...         raise MemoryError("no memory left")
    ...     try:
    ...         communicator.gather_all(np.ones(1))
    ...     except WorkerError as error:
    ...         print(error)
    ...         raise
    >>> import numpy as np
    >>> try:
    ...     results = Threads.run(2, work)
    ... except MemoryError:
    ...     print("ended")
    rank 1 failed before the first iteration: no memory left
    ended
    """


def printable(value: object, max_length: int = 300) -> str:
    r"""Return a value as text for a message, with control characters escaped and its length limited.

    Examples
    --------
    >>> printable("clear the screen: \x1b[2J"), printable("x" * 1000, max_length=5)
    ('clear the screen: \\x1b[2J', 'xxxxx...')
    """
    text = _escape(str(value)[: max_length + 1])
    return text if len(text) <= max_length else text[:max_length] + "..."


def printable_lines(value: object) -> str:
    r"""Return a value as text with control characters escaped, except ends of lines.

    Examples
    --------
    >>> print(printable_lines("one\x1b[2J\ntwo"))
    one\x1b[2J
    two
    """
    return "\n".join(map(_escape, str(value).split("\n")))


def _escape(text: str) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def import_failure(need: str, error: Exception, extra: str = "train") -> str:
    r"""Return the text of an error about an optional library that cannot be imported.

    Parameters
    ----------
    need : str
        What needs the library.
    error : Exception
        What importing the library raised.
    extra : str
        The extra of xpconv that installs the library.

    Examples
    --------
    >>> import_failure(
    ...     "drawing needs matplotlib", ImportError("No module named 'matplotlib'")
    ... )
    'drawing needs matplotlib, which cannot be imported (No module named \'matplotlib\'): pip install "xpconv[train]"'
    """
    return f'{need}, which cannot be imported ({printable(error)}): pip install "xpconv[{extra}]"'


class PreflightError(XpconvError, RuntimeError):
    """A check before training failed; nothing has been trained.

    Examples
    --------
    >>> from xpconv import TwoLayerNet
    >>> from xpconv.data import load_digits
    >>> from xpconv.training.preflight import check_training
    >>> digits = load_digits()
    >>> check_training(
    ...     TwoLayerNet(input_dim=64, weight_scale=1.0, rng=0),
    ...     digits.X_train,
    ...     digits.y_train,
    ... )
    Traceback (most recent call last):
    xpconv.errors.PreflightError: 1 of 4 checks before training failed:
    initial loss: ...
    """
