"""One answer of a chat completion as it grows: events in, pieces of text out, and the JSON of both forms."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tokenizers import Tokenizer

from engines.runtime.answer import Event, FailureEvent, FinishReason, Timings, TokenEvent
from engines.runtime.tokens.text_stream import TextStream, token_bytes
from engines.serving.openai.request.tools import ToolCallReader
from export.inputs import SeenMedium
from export.processor.text.located import Located

Locate = Callable[[Sequence[int]], list[Located]]
"""What an answer's tokens locate in its conversation's picture."""

_FINISH_REASONS: dict[FinishReason, str] = {"stop": "stop", "length": "length", "capacity": "length"}
"""In OpenAI's words; what ends without an answer of its own has none."""

_LEAST_LOGPROB = -9999.0
"""OpenAI's own for what is as good as impossible: JSON has no infinity."""


@dataclass(frozen=True)
class TextPiece:
    """What an event adds to an answer."""

    text: str
    is_last: bool
    logprobs: tuple[dict[str, Any], ...] = ()
    calls: tuple[dict[str, Any], ...] = ()
    """Of tools, complete."""


class ChatChoice:
    """One of the `n` answers of a request."""

    def __init__(
        self,
        index: int,
        stream: TextStream,
        tokenizer: Tokenizer,
        *,
        with_logprobs: bool,
        ends: Collection[int],
        locate: Locate,
        tools: ToolCallReader | None = None,
    ) -> None:
        self.index = index
        self._stream, self._tokenizer, self._with_logprobs = stream, tokenizer, with_logprobs
        self._ends, self._tools, self._locate = ends, tools, locate
        self._token_ids: list[int] = []
        self._located: list[Located] = []
        self._pieces: list[str] = []
        self._logprobs: list[dict[str, Any]] = []
        self._calls: list[dict[str, Any]] = []
        self._num_calls_told = 0
        self.timings: Timings | None = None
        self.finish_reason: str | None = None
        """Once it is over."""

    @property
    def is_over(self) -> bool:
        return self.finish_reason is not None

    def push(self, event: Event) -> TextPiece:
        """Take an event of an answer that is not over.

        Raises:
            BaseException: what the engine raised.
            EndedError: it was given up, or its time ran out.
        """
        self.timings = event.timings
        if isinstance(event, FailureEvent):
            raise event.error
        text = ""
        logprobs: tuple[dict[str, Any], ...] = ()
        # What ends an answer is none of its words, a token that the client named no more than the checkpoint's own.
        if isinstance(event, TokenEvent) and event.token_id not in self._ends:
            self._token_ids.append(event.token_id)
            text = self._stream.push(event.token_id)
            logprobs = self._told(event)
        calls: list[dict[str, Any]] = []
        if self._tools:
            text, calls = self._tools.push(text)
        if self._stream.is_stopped or (self._tools and self._tools.is_full):
            self.finish_reason = "stop"
        elif event.finish_reason is not None:
            if event.finish_reason not in _FINISH_REASONS:
                raise EndedError(event.finish_reason)
            self.finish_reason = _FINISH_REASONS[event.finish_reason]
        if self.is_over:
            text, calls = self._finished(text, calls)
            self._located = self._locate(self._token_ids)
        self._pieces.append(text)
        self._logprobs += logprobs
        self._calls += calls
        if self._calls and self.finish_reason == "stop":
            self.finish_reason = "tool_calls"
        return TextPiece(text, self.is_over, logprobs, tuple(calls))

    def _finished(self, text: str, calls: list[dict[str, Any]]) -> tuple[str, list[dict[str, Any]]]:
        """With what was held back."""
        rest = self._stream.finish()
        if not self._tools:
            return text + rest, calls
        words, further = self._tools.push(rest)
        last_words, last_calls = self._tools.finish()
        return text + words + last_words, [*calls, *further, *last_calls]

    def _told(self, event: TokenEvent) -> tuple[dict[str, Any], ...]:
        if event.logprobs is None:
            return ()
        top = [self._entry(token_id, logprob) for token_id, logprob in event.logprobs.top]
        return ({**self._entry(event.token_id, event.logprobs.logprob), "top_logprobs": top},)

    def _entry(self, token_id: int, logprob: float) -> dict[str, Any]:
        data = token_bytes(self._tokenizer, token_id)
        return {
            "token": data.decode("utf-8", "replace"),
            "logprob": max(logprob, _LEAST_LOGPROB),
            "bytes": list(data),
        }

    def content(self) -> dict[str, Any]:
        """Of a whole answer."""
        text = "".join(self._pieces)
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if self._calls:
            message |= {"content": text or None, "tool_calls": self._calls}
        return {
            "index": self.index,
            "message": message,
            "logprobs": {"content": self._logprobs, "refusal": None} if self._with_logprobs else None,
            "finish_reason": self.finish_reason,
            **self._places(),
        }

    def opening(self) -> dict[str, Any]:
        """The first chunk of a streamed answer."""
        return self._chunk({"role": "assistant", "content": ""})

    def chunk(self, piece: TextPiece) -> dict[str, Any]:
        """What a piece adds."""
        delta: dict[str, Any] = {"content": piece.text} if piece.text or not piece.calls else {}
        if piece.calls:
            first = self._num_calls_told
            self._num_calls_told += len(piece.calls)
            delta["tool_calls"] = [{"index": first + n, **call} for n, call in enumerate(piece.calls)]
        chunk = self._chunk(delta)
        if self._with_logprobs:
            chunk["logprobs"] = {"content": list(piece.logprobs), "refusal": None}
        return chunk

    def closing(self) -> dict[str, Any]:
        """The last chunk."""
        return {**self._chunk({}), "finish_reason": self.finish_reason, **self._places()}

    def _places(self) -> dict[str, Any]:
        """What the answer located, as `run --json` tells it; nothing where it names no place."""
        return {"located": [asdict(one) for one in self._located]} if self._located else {}

    def _chunk(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"index": self.index, "delta": delta, "logprobs": None, "finish_reason": None}


class EndedError(Exception):
    """An answer ended before it was whole."""

    def __init__(self, reason: FinishReason) -> None:
        super().__init__(reason)
        self.reason = reason


def usage_of(choices: list[ChatChoice], media: Sequence[SeenMedium]) -> dict[str, Any]:
    """Tokens of a request, its prompt once, its answers together; and what became of its pictures and videos."""
    timings = [choice.timings for choice in choices if choice.timings]
    num_prompt = max((one.num_prompt_tokens for one in timings), default=0)
    num_new = sum(one.num_new_tokens for one in timings)
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_new,
        "total_tokens": num_prompt + num_new,
        "prompt_tokens_details": {
            "cached_tokens": max((one.num_reused_tokens for one in timings), default=0),
        },
        **({"media": [seen.to_json_object() for seen in media]} if media else {}),
    }
