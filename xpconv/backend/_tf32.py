"""Whether CuPy's products of float32 matrices may use TF32."""

import os

from xpconv._validation import check_flag
from xpconv.errors import ArgumentError

__all__ = ["set_tf32", "tf32_enabled"]

_chosen: bool | None = None


def set_tf32(enabled: bool) -> None:
    """Choose whether products of float32 matrices on an NVIDIA GPU may round their inputs to 10 bits of mantissa.

    Tensor cores compute such products (TF32) faster; results agree to about 3 digits. The choice applies to the whole
    process, to CuPy arrays only, and to GPUs of compute capability 8.0 or more. It overrides the environment variable
    ``XPCONV_TF32``, which overrides ``CUPY_TF32``. The default is off.

    Parameters
    ----------
    enabled : bool

    Raises
    ------
    ArgumentTypeError
        If `enabled` is not True or False.

    Examples
    --------
    >>> import xpconv
    >>> xpconv.set_tf32(False)
    """
    global _chosen
    check_flag("enabled", enabled)
    _chosen = bool(enabled)


def tf32_enabled() -> bool:
    """Return whether `set_tf32` or the environment has turned TF32 on.

    Raises
    ------
    ArgumentError
        If ``XPCONV_TF32`` is neither 0 nor 1.

    Examples
    --------
    >>> set_tf32(False)
    >>> tf32_enabled()
    False
    """
    if _chosen is not None:
        return _chosen
    if text := os.environ.get("XPCONV_TF32"):
        if text not in ("0", "1"):
            raise ArgumentError(f"XPCONV_TF32 is {text!r}; expected 0 or 1")
        return text == "1"
    return os.environ.get("CUPY_TF32", "0") not in ("", "0")
