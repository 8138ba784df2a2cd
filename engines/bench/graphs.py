"""Measures the engine's two graphs alone: vision by picture size, prefill by length, decode by batch and context."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from engines.backends.ceilings import Ceiling, Kind
from engines.bench.report import BenchRow, LeftOut
from engines.bench.sampling import Effort, Spread, sampled_seconds
from engines.bench.sizes import ImageSize, image_sizes, jpeg_of, lengths_up_to
from engines.session import DecoderSession, Engine
from engines.sizing.work import decode_bytes, prefill_operations, vision_operations
from export.bundle import Bundle
from export.inputs import DecoderInputs, ModelInputs

_SHORTEST_PROMPT = 32
_SHORTEST_CONTEXT = 128

Found = Iterator[BenchRow | LeftOut]


@dataclass(frozen=True)
class Bench:
    """What is measured, and how much of it."""

    bundle: Bundle
    engine: Engine
    num_slots: int
    capacity: int
    """Tokens of a slot that are used; the session may have more."""
    max_patches: int
    """Of one vision call."""
    max_prompt_tokens: int
    """Of one prefill call."""
    value_bytes: int
    """Of a weight as the engine computes."""
    ceilings: tuple[Ceiling, ...]
    effort: Effort

    def share(self, per_second: float, kind: Kind) -> float | None:
        """Of the machine's measured limit; None where that was not measured."""
        limit = next((one.per_second for one in self.ceilings if one.kind == kind), None)
        return None if limit is None else per_second / limit


def preprocessing(bench: Bench) -> Found:
    """A JPEG file and a short question to the arrays that the graphs take, in one thread."""
    processor = bench.bundle.processor
    for size in image_sizes(processor.image_settings):
        messages = _messages(jpeg_of(size))
        spread = sampled_seconds(partial(processor.inputs_from_messages, messages), bench.effort)
        megapixels = size.side * size.side / 1e6
        yield milliseconds_row("preprocessing", size.case, spread, megapixels, "megapixels/s")


def vision(bench: Bench) -> Found:
    """One picture a call, by its size."""
    sizes = image_sizes(bench.bundle.processor.image_settings)
    ladder = _Ladder(bench, "vision")
    for size in sizes:
        if size.num_patches > bench.max_patches:
            yield LeftOut("vision", size.case, f"more than the engine's max_patches, {bench.max_patches}")
            continue
        operations = vision_operations(bench.bundle.config, [size.num_patches])
        prompt = _image_prompt(bench, size)
        yield ladder.row(
            size.case,
            partial(bench.engine.vision.encode, prompt.vision),
            (size.num_patches, "patches/s"),
            (operations, "matmul"),
        )


def prefill_speed(bench: Bench) -> Found:
    """A prompt of text in one call into one empty slot."""
    ladder = _Ladder(bench, "prefill")
    for num_tokens in lengths_up_to(bench.max_prompt_tokens, _SHORTEST_PROMPT):
        inputs = _text_inputs(bench, 1, 0, num_tokens)
        yield ladder.row(
            f"{num_tokens} tokens",
            partial(bench.engine.decoder.forward, 0, inputs),
            (num_tokens, "tokens/s"),
            (prefill_operations(bench.bundle.config, num_tokens), "matmul"),
        )


def decode(bench: Bench) -> Found:
    """One step: a token more in each of several slots, every one with so many tokens behind it."""
    for batch in lengths_up_to(bench.num_slots, 1):
        ladder = _Ladder(bench, "decode")
        for context in lengths_up_to(bench.capacity, _SHORTEST_CONTEXT):
            inputs = _text_inputs(bench, batch, context - 1, 1)
            read = decode_bytes(bench.bundle.config, bench.value_bytes, batch, context)
            yield ladder.row(
                f"batch {batch}, context {context}",
                partial(bench.engine.decoder.forward, 0, inputs),
                (batch, "tokens/s"),
                (read, "copy"),
            )


class _Ladder:
    """Rows of growing work, until a call would take too long."""

    def __init__(self, bench: Bench, section: str) -> None:
        self._bench, self._section = bench, section
        self._seconds_per_work = 0.0

    def row(
        self,
        case: str,
        call: Callable[[], object],
        amount: tuple[float, str],
        work: tuple[float, Kind],
    ) -> BenchRow | LeftOut:
        """Measure a call, unless the last one says that it would take too long."""
        expected = self._seconds_per_work * work[0]
        longest = self._bench.effort.longest_call_seconds
        if expected > longest:
            return LeftOut(
                self._section, case, f"a call would take about {expected:.0f} s, more than {longest:g} s"
            )
        spread = sampled_seconds(call, self._bench.effort)
        self._seconds_per_work = spread.median / work[0]
        share = self._bench.share(work[0] / spread.median, work[1])
        return milliseconds_row(self._section, case, spread, *amount, share, work[1])


def milliseconds_row(
    section: str,
    case: str,
    spread: Spread,
    amount: float,
    rate_unit: str,
    share: float | None = None,
    share_of: str = "",
) -> BenchRow:
    """Of measured seconds; `amount` is what one call gets done."""
    return BenchRow(
        section,
        case,
        spread.median * 1e3,
        spread.low * 1e3,
        spread.high * 1e3,
        "ms",
        spread.num_samples,
        rate=amount / spread.median,
        rate_unit=rate_unit,
        share=share,
        share_of="" if share is None else share_of,
    )


def _messages(picture: bytes) -> list[dict[str, object]]:
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "What is in this picture?"}]
    return [{"role": "user", "content": content}]


def _image_prompt(bench: Bench, size: ImageSize) -> ModelInputs:
    return bench.bundle.processor.inputs_from_messages(_messages(jpeg_of(size)))


def _text_inputs(bench: Bench, batch: int, write_index: int, num_tokens: int) -> DecoderInputs:
    """The same row of ordinary tokens in every slot of a batch."""
    config = bench.bundle.config
    ordinary = [
        token
        for token in range(min(config.decoder.vocab_size, 1000))
        if token not in (config.image_token_id, config.video_token_id)
    ]
    row = np.random.default_rng(num_tokens).choice(ordinary, num_tokens).astype(np.int64)
    places = np.arange(write_index, write_index + num_tokens, dtype=np.int32)
    starts = np.full(batch, write_index, np.int64)
    return DecoderInputs(
        token_ids=np.tile(row, (batch, 1)),
        visual_embeds=np.zeros((0, config.decoder.hidden_size), np.float32),
        position_ids=np.broadcast_to(places, (3, batch, num_tokens)).copy(),
        write_index=starts,
        kv_lengths=starts + num_tokens,
        logits_index=np.full((batch, 1), num_tokens - 1, np.int64),
    )


def usable_tokens(decoder: DecoderSession, capacity: int) -> int:
    """Tokens of a slot to use: what was asked for, at most what the session has."""
    return min(decoder.capacity, capacity)
