"""Warm-up: the model is warm once it has answered a question about a picture."""

import queue
import time

from PIL import Image

from engines.runtime.answer import Event, FailureEvent, Request
from engines.runtime.service import SchedulerService
from export.checkpoint.generation_config import GenerationConfig
from export.processor.processor import Processor

_NUM_TOKENS = (
    4  # a prefill, a decode that loads kernels, one that becomes a CUDA graph, and one that is that graph
)


def warm_up(service: SchedulerService, processor: Processor) -> float:
    """Go once through vision, prefill and decode, so that no client waits for what happens once; returns seconds.

    Raises:
        Exception: what the engine raised: a model that cannot answer must not say that it is ready.
    """
    started = time.monotonic()
    content = [
        {"type": "image", "image": Image.new("RGB", (112, 56), "gray")},
        {"type": "text", "text": "Hi"},
    ]
    inputs = processor.inputs_from_messages([{"role": "user", "content": content}])
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    service.submit(Request(inputs, GenerationConfig(max_new_tokens=_NUM_TOKENS)), events.put)
    while not (event := events.get()).is_last:
        pass
    if isinstance(event, FailureEvent):
        raise event.error
    return time.monotonic() - started
