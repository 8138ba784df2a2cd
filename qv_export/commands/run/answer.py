"""A bundle is opened, prepares its prompt, answers, and what it said is printed."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.errors import UserError
from qv_export import api
from qv_export.model import Message, overridden, text_pieces
from qv_export.show.answer import (
    answer_summary,
    draw_located,
    identity,
    logprobs_json,
    outcome,
    picture_to_draw_on,
)
from qv_export.show.console import note, print_answer, print_json, progress

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from engines.runtime.answer import TokenEvent
    from export.checkpoint.config import ModelConfig
    from export.checkpoint.generation_config import GenerationConfig
    from export.inputs import ModelInputs


@dataclass(frozen=True)
class Told:
    """What is told of an answer beside its text."""

    stop_strings: tuple[str, ...] = ()
    keep_special_tokens: bool = False
    draw: Path | None = None


@dataclass(frozen=True)
class ComputePlace:
    """Where it computes: the options of `api.load` of these names."""

    num_threads: int | None = None
    device: str | None = None
    num_ranks: int | None = None
    hostfile: Path | None = None


def answer(
    path: Path,
    messages: Sequence[Message],
    template: dict[str, Any],
    sampling: dict[str, Any],
    told: Told,
    seed: int | None,
    max_context: int | None,
    prefill_chunk: int | None,
    engine: str,
    place: ComputePlace,
    as_json: bool,
    strict_media: bool = False,
    form: Mapping[str, Any] | None = None,
) -> None:
    """Open the bundle, prepare the prompt, generate, print."""
    import secrets
    from importlib.metadata import version

    from export.processor.media.limits import MediaLimits

    clock = Clock()
    with progress() as step:
        step("Opening the bundle")
        bundle = api.as_bundle(path)
        require_context(max_context, bundle.config)
        generation = overridden(bundle.generation_config, sampling)
        if told.draw is not None:
            drawn = picture_to_draw_on(told.draw, messages, bundle.processor.template.source)
        clock.lap("open")
        step("Preparing pictures and text")
        reader = replace(bundle.processor.reader, limits=MediaLimits(strict=strict_media))
        inputs = bundle.processor.inputs_from_messages(messages, reader, **template)
        for seen in inputs.media:
            for sentence in seen.notes:
                note(sentence)
        capacity = context_capacity(inputs, generation, bundle.config, max_context)
        clock.lap("process")
        step("Loading the graphs")
        # Only now, so that a mistake in the prompt is told before a backend loads its library.
        model = api.load(bundle, engine, max_context=capacity, **vars(place))
        clock.lap("load")
        step("Looking and reading")
        seed = secrets.randbits(32) if seed is None else seed
        events = model.events(inputs, generation, seed=seed, prefill_chunk_tokens=prefill_chunk, form=form)
        first_event = next(events)
    text, heard, is_stopped = stream_text(
        chain([first_event], events), bundle.processor.tokenizer, told, echo=not as_json
    )
    model.close()
    located = bundle.processor.located([event.token_id for event in heard], inputs.media)
    result = {
        "text": text,
        "token_ids": [event.token_id for event in heard],
        **outcome(heard[-1], clock.laps_ms),
        "media": [seen.to_json_object() for seen in inputs.media],
        **({"finish_reason": "stop"} if is_stopped else {}),
        **({"located": [asdict(one) for one in located]} if located else {}),
        **({"logprobs": logprobs_json(heard, bundle.processor)} if heard[0].logprobs else {}),
        "capacity_tokens": model.engine.decoder.capacity,
        "engine": model.engine_key,
        "seed": seed,
        "bundle": identity(bundle),
        "versions": {name: version(name) for name in ("qv-export", "onnxruntime", "numpy")},
    }
    if told.draw is not None:
        draw_located(told.draw, located, drawn)
        if not located:
            note("The answer names no place: the picture is written as it is.")
    if as_json:
        print_json(result)
    else:
        note(answer_summary(result))


def require_context(max_context: int | None, model: "ModelConfig") -> None:
    """Refuse a KV cache beyond the positions that the model knows.

    Raises:
        UserError: more is asked.
    """
    longest = model.decoder.max_position_embeddings
    if max_context is not None and max_context > longest:
        raise UserError(
            f"--max-context {max_context} is more than the model's {longest}.",
            "Leave it out, or ask for less.",
        )


def context_capacity(
    inputs: "ModelInputs", generation: "GenerationConfig", model: "ModelConfig", max_context: int | None
) -> int:
    """KV cache size in tokens: what was asked for, or just what this prompt and its answer need.

    Raises:
        UserError: the prompt leaves no room for an answer.
    """
    num_prompt_tokens = len(inputs.token_ids)
    longest = model.decoder.max_position_embeddings
    capacity = max_context or min(num_prompt_tokens + generation.max_new_tokens, longest)
    if num_prompt_tokens >= capacity:
        limit = f"--max-context {capacity}" if max_context else f"the model's context of {capacity}"
        raise UserError(
            f"the prompt has {num_prompt_tokens} tokens, which leaves no room for an answer in {limit}. "
            "Shorten it, or use fewer or smaller pictures."
        )
    return capacity


def stream_text(
    events: Iterator["TokenEvent"], tokenizer: "Tokenizer", told: Told, *, echo: bool
) -> tuple[str, list["TokenEvent"], bool]:
    """Write text as it comes, never half a character; returns all of it, every event, and whether a stop string came.

    What is not echoed is for a machine, and keeps the marks around boxes and labels.
    """
    from engines.runtime.tokens.text_stream import TextStream

    stream = TextStream(
        tokenizer,
        skip_special_tokens=not told.keep_special_tokens,
        keep_marks=not echo,
        stop_strings=told.stop_strings,
    )
    pieces, heard = [], []
    for event, piece in text_pieces(events, stream):
        pieces.append(piece)
        if event is not None:
            heard.append(event)
        if echo:
            print_answer(piece if event is not None else piece + "\n")
    return "".join(pieces), heard, stream.is_stopped


class Clock:
    """Milliseconds of the phases before the first token."""

    def __init__(self) -> None:
        self.laps_ms: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps_ms[name] = round((now - self._last) * 1000, 3)
        self._last = now
