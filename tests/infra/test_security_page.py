"""Each claim of the threat model names the test that shows it, and that test exists."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "infra" / "SECURITY.md").read_text()


def named_tests() -> list[tuple[str, str]]:
    """(file, test) of every reference; one without a file is of the file that was named last."""
    found, file = [], ""
    for path, test in re.findall(r"`(tests/[\w/]+\.py)?::(test_\w+)`", PAGE):
        file = path or file
        found.append((file, test))
    return found


def test_named_tests_exist():
    assert len(named_tests()) > 20
    missing = []
    for file, test in named_tests():
        tree = ast.parse((ROOT / file).read_text())
        if test not in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}:
            missing.append(f"{file}::{test}")
    assert missing == []


def test_named_files_exist():
    for path in set(re.findall(r"`((?:operators|pipeline|jobs|infra)/[\w/.-]+\.\w+)`", PAGE)):
        assert (ROOT / path).is_file(), path
