"""One answer of a chat completion as it grows: events in, pieces of text out, and the JSON of both forms."""

from dataclasses import dataclass
from typing import Any

from engines.runtime.answer import Event, FailureEvent, FinishReason, Timings, TokenEvent
from engines.runtime.text_stream import TextStream

_FINISH_REASONS: dict[FinishReason, str] = {"stop": "stop", "length": "length", "capacity": "length"}
"""In OpenAI's words; what ends without an answer of its own has none."""


@dataclass(frozen=True)
class Piece:
    """What an event adds to an answer."""

    text: str
    is_last: bool


class Choice:
    """One of the `n` answers of a request."""

    def __init__(self, index: int, stream: TextStream) -> None:
        self.index = index
        self._stream = stream
        self._pieces: list[str] = []
        self.timings: Timings | None = None
        self.finish_reason: str | None = None
        """Once it is over."""

    @property
    def is_over(self) -> bool:
        return self.finish_reason is not None

    def push(self, event: Event) -> Piece:
        """Take an event of an answer that is not over.

        Raises:
            BaseException: what the engine raised.
            EndedError: it was given up, or its time ran out.
        """
        self.timings = event.timings
        if isinstance(event, FailureEvent):
            raise event.error
        text = self._stream.push(event.token_id) if isinstance(event, TokenEvent) else ""
        if self._stream.is_stopped:
            self.finish_reason = "stop"
        elif event.finish_reason is not None:
            if event.finish_reason not in _FINISH_REASONS:
                raise EndedError(event.finish_reason)
            self.finish_reason = _FINISH_REASONS[event.finish_reason]
        if self.is_over:
            text += self._stream.finish()
        self._pieces.append(text)
        return Piece(text, self.is_over)

    def content(self) -> dict[str, Any]:
        """Of a whole answer."""
        return {
            "index": self.index,
            "message": {"role": "assistant", "content": "".join(self._pieces), "refusal": None},
            "logprobs": None,
            "finish_reason": self.finish_reason,
        }

    def opening(self) -> dict[str, Any]:
        """The first chunk of a streamed answer."""
        return self._chunk({"role": "assistant", "content": ""})

    def chunk(self, piece: Piece) -> dict[str, Any]:
        """What a piece adds."""
        return self._chunk({"content": piece.text})

    def closing(self) -> dict[str, Any]:
        """The last chunk."""
        return {**self._chunk({}), "finish_reason": self.finish_reason}

    def _chunk(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"index": self.index, "delta": delta, "logprobs": None, "finish_reason": None}


class EndedError(Exception):
    """An answer ended before it was whole."""

    def __init__(self, reason: FinishReason) -> None:
        super().__init__(reason)
        self.reason = reason


def usage_of(choices: list[Choice]) -> dict[str, Any]:
    """Tokens of a request: its prompt once, its answers together."""
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
    }
