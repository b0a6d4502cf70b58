"""The README's Python runs as it stands."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
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
