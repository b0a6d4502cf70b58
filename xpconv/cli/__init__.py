"""The command line: ``xpconv train | eval | predict | compare | bench | export | check | info``."""


def main() -> None:
    """Run the command line."""
    from xpconv.cli._app import app

    app(prog_name="xpconv")
