"""The tests that docs/promises.md names exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8")
NAMED = re.findall(r"^- `(tests/\w+\.py)::(\w+)`$", PAGE, re.MULTILINE)


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_each_test_named_on_the_page_exists(file, name):
    module = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    assert name in {node.name for node in module.body if isinstance(node, ast.FunctionDef)}


def test_every_promise_names_a_test_and_no_test_is_named_twice():
    assert len(NAMED) == len(set(NAMED)) == PAGE.count("::test_")
    promises = re.split(r"^(?=\*\*)", PAGE, flags=re.MULTILINE)[1:]
    assert len(promises) >= 14
    for promise in promises:
        assert "::test_" in promise, promise
