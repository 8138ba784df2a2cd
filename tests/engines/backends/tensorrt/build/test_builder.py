"""TensorRT-RTX builds both graphs on the CPU, and says of them what the contract says.

Names, dtypes and shapes are read back from TensorRT's network, shapes of profiles from its optimization profiles: a CPU
deserializes no engine, so the engine itself is only asked on a GPU (`test_gpu`).
"""

import json
import os
import shutil
import signal
import time
from dataclasses import replace

import onnx
import psutil
import pytest

from engines.backends.facts import EngineFacts, ShapeRange
from engines.backends.tensorrt.build.builder import BuildOptions, build_engine
from engines.backends.tensorrt.build.network import graph_for_parser
from engines.backends.tensorrt.description import source_of
from engines.backends.tensorrt.options import require_attention
from engines.session import EngineError
from engines.sizing.limits import Limits
from export.bundle import open_bundle
from export.checkpoint.config import load_config
from export.contract import graph_contract, with_candidates
from export.errors import UserError
from tests.engines.backends.tensorrt.conftest import ARCHITECTURES, LIMITS

by_dtype = pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
pytestmark = pytest.mark.tensorrt


@by_dtype
@pytest.mark.parametrize("graph", ["vision", "decoder"])
def test_an_engine_for_three_architectures_has_the_contracts_inputs_and_outputs(
    built, bundle_of, dtype, graph
):
    engine = built(dtype, graph)
    facts = engine.facts
    assert facts.sm == ARCHITECTURES
    assert engine.path.stat().st_size == facts.engine_bytes > 100_000
    config = load_config(bundle_of(dtype))
    contract = graph_contract(graph, config, dtype)
    if graph == "decoder":
        contract = with_candidates(contract, config)
    for tensors, specs in ((facts.inputs, contract.inputs), (facts.outputs, contract.outputs)):
        assert [(tensor.name, tensor.dtype) for tensor in tensors] == [
            (spec.name, spec.dtype) for spec in specs
        ]
        for tensor, spec in zip(tensors, specs, strict=True):
            expected = [
                LIMITS.max_context if dim == "L" else dim if isinstance(dim, int) else -1
                for dim in spec.shape
            ]
            assert list(tensor.shape) == expected, tensor.name


def test_the_decoder_has_a_profile_for_prefill_and_one_for_decode(built, bundle_of):
    inputs = {tensor.name: tensor for tensor in built("bfloat16", "decoder").facts.inputs}
    width = load_config(bundle_of("bfloat16")).decoder.hidden_size
    assert inputs["token_ids"].profiles == (
        ShapeRange((1, 1), (1, 512), (4, 512)),
        ShapeRange((1, 1), (4, 1), (4, 1)),
    )
    assert inputs["visual_embeds"].profiles == (
        ShapeRange((0, width), (256, width), (2048, width)),
        ShapeRange((0, width), (0, width), (0, width)),
    )
    assert inputs["logits_index"].profiles == (
        ShapeRange((1, 1), (1, 1), (4, 32)),
        ShapeRange((1, 1), (4, 1), (4, 1)),
    )
    assert [shape.maximum[0] for shape in inputs["past_key.0"].profiles] == [4, 4]


def test_the_vision_encoder_has_one_profile_up_to_the_limits(built):
    inputs = {tensor.name: tensor for tensor in built("float16", "vision").facts.inputs}
    assert inputs["positions"].profiles == (ShapeRange((2, 4), (2, 1024), (2, 1024)),)
    assert inputs["cu_seqlens"].profiles == (ShapeRange((2,), (2,), (9,)),)
    assert inputs["segment_range"].profiles == (ShapeRange((4,), (1024,), (1024,)),)


@by_dtype
def test_every_op_is_computed_by_what_was_chosen_for_it(built, dtype):
    assert built(dtype, "vision").facts.ops == {"QvPatchAttention": "native", "QvRotary": "decomposed"}
    assert built(dtype, "decoder").facts.ops == {"QvCachedAttention": "native", "QvRotary": "decomposed"}


def test_facts_survive_their_way_through_json(built):
    facts = built("bfloat16", "decoder").facts
    assert EngineFacts.from_json_object(json.loads(json.dumps(facts.to_json_object()))) == facts


def test_a_build_tells_how_far_it_is_and_what_it_took(built):
    engine = built("bfloat16", "decoder")
    fractions = [fraction for _, fraction in engine.progress]
    assert fractions
    assert fractions == sorted(fractions)
    assert fractions[0] >= 0
    assert fractions[-1] <= 1
    facts = engine.facts
    assert 50e6 < facts.peak_rss_bytes < 2e9
    assert facts.seconds > 0
    assert facts.weights_bytes
    assert len(facts.activation_bytes) == 2
    int64 = {w.message.split()[2]: w.count for w in facts.warnings if "Int64 binding" in w.message}
    assert int64 == {"input": 5, "output": 1}
    assert any(layer.op == "QvCachedAttention" and layer.type == "KV_CACHE_UPDATE" for layer in facts.layers)


# What goes wrong


def build(bundle, output, *, sm=(89,), progress=lambda *_: None, limits=LIMITS):
    return build_engine(
        open_bundle(bundle), "decoder", limits, BuildOptions("tensorrt-rtx", sm), output, progress
    )


def building_processes() -> list[psutil.Process]:
    """Tests before may have left other processes of this one, such as that of a chat template."""
    worker = "engines.backends.tensorrt.build.worker"
    return [process for process in psutil.Process().children() if worker in process.cmdline()]


def building_process() -> psutil.Process:
    (worker,) = building_processes()
    return worker


@pytest.mark.parametrize(
    ("number", "words"), [(signal.SIGABRT, "SIGABRT in phase"), (signal.SIGKILL, "want of memory")]
)
def test_a_build_that_dies_is_one_clear_error_and_leaves_no_file(bundle_of, tmp_path, number, words):
    output = tmp_path / "decoder.engine"
    with pytest.raises(EngineError, match=words):
        build(bundle_of("bfloat16"), output, progress=lambda *_: building_process().send_signal(number))
    assert list(tmp_path.iterdir()) == []
    assert building_processes() == []


def test_an_interrupted_build_ends_its_process_at_once(bundle_of, tmp_path):
    processes = []

    def interrupt(phase, fraction):
        processes.append(building_process())
        raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        build(bundle_of("bfloat16"), tmp_path / "decoder.engine", progress=interrupt)
    assert not processes[0].is_running()
    assert list(tmp_path.iterdir()) == []
    assert time.monotonic() - started < 30


def test_a_build_inside_of_the_bundle_runs_no_code_of_the_bundle(bundle_of, tmp_path, monkeypatch):
    bundle = tmp_path / "bundle"
    shutil.copytree(bundle_of("bfloat16"), bundle)
    for module in ("ml_dtypes", "onnx", "tensorrt_rtx", "json"):
        (bundle / f"{module}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')", encoding="utf-8")
    monkeypatch.chdir(bundle)

    def interrupt(phase, fraction):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(bundle_of("bfloat16"), tmp_path / "decoder.engine", progress=interrupt)
    assert not (tmp_path / "ran").exists()


@pytest.mark.skipif(not os.access("/dev/full", os.W_OK), reason="needs /dev/full, which Linux has")
def test_a_full_disk_is_the_users_to_mend(bundle_of, tmp_path):
    output = tmp_path / "decoder.engine"
    output.symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"No space left in .* while writing the engine"):
        build(bundle_of("bfloat16"), output)
    assert list(tmp_path.iterdir()) == []


def test_the_parsers_errors_are_quoted_with_their_nodes(bundle_of, tmp_path):
    """A graph that a newer qv-export might write: RTX has no importer for one of its nodes."""
    bundle = tmp_path / "bundle"
    shutil.copytree(bundle_of("bfloat16"), bundle)
    opened = open_bundle(bundle)
    model = onnx.load(opened.graph("decoder"), load_external_data=False)
    node = next(node for node in model.graph.node if node.op_type in {"Sigmoid", "Swish"})
    node.op_type, node.name = "BlackmanWindow", "/layers.0/mlp/odd"
    opened.graph("decoder").write_bytes(model.SerializeToString())
    record = opened.manifest.graphs["decoder"]
    graphs = {**opened.manifest.graphs, "decoder": type(record).from_file(opened.graph("decoder"))}
    type(opened.manifest)(**{**vars(opened.manifest), "graphs": graphs}).write(bundle)
    with pytest.raises(
        EngineError, match=r"cannot parse the decoder graph:\n- BlackmanWindow /layers.0/mlp/odd: "
    ):
        build(bundle, tmp_path / "decoder.engine")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"target": "tensorrt-rtx"}, "needs the architectures to build for"),
        ({"target": "tensorrt-rtx", "sm": (90,)}, "SM90: TensorRT-RTX builds for 75, 80"),
        ({"target": "tensorrt-rtx", "sm": (89, 89)}, "each architecture once"),
        (
            {"target": "tensorrt-rtx", "sm": (89,), "hardware_compatibility": "ampere_plus"},
            "list the architectures",
        ),
        ({"target": "tensorrt", "sm": (80, 90)}, "one architecture"),
        ({"target": "tensorrt", "sm": (75,)}, "need SM80 or newer"),
        ({"target": "onnxruntime"}, "target must be one of"),
        ({"target": "tensorrt", "optimization_level": 6}, "must be 0 to 5, found 6"),
        (
            {"target": "tensorrt-rtx", "sm": (89,), "cached_attention": "plugin"},
            "TensorRT-RTX takes no plugins",
        ),
        ({"target": "tensorrt", "cached_attention": "mine"}, "one of native, plugin, found 'mine'"),
    ],
)
def test_options_that_no_build_can_have_are_refused(options, problem):
    with pytest.raises(UserError, match=problem):
        BuildOptions(**options)


def test_limits_beyond_what_a_tensor_can_hold_are_refused_before_the_build(bundle_of, tmp_path):
    limits = Limits(max_patches=2**21, max_segments=2**10)
    with pytest.raises(UserError, match="segments of that many patches fit"):
        build_engine(
            open_bundle(bundle_of("bfloat16")),
            "vision",
            limits,
            BuildOptions("tensorrt-rtx", (89,)),
            tmp_path / "vision.engine",
            lambda *_: None,
        )


def test_candidates_are_left_out_of_an_engine_where_nobody_asks_for_them(bundle_of, tmp_path):
    facts = build_engine(
        open_bundle(bundle_of("bfloat16")),
        "decoder",
        LIMITS,
        BuildOptions("tensorrt-rtx", (89,), only_logits=True),
        tmp_path / "decoder.engine",
        lambda *_: None,
    )
    assert [tensor.name for tensor in facts.outputs if "present" not in tensor.name] == ["logits"]
    assert "asked_ids" not in {tensor.name for tensor in facts.inputs}


def test_attention_by_plugin_takes_the_place_of_every_call_in_a_decoder(bundle_of):
    bundle = open_bundle(bundle_of("bfloat16"))
    plain, ours = (
        graph_for_parser(bundle.graph("decoder"), body, 512, has_plugins=True) for body in ("fused", "plugin")
    )
    layers = bundle.config.decoder.num_hidden_layers

    def count(model, op):
        return sum(node.op_type == op for node in model.graph.node)

    for op in ("QvCachedAttentionPartials", "QvCachedAttentionCombine"):
        assert (count(plain, op), count(ours, op)) == (0, layers)
    assert (count(plain, "TRT_Attention"), count(ours, "TRT_Attention")) == (layers, 0)
    assert count(plain, "TRT_KVCacheUpdate") == count(ours, "TRT_KVCacheUpdate") == 2 * layers
    names = [node.name for node in ours.graph.node]
    assert len(set(names)) == len(names)
    places = {
        source_of(f"[ONNX Layer: {node.name}]")
        for node in ours.graph.node
        if node.op_type.startswith("QvCachedAttention")
    }
    assert len(places) == layers
    assert {op for _, op in places} == {"QvCachedAttention"}


def test_attention_by_plugin_is_refused_for_heads_and_contexts_that_the_kernel_does_not_compute(bundle_of):
    config = open_bundle(bundle_of("bfloat16")).config
    serves = replace(config, decoder=replace(config.decoder, head_dim=128))
    plugin = BuildOptions("tensorrt", cached_attention="plugin")
    require_attention(serves, Limits(max_context=131_072), plugin)
    with pytest.raises(
        UserError, match=r"--cached-attention plugin .*\n- L must be 1 to 131,072, not 131,073"
    ):
        require_attention(serves, Limits(max_context=131_073), plugin)
    small = replace(config, decoder=replace(config.decoder, head_dim=32))
    with pytest.raises(UserError, match="D must be a multiple of 8 from 64 to 128, not 32"):
        require_attention(small, Limits(), plugin)
    require_attention(small, Limits(), BuildOptions("tensorrt"))
