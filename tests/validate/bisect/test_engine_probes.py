"""Engines compiled again with values from inside as outputs: on a strict runtime in host memory, and by RTX."""

from dataclasses import replace

import numpy as np
import onnx
import pytest

from engines.backends.onnxruntime.probes import OnnxRuntimeProbes
from engines.backends.tensorrt.build.builder import BuildOptions, build_engine
from engines.backends.tensorrt.probes import TensorRtProbes, Tools, probed_limits
from engines.sizing.limits import Limits
from export.bundle import open_bundle
from tests.engines.backends.tensorrt.fake_runtime import FakeEngine, HostDevice, fake_bindings
from tests.validate.conftest import PROFILE
from validate.bisect.probes import GraphProbes, canonical_graphs
from validate.bisect.search import boundary_questions
from validate.cases.feeds import decode_call, prefill_call
from validate.records.records import read_case_record
from validate.run.validation import run_validation
from validate.self_test.mutations import mutations

LIMITS = probed_limits(
    Limits(max_patches=PROFILE.max_patches, max_segments=16, max_context=PROFILE.max_context_tokens)
)


def probed_graph(bundle, graph, names):
    """The graph's file with further outputs, beside the weights it points to, under a name that no bundle looks at."""
    model = onnx.load(bundle.graph(graph), load_external_data=False)
    known = {output.name for output in model.graph.output}
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(n) for n in names if n not in known)
    path = bundle.directory / f".probed-{graph}.onnx"
    onnx.save(model, path)
    return path, [name for name in names if name not in known]


def tensorrt_probes(directory, config):
    """What would run on a GPU, on a runtime in host memory."""
    bundle, device = open_bundle(directory), HostDevice()

    def compile_probed(graph, names):
        path, inside = probed_graph(bundle, graph, names)
        return FakeEngine(device, path, graph, config, LIMITS, "float32", inside)

    return TensorRtProbes(config, lambda: Tools(fake_bindings(), device, compile_probed))


@pytest.fixture
def question_of(exported):
    """A prompt with several pictures, what the reference said, and the calls that ask for it again."""
    case = next(case for case in exported.plan.cases if case.name == "images_of_unequal_size")
    prompt, expected = case.prompts[0], read_case_record(exported.records, case.name).prompts[0]
    length = np.arange(len(prompt.token_ids))
    calls = [prefill_call([prompt], [expected.answer.visual_embeds], exported.config, [length])]
    forced = expected.continuation[:, None]
    calls += [decode_call(tokens, [prompt], step, exported.config) for step, tokens in enumerate(forced)]
    return prompt, calls


def test_every_value_is_what_onnxruntime_shows(exported, question_of):
    prompt, calls = question_of
    graphs = canonical_graphs(open_bundle(exported.bundle))
    ours, theirs = (
        tensorrt_probes(exported.bundle, exported.config),
        OnnxRuntimeProbes(open_bundle(exported.bundle)),
    )
    for question in boundary_questions(graphs, exported.config, prompt):
        for block in (
            (None, *("blocks.0", "merger"))
            if question.stage == "vision"
            else (None, "embed", "layers.1", "project")
        ):
            graph = graphs["vision" if question.stage == "vision" else "decoder"]
            probes = (
                question.probes if block is None else tuple(GraphProbes(graph, exported.config).inside(block))
            )
            if question.stage == "vision":
                pair = ours.vision(prompt.vision, probes), theirs.vision(prompt.vision, probes)
            else:
                pair = ours.decoder(calls, probes), theirs.decoder(calls, probes)
            assert set(pair[0]) == set(pair[1]) >= {probe.value for probe in probes}
            for name, expected in pair[1].items():
                actual = pair[0][name][: len(expected)]  # an engine's cache is longer
                np.testing.assert_allclose(actual, expected, atol=1e-4, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("name", ["mrope_sections_swapped", "weight_of_another_layer"])
def test_a_fault_is_found_at_its_op(exported, tmp_path, progress, name):
    fault = next(mutation for mutation in mutations(exported.config) if mutation.name == name)
    plan = exported.mutated(fault, tmp_path / "broken")
    plan = replace(plan, probes=tensorrt_probes(tmp_path / "broken", exported.config))
    report = run_validation(plan, exported.workspace(tmp_path), progress)
    assert report.divergence is not None
    assert report.divergence.first is not None
    assert report.divergence.first[1].node == fault.node


@pytest.mark.tensorrt
@pytest.mark.parametrize("graph", ["vision", "decoder"])
def test_tensorrt_rtx_compiles_a_graph_with_all_that_the_search_may_ask(exported, tmp_path, graph):
    pytest.importorskip("tensorrt_rtx_bindings", reason="needs TensorRT-RTX: pip install 'qv-export[rtx]'")
    graphs = canonical_graphs(open_bundle(exported.bundle))
    found = GraphProbes(graphs[graph], exported.config)
    blocks = ("blocks.0", "blocks.1", "merger") if graph == "vision" else ("layers.0", "layers.1", "project")
    names = tuple(dict.fromkeys(probe.value for block in blocks for probe in found.inside(block)))
    options = BuildOptions("tensorrt-rtx", (89,))
    facts = build_engine(
        open_bundle(exported.bundle), graph, LIMITS, options, tmp_path / "e", lambda *_: None, probes=names
    )
    assert set(names) <= {output.name for output in facts.outputs}
