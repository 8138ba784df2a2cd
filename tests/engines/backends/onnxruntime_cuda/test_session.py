"""All of the CUDA path but its kernels, on a device that is the CPU: tokens, what crosses, images that stay away."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engines.backends.onnxruntime.session import open_sessions as open_cpu_sessions
from engines.backends.onnxruntime_cuda.device import Device
from engines.backends.onnxruntime_cuda.session import open_sessions
from engines.runtime.answer import Event, Request, TokenEvent
from engines.runtime.generate import collect_generations, generate_batch
from engines.runtime.scheduler import Scheduler
from engines.runtime.scheduler_limits import SchedulerLimits
from engines.session import Engine
from export.bundle import Bundle, open_bundle
from export.checkpoint.generation_config import GenerationConfig
from export.exporter import export_checkpoint
from export.inputs import DecoderInputs
from export.processor.processor import Processor
from validate.cases.builtin import Profile, make_level
from validate.cases.prompts import prepare_case

TINY = Path(__file__).parents[4] / "models" / "qwen2-vl-tiny"
NUM_SLOTS, CAPACITY, NUM_NEW = 3, 256, 8


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Bundle:
    output = tmp_path_factory.mktemp("device") / "bundle"
    export_checkpoint(TINY, output)
    return open_bundle(output)


@pytest.fixture(scope="module")
def device() -> Device:
    return Device("cpu")


@pytest.fixture(scope="module")
def engine(bundle, device) -> Engine:
    return open_sessions(bundle, device, num_slots=NUM_SLOTS, capacity=CAPACITY, num_threads=1)


@pytest.fixture(scope="module")
def cpu_engine(bundle) -> Engine:
    return open_cpu_sessions(bundle, num_slots=NUM_SLOTS, capacity=CAPACITY, num_threads=1)


SETTINGS: list[dict[str, Any]] = [
    {},
    {"do_sample": True, "top_k": 20, "top_p": 0.9, "temperature": 1.5},
    {"do_sample": True, "top_k": 0},
    {"repetition_penalty": 1.3, "presence_penalty": 0.5},
    {"do_sample": True, "top_k": 50, "logit_bias": {5: 4.0, 9: -3.0}},
    {"num_logprobs": 3},
]


def make_requests(bundle: Bundle) -> list[Request]:
    """Questions with none, one and two images, of several sizes, each chosen in another way."""
    processor, made = Processor.from_directory(bundle.directory), []
    for number, how in enumerate(SETTINGS):
        random = np.random.default_rng(number)
        content: list[dict] = [{"type": "text", "text": "what is there? " * (1 + number)}]
        for _ in range(number % 3):
            size = (*(random.integers(2, 6, 2) * 28), 3)
            image = Image.fromarray(random.integers(0, 256, size, dtype=np.uint8))
            content.insert(0, {"type": "image", "image": image})
        inputs = processor.inputs_from_messages([{"role": "user", "content": content}])
        settings = {**how, "logit_bias": tuple(how.get("logit_bias", {}).items())}
        made.append(Request(inputs, GenerationConfig(max_new_tokens=NUM_NEW, **settings), seed=number))
    return made


def answers(engine: Engine, bundle: Bundle, limits: SchedulerLimits | None = None) -> list[list[int]]:
    """Tokens of every request, all served at once."""
    limits = limits or SchedulerLimits(prefill_chunk_tokens=48)
    scheduler = Scheduler(engine.vision, engine.decoder, bundle.config, limits)
    requests = make_requests(bundle)
    heard: list[list[Event]] = [[] for _ in requests]
    for request, events in zip(requests, heard, strict=True):
        scheduler.submit(request, events.append)
    while scheduler.step():
        pass
    assert not scheduler.stats().num_failed
    return [[event.token_id for event in events if isinstance(event, TokenEvent)] for events in heard]


def test_served_answers_are_those_of_the_cpu_backend_whatever_chooses_their_tokens(
    bundle, engine, cpu_engine
):
    found = answers(engine, bundle)
    assert found == answers(cpu_engine, bundle)
    assert len({tuple(tokens) for tokens in found}) == len(found), "equal answers would prove little"


def test_answers_to_the_validators_cases_are_those_of_the_cpu_backend(bundle, engine, cpu_engine):
    """One, several and unequal rows, images and films of many shapes, chunks: each case as one batch."""
    settings, profile = bundle.processor.image_settings, Profile(CAPACITY, 4096, NUM_SLOTS, CAPACITY, 64)
    cases = [prepare_case(case, bundle.config, settings) for case in make_level("standard", profile).cases]
    inside = [case for case in cases if case.problem(profile, NUM_NEW) is None]
    assert len(inside) >= 8
    config = GenerationConfig(max_new_tokens=NUM_NEW)
    for case in inside:
        tokens = [
            [
                generation.token_ids
                for generation in collect_generations(
                    generate_batch(
                        [Request(prompt, config) for prompt in case.prompts],
                        sessions.vision,
                        sessions.decoder,
                        model=bundle.config,
                        prefill_chunk_tokens=case.prefill_chunk_tokens,
                    )
                )
            ]
            for sessions in (engine, cpu_engine)
        ]
        assert tokens[0] == tokens[1], case.name


def test_no_embeddings_and_no_whole_logits_cross_while_answers_are_served(bundle, engine, device):
    device.uploaded.clear()
    device.downloaded.clear()
    answers(engine, bundle)
    assert not device.uploaded["visual_embeds"]
    assert not device.downloaded["visual_embeds"]
    assert not device.downloaded["logits"]
    # A draw from the whole distribution may need a row now and then.
    vocab_bytes = 4 * bundle.config.decoder.vocab_size
    assert device.downloaded["whole_logits"] <= 0.1 * NUM_NEW * len(SETTINGS) * vocab_bytes
    assert set(device.downloaded) <= {
        "visual_embeds",
        "logits",
        "whole_logits",
        "top_logits",
        "top_ids",
        "log_sum_exp",
        "asked_logits",
    }


def test_a_step_moves_a_few_kilobytes(bundle, engine, device):
    answers(engine, bundle)
    scheduler = Scheduler(engine.vision, engine.decoder, bundle.config)
    request = make_requests(bundle)[0]
    scheduler.submit(request, lambda _event: None)
    scheduler.step()
    device.uploaded.clear()
    device.downloaded.clear()
    scheduler.step()
    assert sum(device.uploaded.values()) < 200
    assert sum(device.downloaded.values()) == 256 * (4 + 8) + 4 + 4


@pytest.mark.parametrize("device_bytes", [0, 3000, 1 << 20])
def test_images_that_leave_the_device_come_back_as_they_were(bundle, engine, device, device_bytes):
    limits = SchedulerLimits(prefill_chunk_tokens=48, device_embedding_cache_bytes=device_bytes)
    scheduler = Scheduler(engine.vision, engine.decoder, bundle.config, limits)
    heard: list[list[Event]] = []
    for _ in range(2):
        for request in make_requests(bundle)[:3]:
            heard.append([])
            scheduler.submit(request, heard[-1].append)
            while scheduler.step():
                pass
    tokens = [[event.token_id for event in events if isinstance(event, TokenEvent)] for events in heard]
    assert tokens[:3] == tokens[3:]
    cache = scheduler._picture_encoder.cache
    assert cache.num_device_bytes <= device_bytes
    assert bool(cache.num_bytes) == (device_bytes < 1 << 20), "the host has what the device has no room for"


def test_whole_logits_and_host_arrays_are_there_for_who_asks(bundle, engine, cpu_engine):
    inputs = make_requests(bundle)[2].inputs
    rows, expected = engine.vision.encode(inputs.vision), cpu_engine.vision.encode(inputs.vision)
    np.testing.assert_array_equal(rows, expected)
    length = len(inputs.token_ids)
    call = DecoderInputs(
        inputs.token_ids[None],
        rows,
        inputs.position_ids[:, None],
        np.zeros(1, np.int64),
        np.array([length]),
        np.arange(length)[None],
    )
    np.testing.assert_array_equal(engine.decoder.forward(1, call), cpu_engine.decoder.forward(1, call))
