"""A listing of first lines is the project's table of contents: each states what its file holds."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("benchmarks", "engines", "examples", "export", "plugins", "qv_export", "validate")
PATHS = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def first_line(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    return (text or "").partition("\n")[0]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_first_line_of_a_file_states_what_it_holds(path):
    line = first_line(path)
    if path.name == "__init__.py" and not line:
        return
    assert "?" not in line, line
    assert len(line.split()) >= 3, line
    assert line[-1] in ".:,;" or len(line) > 60, line


def test_no_two_files_say_the_same():
    lines = [line for line in map(first_line, PATHS) if line]
    assert sorted({line for line in lines if lines.count(line) > 1}) == []
