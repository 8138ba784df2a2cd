"""The probe points that a graph's own names give, held to what a reader of the reference would list."""

import pytest

from export.bundle import open_bundle
from export.models.families import family_of
from validate.bisect.probes import GraphProbes, canonical_graphs

DECODER_LAYER = (
    *("input_layernorm:out", "self_attn.q_proj:out", "self_attn.k_proj:out", "self_attn.v_proj:out"),
    *("rotated_q", "rotated_k", "self_attn.o_proj:in", "self_attn.o_proj:out"),
    *("post_attention_layernorm:in", "post_attention_layernorm:out"),
    *("mlp.gate_proj:out", "mlp.up_proj:out", "mlp.down_proj:in", "mlp.down_proj:out", "out"),
)
VISION_BLOCK = (
    *("norm1:out", "attn.qkv:out", "rotated_q", "rotated_k", "attn.proj:in", "attn.proj:out"),
    *("norm2:in", "norm2:out", "mlp.fc1:out", "mlp.fc2:in", "mlp.fc2:out", "out"),
)


def named(module: str, values: tuple[str, ...]) -> list[str]:
    """A name without a module's path is of the block itself."""
    return [
        f"{module}.{value}" if "." in value or "norm" in value else f"{module}:{value}" for value in values
    ]


@pytest.fixture(scope="module")
def probes(exported):
    return {
        name: GraphProbes(graph, exported.config)
        for name, graph in canonical_graphs(open_bundle(exported.bundle)).items()
    }


def references(found) -> list[str]:
    return [probe.reference for probe in found]


def test_the_inside_of_a_block_is_found_by_its_modules(probes):
    assert references(probes["decoder"].inside("layers.1")) == named("model.layers.1", DECODER_LAYER)
    assert references(probes["vision"].inside("blocks.0")) == named("visual.blocks.0", VISION_BLOCK)


def test_the_pieces_around_the_blocks_are_found_too(probes):
    merger = ("ln_q:out", "mlp.0:out", "mlp.1:out", "mlp.2:out")
    assert references(probes["vision"].inside("merger")) == [f"visual.merger.{part}" for part in merger]
    assert references(probes["decoder"].inside("project")) == [
        "model.norm:in",
        "model.norm:out",
        "lm_head:out",
    ]
    assert references(probes["decoder"].inside("embed")) == [
        "model.embed_tokens:out",
        "model.layers.0.input_layernorm:in",
    ]
    assert probes["vision"].inside("patch_embed") == []
    assert probes["vision"].inside("a_piece_of_another_family") == []


def test_the_borders_are_the_pieces_in_order(probes, exported):
    layers = range(exported.config.decoder.num_hidden_layers)
    assert references(probes["decoder"].borders()) == [
        "model.layers.0.input_layernorm:in",
        *(f"model.layers.{i}:out" for i in layers),
        "lm_head:out",
    ]
    blocks = range(exported.config.vision.depth)
    assert references(probes["vision"].borders()) == [
        "visual.patch_embed:out",
        *(f"visual.blocks.{i}:out" for i in blocks),
        "visual.merger:out",
    ]


def test_every_probe_is_a_module_of_the_reference(probes, exported):
    model = family_of(exported.config.model_type).reference(exported.config)
    modules = {name for name, _ in model.named_modules()}
    for graph in probes.values():
        for border in graph.borders():
            for probe in (border, *graph.inside(border.scope)):
                assert probe.reference.partition(":")[0] in modules, probe


def test_what_an_op_gives_is_asked_where_the_op_gives_it(probes):
    """A plugin's engine has no reshaped value behind it."""
    attended = next(
        probe for probe in probes["decoder"].inside("layers.0") if probe.reference.endswith("o_proj:in")
    )
    assert (attended.op_type, attended.scope) == ("QvCachedAttention", "layers.0/self_attn")
    assert attended.value.startswith(f"{attended.node}_output")
