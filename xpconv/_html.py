"""Tables in HTML, for notebooks and reports."""

from collections.abc import Sequence
from html import escape

from xpconv.errors import printable

__all__ = ["html_table", "html_text"]

TEXT = "text-align:left;white-space:pre"  # rows of layers in branches are indented
NUMBER = "text-align:right"


def html_text(value: object) -> str:
    """Return a value as HTML text, with control characters escaped.

    Examples
    --------
    >>> html_text("<b>")
    '&lt;b&gt;'
    """
    return escape(printable(value, max_length=10_000))


def html_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, text_columns: int = 1) -> str:
    """Return a table; columns after the first `text_columns` have numbers, which are aligned to the right.

    Examples
    --------
    >>> print(html_table(["class", "F1"], [["cat", "0.9"]]).splitlines()[-3])
    <tr><td style="text-align:left;white-space:pre">cat</td><td style="text-align:right">0.9</td></tr>
    """
    head = f"<thead>{_row(header, 'th', text_columns)}</thead>\n" if header else ""
    body = "\n".join(_row(cells, "td", text_columns) for cells in rows)
    return f"<table>\n{head}<tbody>\n{body}\n</tbody>\n</table>"


def _row(cells: Sequence[str], tag: str, text_columns: int) -> str:
    styles = [TEXT if column < text_columns else NUMBER for column in range(len(cells))]
    texts = [f'<{tag} style="{style}">{html_text(cell)}</{tag}>' for cell, style in zip(cells, styles, strict=True)]
    return f"<tr>{''.join(texts)}</tr>"
