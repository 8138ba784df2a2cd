"""Layers that AutoAWQ and GPTQModel packed, and the numbers that they were given.

`foreign_layers.safetensors` was written by this file, run with the unpacked source distributions of both. Their
packages import kernels that need a GPU; their packing functions are taken out of their files and run as they are:

    python -m tests.support.foreign_layers autoawq-0.2.9 gptqmodel-7.7.0
"""

import ast
import contextlib
import importlib.util
import math
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FILE = Path(__file__).with_suffix(".safetensors")
NUM_OUTPUTS, NUM_INPUTS = 32, 32


@dataclass(frozen=True)
class Given:
    """What a tool was asked to pack: codes [N, K], zero points and scales [N, G], the group of each input [K]."""

    codes: np.ndarray[Any, Any]
    zeros: np.ndarray[Any, Any]
    scales: np.ndarray[Any, Any]
    groups: np.ndarray[Any, Any]

    def meant(self) -> np.ndarray[Any, Any]:
        """float32 [N, K]."""
        difference = self.codes.astype(np.float32) - self.zeros.astype(np.float32)[:, self.groups]
        return difference * self.scales.astype(np.float32)[:, self.groups]


@dataclass(frozen=True)
class Case:
    tool: str
    bits: int = 4
    group: int = 16
    is_ordered: bool = False
    is_first_version: bool = False
    is_symmetric: bool = False

    @property
    def name(self) -> str:
        words = [self.tool, f"int{self.bits}", f"group{self.group}"]
        flags = {"ordered": self.is_ordered, "v1": self.is_first_version, "sym": self.is_symmetric}
        return "_".join([*words, *(word for word, flag in flags.items() if flag)])

    def given(self) -> Given:
        random = np.random.default_rng(self.bits * 1000 + self.group)
        groups = np.arange(NUM_INPUTS) // self.group
        num_groups = NUM_INPUTS // self.group
        codes = random.integers(0, 2**self.bits, (NUM_OUTPUTS, NUM_INPUTS))
        zeros = random.integers(1, 2**self.bits, (NUM_OUTPUTS, num_groups))
        scales = (random.random((NUM_OUTPUTS, num_groups)) * 0.01 + 0.001).astype(np.float16)
        if self.is_symmetric:
            zeros[:] = 2 ** (self.bits - 1)
        if self.is_ordered:
            groups = groups[random.permutation(NUM_INPUTS)]
        return Given(codes, zeros, scales, groups)


CASES = (
    Case("autoawq"),
    Case("autoawq", group=32),
    Case("gptqmodel"),
    Case("gptqmodel", is_ordered=True),
    Case("gptqmodel", group=32, is_first_version=True),
    Case("gptqmodel", is_first_version=True, is_symmetric=True),
    Case("gptqmodel", is_first_version=True, is_ordered=True),
    Case("gptqmodel", bits=8, is_ordered=True, is_first_version=True),
    Case("gptqmodel", bits=8, group=32, is_first_version=True, is_symmetric=True),
)


def packed(case: Case) -> dict[str, np.ndarray[Any, Any]]:
    """A layer's tensors as the tool wrote them, by their part of the name."""
    from safetensors.numpy import load_file

    return {
        name.rpartition(".")[2]: values
        for name, values in load_file(FILE).items()
        if name.rpartition(".")[0] == case.name
    }


def _autoawq(source: Path) -> Any:
    """Its `WQLinear_GEMM`, without its kernels."""
    for name in ("awq", "awq.utils"):
        sys.modules[name] = types.ModuleType(name)
    module: Any = types.ModuleType("awq.utils.module")
    module.try_import = lambda name: (None, name)
    utils: Any = types.ModuleType("awq.utils.utils")
    utils.get_best_device = lambda: "cpu"
    sys.modules |= {"awq.utils.module": module, "awq.utils.utils": utils}
    _load("awq.utils.packing_utils", source / "awq/utils/packing_utils.py")
    return _load("awq_gemm", source / "awq/modules/linear/gemm.py").WQLinear_GEMM


def _load(name: str, path: Path) -> Any:
    found = importlib.util.spec_from_file_location(name, path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    found.loader.exec_module(module)
    return module


def _gptqmodel(source: Path) -> Any:
    """Its `pack_original`."""
    import torch
    from torch import nn

    text = (source / "gptqmodel/nn_modules/qlinear/__init__.py").read_text()
    functions = [
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef) and node.name == "pack_original"
    ]
    functions[0].decorator_list = []
    limits = types.SimpleNamespace(threadpool_limits=lambda _: contextlib.nullcontext())
    names: dict[str, Any] = {
        "t": torch, "np": np, "math": math, "nn": nn, "_ConvNd": nn.modules.conv._ConvNd, "THREADPOOLCTL": limits,
        "transformers": types.SimpleNamespace(pytorch_utils=types.SimpleNamespace(Conv1D=type("Conv1D", (), {}))),
    }  # fmt: skip
    exec(compile(ast.Module([functions[0]], []), "pack_original", "exec"), names)
    return names["pack_original"]


def main(autoawq: Path, gptqmodel: Path) -> None:
    import torch
    from safetensors.numpy import save_file

    gemm, pack_original = _autoawq(autoawq), _gptqmodel(gptqmodel)
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    for case in CASES:
        given = case.given()
        linear = torch.nn.Linear(NUM_INPUTS, NUM_OUTPUTS, bias=False)
        linear.weight.data = torch.from_numpy(given.meant())
        scales, zeros = torch.from_numpy(given.scales).float(), torch.from_numpy(given.zeros).float()
        if case.tool == "autoawq":
            layer = gemm.from_linear(
                linear, 4, case.group, False, scales.T.contiguous(), zeros.T.contiguous()
            )
            parts = {name: getattr(layer, name) for name in ("qweight", "qzeros", "scales")}
        else:
            layer = torch.nn.Module()
            settings: dict[str, Any] = {
                "bits": case.bits, "pack_dtype_bits": 32, "pack_factor": 32 // case.bits, "maxq": 2**case.bits - 1,
                "pack_np_math_dtype": np.uint32, "pack_np_dtype": np.int32, "pack_dtype": torch.int32, "planar": False,
                "in_features": NUM_INPUTS, "out_features": NUM_OUTPUTS,
            }  # fmt: skip
            for name, value in settings.items():
                setattr(layer, name, value)
            pack_original(layer, linear, scales, zeros, torch.from_numpy(given.groups.astype(np.int32)))
            if case.is_first_version:  # its convert_gptq_v2_to_v1_format_module
                layer.qzeros -= 0x11111111 if case.bits == 4 else 0x01010101  # type: ignore[operator, assignment]
            parts = {name: getattr(layer, name) for name in ("qweight", "qzeros", "scales", "g_idx")}
        tensors |= {
            f"{case.name}.{name}": np.ascontiguousarray(tensor.numpy()) for name, tensor in parts.items()
        }
    save_file(tensors, FILE)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
