"""The page on security names tests that exist, one for each finding."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)


def test_each_test_that_the_page_names_is_there():
    assert len(NAMED) > 30
    for path, name in NAMED:
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, (
            f"{path}::{name}"
        )


def test_every_finding_of_the_second_round_has_its_test():
    found = {
        number
        for line in PAGE.splitlines()
        if line.startswith("| ") and "`tests/" in line
        for number in re.findall(r"\b[ABC]\d+\b", line.split("|")[1])
    }
    assert found == {
        *(f"A{number}" for number in range(1, 8)),
        *(f"B{number}" for number in range(1, 16)),
        *(f"C{number}" for number in range(1, 15)),
    }
