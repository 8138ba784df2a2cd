import json
import subprocess
from importlib.metadata import version

import pytest
from click.testing import CliRunner

from qv_export.commands.doctor import doctor


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise FileNotFoundError("nvidia-smi")

    monkeypatch.setattr(subprocess, "run", fail)


def test_a_machine_without_gpu_is_well() -> None:
    result = CliRunner().invoke(doctor, catch_exceptions=False)
    assert result.exit_code == 0
    assert "none found (nvidia-smi lists none)" in result.stdout
    rows = [line.split()[:4] for line in result.stdout.splitlines()]
    assert ["onnxruntime", version("onnxruntime"), "yes", "yes"] in rows


def test_json_is_one_object_with_packages_and_targets() -> None:
    facts = json.loads(CliRunner().invoke(doctor, ["--json"], catch_exceptions=False).stdout)
    assert facts["gpus"] == []
    assert {package["name"]: package["fits"] for package in facts["packages"]}["torch"] is True
    assert facts["targets"][0]["name"] == "onnxruntime"
    assert facts["targets"][0]["runs"] is True
