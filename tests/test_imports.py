import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = (
    "torch",
    "transformers",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "onnxruntime",
    "numpy",
    "av",
    "PIL",
    "rich",
)


def modules_below(folder: str) -> list[str]:
    """Every module of a package, so that one added later is tested too."""
    paths = sorted((ROOT / folder).rglob("*.py"))
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]
    return [name.removesuffix(".__init__") for name in names]


SERVER_MODULES = [
    *modules_below("export/processor"),
    *modules_below("engines"),
    *modules_below("export/checkpoint/tensors"),
    *modules_below("export/records"),
    *(
        "export.bundle",
        "export.contract",
        "export.errors",
        "export.models.qwen2_vl.family",
        "export.models.qwen2_vl.positions",
    ),
    *(name for name in modules_below("plugins") if name.endswith(".onnx_functions")),
]


def modules_loaded_by(code: str) -> set[str]:
    """Top-level modules in a fresh interpreter after running `code`."""
    report = "\nimport json, sys\nprint(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    done = subprocess.run(
        [sys.executable, "-c", code + report], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_what_runs_inside_a_server_imports_no_torch() -> None:
    assert {"engines.session", "engines.runtime.generate", "export.processor.processor"} <= set(
        SERVER_MODULES
    )
    # Triton's own module exists inside of its server alone.
    backend = "import sys, types\nsys.modules['triton_python_backend_utils'] = types.ModuleType('backend')\n"
    loaded = modules_loaded_by(backend + "".join(f"import {name}\n" for name in SERVER_MODULES))
    assert "numpy" in loaded
    assert not loaded & {"torch", "transformers", "onnxscript"}


@pytest.mark.parametrize(
    "module", ["export.bundle", "export.checkpoint.config", "export.contract", "export.errors"]
)
def test_the_bundle_and_the_contract_import_nothing_heavy(module: str) -> None:
    assert not modules_loaded_by(f"import {module}") & set(HEAVY)


@pytest.mark.parametrize("command", [[], ["export"], ["build"], ["run"], ["inspect"], ["doctor"]])
def test_help_imports_nothing_heavy(command: list[str]) -> None:
    code = (
        f"from qv_export.cli import run_command_line\nassert run_command_line({[*command, '--help']!r}) == 0"
    )
    loaded = modules_loaded_by(code)
    assert "click" in loaded
    assert not loaded & set(HEAVY)


@pytest.mark.parametrize("package", ["engines", "export", "plugins", "qv_export", "validate"])
def test_a_package_says_nothing_but_its_docstring_when_imported(package: str) -> None:
    public = [name for name in vars(importlib.import_module(package)) if not name.startswith("_")]
    submodules = {path.stem for path in (ROOT / package).iterdir()}
    assert set(public) <= submodules
