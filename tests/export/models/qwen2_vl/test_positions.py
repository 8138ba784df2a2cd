import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.checkpoint.config import config_from_json
from export.errors import UserError
from export.models.qwen2_vl.positions import cu_seqlens_from_grids, mrope_position_ids, patch_positions
from tests.support.mrope_rule import position_ids_by_the_paper

GOLDEN = Path(__file__).parents[3] / "support" / "mrope_golden_4_57_6.json"
# Ids unlike the published ones: none may be taken for granted.
CONFIG = replace(
    config_from_json(
        {
            "model_type": "qwen2_vl", "hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1,
            "intermediate_size": 64, "vocab_size": 152064, "rope_scaling": {"mrope_section": [4, 6, 6]},
        }
    ),
    image_token_id=7, video_token_id=9, vision_start_token_id=3, vision_end_token_id=4,
)  # fmt: skip
TOKEN_OF = {"t": 100, "i": 7, "v": 9}

grids = st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(1, 5)).map(
    lambda grid: (grid[0], 2 * grid[1], 2 * grid[2])
)
media = st.tuples(st.sampled_from("iv"), grids).map(lambda m: (m[0], (1, *m[1][1:]) if m[0] == "i" else m[1]))


@st.composite
def layouts(draw):
    """Token kinds and grids of a random conversation."""
    kinds, all_grids = "t" * draw(st.integers(0, 4)), []
    for kind, grid in draw(st.lists(media, max_size=4)):
        kinds += kind * (np.prod(grid) // 4) + "t" * draw(st.integers(0, 3))
        all_grids.append(grid)
    return kinds, all_grids


def token_ids_of(kinds):
    return np.array([TOKEN_OF[kind] for kind in kinds], dtype=np.int64)


@given(layouts())
def test_position_ids_equal_the_paper_s_rule(layout):
    kinds, all_grids = layout
    ids, delta = mrope_position_ids(token_ids_of(kinds), all_grids, CONFIG)
    expected, expected_delta = position_ids_by_the_paper(kinds, all_grids)
    assert ids.dtype == np.int32
    assert np.array_equal(ids, expected)
    assert delta == expected_delta


def test_position_ids_equal_transformers_4_57_6_on_recorded_layouts():
    cases = json.loads(GOLDEN.read_text())["cases"]
    for case in cases:
        kinds, all_grids = "", []
        for kind, size in case["parts"]:
            kinds += "t" * size if kind == "t" else "t" + kind * (np.prod(size) // 4) + "t"
            all_grids += [] if kind == "t" else [tuple(size)]
        for rule in (position_ids_by_the_paper, lambda k, g: mrope_position_ids(token_ids_of(k), g, CONFIG)):
            ids, delta = rule(kinds, all_grids)
            assert ids.tolist() == case["position_ids"]
            assert delta == case["delta"]
    assert len(cases) >= 20


def transformers_5_23_position_ids(kinds, all_grids):
    import torch
    from transformers import Qwen2VLConfig
    from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel

    model = Qwen2VLModel.__new__(Qwen2VLModel)
    torch.nn.Module.__init__(model)
    model.config = Qwen2VLConfig()
    types = torch.tensor([["tiv".index(kind) for kind in kinds]])
    in_order = [kind for kind, before in zip(kinds, "t" + kinds, strict=False) if kind not in {"t", before}]
    of_kind = {k: [g for g, kind in zip(all_grids, in_order, strict=True) if kind == k] for k in "iv"}
    images, videos = (torch.tensor(of_kind[kind]) if of_kind[kind] else None for kind in "iv")
    ids, delta = model.get_rope_index(types, types, images, videos)  # type: ignore[arg-type]
    return ids[:, 0].numpy(), int(delta)


def test_transformers_5_23_departs_from_the_paper_after_a_long_video_and_we_follow_the_paper():
    # One minute at 2 fps, 360 x 420: 30 steps of 26 x 30 patches. The next text must start one past the largest id
    # so far, which is the temporal one: 3 + 30. 5.23 looks at height and width only: 3 + 15, ids it already used.
    kinds, all_grids = "ttt" + "v" * (30 * 13 * 15) + "tt", [(30, 26, 30)]
    ours, delta = mrope_position_ids(token_ids_of(kinds), all_grids, CONFIG)
    theirs, their_delta = transformers_5_23_position_ids(kinds, all_grids)
    assert ours[:, -2:].tolist() == [[33, 34]] * 3
    assert theirs[:, -2:].tolist() == [[18, 19]] * 3
    assert np.array_equal(ours[:, :-2], theirs[:, :-2])
    assert (delta, their_delta) == (35 - len(kinds), 33 - len(kinds))
    assert np.array_equal(ours, position_ids_by_the_paper(kinds, all_grids)[0])


def test_transformers_5_23_agrees_where_no_video_is_longer_than_its_sides():
    kinds = "tt" + "i" * 12 + "tt" + "v" * 24 + "t"
    all_grids = [(1, 6, 8), (2, 6, 8)]
    ours, delta = mrope_position_ids(token_ids_of(kinds), all_grids, CONFIG)
    theirs, their_delta = transformers_5_23_position_ids(kinds, all_grids)
    assert np.array_equal(ours, theirs)
    assert delta == their_delta


@given(layouts(), st.integers(1, 50))
def test_text_in_front_shifts_all_ids_and_leaves_the_delta(layout, num_tokens):
    kinds, all_grids = layout
    ids, delta = mrope_position_ids(token_ids_of(kinds), all_grids, CONFIG)
    shifted, shifted_delta = mrope_position_ids(token_ids_of("t" * num_tokens + kinds), all_grids, CONFIG)
    assert np.array_equal(shifted[:, num_tokens:], ids + num_tokens)
    assert shifted_delta == delta


@pytest.mark.parametrize(
    ("kinds", "all_grids", "message"),
    [
        ("tiit", [(1, 2, 2)], "has 2 image and video tokens, but its 1 pictures and videos need 1"),
        ("tt", [(1, 2, 2)], "has 0 image and video tokens, but its 1 pictures and videos need 1"),
        ("tit", [], "has 1 image and video tokens, but its 0 pictures and videos need 0"),
        ("itit", [(1, 2, 4)], "2 equal placeholder tokens in a row"),
        ("ivt", [(2, 2, 2)], "2 equal placeholder tokens in a row"),
    ],
)
def test_placeholders_that_do_not_fit_are_an_error_with_both_counts(kinds, all_grids, message):
    with pytest.raises(UserError, match=message):
        mrope_position_ids(token_ids_of(kinds), all_grids, CONFIG)


def test_the_example_of_the_docstring_holds():
    ids, delta = mrope_position_ids(token_ids_of("tiiiiiitt"), [(1, 4, 6)], CONFIG)
    assert ids.tolist() == [
        [0, 1, 1, 1, 1, 1, 1, 4, 5],
        [0, 1, 1, 1, 2, 2, 2, 4, 5],
        [0, 1, 2, 3, 1, 2, 3, 4, 5],
    ]
    assert delta == -3
    assert patch_positions([(1, 2, 4)]).tolist() == [[0, 0, 1, 1, 0, 0, 1, 1], [0, 1, 0, 1, 2, 3, 2, 3]]
    assert cu_seqlens_from_grids([(1, 4, 6), (2, 2, 4)]).tolist() == [0, 24, 32, 40]


@given(st.lists(grids, max_size=4))
def test_segments_cover_the_patches_and_never_cross_a_temporal_step(all_grids):
    cu_seqlens = cu_seqlens_from_grids(all_grids)
    positions = patch_positions(all_grids)
    assert cu_seqlens.dtype == positions.dtype == np.int32
    assert cu_seqlens[0] == 0
    assert cu_seqlens[-1] == positions.shape[1] == sum(int(np.prod(grid)) for grid in all_grids)
    shapes = [grid[1:] for grid in all_grids for _ in range(grid[0])]
    assert len(cu_seqlens) == len(shapes) + 1
    for start, stop, (height, width) in zip(cu_seqlens, cu_seqlens[1:], shapes, strict=False):
        seen = set(map(tuple, positions[:, start:stop].T.tolist()))
        assert seen == {(row, column) for row in range(height) for column in range(width)}
        assert stop - start == height * width


@given(st.lists(grids, max_size=3), st.lists(grids, max_size=3))
def test_packing_is_concatenation(first, second):
    together = patch_positions(first + second)
    assert np.array_equal(together, np.concatenate([patch_positions(first), patch_positions(second)], axis=1))
    offsets = cu_seqlens_from_grids(first)
    expected = np.concatenate([offsets, offsets[-1] + cu_seqlens_from_grids(second)[1:]])
    assert np.array_equal(cu_seqlens_from_grids(first + second), expected)


@given(grids)
def test_positions_equal_the_vision_tower_s_of_transformers(grid):
    import torch
    from transformers.vision_utils import get_vision_position_ids

    theirs = get_vision_position_ids(torch.tensor([grid]), 2)
    assert np.array_equal(patch_positions([grid]).T, theirs.numpy())
