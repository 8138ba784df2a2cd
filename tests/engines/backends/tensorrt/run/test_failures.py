"""What happens when TensorRT or the device refuses something: nothing freed is used, and the reason is told."""

import numpy as np
import pytest

from engines.backends.facts import TensorFacts
from engines.backends.tensorrt.build.profiles import PREFILL
from engines.backends.tensorrt.run.execution import Execution, WorkingMemory
from engines.backends.tensorrt.run.session import TensorRtDecoder, TensorRtVision
from engines.backends.tensorrt.run.stage import require_aligned_slots
from engines.session import EngineError
from engines.sizing.limits import Limits
from export.bundle import open_bundle
from export.checkpoint.config import load_config
from export.errors import UserError
from tests.engines.backends.tensorrt.fake_runtime import FakeEngine, HostDevice, fake_bindings
from tests.support.cases import CASES, decode_step, make_batch
from tests.support.sessions import encode

LIMITS = Limits(
    max_patches=64, max_segments=2, max_batch=4, max_prompt_tokens=16, max_context=192, max_logits_tokens=5
)
CASE = {case.name: case for case in CASES}


class Parts:
    """An engine and a device, and what drives them."""

    def __init__(self, directory, graph="vision", limits=LIMITS, *, name="tensorrt"):
        bundle = open_bundle(directory)
        self.config, self.device = load_config(directory), HostDevice()
        self.engine = FakeEngine(self.device, bundle.graph(graph), graph, self.config, limits, "float32")
        self.trt = fake_bindings(name)

    def vision(self):
        return TensorRtVision(self.trt, self.engine, self.device, self.config)

    def decoder(self, num_slots=4):
        return TensorRtDecoder(self.trt, [self.engine], [self.device], self.config, num_slots)

    def execution(self):
        return Execution(self.trt, self.engine, self.device, PREFILL, WorkingMemory(self.device))


@pytest.fixture
def parts(bundle_of):
    return Parts(bundle_of("float32"))


@pytest.fixture
def decoder_parts(bundle_of):
    return Parts(bundle_of("float32"), "decoder")


def vision_batches(parts):
    """Embeddings of a small call and of a large one."""
    small, large = (make_batch(CASE[name], parts.config) for name in ("one_image", "three_images"))
    return small, large


def taken(device):
    return sum(map(len, device.memory.values()))


def test_after_memory_ran_out_small_calls_still_run_and_large_ones_are_refused_again(parts):
    vision, width = parts.vision(), parts.config.decoder.hidden_size
    small, large = vision_batches(parts)
    expected = encode(vision, small, width)
    for spare in (0, 512):  # no room to grow at all, and none even with the old block given back
        parts.device.room_bytes = taken(parts.device) + spare
        for _ in range(2):
            with pytest.raises(EngineError, match="out of memory"):
                encode(vision, large, width)
            np.testing.assert_array_equal(encode(vision, small, width), expected)
    parts.device.room_bytes = None
    assert np.isfinite(encode(vision, large, width)).all()


def test_memory_grows_before_the_old_block_is_freed_unless_both_do_not_fit():
    order = []

    class Recorded(HostDevice):
        def allocate(self, num_bytes):
            order.append("allocate")
            return super().allocate(num_bytes)

        def free(self, address):
            order.append("free")
            super().free(address)

    device = Recorded()
    memory = WorkingMemory(device)
    memory.reserve(1000)
    first, device.room_bytes = memory.address, 4000
    order.clear()
    memory.reserve(2000)
    assert order == ["allocate", "free"]
    assert first not in device.memory
    assert memory.version == 2
    memory.reserve(1500)  # fits
    assert order == ["allocate", "free"]
    memory.reserve(3000)
    assert order[2:] == ["allocate", "free", "allocate"]
    assert list(device.memory) == [memory.address]
    with pytest.raises(EngineError, match="out of memory"):
        memory.reserve(5000)
    assert (memory.address, memory.num_bytes, device.memory) == (0, 0, {})


def test_what_tensorrt_says_is_in_the_error(parts):
    parts.engine.failures.context = True
    with pytest.raises(EngineError, match=r"(?s)execution context.*no memory for a context"):
        parts.vision()
    parts.engine.failures.context = False
    vision, (small, _) = parts.vision(), vision_batches(parts)
    width = parts.config.decoder.hidden_size
    parts.engine.failures.shape = "patches"
    with pytest.raises(EngineError, match=r"(?s)shape .* of patches.*not a shape of the profile"):
        encode(vision, small, width)
    parts.engine.failures.shape = ""
    parts.engine.failures.sizes = True
    with pytest.raises(EngineError, match=r"(?s)memory they need.*a shape is missing") as error:
        encode(vision, small, width)
    assert "profile" not in str(error.value)  # what was told once is not told again
    parts.engine.failures.sizes = False
    assert np.isfinite(encode(vision, small, width)).all()


def test_errors_reach_pythons_logging(parts, caplog):
    parts.engine.failures.context = True
    with pytest.raises(EngineError):
        parts.vision()
    assert [record.levelname for record in caplog.records if "no memory" in record.message] == ["ERROR"]


def test_an_unprepared_call_cannot_run(parts):
    execution = parts.execution()
    execution.forget()
    for run in (execution.run, execution.run_repeatedly):
        with pytest.raises(AssertionError, match="prepare a call first"):
            run()


def steps(parts, decoder, slots, num_rows=1):
    """One decode step for each slot of a list, at the first position."""
    width = parts.config.decoder.hidden_size
    zeros = np.zeros(num_rows, np.int64)
    return [decoder.forward(slot, decode_step(zeros + 5, zeros, zeros, width)) for slot in slots]


def test_a_failed_capture_is_not_tried_again_and_tells_why(decoder_parts, caplog):
    decoder_parts.engine.failures.capture = True
    decoder = decoder_parts.decoder()
    answers = steps(decoder_parts, decoder, [0] * 6)
    assert all(np.array_equal(answer, answers[0]) for answer in answers)
    told = [record.message for record in caplog.records if "without a CUDA graph" in record.message]
    assert len(told) == 1
    assert "not permitted when stream is capturing" in told[0]
    assert decoder_parts.device.num_captures == 0


def test_streamed_weights_are_never_captured(decoder_parts):
    decoder_parts.engine.streamable_weights_size = 1
    steps(decoder_parts, decoder_parts.decoder(), [0] * 4)
    assert decoder_parts.device.num_captures == 0


@pytest.mark.parametrize(
    ("name", "contexts", "captures"), [("tensorrt", 1 + 3, 3), ("tensorrt_rtx", 1 + 1, 0)]
)
def test_slots_that_take_turns_keep_their_graphs_where_a_context_is_cheap(
    bundle_of, name, contexts, captures
):
    parts = Parts(bundle_of("float32"), "decoder", name=name)
    steps(parts, parts.decoder(), [0, 1, 2] * 5)
    assert len(parts.engine.contexts) == contexts
    # The first step of a set runs plainly, the second is captured; so 3 * 4 of 15 are replayed, or none.
    assert (parts.device.num_captures, parts.device.num_replays) == (captures, 4 * captures)


def test_more_sets_of_slots_than_contexts_take_them_from_one_another(decoder_parts, monkeypatch):
    monkeypatch.setattr("engines.backends.tensorrt.run.stage.MAX_STEP_CONTEXTS", 2)
    decoder = decoder_parts.decoder()
    alone = steps(decoder_parts, decoder_parts.decoder(), [0])[0]
    answers = steps(decoder_parts, decoder, [0, 0, 1, 1, 0, 2, 2, 2, 1, 1, 0, 0])
    assert all(np.array_equal(answer, alone) for answer in answers)
    assert len(decoder_parts.engine.contexts) == 1 + 1 + 1 + 2


def test_graphs_are_captured_anew_when_working_memory_moves(decoder_parts):
    decoder = decoder_parts.decoder()
    before = steps(decoder_parts, decoder, [0] * 3)
    batch = make_batch(CASE["text"], decoder_parts.config)
    empty = np.zeros((0, decoder_parts.config.decoder.hidden_size), np.float32)
    decoder.forward(1, batch.prefill(empty))  # needs more
    after = steps(decoder_parts, decoder, [0] * 3)  # a graph in the freed block would fail in the fake
    assert np.array_equal(before, after)
    assert decoder_parts.device.num_captures == 2


@pytest.mark.parametrize(
    ("heads", "head_dim", "dtype", "capacity", "remedy"),
    [(3, 32, "bfloat16", 190, 192), (1, 40, "float32", 100, 104), (5, 24, "bfloat16", 65, 80)],
)
def test_slots_that_would_not_be_aligned_are_refused_with_the_capacity_that_is(
    heads, head_dim, dtype, capacity, remedy
):
    def cache(length):
        return TensorFacts("past_key.0", dtype, (-1, heads, length, head_dim), ())

    with pytest.raises(
        UserError, match=rf"4 slots asked, each of {capacity} tokens .* --max-context {remedy},"
    ):
        require_aligned_slots(cache(capacity), 4)
    require_aligned_slots(cache(capacity), 1)
    require_aligned_slots(cache(remedy), 4)


def test_the_decoder_opens_no_slots_that_are_not_aligned(decoder_parts, monkeypatch):
    monkeypatch.setattr("engines.backends.tensorrt.run.stage.ALIGNMENT", 2**20)
    with pytest.raises(UserError, match="4 slots asked"):
        decoder_parts.decoder()
    assert decoder_parts.decoder(num_slots=1).num_slots == 1
