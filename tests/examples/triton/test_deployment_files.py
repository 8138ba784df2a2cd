import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml", reason="needs PyYAML: pip install 'qv-export[dev]'")

REPOSITORY = Path(__file__).parents[3]
TRITON = REPOSITORY / "examples" / "triton"


def documents(name):
    return list(yaml.safe_load_all((TRITON / name).read_text(encoding="utf-8")))


def test_the_server_image_installs_what_the_project_itself_asks_for():
    wanted = {
        re.split(r"[<>=]", line)[0]: line
        for line in (TRITON / "requirements.txt").read_text(encoding="utf-8").splitlines()
        if not line.startswith("#")
    }
    content = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    ours = {re.split(r"[<>=]", line)[0]: line for line in content["project"]["dependencies"]}
    assert wanted == {name: ours[name] for name in wanted}
    assert "torch" not in wanted


def test_compose_and_kubernetes_start_the_same_pinned_server():
    [compose] = documents("docker-compose.yml")
    deployment, _, _ = documents("kubernetes.yaml")
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    dockerfile = (TRITON / "Dockerfile").read_text(encoding="utf-8")
    [version] = re.findall(r"^ARG TRITON_VERSION=(\S+)$", dockerfile, re.MULTILINE)
    service = compose["services"]["qwen2-vl"]
    assert service["build"]["args"]["TRITON_VERSION"] == f"${{TRITON_VERSION:-{version}}}"
    assert container["image"].endswith(f":{version}")
    assert service["command"] == [*container["command"], *container["args"]]


def test_every_server_has_more_time_to_end_than_it_takes_to_drain():
    [compose] = documents("docker-compose.yml")
    deployment, _, _ = documents("kubernetes.yaml")
    pod = deployment["spec"]["template"]["spec"]
    [container] = pod["containers"]
    [drain] = [int(arg.split("=")[1]) for arg in container["args"] if arg.startswith("--exit-timeout-secs=")]
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > drain + pause
    assert int(compose["services"]["qwen2-vl"]["stop_grace_period"].removesuffix("s")) > drain


def test_traffic_comes_only_to_pods_that_are_ready_and_the_service_finds_them():
    deployment, service, scaler = documents("kubernetes.yaml")
    template = deployment["spec"]["template"]
    [container] = template["spec"]["containers"]
    assert container["readinessProbe"]["httpGet"]["path"] == "/v2/health/ready"
    assert container["livenessProbe"]["httpGet"]["path"] == "/v2/health/live"
    names = {port["name"] for port in container["ports"]}
    assert {port["targetPort"] for port in service["spec"]["ports"]} <= names
    assert service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
    assert scaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]


def test_the_network_policy_is_about_these_pods_and_opens_their_ports_alone():
    [policy] = documents("network-policy.yaml")
    deployment, _, _ = documents("kubernetes.yaml")
    pod = deployment["spec"]["template"]
    [container] = pod["spec"]["containers"]
    assert policy["spec"]["podSelector"]["matchLabels"] == pod["metadata"]["labels"]
    assert set(policy["spec"]["policyTypes"]) == {"Ingress", "Egress"}
    assert policy["spec"]["egress"] == []
    rules = policy["spec"]["ingress"]
    assert all(rule["from"] for rule in rules)
    ports = {port["port"] for rule in rules for port in rule["ports"]}
    assert ports == {port["containerPort"] for port in container["ports"]}


def test_the_image_carries_the_command_that_compose_and_kubernetes_start():
    deployment, _, _ = documents("kubernetes.yaml")
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    [command] = container["command"]
    assert f"/usr/local/bin/{command}" in (TRITON / "Dockerfile").read_text(encoding="utf-8")
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert deployment["spec"]["template"]["spec"]["securityContext"]["seccompProfile"] == {
        "type": "RuntimeDefault"
    }


@pytest.fixture
def started(tmp_path):
    """What the script starts in the place of tritonserver: its arguments, one a line."""
    server = tmp_path / "tritonserver"
    server.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n", encoding="utf-8")
    server.chmod(0o755)

    def start(**environment):
        path = os.pathsep.join([str(tmp_path), os.defpath])
        command = [str(TRITON / "restricted-tritonserver"), "--model-repository=/models"]
        return subprocess.run(
            command, env={"PATH": path, **environment}, capture_output=True, text=True, check=False
        )

    return start


def test_administration_is_behind_the_key_that_is_given_or_one_that_nobody_has(started):
    arguments = started(ADMIN_KEY="s3cret").stdout.splitlines()
    assert arguments[-1] == "--model-repository=/models"
    for argument, option in zip(arguments, ("http-restricted-api", "grpc-restricted-protocol"), strict=False):
        match = re.fullmatch(rf"--{option}=([a-z,-]+):admin-key=s3cret", argument)
        assert match
        closed = set(match[1].split(","))
        assert closed >= {"model-repository", "logging", "trace", "shared-memory"}
        assert closed.isdisjoint({"health", "metadata", "inference", "statistics"})
    keys = [started().stdout.splitlines()[0].rsplit("=", 1)[1] for _ in range(2)]
    assert len(set(keys)) == 2
    assert all(len(key) == 64 for key in keys)


@pytest.mark.parametrize("key", ["a b", "a,b", "a:b=c", "x\ny", "\u00e9"])
def test_a_key_that_would_change_the_arguments_is_refused(started, key):
    done = started(ADMIN_KEY=key)
    assert done.returncode == 2
    assert "letters, digits" in done.stderr
    assert not done.stdout
