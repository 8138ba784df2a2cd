from importlib.metadata import version

import pytest

from export.errors import UserError
from tests.support.reference_guard import known_faults, require_trustworthy


@pytest.mark.parametrize("bad", ["5.4.0", "5.4.2", "5.5.0", "5.5.3"])
def test_known_bad_versions_are_refused_by_name_whatever_the_caller_gives(bad):
    with pytest.raises(UserError, match=f"Transformers {bad}") as refusal:
        require_trustworthy(bad, positions_are_given=True)
    assert "transformers#" in str(refusal.value)
    assert "fixed in" in str(refusal.value)


@pytest.mark.parametrize("good", ["4.57.6", "5.3.9", "5.5.4"])
def test_versions_without_a_known_fault_pass(good):
    require_trustworthy(good, positions_are_given=False)


def test_the_installed_version_is_trusted_only_with_positions_given():
    """5.23's rule for long videos departs from the paper; the tests hand it the processor's positions."""
    installed = version("transformers")
    require_trustworthy(installed, positions_are_given=True)
    assert known_faults(installed)
    with pytest.raises(UserError, match="temporal steps"):
        require_trustworthy(installed, positions_are_given=False)


def test_the_fault_of_the_installed_version_is_real():
    """What the guard says of 5.23 is measured here, so that the entry goes when the fault does."""
    torch = pytest.importorskip("torch")
    from transformers import Qwen2VLConfig
    from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel

    from tests.support.mrope_rule import position_ids_by_the_paper

    tiny = {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 32}
    config = Qwen2VLConfig(
        text_config={**tiny, "num_hidden_layers": 1, "vocab_size": 64},
        vision_config={"depth": 1, "embed_dim": 32, "num_heads": 2, "hidden_size": 32},
        image_token_id=60,
        video_token_id=61,
        vision_start_token_id=62,
        vision_end_token_id=63,
    )
    with torch.device("meta"):
        model = Qwen2VLModel(config)
    steps, height, width = 9, 4, 6
    num_visual = steps * height * width // 4
    tokens = torch.tensor([[1, 2, *[61] * num_visual, 3]])
    types = torch.tensor([[0, 0, *[2] * num_visual, 0]])
    found, _ = model.get_rope_index(
        tokens, mm_token_type_ids=types, video_grid_thw=torch.tensor([[steps, height, width]])
    )
    expected, _ = position_ids_by_the_paper("tt" + "v" * num_visual + "t", [(steps, height, width)])
    assert found[:, 0, :-1].tolist() == expected[:, :-1].tolist()
    assert found[0, 0, -1] != expected[0, -1]


def test_what_is_no_version_is_refused():
    with pytest.raises(UserError, match="no version"):
        known_faults("latest")
