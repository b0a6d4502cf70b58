"""What `save` and `load` of the classifiers share."""

import os
from collections.abc import Callable

__all__ = ["load_if_available", "pickle_advice"]


def load_if_available(fname: str | os.PathLike[str], load: Callable[[str], None]) -> bool:
    """Load a file if there is one, and return whether there is; print the lines that the course prints."""
    name = os.fspath(fname)
    if not os.path.exists(name):
        print(f"{name} not available.")
        return False
    load(name)
    print(f"{name} loaded.")
    return True


def pickle_advice(name: str, attribute: str, key: str = "") -> str:
    """Say what a pickle is, and how to set an attribute from it; `key` selects its part of the pickle."""
    return (
        "a pickle of Python objects, which can run any code when it is read: if you trust it, set "
        f"{attribute} to np.load({name!r}, allow_pickle=True).item(){key} and call save"
    )
