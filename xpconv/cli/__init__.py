"""The command line: ``xpconv train | eval | predict | compare | bench | export | check | info``."""

import sys

from xpconv.errors import printable


def main() -> None:
    """Run the command line."""
    try:
        import typer  # noqa: F401
    except Exception as error:  # an incompatible library may raise anything
        missing = isinstance(error, ModuleNotFoundError) and error.name == "typer"
        why = "" if missing else f", which cannot be imported ({printable(error)})"
        raise SystemExit(f'xpconv: error: the command line needs typer{why}: pip install "xpconv[train]"') from error
    from xpconv.cli._app import app

    _escape_what_cannot_be_shown()
    app(prog_name="xpconv")


def _escape_what_cannot_be_shown() -> None:
    """Print characters that a stream's encoding lacks as escapes, so that they cannot end a run."""
    for stream in (sys.stdout, sys.stderr):
        if getattr(stream, "errors", None) == "strict" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
