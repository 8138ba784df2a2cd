"""Generation of one answer: a prompt in, tokens out.

encode_visuals -> prefill -> decode_one_token until every answer is finished. Nothing here knows which engine
runs or what the tokens mean; text is made by `text_stream`.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from engines.runtime.answer import FinishReason, Request, Timings, TokenEvent
from engines.runtime.decoder_inputs import decode_inputs, decode_row, idle_row, prefill_inputs
from engines.runtime.sequence import TokenSequence, accept_tokens, timed, visual_offsets
from engines.runtime.tokens.step_logits import run_decoder
from engines.runtime.vision.images import check_visual_embeds, encode_rows
from engines.session import DecoderSession, VisionSession
from export.checkpoint.config import ModelConfig
from export.checkpoint.generation_config import GenerationConfig
from export.errors import UserError

if TYPE_CHECKING:  # keeps Pillow, PyAV and Jinja2 out of a process that only generates
    from engines.runtime.tokens.guided import Guide
    from export.inputs import Embeds, ModelInputs


@dataclass(frozen=True)
class Generation:
    """A whole answer: its tokens (the end-of-sequence token included), why it ended, what it took."""

    token_ids: list[int]
    finish_reason: FinishReason | None
    """None when the caller stopped listening before the end."""
    timings: Timings


def generate(
    inputs: "ModelInputs",
    vision: VisionSession,
    decoder: DecoderSession,
    config: GenerationConfig,
    *,
    model: ModelConfig,
    slot: int = 0,
    prefill_chunk_tokens: int | None = None,
    seed: int | None = None,
    guide: "Guide | None" = None,
) -> Iterator[TokenEvent]:
    """Answer one prompt, token by token; the caller may stop listening at any event.

    Args:
        inputs: from the processor.
        vision: not called for a prompt without pictures.
        decoder: its slot `slot` is overwritten.
        config: how tokens are chosen and when to end.
        model: the checkpoint's configuration.
        slot: which KV slot to use.
        prefill_chunk_tokens: prompt tokens per decoder call; None takes the whole prompt at once.
        seed: for sampling; None draws a new one.
        guide: what the answer must look like; None: anything.

    Raises:
        UserError: before any work, a prompt that does not fit the context, or values out of range.
        EngineError: while iterating, an engine's answer is unusable.
    """
    request = Request(inputs, config, seed, guide)
    _check_fit([request], decoder, model, slot, prefill_chunk_tokens)
    return _answer([request], vision, decoder, model, slot, prefill_chunk_tokens)


def generate_batch(
    requests: Sequence[Request],
    vision: VisionSession,
    decoder: DecoderSession,
    *,
    model: ModelConfig,
    prefill_chunk_tokens: int | None = None,
) -> Iterator[TokenEvent]:
    """Answer several prompts together, in slots 0 .. B-1; events say which request they answer.

    Each request gets exactly the tokens it would get alone, up to rounding in the engine. Raises as
    `generate` does.
    """
    _check_fit(requests, decoder, model, 0, prefill_chunk_tokens)
    return _answer(requests, vision, decoder, model, 0, prefill_chunk_tokens)


def collect_generations(events: Iterable[TokenEvent]) -> list[Generation]:
    """Listen to the end; returns one `Generation` per request, in their order."""
    by_request: dict[int, list[TokenEvent]] = {}
    for event in events:
        by_request.setdefault(event.request_index, []).append(event)
    return [
        Generation([event.token_id for event in heard], heard[-1].finish_reason, heard[-1].timings)
        for _, heard in sorted(by_request.items())
    ]


def _answer(
    requests: Sequence[Request],
    vision: VisionSession,
    decoder: DecoderSession,
    model: ModelConfig,
    first_slot: int,
    prefill_chunk_tokens: int | None,
) -> Iterator[TokenEvent]:
    # The longest prompt takes the first slot: while chunks run, the rows with prompt left then are always the
    # first rows, and padding never reaches past the longest prompt.
    order = sorted(range(len(requests)), key=lambda index: -requests[index].num_prompt_tokens)
    sequences = [
        start_sequence(requests[index], index, first_slot + row, vision, model)
        for row, index in enumerate(order)
    ]
    prefill(sequences, decoder, model, prefill_chunk_tokens)
    yield from _events(sequences)
    while running := [sequence for sequence in sequences if not sequence.is_finished]:
        decode_one_token(sequences, decoder, model)
        yield from _events(running)


def start_sequence(
    request: Request, index: int, slot: int, vision: VisionSession, model: ModelConfig
) -> TokenSequence:
    """Encode a request's pictures and open it in a slot.

    Raises:
        EngineError: the vision engine returned another number of rows than it was asked for.
    """
    sequence = TokenSequence(request, index, model)
    sequence.take_slot(slot)
    if sequence.num_visual_tokens:
        with timed([sequence], "vision_seconds"):
            sequence.visual_embeds = encode_visuals(request.inputs, vision, model)
    return sequence


def encode_visuals(inputs: "ModelInputs", vision: VisionSession, model: ModelConfig) -> "Embeds":
    """All pictures and videos of a prompt, packed, to visual tokens [V, C] in one call.

    Raises:
        EngineError: the engine's answer has another shape.
    """
    visual_embeds = encode_rows(vision, inputs.vision)
    check_visual_embeds(visual_embeds, len(inputs.patches), model)
    return visual_embeds


def prefill(
    sequences: Sequence[TokenSequence],
    decoder: DecoderSession,
    model: ModelConfig,
    chunk_tokens: int | None = None,
) -> None:
    """Fill the slots with the prompts, longest first, and choose each answer's first token."""
    chunk = chunk_tokens or max((sequence.num_prompt_tokens for sequence in sequences), default=1)
    while unfilled := [sequence for sequence in sequences if not sequence.is_prefilled]:
        prefill_chunk(unfilled, decoder, model, chunk)


def prefill_chunk(
    sequences: Sequence[TokenSequence], decoder: DecoderSession, model: ModelConfig, max_tokens: int
) -> None:
    """Take up to `max_tokens` more prompt tokens of each sequence into the cache, in one call.

    `sequences` are in neighbouring slots and have prompt left; one whose prompt ends here gets its first token.
    """
    with timed(sequences, "prefill_seconds"):
        inputs = prefill_inputs(sequences, model, max_tokens)
        ends = [int(kv_length) for kv_length in inputs.kv_lengths]
        filled = [
            row
            for row, (sequence, end) in enumerate(zip(sequences, ends, strict=True))
            if end >= sequence.num_prompt_tokens
        ]
        choosers = [sequence.chooser if row in filled else None for row, sequence in enumerate(sequences)]
        step = run_decoder(decoder, sequences[0].slot, inputs, choosers)
        for sequence, end in zip(sequences, ends, strict=True):
            sequence.num_cached_tokens = end
        _raise_first(accept_tokens(step, filled, [sequences[row] for row in filled], decoder.capacity))


def decode_one_token(sequences: Sequence[TokenSequence], decoder: DecoderSession, model: ModelConfig) -> None:
    """One more token for every sequence that is not finished, in one call over their slots.

    `sequences` are in neighbouring slots. Finished ones at either end are left out of the call.
    """
    running = [row for row, sequence in enumerate(sequences) if not sequence.is_finished]
    span = sequences[running[0] : running[-1] + 1]
    rows = [
        idle_row(sequence.num_cached_tokens, model, decoder.capacity)
        if sequence.is_finished
        else decode_row(sequence)
        for sequence in span
    ]
    with timed([sequences[row] for row in running], "decode_seconds"):
        choosers = [None if sequence.is_finished else sequence.chooser for sequence in span]
        step = run_decoder(decoder, span[0].slot, decode_inputs(rows, model), choosers)
        for row in running:
            sequences[row].num_cached_tokens += 1
        going_on = [sequences[row] for row in running]
        _raise_first(accept_tokens(step, [row - running[0] for row in running], going_on, decoder.capacity))


def _raise_first(errors: Iterable[Exception | None]) -> None:
    for error in errors:
        if error is not None:
            raise error


def _events(sequences: Iterable[TokenSequence]) -> Iterator[TokenEvent]:
    """Newest tokens in the order of the requests."""
    return iter([sequence.event() for sequence in sorted(sequences, key=lambda sequence: sequence.number)])


def _check_fit(
    requests: Sequence[Request],
    decoder: DecoderSession,
    model: ModelConfig,
    first_slot: int,
    chunk_tokens: int | None,
) -> None:
    """Refuse what cannot be answered, all problems at once, before any picture is encoded."""
    problems = []
    if first_slot < 0 or first_slot + len(requests) > decoder.num_slots:
        problems.append(
            f"{len(requests)} prompts from KV slot {first_slot} on need slots that the engine does not have: "
            f"it has {decoder.num_slots}. Send fewer prompts at once or rebuild with a larger --max-batch."
        )
    if chunk_tokens is not None and chunk_tokens < 1:
        problems.append(f"prefill_chunk_tokens must be at least 1, found {chunk_tokens}.")
    for index, request in enumerate(requests):
        where = f"prompt {index}: " if len(requests) > 1 else ""
        problems += [where + problem for problem in prompt_problems(request, decoder.capacity, model)]
    if problems:
        raise UserError("\n".join(problems))


def prompt_problems(request: Request, capacity: int, model: ModelConfig) -> list[str]:
    """Why a prompt cannot be answered in a slot of `capacity` tokens; nothing when it can."""
    problems = []
    if request.num_prompt_tokens == 0:
        problems.append("the prompt has no tokens, expected at least one.")
    if request.num_prompt_tokens > capacity:
        problems.append(
            f"the prompt has {request.num_prompt_tokens} tokens but the context holds {capacity}. "
            "Shorten it, use fewer or smaller pictures, or rebuild with a larger --max-context."
        )
    token_ids = request.inputs.token_ids
    if np.any((token_ids < 0) | (token_ids >= model.decoder.vocab_size)):
        problems.append(
            f"the prompt has token ids from {token_ids.min()} to {token_ids.max()} but the model's vocabulary has "
            f"{model.decoder.vocab_size}. Check that tokenizer.json belongs to the checkpoint."
        )
    num_rows = len(request.inputs.patches) // model.vision.patches_per_token
    num_placeholders = int(visual_offsets(token_ids, model)[-1])
    if num_rows != num_placeholders:
        problems.append(
            f"the prompt has {num_placeholders} image and video tokens but its pictures make {num_rows}. "
            "Every picture needs its own placeholder, and text must not contain image or video tokens."
        )
    return problems
