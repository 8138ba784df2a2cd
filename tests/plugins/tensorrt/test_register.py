"""NVIDIA's own bindings, on link stubs, take our plugins (see `tests/plugins/tensorrt/tensorrt_stubs.py`)."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.plugins.tensorrt.tensorrt_stubs import build_stubs, missing_packages

if missing := missing_packages():
    pytest.skip(f"needs {', '.join(missing)}: pip install 'qv-export[dev]'", allow_module_level=True)
if not shutil.which("gcc"):
    pytest.skip("needs gcc for three link stubs", allow_module_level=True)

from plugins.registry import CACHED_ATTENTION_COMBINE, CACHED_ATTENTION_PARTIALS, PATCH_ATTENTION, ROTARY
from plugins.tensorrt import ptx

REPOSITORY = Path(__file__).resolve().parents[3]

REQUESTS = [
    {
        "name": "QvRotary",
        "types": ["BF16", "BF16", "INT32", "FLOAT", "INT32"],
        "shapes": [[1001, 28, 128], [1001, 4, 128], [3, 1001], [64], [64]],
    },
    {
        "name": "QvPatchAttention",
        "types": ["BF16", "BF16", "BF16", "INT32", "INT32"],
        "shapes": [[1001, 16, 80], [1001, 16, 80], [1001, 16, 80], [8], [300]],
    },
    {
        "name": "QvPatchAttention",
        "types": ["FLOAT", "FLOAT", "FLOAT", "INT32", "INT32"],
        "shapes": [[64, 16, 80], [64, 16, 80], [64, 16, 80], [2], [64]],
    },
    {
        "name": "QvCachedAttentionPartials",
        "types": ["BF16", "BF16", "BF16", "INT32", "INT32"],
        "shapes": [[3, 5, 12, 128], [3, 2, 4096, 128], [3, 2, 4096, 128], [3], [3]],
        "dynamic": [[0, 1], [0], [0], [0], [0], [0, 1, 3], [0, 1, 3]],
    },
    {
        "name": "QvCachedAttentionCombine",
        "types": ["BF16", "FLOAT", "FLOAT", "INT32"],
        "shapes": [[3, 5, 12, 128], [3, 5, 12, 13, 128], [3, 5, 12, 13], [3]],
        "dynamic": [[0, 1], [0, 1, 3], [0, 1, 3], [0], [0, 1]],
    },
]


@pytest.fixture(scope="module")
def contract(tmp_path_factory):
    directory = tmp_path_factory.mktemp("stubs")
    build_stubs(directory)
    paths = [str(directory), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    result = subprocess.run(
        [sys.executable, "-m", "tests.plugins.tensorrt.bindings_contract", json.dumps(REQUESTS)],
        cwd=REPOSITORY,
        env={**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return json.loads(result.stdout.splitlines()[-1])


def test_nvidias_bindings_take_our_plugins_and_only_ops_that_have_one(contract):
    assert contract["version"].startswith("11.")
    plugins = [ROTARY, PATCH_ATTENTION, CACHED_ATTENTION_PARTIALS, CACHED_ATTENTION_COMBINE]
    assert contract["registered"] == [signature.name for signature in plugins]
    assert "in a new process" in contract["refusal"]
    rotary, patches, small, partials, combine = contract["calls"]
    assert rotary["output_types"] == ["BF16", "BF16"]
    assert rotary["output_shapes"] == [[1001, 28, 128], [1001, 4, 128]]
    assert patches["output_types"] == ["BF16"]
    assert patches["output_shapes"] == [[1001, 16, 80]]
    assert small["output_types"] == ["FLOAT"]
    # 12 heads of 5 tokens; 64 splits for one token are 13 for 5.
    assert partials["output_types"] == ["FLOAT", "FLOAT"]
    assert partials["output_shapes"] == [[3, 5, 12, 13, 128], [3, 5, 12, 13]]
    assert (combine["output_types"], combine["output_shapes"]) == (["BF16"], [[3, 5, 12, 128]])
    # float32, float16 and bfloat16, each with its tactics.
    assert [call["combinations"] for call in contract["calls"]] == [3, 3, 3, 3, 3]
    four, one = list("1234"), ["1"]
    assert [list(call["tactics"]) for call in contract["calls"]] == [four, four, one, four, one]


def test_every_kernel_takes_inputs_then_int32_scalars_then_outputs(contract):
    for request, call in zip(REQUESTS, contract["calls"], strict=True):
        for tactic in call["tactics"].values():
            assert tactic["scalars_are_int32"]
            expected = ["pointer"] * len(request["shapes"])
            expected += ["u32"] * len(tactic["scalars"])
            expected += ["pointer"] * len(call["output_shapes"])
            assert ptx.parameter_types(tactic["ptx"]) == expected
            assert f".entry {tactic['kernel']}(" in tactic["ptx"]


def test_launch_dims_are_what_the_launcher_computes_from_numbers(contract):
    from plugins.patch_attention import kernel as patch_attention
    from plugins.rotary import kernel as rotary

    calls = contract["calls"]
    for tile, tactic in zip(rotary.TILES, calls[0]["tactics"].values(), strict=True):
        constants = rotary.kernel_constants(28, 4, 128, tile)
        assert tactic["launch"]["grid_x"] == rotary.num_programs(1001, constants)
        assert tactic["launch"]["block_x"] == 32 * tile.num_warps
        assert tactic["scalars"] == [1001]
    for choice, tactic in zip(patch_attention.tiles(80, 2), calls[1]["tactics"].values(), strict=True):
        sizes = patch_attention.kernel_constants(16, 80, choice)
        assert tactic["launch"]["grid_x"] == patch_attention.num_programs(1001, 7, sizes)
        assert tactic["launch"]["grid_y"] == 16
        assert tactic["launch"]["block_x"] == 32 * choice.num_warps
        assert 0 < tactic["launch"]["shared_mem"] <= ptx.MAX_LAUNCH_SHARED_BYTES
        assert tactic["scalars"] == [7]


def test_launches_of_cached_attention_are_what_the_launcher_computes_from_numbers(contract):
    from plugins.cached_attention import kernel

    partials, combine = contract["calls"][3:]
    for tile, tactic in zip(kernel.tiles(2), partials["tactics"].values(), strict=True):
        launch = tactic["launch"]
        grid = kernel.partials_grid(3, 5, 12, 2, tile)
        assert grid == (launch["grid_x"], launch["grid_y"], launch["grid_z"])
        assert grid[1:] == (13, 6)
        assert launch["block_x"] == 32 * tile.num_warps
        assert 0 < launch["shared_mem"] <= ptx.MAX_LAUNCH_SHARED_BYTES
        assert tactic["scalars"] == [5, 4096, 13]
    (tactic,) = combine["tactics"].values()
    assert tactic["launch"]["grid_x"] == 3 * 5 * 12
    assert tactic["scalars"] == [5, 13]


def test_the_embedded_ptx_assembles_for_the_gpu_it_was_asked_for(contract):
    for call in contract["calls"]:
        tactic = call["tactics"]["1"]
        kernel = ptx.CompiledKernel(tactic["kernel"], tactic["ptx"], 4, tactic["launch"]["shared_mem"])
        assert ptx.assemble(kernel, 90).registers > 0
