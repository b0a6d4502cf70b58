"""The README's Python and its commands that train run as they stand."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

README = Path(__file__).parents[1] / "README.md"
TRAININGS = re.findall(
    r"^    (?:.*&& )?xpconv (train(?: (?!--resume|--data)--[-a-z]+(?: [\w.][\w.-]*)?)*)(?: +#.*)?$",
    README.read_text(),
    re.M,
)
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)


@pytest.mark.parametrize("code", BLOCKS, ids=["layers", "training", "course"])
def test_code_of_the_readme_runs(code, tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(code, str(README), "exec"), names)
    if "solver" in names:
        accuracy = float(capsys.readouterr().out.rpartition("test accuracy: ")[2])
        assert accuracy > 0.9
        assert Path("digits.safetensors").exists()
    if "dx" in names:
        assert (names["dx"].shape, names["dw"].shape, names["db"].shape) == ((8, 3, 32, 32), (16, 3, 3, 3), (16,))


@pytest.mark.parametrize(
    "command", [pytest.param(line, marks=pytest.mark.slow if "resnet" in line else ()) for line in TRAININGS]
)
def test_every_training_of_the_readme_learns_the_digits(command, tmp_path, monkeypatch):
    from xpconv.cli import _app

    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(_app.app, command.split(), env={"XP_BACKEND": None})
    assert result.exit_code == 0, result.output
    assert float(re.search(r"test accuracy: (\S+)", result.stdout)[1]) >= 0.98


def test_the_readme_has_trainings():
    assert len(TRAININGS) >= 4
