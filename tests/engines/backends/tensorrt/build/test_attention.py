"""Any head shape and any context builds, adds scores in float32, and the record says how."""

import pytest

from engines.backends.facts import LayerFacts
from engines.backends.tensorrt.attention import MOST_FLOAT32_TOKENS, attention_bodies, attention_notes
from engines.backends.tensorrt.build.builder import BuildOptions, build_engine
from engines.sizing.limits import Limits
from examples.random_checkpoint import write_checkpoint
from export.bundle import open_bundle
from export.checkpoint.config import load_config
from export.exporter import export_checkpoint
from tests.support.rtx_kernels import attention_kernels

LONG = MOST_FLOAT32_TOKENS + 1


@pytest.fixture(scope="module")
def config_of(tmp_path_factory):
    def config(num_heads, kv_heads):
        directory = tmp_path_factory.mktemp("heads") / "checkpoint"
        heads = {"num_attention_heads": num_heads, "num_key_value_heads": kv_heads}
        return load_config(write_checkpoint(directory, hidden_size=32 * num_heads, sparse=True, **heads))

    return config


@pytest.mark.parametrize(
    ("heads", "graph", "dtype", "capacity", "bodies"),
    [
        ((4, 2), "decoder", "bfloat16", 4096, ("fused", "folded", "plain")),
        ((4, 2), "decoder", "bfloat16", LONG, ("folded", "plain")),
        ((4, 2), "decoder", "float16", LONG, ("folded", "plain")),
        ((3, 1), "decoder", "bfloat16", LONG, ("folded_decomposable", "plain")),
        ((2, 2), "decoder", "bfloat16", LONG, ("plain",)),
        ((2, 2), "decoder", "bfloat16", LONG - 1, ("fused", "plain")),
        ((4, 2), "decoder", "float32", LONG, ("decomposable", "plain")),
        ((4, 2), "vision", "bfloat16", LONG, ("fused", "plain")),
        ((4, 2), "vision", "float32", 4096, ("decomposable", "plain")),
    ],
)
def test_no_body_that_would_add_scores_in_low_precision_is_tried(
    config_of, heads, graph, dtype, capacity, bodies
):
    assert attention_bodies(graph, dtype, capacity, config_of(*heads)) == bodies


def test_the_usual_attention_needs_no_note_and_a_plugin_none_at_all(config_of):
    config = config_of(4, 2)
    assert attention_notes("decoder", "bfloat16", 4096, "fused", config, ()) == ()
    assert attention_notes("decoder", "float32", 4096, "decomposable", config, ()) == ()
    (note,) = attention_notes("vision", "float16", 4096, "fused", config, ())
    assert "float16 in float16" in note
    plugin = LayerFacts("p", "PLUGIN_V3", "float16", "/blocks.0/attn/QvPatchAttention", "QvPatchAttention")
    assert attention_notes("vision", "float16", 4096, "fused", config, (plugin,)) == ()


def export(directory, **sizes):
    write_checkpoint(directory / "checkpoint", sparse=True, **sizes)
    export_checkpoint(directory / "checkpoint", directory / "bundle")
    return open_bundle(directory / "bundle")


def build(bundle, graph, output, **limits):
    options = BuildOptions("tensorrt-rtx", (80, 89, 120))
    facts = build_engine(bundle, graph, Limits(**limits), options, output, lambda *_: None)
    sums = {dtype for kernel in attention_kernels(output) for dtype in kernel.sum_dtypes}
    return facts, sums


@pytest.mark.tensorrt
def test_a_decoder_of_2b_at_its_whole_context_builds_and_adds_scores_in_float32(tmp_path):
    bundle = export(tmp_path, size="2b", num_hidden_layers=2, vocab_size=512, vision_depth=1)
    limits = {"max_context": 32_768, "max_batch": 1, "max_prompt_tokens": 512}
    facts, sums = build(bundle, "decoder", tmp_path / "decoder.engine", **limits)
    assert sums == {"float32"}
    assert facts.ops["QvCachedAttention"] == "native"
    (note,) = facts.notes
    assert note.startswith("QvCachedAttention: the query heads of a KV head are folded into rows")
    assert note.endswith(
        f"beyond {MOST_FLOAT32_TOKENS:,} tokens of context the plain decode kernel adds scores in bfloat16"
    )


@pytest.mark.tensorrt
def test_heads_without_any_fused_kernel_build_and_the_record_says_how(tmp_path):
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1, "hidden_size": 128}
    vision = {"vision_num_heads": 3, "vision_embed_dim": 60, "vision_depth": 1}
    bundle = export(tmp_path, num_hidden_layers=1, **heads, **vision)
    limits = {"max_patches": 256, "max_segments": 4, "max_batch": 2, "max_context": 256}
    for graph, op, shape in (
        ("decoder", "QvCachedAttention", "1 query heads over 1 of 128"),
        ("vision", "QvPatchAttention", "3 heads of 20"),
    ):
        facts, sums = build(bundle, graph, tmp_path / "engine", **limits)
        assert sums == {"float32"}
        assert facts.ops[op] == "decomposed"
        (note,) = facts.notes
        assert note.startswith(f"{op}: computed by plain products in float32")
        assert note.endswith(f"since TensorRT has no fused kernel for {shape}")
        assert len(facts.activation_bytes) == (2 if graph == "decoder" else 1)
