import ast
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from onnx import TensorProto
from onnx.helper import tensor_dtype_to_np_dtype

from export.dtypes import DTYPES, FROM_SAFETENSORS, GRAPH_DTYPES, num_bytes, numpy_dtype, onnx_dtype
from export.weights.stored import ir_dtype

ROOT = Path(__file__).resolve().parents[2]
FOREIGN_NAMES = {
    "engines/backends/tensorrt/description.py",  # TensorRT's enum
    "engines/serving/triton/interface.py",  # Triton's
    "examples/random_checkpoint.py",  # written apart from the product, which reads what it writes
}
NUMBERS_BY_DTYPE = {"engines/backends/onnxruntime_cuda/backend.py", "validate/bisect/search.py"}


@pytest.mark.parametrize("name", DTYPES)
def test_a_name_means_the_same_dtype_to_every_library(name):
    array_dtype = numpy_dtype(name)
    assert tensor_dtype_to_np_dtype(onnx_dtype(name)) == array_dtype
    assert array_dtype.name == name
    assert ir_dtype(name).numpy() == array_dtype
    assert ir_dtype(name).bitwidth == DTYPES[name].bits
    assert TensorProto.DataType.Name(onnx_dtype(name)) == DTYPES[name].onnx == ir_dtype(name).name


@pytest.mark.parametrize("name", [name for name in DTYPES if name != "int4"])  # PyTorch computes in no int4
def test_a_name_is_pytorchs(name):
    assert getattr(torch, name).itemsize * 8 == DTYPES[name].bits


@pytest.mark.parametrize("stored", FROM_SAFETENSORS)
def test_a_header_names_what_the_safetensors_package_names_so(stored):
    from safetensors.torch import _TYPES

    assert _TYPES[stored] == getattr(torch, FROM_SAFETENSORS[stored])


def test_values_of_less_than_a_byte_lie_packed():
    assert num_bytes("int4", 6) == 3
    assert num_bytes("int4", 7) == 4
    assert num_bytes("bfloat16", 7) == 14
    assert num_bytes("float32", 0) == 0


def test_numpy_reads_files_little_endian():
    assert np.frombuffer(b"\x00\x00\x80\x3f", numpy_dtype("float32")) == [1]
    assert np.frombuffer(b"\x80\x3f", numpy_dtype("bfloat16")).tolist() == [ml_dtypes.bfloat16(1)]


def tables_of_dtypes(path: Path) -> list[int]:
    """The lines of dictionaries that map from or to names of dtypes."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = set(GRAPH_DTYPES)
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Dict)
        and len(names & {item.value for item in (*node.keys, *node.values) if isinstance(item, ast.Constant)})
        > 1
    ]


def test_no_second_table_of_dtypes_stands_anywhere():
    folders = ("export", "engines", "plugins", "validate", "qv_export", "examples", "benchmarks")
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    found = {str(path.relative_to(ROOT)) for path in paths if tables_of_dtypes(path)}
    assert found == FOREIGN_NAMES | NUMBERS_BY_DTYPE
