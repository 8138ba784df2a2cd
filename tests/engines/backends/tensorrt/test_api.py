"""What our code uses of NVIDIA's Python API exists in TensorRT 11's own bindings, and in TensorRT-RTX's.

mypy holds our code to `engines.backends.tensorrt.api`; these tests hold that to the bindings.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mypy import api as mypy

from engines.backends.tensorrt.library import RTX_ARCHITECTURES
from tests.plugins.tensorrt.tensorrt_stubs import build_stubs, missing_packages

REPOSITORY = Path(__file__).resolve().parents[4]


def ask(module: str, **environment: str):
    result = subprocess.run(
        [sys.executable, "-m", "tests.engines.backends.tensorrt.api_contract", module],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def tensorrt(tmp_path_factory):
    if missing := missing_packages():
        pytest.skip(f"needs {', '.join(missing)}: pip install 'qv-export[dev]'")
    if not shutil.which("gcc"):
        pytest.skip("needs gcc for three link stubs")
    stubs = tmp_path_factory.mktemp("stubs")
    build_stubs(stubs)
    paths = [str(stubs), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    return ask("tensorrt_bindings", LD_LIBRARY_PATH=os.pathsep.join(paths))


@pytest.fixture(scope="module")
def rtx():
    pytest.importorskip("tensorrt_rtx_bindings", reason="needs TensorRT-RTX: pip install 'qv-export[rtx]'")
    return ask("tensorrt_rtx_bindings")


def test_tensorrt_11_has_everything_we_use(tensorrt):
    assert tensorrt["version"].startswith("11.")
    assert tensorrt["common"] == []
    assert tensorrt["levels"] == []


def test_tensorrt_rtx_has_everything_we_use(rtx):
    assert rtx["version"].startswith("1.7.")
    assert rtx["common"] == rtx["rtx_only"] == []
    assert tuple(rtx["architectures"]) == RTX_ARCHITECTURES


def test_what_only_rtx_has_is_missing_from_tensorrt(tensorrt):
    assert tensorrt["rtx_only"] == [
        "IBuilderConfig.num_compute_capabilities does not exist",
        "IBuilderConfig.set_compute_capability does not exist",
        "IExecutionContext.is_stream_capturable does not exist",
        "IRuntimeConfig.create_runtime_cache does not exist",
        "IRuntimeConfig.set_runtime_cache does not exist",
        "IRuntimeCache does not exist",
        "ComputeCapability does not exist",
    ]


def test_a_wrong_name_keyword_or_argument_in_the_declarations_is_found(tensorrt, rtx):
    for found in (tensorrt["planted"], rtx["planted"]):
        assert found == [
            "IBuilderConfig.int8_calibrator does not exist",
            "IBuilderConfig.create_netwrok does not exist",
            "IBuilderConfig.create_timing_cache takes [['serialized_timing_cache']], we pass ['cache']",
            "IBuilderConfig.set_flag takes [['flag']], we pass ['flag', 'value']",
            "Bulider does not exist",
        ]


def test_a_wrong_name_or_argument_in_our_code_is_found(tmp_path):
    """By mypy, as part of `make check`."""
    code = tmp_path / "planted.py"
    code.write_text(
        "from engines.backends.tensorrt.api import Bindings, Builder, IBuilderConfig\n\n\n"
        "def build(trt: Bindings, builder: Builder, config: IBuilderConfig) -> None:\n"
        "    builder.create_netwrok(0)\n"
        "    config.set_timing_cache(config.create_timing_cache(b''), ignore=False)\n"
        "    config.set_flag(trt.BuilderFlag.INT8)\n"
    )
    # Without the stubs of NumPy and its like, which take most of the time and say nothing of this.
    options = ["--strict", "--config-file", "", "--cache-dir", str(tmp_path)]
    options += ["--no-site-packages", "--ignore-missing-imports"]
    report, _, code_of_mypy = mypy.run([*options, "--explicit-package-bases", str(code)])
    assert code_of_mypy == 1
    for words in (
        '"Builder" has no attribute "create_netwrok"',
        '"ignore"',
        '"BuilderFlag" has no attribute "INT8"',
    ):
        assert words in report
