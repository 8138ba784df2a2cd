import os
import sys

import pytest

from tests.plugins.interpreted import UNIT_ROUNDOFF, failures, run_interpreted

pytest.importorskip("triton", reason="the kernels are Triton's: pip install 'qv-export[dev]'")

# Error over the radius of the rotated pair. float16 and bfloat16 round the result once, so it is half a unit in the
# last place. In float32 sine, cosine and three operations round; 2.5 units were seen.
TOLERANCES = {
    "float32": 4 * UNIT_ROUNDOFF["float32"],
    "float16": 1.01 * UNIT_ROUNDOFF["float16"],
    "bfloat16": 1.01 * UNIT_ROUNDOFF["bfloat16"],
}
MROPE = {"head_dim": 128, "axes": 3, "max_position": 120_000}
VISION = {"heads": [16, 16], "head_dim": 80, "axes": 2, "max_position": 2000}


def check(cases):
    assert not failures(cases, run_interpreted("rotary", cases), TOLERANCES)


def test_rotates_like_float64_with_the_head_ratios_of_2b_7b_and_72b_up_to_position_120000():
    ratios = {"2B": [12, 2], "7B": [28, 4], "72B": [64, 8]}
    cases = [
        {"heads": heads, "tokens": tokens, "dtype": dtype, **MROPE}
        for heads, tokens, dtype in [
            (ratios["2B"], 33, "float32"),
            (ratios["2B"], 17, "bfloat16"),
            (ratios["7B"], 19, "bfloat16"),
            (ratios["7B"], 5, "float16"),
            (ratios["72B"], 3, "float32"),
            (ratios["72B"], 1, "bfloat16"),
        ]
    ]
    check(cases)


@pytest.mark.slow
def test_rotates_like_float64_for_patches_odd_heads_and_head_sizes():
    cases = [
        *(
            {"tokens": tokens, "dtype": dtype, **VISION}
            for tokens, dtype in [(49, "bfloat16"), (1, "float32")]
        ),
        *({"tokens": 37, "dtype": "float16", "tile": tile, **VISION} for tile in range(4)),
        {"tokens": 9, "heads": [5, 3], "head_dim": 16, "axes": 1, "max_position": 7, "dtype": "float32"},
        {"tokens": 9, "heads": [1, 1], "head_dim": 40, "axes": 4, "max_position": 70, "dtype": "bfloat16"},
        {"tokens": 9, "heads": [7, 1], "head_dim": 256, "axes": 3, "max_position": 7, "dtype": "float16"},
    ]
    check(cases)


@pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="looks at what launches would be refused for")
def test_a_launch_names_everything_that_is_wrong_with_its_tensors():
    import torch

    from plugins.rotary import kernel

    q, k = torch.zeros(4, 2, 15), torch.zeros(4, 2, 15, dtype=torch.float16)
    positions, frequencies = torch.zeros(3, 5, dtype=torch.int32), torch.zeros(8)
    with pytest.raises(ValueError, match="QvRotary") as error:
        kernel.launch(q, k, positions, frequencies, torch.zeros(7))
    for part in ("even", "positions must be [A, 4]", "frequencies must be [7]", "float16", "int32"):
        assert part in str(error.value)


def test_the_torch_op_has_a_schema_a_cpu_body_and_shapes_without_data():
    import torch

    from plugins.rotary import reference
    from plugins.rotary.op import rotary

    q, k = torch.randn(6, 4, 32), torch.randn(6, 2, 32)
    positions = torch.randint(0, 99, (3, 6), dtype=torch.int32)
    inputs = (q, k, positions, torch.rand(16), torch.randint(0, 3, (16,), dtype=torch.int32))
    torch.library.opcheck(torch.ops.qv.rotary.default, inputs)
    for result, expected in zip(
        torch.ops.qv.rotary(*inputs), reference.rotary_reference(*inputs), strict=True
    ):
        assert torch.equal(result, expected)
    rotated, _ = rotary(q.requires_grad_(), *inputs[1:])
    rotated.square().sum().backward()
    # A rotation keeps lengths, so the gradient of the squared length is 2 q.
    torch.testing.assert_close(q.grad, 2 * q.detach())


def test_importing_the_op_does_not_import_triton():
    import subprocess

    program = "import sys, plugins.rotary.op, plugins.patch_attention.op; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
