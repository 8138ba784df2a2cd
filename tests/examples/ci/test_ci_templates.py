import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

CI = Path(__file__).resolve().parents[3] / "examples" / "ci"
TEMPLATES = ("github-workflow.yml", "gitlab-ci.yml")
STEPS = {"export", "key", "build", "validate", "publish"}


@pytest.mark.parametrize(
    ("template", "schema"),
    [
        ("github-workflow.yml", ["vendor.github-workflows"]),
        ("gitlab-ci.yml", ["vendor.gitlab-ci", "--data-transform", "gitlab-ci"]),
    ],
)
def test_a_template_keeps_to_its_platforms_schema(template: str, schema: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", *schema]
    assert subprocess.run([*command, CI / template], capture_output=True, check=False).returncode == 0
    broken = tmp_path / template
    broken.write_text((CI / template).read_text().replace("needs:", "neds:"))
    checked = subprocess.run([*command, broken], capture_output=True, text=True, check=False)
    assert checked.returncode == 1
    assert "neds" in checked.stdout


def test_the_workflow_is_clean_for_actionlint() -> None:
    actionlint = shutil.which("actionlint")
    if actionlint is None:
        pytest.skip("needs actionlint: https://github.com/rhysd/actionlint has binaries")
    done = subprocess.run([actionlint, CI / TEMPLATES[0]], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("template", TEMPLATES)
def test_every_job_runs_the_steps_that_make_runs(template: str) -> None:
    called = re.findall(r"examples/ci/steps\.sh ([a-z]+)", (CI / template).read_text())
    assert set(called) == STEPS - ({"key"} if template == "gitlab-ci.yml" else set())


def steps(tmp_path: Path, qv_export: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a step with a stand-in for `qv-export` that notes its command line and runs `qv_export`, a line of shell."""
    fake = tmp_path / "fake-qv-export"
    fake.write_text(f'#!/usr/bin/env bash\necho "$*" >> {tmp_path}/calls\n{qv_export}\n')
    fake.chmod(0o755)
    environment = {**os.environ, "QV_EXPORT": str(fake), "WORK": str(tmp_path), "LIMITS": "--max-batch 2"}
    return subprocess.run(
        [CI / "steps.sh", *arguments], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("step", ["key", "build"])
def test_a_step_without_its_architecture_says_so(tmp_path: Path, step: str) -> None:
    done = steps(tmp_path, "true", step)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [f"{step} needs an architecture, such as: {CI / 'steps.sh'} {step} 89"]


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_installs_extras_that_there_are(template: str) -> None:
    project = tomllib.loads((CI.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = re.findall(r"pip install '?\.\[([a-z,]+)\]", (CI / template).read_text())
    extras = {extra for names in named for extra in names.split(",")}
    assert {"export", "rtx"} <= extras <= set(project["optional-dependencies"])


@pytest.mark.parametrize("code", [0, 1])
def test_the_key_is_told_whether_the_engine_is_there_or_not(tmp_path: Path, code: int) -> None:
    said = json.dumps({"key": "0123456789abcdef", "up_to_date": code == 0})
    done = steps(tmp_path, f"echo '{said}'; exit {code}", "key", "89")
    assert (done.returncode, done.stdout) == (0, "0123456789abcdef\n")
    assert (tmp_path / "calls").read_text() == (
        f"build {tmp_path}/bundle --target tensorrt-rtx --sm 89 --max-batch 2 --check --json\n"
    )


def test_a_mistake_fails_the_step(tmp_path: Path) -> None:
    assert steps(tmp_path, "echo error >&2; exit 2", "key", "90").returncode != 0
    assert steps(tmp_path, "exit 1", "validate").returncode == 1


@pytest.mark.parametrize("is_stale", [True, False])
def test_publish_drops_engines_that_are_stale_and_packs_the_rest(tmp_path: Path, is_stale: bool) -> None:
    for name in ("bundle/engines/old", "bundle/engines/new", "report"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file").touch()
    (tmp_path / "bundle.html").touch()
    engines = [
        {"directory": f"{tmp_path}/bundle/engines/old", "stale": ["code"] if is_stale else []},
        {"directory": f"{tmp_path}/bundle/engines/new", "stale": []},
    ]
    done = steps(tmp_path, f"echo '{json.dumps({'engines': engines})}'", "publish")
    assert done.returncode == 0, done.stderr
    names = subprocess.run(
        ["tar", "-tf", tmp_path / "qv-export-bundle.tar"], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "bundle/engines/new/file" in names
    assert ("bundle/engines/old/file" in names) == (not is_stale)


def test_an_unknown_step_is_told_what_there_is(tmp_path: Path) -> None:
    done = steps(tmp_path, "exit 0", "deploy")
    assert done.returncode == 2
    assert "export | key SM | build SM | validate | publish | all" in done.stderr
