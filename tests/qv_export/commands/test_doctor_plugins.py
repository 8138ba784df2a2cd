import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from qv_export.commands.doctor import doctor

pytest.importorskip("triton", reason="compiling the kernels needs Triton: pip install 'qv-export[dev]'")

# The text that Triton writes at the head of a kernel's PTX, inside other bytes, as an engine holds it.
ENGINE = b"ftrt\0\1.version 8.8\n.target sm_89\n.address_size 64\n.visible .entry qv_rotary(\n\0\0"


def test_plugins_are_reported_for_every_architecture() -> None:
    result = CliRunner().invoke(doctor, ["--plugins", "--json"], catch_exceptions=False)
    kernels = json.loads(result.stdout)["plugins"]["kernels"]
    assert {kernel["plugin"] for kernel in kernels} == {
        "qv::QvRotary", "qv::QvPatchAttention", "qv::QvCachedAttentionPartials", "qv::QvCachedAttentionCombine",
    }  # fmt: skip
    assert {kernel["architecture"] for kernel in kernels} == {
        "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120",
    }  # fmt: skip
    assert all(kernel["spill_bytes"] == 0 for kernel in kernels)


def test_an_engine_s_kernels_are_named(tmp_path: Path) -> None:
    engine = tmp_path / "model.plan"
    engine.write_bytes(ENGINE)
    arguments = ["--plugins", "--engine", str(engine)]
    result = CliRunner().invoke(doctor, arguments, catch_exceptions=False)
    assert "qv_rotary   sm_89" in result.stdout
    engine.write_bytes(b"ftrt")
    assert "holds none of our kernels" in CliRunner().invoke(doctor, arguments, catch_exceptions=False).stdout


def test_an_engine_alone_is_a_usage_error(tmp_path: Path) -> None:
    engine = tmp_path / "model.plan"
    engine.write_bytes(ENGINE)
    assert CliRunner().invoke(doctor, ["--engine", str(engine)]).exit_code == 2
