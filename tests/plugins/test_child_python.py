import ast
import subprocess
import sys
from pathlib import Path

import pytest

from plugins.child_python import interpreter, module_command, program_command

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = ("engines", "export", "plugins", "qv_export", "validate")
# Where this Python may be named: the one home of commands that run it, and a line of text for the user to run.
HOMES = {"plugins/child_python.py", "export/install.py"}


@pytest.fixture
def hostile_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with files of modules' names that leave a mark when they run."""
    mark = f"open({str(tmp_path / 'ran')!r}, 'w')"
    for module in ("json", "ml_dtypes", "numpy", "plugins", "runpy", "sitecustomize", "usercustomize"):
        (tmp_path / f"{module}.py").write_text(mark, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("path_entries", [[], ["", "."]])
def test_a_child_takes_no_module_from_the_current_directory(
    hostile_place: Path, monkeypatch: pytest.MonkeyPatch, path_entries: list[str]
) -> None:
    monkeypatch.setattr("sys.path", [*path_entries, *sys.path])
    program = "import json, numpy, ml_dtypes, plugins.registry; print(numpy.__name__, sys.argv[1:])"
    assert run([*program_command(program), "a", "b"]) == "numpy ['a', 'b']"
    assert run(module_command("json.tool", "--help")).startswith("usage")
    assert not (hostile_place / "ran").exists()


def test_a_module_runs_as_main_with_its_own_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "said.py").write_text("import sys\nprint(__name__, sys.argv[1:])", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert run(module_command("said", "1", "-x")) == "__main__ ['1', '-x']"


def test_a_child_finds_our_packages_wherever_this_process_found_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [place for place in sys.path if Path(place) != ROOT])
    assert run(program_command("import plugins.child_python as found; print(found.__file__)")) == str(
        ROOT / "plugins" / "child_python.py"
    )


def test_an_interpreter_is_found_where_a_server_embeds_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/opt/server/bin/stub")
    assert Path(interpreter()).name.startswith("python")
    monkeypatch.setattr(sys, "executable", "")
    assert Path(interpreter()).name.startswith("python")


def test_no_other_place_of_the_product_starts_a_python() -> None:
    named = {
        str(path.relative_to(ROOT))
        for package in PRODUCT
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if _names_a_python(node)
    }
    assert named == HOMES


def _names_a_python(node: ast.AST) -> bool:
    if isinstance(node, ast.Attribute):
        return node.attr in {"executable", "_base_executable"}
    if isinstance(node, ast.ImportFrom):
        return node.module == "sys" and any(alias.name == "executable" for alias in node.names)
    if isinstance(node, ast.List) and node.elts and isinstance(node.elts[0], ast.Constant):
        return str(node.elts[0].value).startswith("python")
    return False
