"""The examples deal every row to exactly one job, and go on with what is there."""

import os
import re
import subprocess
from pathlib import Path

import click
import pytest

from qv_export.cli import cli

yaml = pytest.importorskip("yaml", reason="needs PyYAML: pip install 'qv-export[dev]'")

EXAMPLES = Path(__file__).parents[3] / "examples" / "batch"
KNOWN = {
    option
    for parameter in cli.commands["batch"].params
    if isinstance(parameter, click.Option)
    for option in parameter.opts
}


@pytest.fixture
def job_and_claim():
    return list(yaml.safe_load_all((EXAMPLES / "kubernetes-job.yaml").read_text(encoding="utf-8")))


def options_in(text):
    return set(re.findall(r"(?<=\s)--?[a-z][a-z-]*(?=\s)", text))


def test_every_pod_has_a_shard_and_goes_on_with_its_own(job_and_claim):
    job, claim = job_and_claim
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    [container] = pod["containers"]
    [command] = container["args"]
    assert spec["completionMode"] == "Indexed"
    assert f'--shard "$JOB_COMPLETION_INDEX/{spec["completions"]}"' in command
    assert "--resume" in command
    assert options_in(command.partition("qv-export")[2]) <= KNOWN
    assert pod["restartPolicy"] == "Never"  # what backoffLimitPerIndex asks for
    [volume] = [volume for volume in pod["volumes"] if volume["name"] == "corpus"]
    assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize(("number", "first", "shard"), [("3", "0", "3/8"), ("8", "1", "7/8")])
def test_every_job_of_an_array_has_a_shard(tmp_path, number, first, shard):
    """Run as Slurm would, with a `qv-export` that prints what it is asked."""
    probe = tmp_path / "qv-export"
    probe.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    probe.chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_ARRAY_TASK_ID": number,
        "SLURM_ARRAY_TASK_MIN": first,
        "SLURM_ARRAY_TASK_COUNT": "8",
    }
    done = subprocess.run(
        [EXAMPLES / "slurm.sh", "bundle", "a b/*.jpg", "Read it.", "out"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    asked = done.stdout.splitlines()
    assert asked[:7] == ["batch", "bundle", "--input", "a b/*.jpg", "--prompt", "Read it.", "-o"]
    assert asked[-3:] == ["--resume", "--shard", shard]
    assert {option for option in asked if option.startswith("-")} <= KNOWN
    text = (EXAMPLES / "slurm.sh").read_text(encoding="utf-8")
    assert text.count("#SBATCH --array=0-7") == 1


def test_the_pipeline_on_ray_is_ten_lines_and_names_what_there_is():
    import ast
    import inspect

    from engines.batch.worker import BatchWorker, ModelChoice

    tree = ast.parse((EXAMPLES / "ray_corpus.py").read_text(encoding="utf-8"))
    imported = {
        alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert imported == {BatchWorker.__name__, ModelChoice.__name__, "Path"}
    [choice] = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "ModelChoice"
    ]
    named = {keyword.arg for keyword in choice.keywords}
    assert named <= set(inspect.signature(ModelChoice).parameters)
