import pytest

from tests.plugins.interpreted import UNIT_ROUNDOFF, failures, run_interpreted

pytest.importorskip("triton", reason="the kernels are Triton's: pip install 'qv-export[dev]'")

# Error over the largest |v| of the segment. float16 and bfloat16 round twice: the softmax's weights, which sum to one,
# before they meet the values, and the result. float32 rounds scores of up to 5 in size, and sums of a few hundred.
TOLERANCES = {
    "float32": 8 * UNIT_ROUNDOFF["float32"],
    "float16": 2 * UNIT_ROUNDOFF["float16"],
    "bfloat16": 2 * UNIT_ROUNDOFF["bfloat16"],
}


def check(cases):
    assert not failures(cases, run_interpreted("patch_attention", cases), TOLERANCES)


@pytest.mark.parametrize("tiles", [(0, 3), pytest.param((1, 2), marks=pytest.mark.slow)])
def test_attends_like_float64_in_segments_of_any_length_and_every_tile(tiles):
    lengths = [4, 129, 1, 64, 67]  # one patch alone, a block and one patch, a block exactly
    cases = [{"tile": tile, "dtype": "bfloat16"} for tile in tiles]
    cases.append({"tile": 0, "dtype": "float32"} if 0 in tiles else {"tile": 1, "dtype": "float16"})
    check([{"lengths": lengths, "heads": 2, "head_dim": 80, **case} for case in cases])


@pytest.mark.slow
def test_attends_like_float64_with_one_segment_sixty_and_more_than_one_look_up_holds():
    cases = [
        {"lengths": [1], "heads": 2, "head_dim": 80},
        {"lengths": [300], "heads": 1, "head_dim": 80},
        {"lengths": [4, 16, 20] * 20, "heads": 1, "head_dim": 80},
        {"lengths": [1] * 130, "heads": 1, "head_dim": 32},
    ]
    check([{**case, "dtype": "bfloat16"} for case in cases])


@pytest.mark.slow
def test_attends_like_float64_for_head_sizes_from_32_to_128_and_scores_far_from_zero():
    sizes = [(32, "float16"), (40, "bfloat16"), (48, "float16"), (64, "bfloat16"), (72, "float16")]
    sizes += [(96, "float32"), (112, "bfloat16"), (128, "float16"), (128, "float32")]
    cases = [{"head_dim": head_dim, "dtype": dtype} for head_dim, dtype in sizes]
    cases.append({"head_dim": 80, "dtype": "float32", "scale": 1e-3})
    cases.append(
        {"head_dim": 80, "dtype": "float16", "scale": 16}
    )  # scores in the thousands: one key takes all
    check([{"lengths": [5, 66], "heads": 2, **case} for case in cases])


def test_an_image_of_nan_leaves_its_neighbours_alone():
    check(
        [
            {"lengths": [66, 9, 70], "heads": 1, "head_dim": 80, "dtype": "bfloat16", "poisoned": poisoned}
            for poisoned in range(3)
        ]
    )


def test_each_patch_of_any_row_is_attended_by_exactly_one_program():
    from hypothesis import given
    from hypothesis import strategies as st

    from plugins.patch_attention import kernel

    @given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.sampled_from([4, 16, 64]))
    def check_cover(lengths, queries):
        constants = kernel.kernel_constants(1, 80, kernel.Tile(queries, 16, 4, 1))
        starts = [sum(lengths[:i]) for i in range(len(lengths))]
        seen: list[int] = []
        for program in range(kernel.num_programs(sum(lengths), len(lengths), constants)):
            segment = sum(start // queries + i <= program for i, start in enumerate(starts)) - 1
            first = starts[segment] + (program - starts[segment] // queries - segment) * queries
            seen += range(first, min(first + queries, starts[segment] + lengths[segment]))
        assert seen == list(range(sum(lengths)))

    check_cover()


def test_a_launch_names_everything_that_is_wrong_with_its_tensors():
    import torch

    from plugins.patch_attention import kernel

    q, k = torch.zeros(8, 2, 84), torch.zeros(8, 2, 84, dtype=torch.float64)
    with pytest.raises(ValueError, match="QvPatchAttention") as error:
        kernel.launch(q, k, q, torch.tensor([0, 8]), torch.arange(8))
    for part in ("D must be a multiple of 8", "float64", "cu_seqlens must be", "segment_range must be"):
        assert part in str(error.value)


def test_small_images_get_small_tiles():
    from plugins.patch_attention import kernel

    choices = kernel.tiles(80, element_bytes=2)
    assert kernel._choose_tile(choices, 16_384).queries == 128
    assert kernel._choose_tile(choices, 100).queries == 64
    assert kernel._choose_tile(choices, 4).queries == 64


def test_the_torch_op_has_a_schema_a_cpu_body_and_shapes_without_data():
    import torch

    from plugins.patch_attention import reference
    from plugins.patch_attention.op import patch_attention

    q, k, v = torch.randn(3, 6, 4, 32)
    inputs = (q, k, v, torch.tensor([0, 2, 6], dtype=torch.int32), torch.arange(4, dtype=torch.int32))
    torch.library.opcheck(
        torch.ops.qv.patch_attention.default, inputs, test_utils=("test_schema", "test_faketensor")
    )
    assert torch.equal(torch.ops.qv.patch_attention(*inputs), reference.patch_attention_reference(*inputs))
    attended = patch_attention(q, k, v.requires_grad_(), *inputs[3:])
    attended.sum().backward()
    # Each query spreads a weight of one over its segment's values.
    assert v.grad is not None
    torch.testing.assert_close(v.grad[:2].sum(), torch.tensor(2.0 * 4 * 32))
