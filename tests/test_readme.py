"""The README says what the code does."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.base_install import in_base_install, make_base_install

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


ANSWERS = re.findall(r"^    \$ qv-export (run .*)\n    (\S.*)$", README, re.MULTILINE)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with what the examples name: models/, examples/, and the bundle that the first one exports."""
    directory = tmp_path_factory.mktemp("clone")
    for name in ("models", "examples"):
        (directory / name).symlink_to(ROOT / name)
    [export] = re.findall(r"^    \$ qv-export (export models/.*)$", README, re.MULTILINE)
    assert in_clone(directory, "-m", "qv_export", *shlex.split(export)) == ""
    return directory


def in_clone(directory: Path, *arguments: str) -> str:
    environment = {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8", "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=directory, env=environment, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def test_the_python_example_prints_what_stands_beneath_it(clone: Path) -> None:
    [(example, answer)] = re.findall(r"```python\n(.*?)```\n\n    (.*?)\n", README, flags=re.DOTALL)
    assert len(example.strip().splitlines()) <= 5
    assert in_clone(clone, "-c", example) == f"{answer}\n"


def test_the_python_example_needs_no_torch(clone: Path, tmp_path: Path) -> None:
    [(example, answer)] = re.findall(r"```python\n(.*?)```\n\n    (.*?)\n", README, flags=re.DOTALL)
    packages = make_base_install(tmp_path / "packages")
    assert not (packages / "torch").exists()
    done = in_base_install(packages, cwd=clone, code=example)
    assert (done.returncode, done.stdout) == (0, f"{answer}\n"), done.stderr


@pytest.mark.parametrize(("command", "answer"), ANSWERS)
def test_a_question_is_answered_as_it_stands_there(clone: Path, command: str, answer: str) -> None:
    assert in_clone(clone, "-m", "qv_export", *shlex.split(command)) == f"{answer}\n"


def test_there_are_questions() -> None:
    assert len(ANSWERS) >= 3


@pytest.mark.parametrize("path", re.findall(r"\]\((?!https?:)([^)#]+)\)", README))
def test_links_lead_to_files(path: str) -> None:
    assert (ROOT / path).exists()


def test_commands_exist() -> None:
    from qv_export.cli import cli

    assert set(re.findall(r"qv-export ([a-z]+)", README)) <= set(cli.commands)
