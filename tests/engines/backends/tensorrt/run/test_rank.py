"""Stages that ranks hold, on a runtime in host memory, one after another: what ONNX Runtime's own session answers."""

from dataclasses import fields, replace

import numpy as np
import pytest

from engines.backends.onnxruntime.session import open_sessions as open_onnxruntime
from engines.backends.tensorrt.run.rank import TensorRtStage
from engines.sizing.limits import Limits
from export.bundle import open_bundle
from export.errors import UserError
from export.inputs import DecoderInputs
from tests.engines.backends.tensorrt.fake_runtime import FakeEngine, HostDevice, fake_bindings
from tests.support.bundles import shared_bundle
from tests.support.cases import CASES, make_batch
from tests.support.sessions import encode, greedy_tokens, relative_error

# Smaller than most cases: prompts go in chunks, logits in rounds.
LIMITS = Limits(
    max_patches=64, max_segments=2, max_batch=4, max_prompt_tokens=16, max_context=192, max_logits_tokens=5
)
NUM_STAGES = 2
CASE = {case.name: case for case in CASES}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    checkpoint = {"dtype": "float32", "num_hidden_layers": 3}
    return open_bundle(shared_bundle(tmp_path_factory, checkpoint, pipeline_stages=NUM_STAGES))


def stage_of(bundle, number, num_slots=4):
    device, graph = HostDevice(), bundle.stages[number].graph
    engine = FakeEngine(
        device, bundle.graph(graph), graph, bundle.config, LIMITS, "float32", stages=bundle.stages
    )
    return TensorRtStage(
        fake_bindings("tensorrt"), engine, device, bundle.config, LIMITS, num_slots, NUM_STAGES
    )


class Chain:
    """Every stage on a device of its own, asked as ranks ask: a `DecoderSession`."""

    num_slots = 4

    def __init__(self, bundle):
        self.stages = [stage_of(bundle, number) for number in range(NUM_STAGES)]
        self.capacity = self.stages[0].capacity

    def forward(self, first_slot, inputs):
        slim = replace(inputs, visual_embeds=np.zeros((len(inputs.visual_embeds), 0), np.float32))
        plans = [
            stage.plan(slim if number else inputs, NUM_STAGES) for number, stage in enumerate(self.stages)
        ]
        answers = []
        for calls in zip(*(plan.calls for plan in plans), strict=True):
            values: dict[str, np.ndarray] = {}
            for stage, (row, call) in zip(self.stages, calls, strict=True):
                own = {field.name: getattr(call, field.name) for field in fields(DecoderInputs)}
                values = stage.run(first_slot + row, {**own, **values})
            answers.append(values["logits"])
        return plans[0].join(answers)


@pytest.mark.parametrize("name", ["text", "three_images", "ragged_batch"])
def test_ranks_answer_what_one_session_does(bundle, name):
    expected, ours = open_onnxruntime(bundle, num_slots=4, capacity=192, num_threads=1), Chain(bundle)
    batch = make_batch(CASE[name], bundle.config)
    embeds = encode(expected.vision, batch, bundle.config.decoder.hidden_size)
    prefill = batch.prefill(embeds)
    want = batch.valid(expected.decoder.forward(0, prefill))
    assert relative_error(batch.valid(ours.forward(0, prefill)), want) < 1e-5
    tokens = greedy_tokens(expected.decoder, batch, embeds, 6)
    assert np.array_equal(greedy_tokens(ours, batch, embeds, 6), tokens)


def test_more_slots_than_rows_are_refused(bundle):
    with pytest.raises(UserError, match="5 slots asked, the decoder's engine has 4 rows"):
        stage_of(bundle, 1, num_slots=5)
