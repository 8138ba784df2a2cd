"""The driver's calls, against a stand-in for libcuda that writes down what it is given."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="PTX comes from Triton: pip install 'qv-export[dev]'")
if not shutil.which("gcc"):
    pytest.skip("needs gcc for a stand-in of libcuda", allow_module_level=True)

REPOSITORY = Path(__file__).resolve().parents[3]

# cuLaunchKernel reads parameters as the rotary kernel is declared: five pointers, an int32, two pointers.
LIBCUDA = r"""
#include <stdio.h>
#include <string.h>
int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int* version) { *version = 13000; return 0; }
int cuDeviceGet(int* device, int ordinal) { *device = ordinal; return 0; }
int cuDeviceGetAttribute(int* value, int attribute, int device) { *value = attribute == 75 ? 9 : 0; return 0; }
int cuGetErrorString(int error, char const** text) { *text = "invalid PTX"; return 0; }
int cuModuleLoadDataEx(void** module, char const* ptx, unsigned n, int* options, void** values) {
    if (!strstr(ptx, ".entry")) {
        int has_log = n == 2 && options[0] == 5 && options[1] == 6 && (long)values[1] > 100;
        if (has_log) strcpy(values[0], "line 1: no entry");
        return 218;
    }
    *module = (void*)77;
    return 0;
}
int cuModuleGetFunction(void** function, void* module, char const* name) {
    *function = module == (void*)77 && !strcmp(name, "qv_rotary") ? (void*)88 : 0;
    return *function ? 0 : 500;
}
int cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void* stream, void** parameters, void** extra) {
    printf("[%ld, [%u, %u, %u], [%u, %u, %u], ", (long)function, gx, gy, gz, bx, by, bz);
    printf("%u, %ld, [", shared, (long)stream);
    for (int i = 0; i < 8; i++) {
        long value = i == 5 ? *(int*)parameters[i] : *(long*)parameters[i];
        printf("%s%ld", i ? ", " : "", value);
    }
    printf("], %d]\n", extra != 0);
    fflush(stdout);
    return 0;
}
"""

PROGRAM = """
import json
import torch
from plugins.tensorrt import cuda_driver
from plugins.tensorrt import launch_ptx
from plugins.tensorrt.ptx import CompiledKernel
from plugins.rotary.kernel import TILES

assert (cuda_driver.driver_cuda_version(), cuda_driver.compute_capability()) == ("13.0", 90)
q, k = torch.zeros(100, 16, 80, dtype=torch.bfloat16), torch.zeros(100, 16, 80, dtype=torch.bfloat16)
positions = torch.zeros(2, 100, dtype=torch.int32)
inputs = [q, k, positions, torch.zeros(40), torch.zeros(40, dtype=torch.int32)]
launch = launch_ptx.rotary_launch(inputs, TILES[0], 90, "13.0")
addresses = [[x.data_ptr() for x in tensors] for tensors in (launch.inputs, launch.outputs)]
launch.load().launch(launch.grid, addresses[0], launch.scalars, addresses[1], 2**40 + 5)
print(json.dumps([*addresses[0], 100, *addresses[1]]))
try:
    cuda_driver.load_kernel(CompiledKernel("broken", "nothing", 4, 0))
except RuntimeError as error:
    print(json.dumps(str(error)))
"""


def test_a_launch_passes_pointers_the_scalar_and_the_stream_as_the_kernel_declares_them(tmp_path):
    library = tmp_path / "libcuda.so.1"
    command = ["gcc", "-shared", "-fPIC", "-w", "-x", "c", "-", "-o", str(library)]
    subprocess.run(command, input=LIBCUDA, text=True, check=True)
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=REPOSITORY,
        env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    launched, expected, refusal = map(json.loads, result.stdout.splitlines())
    function, grid, block, shared, stream, parameters, has_extra = launched
    assert function == 88
    assert grid == [7 * 8, 1, 1]  # 100 tokens by 16; 16 + 16 heads by 4
    assert block == [128, 1, 1]
    assert shared == 4096
    assert stream == 2**40 + 5
    assert parameters == expected
    assert has_extra == 0
    assert refusal == "loading broken: line 1: no entry: CUDA error 218, invalid PTX"


def test_a_machine_without_a_driver_is_told_so():
    from plugins.tensorrt import cuda_driver

    if shutil.which("nvidia-smi"):
        pytest.skip("this machine has a driver")
    with pytest.raises(RuntimeError, match=r"no CUDA driver here: libcuda\.so\.1"):
        cuda_driver.driver()
