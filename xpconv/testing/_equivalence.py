"""Comparisons of a function's results between backends."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import array_api_compat
import numpy as np

from xpconv._html import html_table
from xpconv.backend import Array, Backend, get_backend, library_of, to_host, use_backend

__all__ = ["EquivalenceReport", "EquivalenceRow", "check_equivalence"]

_RTOL = {"float64": 1e-10, "float32": 1e-4, "float16": 1e-2}


@dataclass(frozen=True)
class EquivalenceRow:
    """The outputs of one backend, and their differences from the reference's.

    `library`, `device` and `dtypes` list those of all outputs, joined by commas. `max_absolute` is the largest
    difference; `max_relative` is the largest difference divided by the largest magnitude of its output.

    Examples
    --------
    >>> report = check_equivalence(lambda x: 2 * x, np.ones(3), backends=["numpy"])
    >>> report.rows[0].library, report.rows[0].dtypes, report.rows[0].max_absolute
    ('numpy', 'float64', 0.0)
    """

    backend: str
    library: str
    device: str
    dtypes: str
    shapes_match: bool
    max_absolute: float
    max_relative: float


@dataclass(frozen=True)
class EquivalenceReport:
    """One row per backend; `print` and Jupyter show a table.

    Examples
    --------
    >>> report = check_equivalence(lambda x: 2 * x, np.ones(3), backends=["numpy"])
    >>> report.reference, len(report.rows), report.max_difference
    ('numpy', 1, 0.0)
    """

    reference: str
    rows: tuple[EquivalenceRow, ...]

    @property
    def max_difference(self) -> float:
        """The largest relative difference of any backend from the reference."""
        return max(row.max_relative for row in self.rows)

    def __str__(self) -> str:
        """Return the rows as an aligned table."""
        cells = self._cells()
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells
        )

    def _repr_html_(self) -> str:
        header, *rows = self._cells()
        return html_table(header, rows, text_columns=5)

    def _cells(self) -> list[tuple[str, ...]]:
        """Return the header and the rows as text."""
        return [
            ("backend", "library", "device", "dtypes", "shapes", "max abs", "max rel"),
            *(
                (
                    row.backend + " (reference)" * (row.backend == self.reference),
                    row.library,
                    row.device,
                    row.dtypes,
                    "match" if row.shapes_match else "DIFFER",
                    f"{row.max_absolute:.1e}",
                    f"{row.max_relative:.1e}",
                )
                for row in self.rows
            ),
        ]


def check_equivalence(
    fn: Callable[..., Any],
    *args: Any,
    backends: Iterable[str | Backend] = ("numpy", "array_api_strict"),
    reference: str | Backend = "numpy",
    rtol: float | None = None,
    atol: float = 0.0,
) -> EquivalenceReport:
    """Run a function on several backends and compare everything that it returns.

    Parameters
    ----------
    fn : callable
        Called inside `use_backend`; returns arrays, numbers, None, or nested tuples, lists and dicts of them.
    *args : object
        Its arguments. NumPy arrays, also nested ones, are copied to the backend; other values are passed unchanged.
    backends : iterable of str or Backend
        As for `get_backend`.
    reference : str or Backend
        The backend that the others are compared with; it need not be one of `backends`.
    rtol, atol : float
        The largest difference that passes is ``rtol * (largest magnitude of the output) + atol``. The default rtol
        is 1e-10 for float64, 1e-4 for float32, 1e-2 for float16, and 0 for other dtypes.

    Raises
    ------
    AssertionError
        If an output is not on the library and device of the inputs, or differs from the reference's in structure,
        dtype, shape or by too much; the text names each such output and ends with the table.

    Examples
    --------
    >>> report = check_equivalence(
    ...     lambda x: (x + 1, {"twice": 2 * x}), np.ones(3), backends=["numpy"]
    ... )
    >>> report.max_difference
    0.0
    """
    chosen = {str(backend): backend for backend in map(get_backend, (reference, *backends))}
    outputs: dict[str, dict[str, Any]] = {}
    for name, backend in chosen.items():
        try:
            with use_backend(backend):
                outputs[name] = dict(_leaves("output", fn(*_upload(args, backend))))
        except Exception as error:
            error.add_note(f"raised while check_equivalence ran the function on {name}")
            raise
    first, problems = next(iter(chosen)), list[str]()
    rows = tuple(
        _compare(backend, outputs[name], outputs[first], rtol, atol, problems) for name, backend in chosen.items()
    )
    report = EquivalenceReport(first, rows)
    if problems:
        raise AssertionError("\n".join([*problems, str(report)]))
    return report


def _upload(tree: Any, backend: Backend) -> Any:
    if isinstance(tree, np.ndarray):
        return backend.asarray(tree.copy(order="K"))  # a copy: fn may work in place
    if isinstance(tree, dict):
        return {key: _upload(value, backend) for key, value in tree.items()}
    if isinstance(tree, (tuple, list)):
        values = [_upload(value, backend) for value in tree]
        return type(tree)(*values) if hasattr(tree, "_fields") else type(tree)(values)
    return tree


def _leaves(path: str, tree: Any) -> Iterator[tuple[str, Any]]:
    """Yield each value in nested containers, with its path, such as ``output[1].mean``."""
    if hasattr(tree, "_fields"):
        parts = {f".{field}": getattr(tree, field) for field in tree._fields}
    elif isinstance(tree, (dict, tuple, list)):
        parts = {f"[{key!r}]": value for key, value in (tree.items() if isinstance(tree, dict) else enumerate(tree))}
    else:
        yield path, tree
        return
    for step, value in parts.items():
        yield from _leaves(path + step, value)


def _compare(
    backend: Backend,
    outputs: dict[str, Any],
    expected: dict[str, Any],
    rtol: float | None,
    atol: float,
    problems: list[str],
) -> EquivalenceRow:
    """Return a backend's row, and append its differences to `problems`."""
    expected_location, matching, absolute, relative = f"{backend.library} ({backend.device})", True, 0.0, 0.0
    if outputs.keys() != expected.keys():
        matching = False
        problems.append(f"{backend} gives {', '.join(outputs)}; the reference gives {', '.join(expected)}")
    for path in [path for path in outputs if path in expected]:
        got, want = outputs[path], expected[path]
        if array_api_compat.is_array_api_obj(got) and _location(got) != expected_location:
            problems.append(
                f"{backend}: {path} is on {_location(got)}; expected {expected_location}, as the inputs are"
            )
        if describe_array(got) != describe_array(want):
            problems.append(f"{backend}: {path} is {describe_array(got)}; the reference gives {describe_array(want)}")
        a, b = to_host(got), to_host(want)
        matching &= a.shape == b.shape
        if a.shape == b.shape and {a.dtype.kind, b.dtype.kind} <= set("biufc"):
            difference, scale = _difference(a, b)
        else:  # None and strings are equal or not
            difference, scale = (0.0 if a.shape == b.shape and got == want else np.inf), 1.0
        allowed = _RTOL.get(b.dtype.name, 0.0) if rtol is None else rtol
        if difference > allowed * scale + atol:
            problems.append(
                f"{backend}: {path} differs by {difference:.2e}, {difference / scale:.2e} of its "
                f"largest magnitude; expected at most {allowed:.0e}"
            )
        absolute, relative = max(absolute, difference), max(relative, difference / scale)
    arrays = [leaf for leaf in outputs.values() if array_api_compat.is_array_api_obj(leaf)]
    library, device, dtypes = (
        ", ".join(sorted({str(trait(array)) for array in arrays})) or "-"
        for trait in (library_of, array_api_compat.device, lambda array: to_host(array).dtype)
    )
    return EquivalenceRow(str(backend), library, device, dtypes, matching, absolute, relative)


def _difference(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Return the largest absolute difference and b's largest magnitude; NaNs are equal, and so are equal infinities."""
    exact, equal = np.result_type(a, b, np.float64), a == b
    a, b = a.astype(exact), b.astype(exact)
    with np.errstate(invalid="ignore"):
        difference = np.maximum(np.abs(a - b), np.finfo(exact).tiny)  # unequal large integers may be equal as floats
        difference = np.where(equal | (np.isnan(a) & np.isnan(b)), 0.0, difference)
    difference[np.isnan(difference)] = np.inf
    return float(np.max(difference, initial=0.0)), float(np.max(np.abs(b[np.isfinite(b)]), initial=1e-8))


def _location(x: Array) -> str:
    return f"{library_of(x)} ({array_api_compat.device(x)})"


def describe_array(x: Any, *, location: bool = False) -> str:
    """Return an array's dtype and shape, and if asked for its library and device, or another value's type."""
    if not array_api_compat.is_array_api_obj(x):
        return f"a {type(x).__name__}"
    return f"{to_host(x).dtype} {to_host(x).shape}" + (f" on {_location(x)}" if location else "")
