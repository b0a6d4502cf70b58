"""The errors that xpconv raises; each is also the built-in class a caller would expect."""

__all__ = [
    "ArgumentError",
    "ArgumentTypeError",
    "BackendUnavailableError",
    "CheckpointError",
    "DatasetError",
    "DeviceMismatchError",
    "NonFiniteLossError",
    "XpconvError",
]


class XpconvError(Exception):
    """Base class of every error that xpconv raises itself."""


class ArgumentError(XpconvError, ValueError):
    """An argument has a value or a shape that the function cannot work with."""


class ArgumentTypeError(XpconvError, TypeError):
    """An argument has a type or a dtype that the function cannot work with."""


class DeviceMismatchError(XpconvError, ValueError):
    """Arrays of different libraries or devices were given to one function."""


class BackendUnavailableError(XpconvError, RuntimeError):
    """A named backend cannot run here: its package, driver, device or kernels are missing."""


class DatasetError(XpconvError, OSError):
    """A dataset is missing, incomplete or not what it claims to be."""


class CheckpointError(XpconvError, ValueError):
    """A model file is missing, damaged or does not fit the model."""


class NonFiniteLossError(XpconvError, ArithmeticError):
    """The loss became NaN or infinite during training."""
