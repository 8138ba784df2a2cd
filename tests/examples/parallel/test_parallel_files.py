"""The examples of several machines ask for what there is, and name the leader's machine first."""

import json
import os
import subprocess
from pathlib import Path

import click
import jsonschema
import pytest

from qv_export.cli import cli

yaml = pytest.importorskip("yaml", reason="needs PyYAML: pip install 'qv-export[dev]'")

EXAMPLES = Path(__file__).parents[3] / "examples" / "parallel"
SCHEMA = json.loads((Path(__file__).parent / "leaderworkerset.schema.json").read_text(encoding="utf-8"))
KNOWN = {
    option
    for parameter in cli.commands["serve"].params
    if isinstance(parameter, click.Option)
    for option in parameter.opts
}


@pytest.fixture
def group_and_service():
    text = (EXAMPLES / "leaderworkerset.yaml").read_text(encoding="utf-8")
    return list(yaml.safe_load_all(text))


def recorder(directory, name, script):
    path = directory / name
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)


def test_the_group_is_one_by_its_schema_and_its_parts_fit_together(group_and_service):
    group, service = group_and_service
    jsonschema.validate(group, SCHEMA)
    template = group["spec"]["leaderWorkerTemplate"]
    leader, worker = template["leaderTemplate"], template["workerTemplate"]
    assert service["spec"]["selector"].items() <= leader["metadata"]["labels"].items()
    assert not service["spec"]["selector"].items() <= worker["metadata"]["labels"].items()
    for pod in (leader["spec"], worker["spec"]):
        [container] = pod["containers"]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}
        assert container["securityContext"]["readOnlyRootFilesystem"]
    # A leader that waits for its worker must not be waited for.
    assert group["spec"]["startupPolicy"] == "LeaderCreated"
    assert template["restartPolicy"] == "RecreateGroupOnPodRestart"


@pytest.mark.parametrize("mistake", ["leaderWorkerTemplates", "restartPolicy", "container"])
def test_the_schema_finds_mistakes(group_and_service, mistake):
    group, _ = group_and_service
    template = group["spec"]["leaderWorkerTemplate"]
    if mistake == "leaderWorkerTemplates":
        group["spec"][mistake] = group["spec"].pop("leaderWorkerTemplate")
    elif mistake == "restartPolicy":
        template[mistake] = "Always"
    else:
        template["workerTemplate"]["spec"]["containers"][0]["comand"] = ["sshd"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(group, SCHEMA)


def test_the_leader_names_its_own_machine_first_and_asks_for_a_rank_on_each(group_and_service, tmp_path):
    """Run the pod's script as Kubernetes would, with tools that print what they are asked."""
    group, _ = group_and_service
    template = group["spec"]["leaderWorkerTemplate"]
    [container] = template["leaderTemplate"]["spec"]["containers"]
    recorder(tmp_path, "ssh", "exit 0")
    recorder(tmp_path, "hostname", "echo qwen2-vl-0")
    recorder(tmp_path, "qv-export", 'printf "%s\\n" "$@"')
    script = container["args"][0].replace("/tmp/hosts", str(tmp_path / "hosts"))
    environment = {
        **{one["name"]: one["value"] for one in container["env"]},
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "LWS_GROUP_SIZE": str(template["size"] + 1),
        "LWS_LEADER_ADDRESS": "qwen2-vl-0.qwen2-vl.default",
    }
    done = subprocess.run(
        [*container["command"], script], env=environment, capture_output=True, text=True, check=True
    )
    assert (tmp_path / "hosts").read_text(encoding="utf-8").splitlines() == [
        "qwen2-vl-0 slots=1",
        "qwen2-vl-0-1.qwen2-vl.default slots=1",
        "qwen2-vl-0-2.qwen2-vl.default slots=1",
    ]
    asked = done.stdout.split()
    assert asked[asked.index("--ranks") + 1] == "3"
    assert asked[asked.index("--hostfile") + 1] == str(tmp_path / "hosts")
    assert {one for one in asked if one.startswith("--")} <= KNOWN


def test_a_slurm_job_asks_for_as_many_ranks_as_it_has_tasks(tmp_path):
    recorder(tmp_path, "hostname", "echo node1")
    recorder(tmp_path, "qv-export", 'printf "%s\\n" "$@"')
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_NTASKS": "2",
        "BUNDLE": "/shared/bundle",
        "API_KEYS": "/keys",
    }
    script = EXAMPLES / "slurm-serve.sh"
    done = subprocess.run(["bash", script], env=environment, capture_output=True, text=True, check=True)
    asked = done.stdout.split()
    assert asked[:2] == ["serve", "/shared/bundle"]
    assert asked[asked.index("--ranks") + 1] == "2"
    assert {one for one in asked if one.startswith("--")} <= KNOWN


def test_the_hostfile_begins_with_this_machine():
    lines = (EXAMPLES / "hosts").read_text(encoding="utf-8").splitlines()
    machines = [line.split()[0] for line in lines if line and not line.startswith("#")]
    assert machines[0] == "localhost"
    assert len(machines) > 1
