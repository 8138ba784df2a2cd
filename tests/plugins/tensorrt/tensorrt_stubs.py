"""Imports NVIDIA's TensorRT bindings on a machine without a driver.

PyPI has the bindings (`tensorrt-cu13-bindings`) and the lean runtime, not the builder and the parser that the
bindings link to. Three small objects stand in for those: the real registry comes from the lean runtime, what
would build or parse returns nothing. Quick-deployable plugins then register in NVIDIA's own registry.
"""

import subprocess
from importlib.util import find_spec
from pathlib import Path

SOURCES = {
    "libnvinfer.so.11": """
        void* createInferBuilder_INTERNAL(void* logger, int version) { return 0; }
        void* getBuilderPluginRegistry(int capability) { return 0; }
    """,
    "libnvinfer_plugin.so.11": "int initLibNvInferPlugins(void* logger, char const* space) { return 1; }",
    "libnvonnxparser.so.11": """
        void* createNvOnnxParser_INTERNAL(void* network, void* logger, int version) { return 0; }
        void* createNvOnnxParserRefitter_INTERNAL(void* refitter, void* logger, int version) { return 0; }
        int getNvOnnxParserVersion(void) { return 0; }
    """,
}


def missing_packages() -> list[str]:
    """Distributions that the contract test needs and this environment lacks."""
    modules = {
        "triton": "triton",
        "tensorrt_bindings": "tensorrt-cu13-bindings",
        "tensorrt_lean_libs": "tensorrt-lean-cu13-libs",
    }
    return [package for module, package in modules.items() if find_spec(module) is None]


def build_stubs(directory: Path) -> None:
    """Compile the three objects into a directory for LD_LIBRARY_PATH."""
    spec = find_spec("tensorrt_lean_libs")
    assert spec
    assert spec.submodule_search_locations
    lean = Path(next(iter(spec.submodule_search_locations)))
    for name, source in SOURCES.items():
        command = ["gcc", "-shared", "-fPIC", "-w", "-x", "c", "-", f"-Wl,-soname,{name}", "-o"]
        command.append(str(directory / name))
        if name == "libnvinfer.so.11":  # the real registry and runtime, found through this object
            command += ["-Wl,--no-as-needed", f"-L{lean}", "-l:libnvinfer_lean.so.11", f"-Wl,-rpath,{lean}"]
        subprocess.run(command, input=source, text=True, check=True)
