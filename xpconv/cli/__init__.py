"""The command line: ``xpconv train | eval | predict | compare | bench | export | check | info``."""

import sys


def main() -> None:
    """Run the command line."""
    try:
        from xpconv.cli._app import app
    except ModuleNotFoundError as error:
        if error.name != "typer":
            raise
        raise SystemExit('xpconv: error: the command line needs typer: pip install "xpconv[train]"') from error
    _escape_what_cannot_be_shown()
    app(prog_name="xpconv")


def _escape_what_cannot_be_shown() -> None:
    """Print characters that a stream's encoding lacks as escapes, so that they cannot end a run."""
    for stream in (sys.stdout, sys.stderr):
        if getattr(stream, "errors", None) == "strict" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
