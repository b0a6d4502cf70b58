"""Commands of xpconv, run in this process."""

from typer.testing import CliRunner

from xpconv.cli import _app

SHORT = ("train", "--num-train", 100, "--epochs", 2, "--augment", "none")


def call(*words, **environment):
    """Run one command without the settings of the machine, and return its result."""
    return CliRunner().invoke(_app.app, [str(word) for word in words], env={"XP_BACKEND": None, **environment})
