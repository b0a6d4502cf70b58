"""The command line: ``xpconv train | eval | predict | compare | bench | export | check | info``."""


def main() -> None:
    """Run the command line."""
    try:
        from xpconv.cli._app import app
    except ModuleNotFoundError as error:
        if error.name != "typer":
            raise
        raise SystemExit('xpconv: error: the command line needs typer: pip install "xpconv[train]"') from error
    app(prog_name="xpconv")
