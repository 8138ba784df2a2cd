import math

import pytest

from tests.plugins.interpreted import UNIT_ROUNDOFF, failures, run_interpreted

pytest.importorskip("triton", reason="the kernels are Triton's: pip install 'qv-export[dev]'")

# Error over the largest |v|, as for `QvPatchAttention`: the weights are rounded before they meet the values, and the
# result is; partial results and their combination are float32.
TOLERANCES = {
    "float32": 8 * UNIT_ROUNDOFF["float32"],
    "float16": 2 * UNIT_ROUNDOFF["float16"],
    "bfloat16": 2 * UNIT_ROUNDOFF["bfloat16"],
}


def check(cases):
    results = run_interpreted("cached_attention", cases)
    assert not failures(cases, results, TOLERANCES)
    return results


def test_decode_attends_like_float64_at_lengths_around_every_border_of_spans_and_blocks():
    common = {"heads": [6, 2], "head_dim": 128, "capacity": 300}
    check(
        [
            {**common, "lengths": [1, 63, 64, 65], "dtype": "bfloat16", "tile": 0},
            {**common, "lengths": [129, 2, 32], "dtype": "bfloat16", "tile": 1},
            {**common, "lengths": [128, 33], "dtype": "float16"},
            {**common, "lengths": [17, 299], "dtype": "float32"},
        ]
    )


@pytest.mark.parametrize(
    ("length", "capacity"),
    [
        (1000, 131_072),
        pytest.param(40_000, 40_960, marks=pytest.mark.slow),  # splits of ten blocks, and one of one
    ],
)
def test_decode_attends_like_float64_in_splits_of_many_blocks_and_in_a_large_cache(length, capacity):
    lengths = [length] if length < 10_000 else [length, 7]
    check([{"heads": [6, 1], "head_dim": 128, "dtype": "bfloat16", "lengths": lengths, "capacity": capacity}])


@pytest.mark.parametrize("groups", [(1, 6), pytest.param((2, 3, 4, 5, 7, 8), marks=pytest.mark.slow)])
def test_groups_of_one_to_eight_query_heads_attend_like_float64(groups):
    sizes = [(64, "float16"), (72, "bfloat16"), (80, "float16"), (96, "bfloat16"), (112, "float32")]
    cases = []
    for group in groups:
        head_dim, dtype = sizes[group % len(sizes)]
        case = {"heads": [2 * group, 2], "head_dim": head_dim, "dtype": dtype}
        cases += [{**case, "lengths": [70]}, {**case, "lengths": [20, 5], "queries": [6, 1]}]
    check(cases)


@pytest.mark.parametrize("tiles", [(0, 1), pytest.param((3, 2), marks=pytest.mark.slow)])
def test_prefill_and_chunks_of_ragged_rows_attend_like_float64_with_every_tile(tiles):
    prompts = {"lengths": [24, 17, 1], "queries": [24, 17, 1]}  # into empty caches
    chunks = {"lengths": [150, 70, 64], "queries": [24, 1, 13]}  # rows of another end than their neighbours
    common = {"heads": [3, 1], "head_dim": 128, "dtype": "bfloat16"}
    cases = [{**common, **rows, "tile": tile} for rows, tile in zip((prompts, chunks), tiles, strict=True)]
    if 0 in tiles:
        cases.append({**common, "lengths": [40, 9], "queries": [9, 9], "dtype": "float32"})
    check(cases)


@pytest.mark.slow
def test_scores_far_from_zero_and_near_it_attend_like_float64():
    common = {"heads": [4, 2], "head_dim": 64, "lengths": [150, 5], "queries": [1, 1]}
    check(
        [
            {**common, "dtype": "float32", "scale": 1e-3},
            {**common, "dtype": "float16", "scale": 64},  # scores in the hundreds: one key takes all
            {**common, "dtype": "bfloat16", "scale": 64},
        ]
    )


def test_every_valid_key_lies_in_exactly_one_split_and_no_more_splits_work_than_the_length_fills():
    from hypothesis import given
    from hypothesis import strategies as st

    from plugins.cached_attention import kernel

    @given(st.integers(1, 131_072), st.integers(1, 4096))
    def check_cover(length, queries):
        splits = kernel.num_splits(queries)
        assert 1 <= splits <= kernel.MAX_SPLITS
        assert splits * queries < kernel.MAX_SPLITS + queries
        span = math.ceil(math.ceil(length / splits) / kernel.SPAN_KEYS) * kernel.SPAN_KEYS  # `_span_of`
        used = -(-length // span)
        assert used <= splits
        ends = [min((split + 1) * span, length) for split in range(splits) if split * span < length]
        assert len(ends) == used
        assert ends[-1] == length
        assert all(span % tile.keys == 0 for size in (2, 4) for tile in kernel.tiles(size))

    check_cover()


def test_a_launch_names_everything_that_is_wrong_with_its_tensors():
    import torch

    from plugins.cached_attention import kernel

    q, key = torch.zeros(2, 1, 5, 132, dtype=torch.float64), torch.zeros(1, 2, 200_000, 132)
    with pytest.raises(ValueError, match="QvCachedAttention") as error:
        kernel.launch(q, key, key, torch.zeros(3), torch.tensor([1, 1]))
    for part in (
        "share B and D",
        "D must be a multiple of 8",
        "H must be 1 to 16 times K",
        "L must be",
        "float64",
    ):
        assert part in str(error.value)
    assert "write_index must be [B]" in str(error.value)


def test_decode_gets_few_rows_and_prefill_many():
    from plugins.cached_attention import kernel

    assert kernel.choose_tile(2, num_rows=6).rows == 16
    assert kernel.choose_tile(2, num_rows=17).rows == 64
    assert kernel.choose_tile(2, num_rows=5000).rows == 64
    assert kernel.choose_tile(4, num_rows=5000).rows == 16


def test_the_torch_op_has_a_schema_a_cpu_body_and_shapes_without_data():
    import torch

    from plugins.cached_attention import reference
    from plugins.cached_attention.op import cached_attention

    q, k, v = torch.randn(2, 3, 6, 64), torch.randn(2, 3, 2, 64), torch.randn(2, 3, 2, 64)
    past_key, past_value = torch.randn(2, 2, 2, 9, 64)
    places = (torch.tensor([4, 0]), torch.tensor([7, 3]))
    torch.library.opcheck(
        torch.ops.qv.attend_to_cache.default,
        (q, past_key, past_value, *places),
        test_utils=("test_schema", "test_faketensor"),
    )
    attended, key, value = cached_attention(q, k, v, past_key, past_value, *places)
    assert torch.equal(torch.ops.qv.attend_to_cache(q, key, value, *places), attended)
    assert torch.equal(reference.attend(q, key, value, *places), attended)
