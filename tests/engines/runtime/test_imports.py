import subprocess
import sys
from pathlib import Path

import pytest

RUNTIME = Path(__file__).parents[3] / "engines" / "runtime"
PATHS = sorted(path.relative_to(RUNTIME.parents[1]) for path in RUNTIME.rglob("[!_]*.py"))
MODULES = ["engines.session", *(".".join(path.with_suffix("").parts) for path in PATHS)]


def test_the_list_of_modules_is_that_of_the_folder():
    assert {"engines.runtime.generate", "engines.runtime.tokens.sampling"} <= set(MODULES)
    assert len(MODULES) >= 7


@pytest.mark.parametrize("heavy", ["torch", "transformers", "onnxruntime", "PIL", "av", "jinja2"])
def test_the_runtime_imports_nothing_heavy_in_a_fresh_interpreter(loaded_modules, heavy):
    assert heavy not in loaded_modules


@pytest.fixture(scope="module")
def loaded_modules() -> set[str]:
    """Top-level names that importing the whole runtime loads."""
    program = f"import sys, {', '.join(MODULES)}; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=RUNTIME.parents[1], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert "numpy" in loaded
    return loaded
