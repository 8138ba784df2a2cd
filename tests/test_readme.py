"""Does the README say what the code does?"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.bundles import shared_bundle

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_example_answers_a_question(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    shutil.copytree(shared_bundle(tmp_path_factory, {"dtype": "float32"}), tmp_path / "bundle")
    shutil.copy(ROOT / "examples" / "pictures" / "street.png", tmp_path)
    script = tmp_path / "example.py"
    script.write_text(example, encoding="utf-8")
    environment = {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=environment, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().strip()


@pytest.mark.parametrize("path", re.findall(r"\]\((?!https?:)([^)#]+)\)", README))
def test_links_lead_to_files(path: str) -> None:
    assert (ROOT / path).exists()


def test_commands_exist() -> None:
    from qv_export.cli import cli

    assert set(re.findall(r"qv-export ([a-z]+)", README)) <= set(cli.commands)
