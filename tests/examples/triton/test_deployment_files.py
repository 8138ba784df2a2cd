import re
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
