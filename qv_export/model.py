"""A loaded model that answers: one question, a stream of text, or a chat of several turns."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from export.bundle import Bundle
from export.checkpoint.generation_config import override_generation_config
from export.errors import UserError

if TYPE_CHECKING:
    from engines.runtime.answer import FinishReason, Timings, TokenEvent
    from engines.runtime.tokens.guided import Form, Guide
    from engines.runtime.tokens.sampling import TokenLogprobs
    from engines.runtime.tokens.text_stream import TextStream
    from engines.session import Engine
    from export.checkpoint.generation_config import GenerationConfig
    from export.inputs import ModelInputs, SeenMedium
    from export.processor.text.located import Located

_TEMPLATE_WISHES = ("tools", "add_vision_id", "chat_template_kwargs", "continue_final_message")
_TEXT_WISHES = ("stop", "keep_special_tokens")
_FORM_WISHES: "Mapping[str, Form]" = {
    "json_schema": "json",
    "regex": "regex",
    "choice": "choice",
    "grammar": "grammar",
}

Message = Mapping[str, Any]
"""One message in the chat format of Hugging Face."""


@dataclass(frozen=True)
class Answer:
    """A whole answer."""

    text: str
    token_ids: list[int]
    """The end-of-sequence token included."""
    finish_reason: "FinishReason"
    """ "stop", "length" (`max_new_tokens` are there) or "capacity" (the context is full)."""
    timings: "Timings"
    located: "tuple[Located, ...]" = ()
    """Boxes, points and quadrangles that it names, in pixels of the picture."""
    logprobs: "tuple[TokenLogprobs, ...]" = ()
    """Of each token, where `num_logprobs` asks for them."""

    def __str__(self) -> str:
        return self.text


class Model:
    """A bundle whose engine is loaded: answers one question at a time."""

    def __init__(self, bundle: Bundle, engine: "Engine", engine_key: str) -> None:
        self.bundle = bundle
        self.engine = engine
        self.engine_key = engine_key
        """Of the engine, or of the graphs as the backend opens them: what a verdict belongs to."""

    def close(self) -> None:
        """End the processes that compute for it, where there are some; it cannot answer any longer."""
        self.engine.close()

    def generate(
        self,
        prompt: str | Sequence[Message],
        images: Sequence[Any] = (),
        videos: Sequence[Any] = (),
        *,
        system: str | None = None,
        seed: int | None = None,
        **wishes: Any,
    ) -> Answer:
        """Answer a question.

        Args:
            prompt: the question, or a conversation in the chat format of Hugging Face.
            images: before the question: paths, bytes, Pillow images or arrays [H, W, 3] of uint8.
            videos: before the question, after the images: paths, bytes, folders or lists of frames.
            system: the system message; None: the chat template's own.
            seed: for sampling; None draws a new one.
            wishes: how tokens are chosen: `max_new_tokens`, `min_new_tokens`, `temperature`, `top_k`, `top_p`, `min_p`,
                `repetition_penalty`, `presence_penalty`, `frequency_penalty`, `logit_bias`, `no_repeat_ngram_size`,
                `num_logprobs`, `do_sample`; what is left out is the checkpoint's own. How the prompt is made: `tools`,
                `add_vision_id`, `chat_template_kwargs`, `continue_final_message`. How the text is given: `stop`, a list
                of texts that end it, and `keep_special_tokens`. Which form it has, one of `json_schema`, `regex`,
                `choice` (a list of texts) and `grammar` (GBNF or Lark).

        Raises:
            UserError: media that cannot be read, a prompt that does not fit, values out of range.
            EngineError: the engine's answer is unusable.
        """
        events: list[TokenEvent] = []
        media: list[SeenMedium] = []
        messages = self._messages(prompt, images, videos, system)
        pieces = list(self._pieces(messages, seed, wishes, events, media))
        last, token_ids = events[-1], [event.token_id for event in events]
        return Answer(
            text="".join(pieces),
            token_ids=token_ids,
            finish_reason=last.finish_reason
            or "stop",  # a stop string ended it, and nothing further was asked for
            timings=last.timings,
            located=tuple(self.bundle.processor.located(token_ids, media)),
            logprobs=tuple(event.logprobs for event in events if event.logprobs is not None),
        )

    def stream(
        self,
        prompt: str | Sequence[Message],
        images: Sequence[Any] = (),
        videos: Sequence[Any] = (),
        *,
        system: str | None = None,
        seed: int | None = None,
        **wishes: Any,
    ) -> Iterator[str]:
        """The same, as pieces of text that come as they are written. Args and errors as `generate`."""
        yield from self._pieces(self._messages(prompt, images, videos, system), seed, wishes, [], [])

    def chat(self, system: str | None = None) -> "Chat":
        """A conversation that remembers its turns."""
        return Chat(self, system)

    def events(
        self,
        inputs: "ModelInputs",
        generation: "GenerationConfig",
        *,
        seed: int | None = None,
        prefill_chunk_tokens: int | None = None,
        form: Mapping[str, Any] | None = None,
    ) -> "Iterator[TokenEvent]":
        """Answer a prepared prompt (`bundle.processor`) token by token, in a `form` by its name among the wishes.

        Raises:
            UserError: it does not fit the context, or the form cannot be followed.
            EngineError: while iterating, the engine's answer is unusable.
        """
        from engines.runtime.generate import generate

        return generate(
            inputs,
            self.engine.vision,
            self.engine.decoder,
            generation,
            model=self.bundle.config,
            prefill_chunk_tokens=prefill_chunk_tokens,
            seed=seed,
            guide=self._guide(form or {}, generation),
        )

    def _guide(self, form: Mapping[str, Any], generation: "GenerationConfig") -> "Guide | None":
        if len(form) > 1:
            raise UserError(f"An answer has one form, asked for are {', '.join(form)}.")
        for name, content in form.items():
            from engines.runtime.tokens.guided import GuideMaker

            vocab_size = self.bundle.config.decoder.vocab_size
            maker = GuideMaker(self.bundle.processor.tokenizer, generation.eos_token_ids, vocab_size)
            return maker.guides(_FORM_WISHES[name], content)[0]
        return None

    def _pieces(
        self,
        messages: Sequence[Message],
        seed: int | None,
        wishes: Mapping[str, Any],
        heard: "list[TokenEvent]",
        media: "list[SeenMedium]",
    ) -> Iterator[str]:
        """Pieces of text; `heard` collects the events behind them, `media` what became of pictures and videos."""
        from engines.runtime.tokens.text_stream import TextStream

        processor = self.bundle.processor
        template = {name: wishes[name] for name in _TEMPLATE_WISHES if name in wishes}
        text = {name: wishes[name] for name in _TEXT_WISHES if name in wishes}
        form = {name: wishes[name] for name in _FORM_WISHES if wishes.get(name) is not None}
        others = {*_TEMPLATE_WISHES, *_TEXT_WISHES, *_FORM_WISHES}
        sampling = {name: value for name, value in wishes.items() if name not in others}
        stream = TextStream(
            processor.tokenizer,
            skip_special_tokens=not text.get("keep_special_tokens", False),
            stop_strings=text.get("stop", ()),
        )
        generation = overridden(self.bundle.generation_config, sampling)
        inputs = processor.inputs_from_messages(messages, **template)
        media += inputs.media
        for event, piece in text_pieces(self.events(inputs, generation, seed=seed, form=form), stream):
            if event is not None:
                heard.append(event)
            if piece:
                yield piece

    @staticmethod
    def _messages(
        prompt: str | Sequence[Message], images: Sequence[Any], videos: Sequence[Any], system: str | None
    ) -> Sequence[Message]:
        if isinstance(prompt, str):
            media = [("image", image) for image in images] + [("video", video) for video in videos]
            return question(prompt, media, system)
        if images or videos or system is not None:
            raise UserError(
                "Give a conversation alone: its messages hold the system message, images and videos."
            )
        return prompt


@dataclass
class Chat:
    """Several turns with one model."""

    model: Model
    system: str | None = None
    messages: list[Message] = field(default_factory=list)
    """Every turn so far, in the chat format of Hugging Face."""

    def __post_init__(self) -> None:
        if self.system is not None and not self.messages:
            self.messages.append({"role": "system", "content": self.system})

    def ask(
        self, prompt: str, images: Sequence[Any] = (), videos: Sequence[Any] = (), **sampling: Any
    ) -> Answer:
        """One more turn. Args and errors as `Model.generate`; a turn that fails is forgotten."""
        media = [("image", image) for image in images] + [("video", video) for video in videos]
        turns = [*self.messages, *question(prompt, media, None)]
        answer = self.model.generate(turns, **sampling)
        self.messages = [*turns, {"role": "assistant", "content": answer.text}]
        return answer


def question(text: str, media: Sequence[tuple[str, Any]], system: str | None) -> list[Message]:
    """One question in the chat format: media as (kind, value) in their order, then the text."""
    content: list[dict[str, Any]] = [{"type": kind, kind: value} for kind, value in media]
    content.append({"type": "text", "text": text})
    first = [] if system is None else [{"role": "system", "content": system}]
    return [*first, {"role": "user", "content": content}]


def overridden(generation: "GenerationConfig", sampling: Mapping[str, Any]) -> "GenerationConfig":
    """A checkpoint's settings with what the caller asked for.

    Raises:
        UserError: an unknown name, or a value out of range.
    """
    known = override_generation_config.__kwdefaults__ or {}
    if unknown := sorted(sampling.keys() - known.keys()):
        raise UserError(
            f"There is no sampling option {', '.join(unknown)}. There are: {', '.join(sorted(known))}."
        )
    return override_generation_config(generation, **sampling)


def text_pieces(
    events: "Iterator[TokenEvent]", stream: "TextStream"
) -> "Iterator[tuple[TokenEvent | None, str]]":
    """Each token with the text that is certain after it, never half a character; last what is left, without a token.

    A stop string ends it.
    """
    for event in events:
        yield event, stream.push(event.token_id)
        if stream.is_stopped:
            break
    yield None, stream.finish()
