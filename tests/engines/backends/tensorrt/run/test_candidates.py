"""Engines that give candidates: the tokens of whole logits, which stay on the device until somebody asks for a row."""

from dataclasses import replace

import numpy as np
import pytest

from engines.backends.onnxruntime.session import open_sessions as open_onnxruntime
from engines.backends.tensorrt.run.place import devices_of_stages
from engines.backends.tensorrt.run.session import (
    TensorRtCandidateDecoder,
    TensorRtDecoder,
    open_decoder_engine,
)
from engines.runtime.scheduler import Scheduler
from engines.runtime.tokens.step_logits import gives_candidates
from engines.session import Engine
from engines.sizing.limits import Limits
from export.bundle import open_bundle
from export.exporter import export_checkpoint
from tests.engines.backends.onnxruntime_cuda.test_session import TINY, answers, make_requests
from tests.engines.backends.tensorrt.fake_runtime import FakeEngine, HostDevice, fake_bindings
from tests.support.bundles import shared_bundle
from tests.support.cases import CASES, decode_step, make_batch

LIMITS = Limits(max_patches=512, max_segments=4, max_batch=4, max_prompt_tokens=64, max_context=256)
NUM_SLOTS = 4
CASE = {case.name: case for case in CASES}
CANDIDATES = ("top_logits", "top_ids", "log_sum_exp", "asked_logits")


def open_fake(bundle, devices, *, gives_candidates, limits=LIMITS):
    """A decoder in as many engines as the bundle has stages, spread over the devices."""
    placed = [devices[i] for i in devices_of_stages(len(bundle.stages), len(devices))]
    last = bundle.stages[-1].graph
    engines = [
        FakeEngine(
            device,
            bundle.graph(stage.graph),
            stage.graph,
            bundle.config,
            limits,
            "float32",
            stages=bundle.stages if len(bundle.stages) > 1 else (),
            gives_candidates=gives_candidates and stage.graph == last,
        )
        for stage, device in zip(bundle.stages, placed, strict=True)
    ]
    return open_decoder_engine(fake_bindings(), engines, placed, bundle.config, NUM_SLOTS)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    output = tmp_path_factory.mktemp("candidates") / "bundle"
    export_checkpoint(TINY, output, dtype="float32")
    return open_bundle(output)


def test_served_answers_are_those_of_whole_logits_and_no_row_crosses_without_need(tiny):
    whole_device, device = HostDevice(), HostDevice()
    vision = open_onnxruntime(tiny, capacity=LIMITS.max_context).vision
    whole = open_fake(tiny, [whole_device], gives_candidates=False)
    ours = open_fake(tiny, [device], gives_candidates=True)
    assert (gives_candidates(whole), gives_candidates(ours)) == (False, True)
    found, expected = (answers(Engine(vision, decoder), tiny) for decoder in (ours, whole))
    assert found == expected
    vocab_bytes = 4 * tiny.config.decoder.vocab_size
    num_tokens = sum(map(len, found))
    assert sum(whole_device.downloads) >= num_tokens * vocab_bytes
    assert all(num_bytes <= NUM_SLOTS * 256 * 8 for num_bytes in device.downloads if num_bytes != vocab_bytes)
    # A draw from the whole distribution needs a row now and then, and brings that row alone.
    assert device.downloads.count(vocab_bytes) <= 0.1 * num_tokens


def test_a_step_of_one_row_brings_candidates_alone_to_the_host(tiny):
    device = HostDevice()
    vision = open_onnxruntime(tiny, capacity=LIMITS.max_context).vision
    decoder = open_fake(tiny, [device], gives_candidates=True)
    scheduler = Scheduler(vision, decoder, tiny.config)
    scheduler.submit(make_requests(tiny)[0], lambda _event: None)
    scheduler.step()
    device.uploads.clear()
    device.downloads.clear()
    scheduler.step()
    assert sorted(device.downloads) == [4, 64 * 4, 256 * 4, 256 * 8]
    assert sum(device.uploads) < 1000


@pytest.fixture(scope="module")
def staged(tmp_path_factory):
    sizes = {"hidden_size": 192, "num_attention_heads": 6, "num_key_value_heads": 1, "num_hidden_layers": 3}
    return open_bundle(shared_bundle(tmp_path_factory, {"dtype": "float32", **sizes}, pipeline_stages=3))


@pytest.mark.parametrize("num_devices", [1, 2, 3])
@pytest.mark.parametrize("max_prompt_tokens", [8, 64])
def test_candidates_are_those_of_the_logits_in_chunks_and_on_any_number_of_gpus(
    staged, num_devices, max_prompt_tokens
):
    """Rows that end in different chunks of a prompt, and groups of rows that take turns on the GPUs."""
    limits = replace(LIMITS, max_prompt_tokens=max_prompt_tokens)
    whole = open_fake(staged, [HostDevice()], gives_candidates=False, limits=limits)
    devices = [HostDevice() for _ in range(num_devices)]
    ours = open_fake(staged, devices, gives_candidates=True, limits=limits)
    assert isinstance(ours, TensorRtCandidateDecoder)
    batch, width = make_batch(CASE["ragged_batch"], staged.config), staged.config.decoder.hidden_size
    num_visual = sum(prompt.num_visual_tokens for prompt in batch.prompts)
    embeds = np.random.default_rng(0).standard_normal((num_visual, width)).astype(np.float32)
    prefill = replace(batch.prefill(embeds), logits_index=batch.lengths[:, None] - 1)
    asked = np.array([[3, -1], [511, 0], [-1, -1], [7, 7]])
    tokens = np.zeros(len(asked), np.int64)
    for step in range(4):
        call = prefill
        if step:
            call = decode_step(tokens, batch.lengths + step - 1, batch.deltas, width)
        logits = whole.forward(0, call)
        found = ours.candidates(0, call, asked)
        best = -np.sort(-logits, axis=-1)[..., :256]
        np.testing.assert_allclose(found.top_logits, best, atol=1e-4)
        np.testing.assert_array_equal(
            np.take_along_axis(logits, found.top_ids, -1).argmax(-1), np.zeros((len(asked), 1))
        )
        largest = logits.max(-1, keepdims=True)
        log_sum = (largest + np.log(np.exp(logits - largest).sum(-1, keepdims=True)))[..., 0]
        np.testing.assert_allclose(found.log_sum_exp, log_sum, atol=1e-4)
        for row, ids in enumerate(asked):
            known = ids >= 0
            np.testing.assert_allclose(
                found.asked_logits[row, 0, known], logits[row, 0, ids[known]], atol=1e-4
            )
        assert found.asked_logits.shape == (len(asked), 1, asked.shape[1])
        for row in (2, 0, 3, 1):  # asked for in any order, each until the next call
            np.testing.assert_allclose(found.whole(row), logits[row], atol=1e-4)
        tokens = logits[:, 0].argmax(-1)
    np.testing.assert_allclose(ours.forward(0, call), whole.forward(0, call), atol=1e-4)


def test_an_engine_without_candidates_is_asked_for_none(tiny):
    decoder = open_fake(tiny, [HostDevice()], gives_candidates=False)
    assert type(decoder) is TensorRtDecoder
