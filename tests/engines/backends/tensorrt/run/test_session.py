"""The runner drives a runtime on host memory (`fake_runtime`) to the answers of ONNX Runtime's own sessions."""

from dataclasses import dataclass

import numpy as np
import pytest

from engines.backends.onnxruntime.session import open_sessions as open_onnxruntime
from engines.backends.tensorrt.build.profiles import DECODE, PREFILL
from engines.backends.tensorrt.run.place import devices_of_stages, waves
from engines.backends.tensorrt.run.session import TensorRtDecoder, TensorRtVision
from engines.sizing.limits import Limits
from export.bundle import open_bundle
from export.checkpoint.config import load_config
from export.errors import UserError
from tests.engines.backends.tensorrt.fake_runtime import FakeEngine, HostDevice, fake_bindings
from tests.support.bundles import shared_bundle
from tests.support.cases import CASES, decode_step, make_batch
from tests.support.sessions import encode, greedy_tokens, relative_error

# Smaller than most cases: prompts go in chunks, pictures in groups, logits in rounds.
LIMITS = Limits(
    max_patches=64, max_segments=2, max_batch=4, max_prompt_tokens=16, max_context=192, max_logits_tokens=5
)
NUM_SLOTS = 4
CASE = {case.name: case for case in CASES}
TOLERANCE = {"float32": 1e-5, "bfloat16": 5e-2}
"""Of the largest value: float32 sums in another order; bfloat16 inputs, caches and embeddings of 8 bits."""


@dataclass
class Runner:
    """Both sessions on a fake runtime, and ONNX Runtime's on the same bundle."""

    device: HostDevice
    vision: TensorRtVision
    decoder: TensorRtDecoder
    decoder_engine: FakeEngine
    expected_vision: object
    expected_decoder: object
    config: object


def open_runner(bundle, dtype: str) -> Runner:
    opened, device = open_bundle(bundle), HostDevice()
    config = load_config(bundle)
    vision = FakeEngine(device, opened.graph("vision"), "vision", config, LIMITS, dtype)
    decoder = FakeEngine(device, opened.graph("decoder"), "decoder", config, LIMITS, dtype)
    trt = fake_bindings()
    return Runner(
        device,
        TensorRtVision(trt, vision, device, config),
        TensorRtDecoder(trt, [decoder], [device], config, NUM_SLOTS),
        decoder,
        *open_onnxruntime(opened, num_slots=NUM_SLOTS, capacity=LIMITS.max_context),
        config,
    )


@pytest.fixture(params=["float32", "bfloat16"])
def runner(request, bundle_of):
    return open_runner(bundle_of("float32"), request.param), TOLERANCE[request.param]


@pytest.fixture
def exact(bundle_of):
    return open_runner(bundle_of("float32"), "float32")


@pytest.mark.parametrize("name", ["text", "three_images", "ragged_batch"])
def test_embeddings_and_logits_equal_onnxruntimes(runner, name):
    ours, tolerance = runner
    batch = make_batch(CASE[name], ours.config)
    width = ours.config.decoder.hidden_size
    expected_embeds = encode(ours.expected_vision, batch, width)
    embeds = encode(ours.vision, batch, width)
    assert relative_error(embeds, expected_embeds) < tolerance
    inputs = batch.prefill(expected_embeds)
    expected = batch.valid(ours.expected_decoder.forward(0, inputs))
    assert relative_error(batch.valid(ours.decoder.forward(0, inputs)), expected) < tolerance


@pytest.mark.parametrize("name", ["one_image", "ragged_batch"])
def test_greedy_tokens_equal_onnxruntimes(exact, name):
    batch = make_batch(CASE[name], exact.config)
    embeds = encode(exact.expected_vision, batch, exact.config.decoder.hidden_size)
    expected = greedy_tokens(exact.expected_decoder, batch, embeds, 8)
    assert greedy_tokens(exact.decoder, batch, embeds, 8).tolist() == expected.tolist()
    prefill, decode = exact.decoder_engine.contexts
    assert (prefill.profile, decode.profile) == (PREFILL, DECODE)
    # Seven steps: the first plainly, the second while a kernel compiles, the rest from one graph.
    assert decode.num_calls == 7
    assert (exact.device.num_captures, exact.device.num_replays) == (1, 5)


def test_slots_take_turns_without_disturbing_each_other(exact):
    width, num_steps = exact.config.decoder.hidden_size, 6
    batches = {slot: make_batch(CASE[name], exact.config) for slot, name in ((1, "one_image"), (2, "text"))}
    embeds = {slot: encode(exact.expected_vision, batch, width) for slot, batch in batches.items()}
    alone = {
        slot: greedy_tokens(exact.expected_decoder, batch, embeds[slot], num_steps, slot=slot)[0].tolist()
        for slot, batch in batches.items()
    }
    tokens = {
        slot: [exact.decoder.forward(slot, batch.prefill(embeds[slot]))[0, -1].argmax()]
        for slot, batch in batches.items()
    }
    # Twice two steps of one slot, then of the other: a graph of one must never run for the other.
    for slot in (1, 1, 1, 2, 2, 2, 1, 1, 2, 2):
        batch, written = batches[slot], tokens[slot]
        step = decode_step(np.array(written[-1:]), batch.lengths + len(written) - 1, batch.deltas, width)
        written.append(exact.decoder.forward(slot, step)[0, 0].argmax())
    assert tokens == alone
    assert exact.device.num_captures >= 2


def test_a_row_of_a_batch_reads_its_own_slot(exact):
    width = exact.config.decoder.hidden_size
    batch = make_batch(CASE["ragged_batch"], exact.config)
    embeds = encode(exact.expected_vision, batch, width)
    together = greedy_tokens(exact.decoder, batch, embeds, 4)
    one = type(batch)([batch.prompts[2]])
    alone = greedy_tokens(exact.decoder, one, encode(exact.expected_vision, one, width), 4, slot=3)
    assert alone[0].tolist() == together[2].tolist()


def test_what_no_engine_can_take_is_refused_with_the_remedy(exact):
    with pytest.raises(UserError, match=r"5 slots asked, .* has 4 rows.*--max-batch 5"):
        TensorRtDecoder(fake_bindings(), [exact.decoder_engine], [exact.device], exact.config, 5)
    batch = make_batch(CASE["image_150_to_1"], exact.config)
    with pytest.raises(UserError, match=r"600 patches .* takes 64 at once.*--max-patches 600"):
        encode(exact.vision, batch, 0)
    text = make_batch(CASE["text"], exact.config)
    inputs = text.prefill(np.zeros((0, exact.config.decoder.hidden_size), np.float32))
    with pytest.raises(ValueError, match="slots 4 to 4 asked, of 4"):
        exact.decoder.forward(4, inputs)
    late = text.piece(inputs.visual_embeds, np.array([0]), np.array([23]))
    with pytest.raises(ValueError, match="cache positions up to 193 asked, of 192"):
        exact.decoder.forward(0, type(late)(**{**vars(late), "write_index": np.array([170])}))


@pytest.fixture(scope="module")
def staged(tmp_path_factory):
    """A decoder in three stages, and ONNX Runtime's sessions on it."""
    sizes = {"hidden_size": 192, "num_attention_heads": 6, "num_key_value_heads": 1, "num_hidden_layers": 3}
    opened = open_bundle(shared_bundle(tmp_path_factory, {"dtype": "float32", **sizes}, pipeline_stages=3))
    return opened, open_onnxruntime(opened, num_slots=NUM_SLOTS, capacity=LIMITS.max_context)


def open_stages(opened, devices):
    engines = [
        FakeEngine(
            device,
            opened.graph(stage.graph),
            stage.graph,
            opened.config,
            LIMITS,
            "float32",
            stages=opened.stages,
        )
        for stage, device in zip(opened.stages, devices, strict=True)
    ]
    return TensorRtDecoder(fake_bindings(), engines, devices, opened.config, NUM_SLOTS)


@pytest.mark.parametrize("num_devices", [1, 2, 3])
@pytest.mark.parametrize("name", ["one_image", "ragged_batch"])
def test_a_decoder_in_stages_gives_the_tokens_of_one_graph(staged, name, num_devices):
    opened, (vision, expected) = staged
    all_devices = [HostDevice() for _ in range(num_devices)]
    decoder = open_stages(opened, [all_devices[i] for i in devices_of_stages(3, num_devices)])
    batch = make_batch(CASE[name], opened.config)
    embeds = encode(vision, batch, opened.config.decoder.hidden_size)
    answer = batch.valid(decoder.forward(0, batch.prefill(embeds)))
    assert relative_error(answer, batch.valid(expected.forward(0, batch.prefill(embeds)))) < 1e-5
    tokens = greedy_tokens(decoder, batch, embeds, 8)
    assert tokens.tolist() == greedy_tokens(expected, batch, embeds, 8).tolist()
    assert all(device.num_captures for device in all_devices)


def test_what_goes_between_stages_of_one_device_never_leaves_it(staged, monkeypatch):
    opened, (vision, _) = staged
    device = HostDevice()
    decoder = open_stages(opened, [device] * 3)
    batch = make_batch(CASE["text"], opened.config)
    shapes = []
    monkeypatch.setattr(HostDevice, "download", lambda _self, array, _address: shapes.append(array.shape))
    decoder.forward(0, batch.prefill(encode(vision, batch, opened.config.decoder.hidden_size)))
    assert {shape[-1] for shape in shapes} == {opened.config.decoder.vocab_size}


def test_each_device_works_on_another_group_of_rows():
    assert list(waves(3, 2)) == [[(0, 0)], [(0, 1), (1, 0)], [(1, 1), (2, 0)], [(2, 1)]]
    assert list(waves(1, 3)) == [[(0, 0)], [(0, 1)], [(0, 2)]]


@pytest.mark.parametrize(
    ("stages", "devices", "expected"), [(4, 2, [0, 0, 1, 1]), (3, 8, [0, 1, 2]), (3, 2, [0, 0, 1])]
)
def test_neighbouring_stages_share_a_device(stages, devices, expected):
    assert devices_of_stages(stages, devices) == expected
