import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.hostile_requests import TEXTS, user
from engines.serving.limits import RequestLimits
from engines.serving.messages import read_messages
from engines.serving.triton.requests import parse_request
from export.checkpoint.generation_config import GenerationConfig
from export.errors import UserError
from export.processor.processor import Processor

TINY = Path(__file__).parents[3] / "models" / "qwen2-vl-tiny"
LIMITS = RequestLimits(max_context=512)
MOST_SECONDS = 0.5
"""What no other client of the server may wait longer for, by one request of any kind."""


@pytest.fixture(scope="module")
def processor():
    return Processor.from_directory(TINY)


@pytest.mark.parametrize("kind", TEXTS)
def test_no_request_within_or_beyond_the_limits_holds_up_another_thread(processor, kind):
    tensors = {"messages": np.array([TEXTS[kind]()], np.object_)}
    # Another process may take the processor away from this one; what holds the interpreter does so each time.
    for _ in range(3):
        with pytest.raises(UserError) as caught, Watch() as waits:
            parse_request(tensors, processor, GenerationConfig(), LIMITS)
        if max(waits) < MOST_SECONDS:
            break
    assert len(str(caught.value)) < 1000
    assert max(waits) < MOST_SECONDS
    assert sum(waits) < 5


class Watch:
    """How long another thread that wants to run every millisecond waits to do so."""

    def __enter__(self):
        self.waits, self._is_over = [0.0], threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self.waits

    def __exit__(self, *_):
        self._is_over.set()
        self._thread.join()

    def _run(self):
        while not self._is_over.is_set():
            started = time.perf_counter()
            time.sleep(0.001)
            self.waits.append(time.perf_counter() - started)


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([{"role": "user", "content": "x"}] * 5, "at most 4 messages, found 5"),
        ([{"role": "user", "content": [{"type": "text", "text": ""}] * 4}] * 2, "at most 6 parts, found 8"),
        ([{"role": "user", "content": "x" * 300}], "characters"),
        ([{"role": "r" * 300, "content": ""}], "characters"),
        ([{"role": "user", "content": "", "k" * 300: None}], "characters"),
        ([{"role": "user", "content": "", "a": {"b": ["x" * 150, "y" * 150]}}], "characters"),
    ],
)
def test_every_count_of_a_conversation_is_bounded(messages, says):
    limits = RequestLimits(max_messages=4, max_parts=6, max_text_characters=250)
    with pytest.raises(UserError, match=says):
        read_messages(json.dumps(messages).encode(), limits)


def test_a_picture_is_no_text():
    messages = [{"role": "user", "content": [{"type": "image", "image": "A" * 100_000}]}]
    assert read_messages(json.dumps(messages).encode(), RequestLimits(max_text_characters=100)) == messages


def test_text_beyond_the_context_is_refused_before_a_picture_is_decoded(processor):
    content = [{"type": "image", "image": b"no picture"}, {"type": "text", "text": "9" * 5000}]
    with pytest.raises(UserError, match="more than 512 tokens"):
        processor.inputs_from_messages([{"role": "user", "content": content}], max_tokens=512)


@pytest.mark.parametrize("kind", [{}, [], 1, None, {"a": 1}])
def test_a_type_that_is_no_string_is_the_clients_mistake(processor, kind):
    tensors = {"messages": np.array([user([{"type": kind, "text": "x"}])], np.object_)}
    with pytest.raises(UserError, match="expected an object of type text, image or video"):
        parse_request(tensors, processor, GenerationConfig(), LIMITS)
