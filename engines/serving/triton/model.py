"""The chat model as a Python-backend model: requests in, streamed responses out.

A request has a thread of its own from its check to its last response, out of a pool that is as large as what the
scheduler takes: a slow picture or a slow client holds up nobody else, and the thread that steps the engine only ever
puts events into queues. No torch.
"""

import json
import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as backend  # the server's own module, importable inside of it alone

from engines.runtime.answer import Event, FailureEvent, Timings, TokenEvent
from engines.runtime.heap import bound_heap
from engines.runtime.scheduler import Scheduler
from engines.runtime.scheduler_limits import TryLaterError
from engines.runtime.service import SchedulerService
from engines.runtime.tokens.text_stream import TextStream
from engines.serving.chat import CancelledError, ChatRequest, Receipt
from engines.serving.triton.interface import CHAT_INPUTS
from engines.serving.triton.loading import (
    FAULT,
    Arguments,
    RequestReader,
    bundle_directory,
    log_fault,
    open_served_engine,
    parameter_names,
    read_settings,
    read_tensors,
)
from engines.serving.triton.metrics import MetricsReporter
from engines.serving.warm_up import warm_up
from export.checkpoint.config import load_config
from export.errors import UserError
from export.inputs import SeenMedium
from export.processor.text.located import Located

_POLL_SECONDS = 0.1
"""How soon a client that went away is noticed while no token comes."""


class TritonPythonModel:
    """What Triton loads: `initialize` once, `execute` for requests, `finalize` at the end."""

    def initialize(self, args: Arguments) -> None:
        """Open the bundle, warm up and start the scheduler; the server is ready only after it.

        What is wrong with the bundle or the settings stands in the server's log, and the model does not load.
        """
        bound_heap()
        settings, directory = read_settings(args), bundle_directory(args)
        model = load_config(directory)
        self._settings = settings
        self._reader = RequestReader(directory, settings)
        self._engine = open_served_engine(directory, settings)
        scheduler = Scheduler(*self._engine, model, settings.scheduler)
        self._service = SchedulerService(scheduler)
        self._service.start()
        try:
            seconds = warm_up(self._service, self._reader.processor)
            self._engine.keep_compiled()  # now: a server may be killed
        except BaseException:  # a thread or a process that lives on would keep the server from ending
            self._service.close()
            self._reader.close()
            self._engine.close()
            raise
        self._metrics = MetricsReporter(self._service.stats, backend, args["model_name"])
        self._room = threading.BoundedSemaphore(settings.max_requests)
        self._pool = ThreadPoolExecutor(settings.max_requests, thread_name_prefix="request")
        backend.Logger.log_info(
            f"{directory}: {settings.num_slots} slots of {settings.capacity} tokens, warm after {seconds:.2f} s"
        )

    def execute(self, requests: list[Any]) -> None:
        """Take requests in; their responses come later, from their own threads."""
        for request in requests:
            received, sender = time.monotonic(), request.get_response_sender()
            if not self._room.acquire(blocking=False):
                message = f"{self._settings.max_requests} requests are being served. Try again later."
                _end_with_error(sender, message, backend.TritonError.UNAVAILABLE)
                continue
            try:
                tensors, parameters = read_tensors(request, CHAT_INPUTS), parameter_names(request)
                receipt = Receipt(received, sender.is_cancelled)
                self._pool.submit(self._serve, tensors, parameters, sender, receipt)
            except BaseException as error:  # noqa: BLE001 - a request that cannot be read fails no other
                self._room.release()
                _fail(sender, error)

    def finalize(self) -> None:
        """Let the answers that are being written end, as long as the settings allow; then stop."""
        self._service.drain(self._settings.drain_seconds)
        self._service.close()
        self._pool.shutdown(wait=True)
        self._reader.close()
        self._engine.close()
        self._metrics.close()

    def _serve(
        self, tensors: dict[str, npt.NDArray[Any]], parameters: list[str], sender: Any, receipt: Receipt
    ) -> None:
        """One request, from its check to its last response."""
        try:
            chat = self._reader.read(tensors, parameters, receipt)
            del tensors
            self._answer(chat, sender, receipt)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it ends this request alone
            _fail(sender, error)
        finally:
            self._room.release()

    def _answer(self, chat: ChatRequest, sender: Any, receipt: Receipt) -> None:
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        stream = TextStream(
            self._reader.processor.tokenizer,
            skip_special_tokens=chat.skip_special_tokens,
            stop_strings=chat.stop_strings,
        )
        left_seconds = receipt.left_seconds(chat.timeout_seconds)
        ticket = self._service.submit(chat.request, events.put, deadline_seconds=left_seconds)
        answer = _Answer(stream)
        try:
            while True:
                try:
                    event = events.get(timeout=_POLL_SECONDS)
                except queue.Empty:
                    event = None
                if sender.is_cancelled():
                    raise CancelledError
                if event is not None and self._respond(event, answer, chat, sender):
                    return
        finally:
            self._service.cancel(ticket)  # changes nothing after the end

    def _respond(self, event: Event, answer: "_Answer", chat: ChatRequest, sender: Any) -> bool:
        """Send what an event adds to the answer, or hold it where the answer goes out whole; True after the last."""
        if isinstance(event, FailureEvent):
            raise event.error
        # What ends an answer is none of its words, a token that the client named no more than the checkpoint's own.
        text, stream = "", answer.stream
        if isinstance(event, TokenEvent) and event.token_id not in chat.request.config.eos_token_ids:
            answer.token_ids.append(event.token_id)
            text = stream.push(event.token_id)
        if event.is_last or stream.is_stopped:
            reason = "stop" if stream.is_stopped else str(event.finish_reason)
            text = "".join([*answer.held, text, stream.finish()])
            media = chat.request.inputs.media
            located = self._reader.processor.located(answer.token_ids, media)
            _send(sender, text, reason, _usage(event.timings, media, located), is_last=True)
            self._log(event.timings, reason)
            return True
        if not chat.is_streamed:
            answer.held.append(text)
        elif text:
            _send(sender, text, "", "", is_last=False)
        return False

    def _log(self, timings: Timings, reason: str) -> None:
        """One structured line for each answer; never what was asked or said."""
        backend.Logger.log_info(json.dumps({"finish_reason": reason, **asdict(timings)}))


@dataclass
class _Answer:
    """What was said so far."""

    stream: TextStream
    token_ids: list[int] = field(default_factory=list)
    held: list[str] = field(default_factory=list)
    """Pieces that go out with the last, where the answer goes out whole."""


def _usage(timings: Timings, media: Sequence[SeenMedium], located: Sequence[Located]) -> str:
    seconds = {name: round(value, 6) for name, value in asdict(timings).items() if name.endswith("_seconds")}
    return json.dumps(
        {
            "prompt_tokens": timings.num_prompt_tokens,
            "visual_tokens": timings.num_visual_tokens,
            "reused_tokens": timings.num_reused_tokens,
            "completion_tokens": timings.num_new_tokens,
            **({"media": [seen.to_json_object() for seen in media]} if media else {}),
            **({"located": [asdict(one) for one in located]} if located else {}),
            **seconds,
        }
    )


def _send(sender: Any, text: str, finish_reason: str, usage: str, *, is_last: bool) -> None:
    values = {"text": text, "finish_reason": finish_reason, "usage": usage}
    tensors = [backend.Tensor(name, np.array([value.encode()], np.object_)) for name, value in values.items()]
    flags = backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL if is_last else 0
    sender.send(backend.InferenceResponse(output_tensors=tensors), flags=flags)


def _fail(sender: Any, error: BaseException) -> None:
    """End a request with what its client may know of an error."""
    if isinstance(error, CancelledError):
        _end_with_error(sender, "cancelled by the client", backend.TritonError.CANCELLED)
    elif isinstance(error, UserError):
        _end_with_error(sender, str(error), backend.TritonError.INVALID_ARG)
    elif isinstance(error, TryLaterError):
        _end_with_error(sender, str(error), backend.TritonError.UNAVAILABLE)
    else:
        log_fault(error)
        _end_with_error(sender, FAULT, backend.TritonError.INTERNAL)


def _end_with_error(sender: Any, message: str, code: Any) -> None:
    response = backend.InferenceResponse(error=backend.TritonError(message, code))
    sender.send(response, flags=backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
