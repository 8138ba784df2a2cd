import pytest

from export.weights.names import is_adapters, is_derived, is_inside_model, published_name

NAMES = (
    "visual.blocks.0.attn.qkv.weight",
    "model.layers.11.mlp.up_proj.weight",
    "model.norm.weight",
    "lm_head.weight",
)


def in_memory(name: str) -> str:
    """As Transformers names modules since 4.52."""
    if name.startswith("lm_head"):
        return name
    return (
        f"model.{name}" if name.startswith("visual") else name.replace("model.", "model.language_model.", 1)
    )


def by_parts(name: str) -> str:
    """As conversions write it that keep the language model whole."""
    return name if name.startswith("visual") else f"language_model.{name}"


LAYOUTS = {
    "published": lambda name: name,
    "in memory": in_memory,
    "language_model.model": by_parts,
    "model around it": lambda name: f"model.{name}",
    "model around parts": lambda name: f"model.{by_parts(name)}",
}
WRAPPERS = ("", "base_model.model.", "module.", "_orig_mod.", "module._orig_mod.", "base_model.model.module.")


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_every_layout_behind_every_wrapper_is_the_published_name(name, layout, wrapper):
    assert published_name(wrapper + LAYOUTS[layout](name))[0] == name


@pytest.mark.parametrize(
    ("stored", "wrapper"),
    [
        ("model.norm.weight", None),
        ("model.visual.merger.ln_q.bias", None),
        ("model.language_model.norm.weight", None),
        ("base_model.model.model.norm.weight", "base_model.model."),
        ("module.lm_head.weight", "module."),
        ("language_model.model.norm.weight", "language_model.model."),
        ("model.model.norm.weight", "model.model."),
    ],
)
def test_a_wrapper_is_told_and_a_layout_in_use_is_not(stored, wrapper):
    assert published_name(stored)[1] == wrapper


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.layers.0.self_attn.rotary_emb.inv_freq", is_derived),
        ("visual.rotary_pos_emb.inv_freq", is_derived),
        ("model.embed_tokens.position_ids", is_derived),
        ("model.layers.0.self_attn.rotary_emb.cos_cached", is_derived),
        ("model.layers.0.self_attn.q_proj.lora_A.default.weight", is_adapters),
        ("model.layers.0.self_attn.q_proj.base_layer.weight", is_adapters),
        ("lm_head.modules_to_save.default.weight", is_adapters),
        ("model.layers.0.self_attn.o_proj.bias", is_inside_model),
        ("lm_head.bias", is_inside_model),
    ],
)
def test_what_is_no_weight_of_the_model_is_told_apart(name, kind):
    assert kind(name)
    assert not any(other(name) for other in (is_derived, is_adapters) if other is not kind)


def test_a_head_of_another_task_stands_outside():
    assert not is_inside_model("score.weight")
    assert not is_inside_model("custom_text_proj.bias")
