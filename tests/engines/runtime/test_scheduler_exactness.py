"""The small checkpoint on ONNX Runtime: sixteen at once get what each gets alone, to the bit where that is promised."""

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engines.backends.onnxruntime.session import open_sessions
from engines.runtime.answer import Event, Request, TokenEvent
from engines.runtime.generate import collect_generations, generate
from engines.runtime.scheduler import Scheduler
from engines.runtime.scheduler_limits import SchedulerLimits
from engines.runtime.tokens import choose as choose_module
from engines.runtime.tokens.sampling import next_token
from export.bundle import open_bundle
from export.checkpoint.config import load_config
from export.checkpoint.generation_config import GenerationConfig
from export.exporter import export_checkpoint
from export.processor.processor import Processor

TINY = Path(__file__).parents[3] / "models" / "qwen2-vl-tiny"
pytestmark = pytest.mark.skipif(not TINY.exists(), reason="models/qwen2-vl-tiny is not in this checkout")
NUM_CLIENTS, NUM_NEW_TOKENS = 16, 12


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("exactness") / "bundle"
    export_checkpoint(TINY, output)
    return output


@pytest.fixture(scope="module")
def sessions(bundle):
    return open_sessions(open_bundle(bundle), num_slots=NUM_CLIENTS, capacity=256, num_threads=1)


@pytest.fixture(scope="module")
def requests(bundle) -> list[Request]:
    """Questions of unequal lengths, every second one with a picture of its own; each has its own config object."""
    processor = Processor.from_directory(bundle)
    made = []
    for number in range(NUM_CLIENTS):
        random = np.random.default_rng(number)
        content: list[dict] = [{"type": "text", "text": "what is there? " * (1 + number % 5)}]
        if number % 2:
            size = (*(random.integers(2, 6, 2) * 28), 3)
            picture = Image.fromarray(random.integers(0, 256, size, dtype=np.uint8))
            content.insert(0, {"type": "image", "image": picture})
        inputs = processor.inputs_from_messages([{"role": "user", "content": content}])
        made.append(Request(inputs, GenerationConfig(max_new_tokens=NUM_NEW_TOKENS)))
    return made


@pytest.fixture
def logits_by_request(monkeypatch) -> dict[int, list[bytes]]:
    """The bits of every row of logits that chose a token, by the id of the request's config."""
    rows: dict[int, list[bytes]] = defaultdict(list)

    def recorded(logits, seen, config, *others):
        rows[id(config)].append(logits.tobytes())
        return next_token(logits, seen, config, *others)

    monkeypatch.setattr(choose_module, "next_token", recorded)
    return rows


def run(scheduler: Scheduler, requests: list[Request], steps_between: int = 0) -> list[list[int]]:
    """Submit all, some steps after one another, and run to the end; tokens of each."""
    heard: list[list[Event]] = [[] for _ in requests]
    for request, events in zip(requests, heard, strict=True):
        scheduler.submit(request, events.append)
        for _ in range(steps_between):
            scheduler.step()
    while scheduler.step():
        pass
    return [[event.token_id for event in events if isinstance(event, TokenEvent)] for events in heard]


def test_sixteen_clients_at_once_get_the_tokens_that_each_gets_alone(bundle, sessions, requests):
    model = load_config(bundle)
    vision, decoder = sessions
    alone = [
        collect_generations(generate(request.inputs, vision, decoder, request.config, model=model))[
            0
        ].token_ids
        for request in requests
    ]
    assert len({tuple(token_ids) for token_ids in alone}) > 4, "equal answers would prove little"
    for steps_between in (0, 1):
        scheduler = Scheduler(vision, decoder, model, SchedulerLimits(prefill_chunk_tokens=48))
        assert run(scheduler, requests, steps_between) == alone
        stats = scheduler.stats()
        assert stats.num_decode_rows > 4 * stats.num_decode_calls, "four answers and more a call"


def test_with_one_thread_and_no_lone_token_logits_are_the_same_bits_in_any_company(
    bundle, sessions, requests, logits_by_request
):
    vision, decoder = sessions
    model, limits = load_config(bundle), SchedulerLimits(min_tokens_per_call=2)
    for request in requests:
        run(Scheduler(vision, decoder, model, limits), [request])
    alone = dict(logits_by_request)
    assert all(len(rows) == NUM_NEW_TOKENS for rows in alone.values())
    for chunk, steps_between in ((256, 0), (13, 1)):
        scheduler = Scheduler(vision, decoder, model, replace(limits, prefill_chunk_tokens=chunk))
        for _ in range(2):  # the second time behind what the slots hold
            logits_by_request.clear()
            run(scheduler, requests, steps_between)
            assert logits_by_request == alone
        assert (
            scheduler.stats().num_reused_tokens > sum(request.num_prompt_tokens for request in requests) // 3
        )
