"""Continuous batching: which request runs next, in which KV slot, and for how long.

Each `step` drops what was given up, admits requests in the order in which they came, encodes their pictures, takes
one chunk of prompts into the cache and decodes one token of every answer that is being written. So an answer that
ends makes room at once, and a long prompt holds up the others by one chunk at most.

Nothing here knows which engine runs, and nothing here starts a thread: `service.py` does.
"""

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace

from engines.runtime.answer import Event, FailureEvent, FinishEvent, FinishReason, Request
from engines.runtime.decoder_inputs import DecodeRow, decode_inputs, decode_row, idle_row
from engines.runtime.generate import prefill_chunk, prompt_problems
from engines.runtime.kv_slots import EMPTY, KvSlots
from engines.runtime.limit_problems import limit_problems
from engines.runtime.lost import EngineLostError, is_recoverable
from engines.runtime.scheduler_limits import (
    DrainingError,
    QueueFullError,
    SchedulerLimits,
    SchedulerStats,
)
from engines.runtime.sequence import Listener, Ticket, TokenSequence, accept_tokens, timed
from engines.runtime.tokens.step_logits import StepLogits, run_decoder
from engines.runtime.vision.encoder import ImageEncoder
from engines.runtime.vision.images import images_from_inputs
from engines.session import DecoderSession, VisionSession
from export.checkpoint.config import ModelConfig
from export.errors import UserError

logger = logging.getLogger(__name__)


class Scheduler:
    """Runs requests over one vision and one decoder session.

    `submit`, `cancel` and `stats` may be called from any thread, `step` from one at a time. Events are told by the
    thread that steps, in order; a listener should hand them on and return.

    A greedy answer has the tokens that its request gets alone. Engines sum in another order when they compute more
    rows, so this holds where no two logits are closer than that rounding; docs/numerics.md says how close that is.
    """

    def __init__(
        self,
        vision: VisionSession,
        decoder: DecoderSession,
        model: ModelConfig,
        limits: SchedulerLimits | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits or SchedulerLimits()
        self._decoder, self._model, self._clock = decoder, model, clock
        self._slots = KvSlots(decoder.num_slots)
        self._stats = SchedulerStats(decoder.num_slots)
        self._picture_encoder = ImageEncoder(vision, model, self.limits, self._stats)
        self._running: list[TokenSequence] = []  # in slots, oldest first
        self._has_encoded = False  # in the last step
        self._lock = threading.Lock()  # guards what follows
        self._queue: deque[TokenSequence] = deque()
        self._picture_bytes = 0
        self._is_draining = False
        self._numbers = itertools.count()

    # Called from any thread

    def submit(
        self, request: Request, on_event: Listener, *, deadline_seconds: float | None = None
    ) -> Ticket:
        """Ask for an answer.

        Args:
            request: prompt, sampling and seed.
            on_event: hears the answer from the thread that steps; the last event has `is_last`.
            deadline_seconds: from now; an answer that is not finished then ends with "deadline".

        Raises:
            UserError: the prompt or what it asks for exceeds a limit; all problems at once.
            QueueFullError: try later.
            DrainingError: the server is shutting down.
        """
        problems = prompt_problems(request, self._decoder.capacity, self._model)
        problems += limit_problems(self.limits, request, deadline_seconds)
        if problems:
            raise UserError("\n".join(problems))
        pictures = images_from_inputs(request.inputs, self._model)
        now = self._clock()
        deadline_at = None if deadline_seconds is None else now + deadline_seconds
        with self._lock:
            self._check_room(request)
            sequence = TokenSequence(
                request,
                next(self._numbers),
                self._model,
                pictures=pictures,
                on_event=on_event,
                submitted_at=now,
                deadline_at=deadline_at,
            )
            self._queue.append(sequence)
            self._picture_bytes += request.inputs.patches.nbytes
            self._stats.num_submitted += 1
        return sequence.ticket

    def cancel(self, ticket: Ticket) -> None:
        """Give a request up: it ends with "cancelled" in the next step, unless it has ended before."""
        ticket.is_cancelled = True

    def drain(self) -> None:
        """Take nothing new from now on; what was taken is answered to its end."""
        with self._lock:
            self._is_draining = True

    def stats(self) -> SchedulerStats:
        """A copy of the counts as they are now."""
        with self._lock:
            return replace(
                self._stats,
                queue_length=len(self._queue),
                slots_used=self._stats.num_slots - len(self._slots),
                embedding_cache_bytes=self._picture_encoder.cache.num_bytes,
            )

    @property
    def is_draining(self) -> bool:
        return self._is_draining

    @property
    def has_work(self) -> bool:
        return bool(self._queue or self._running)

    # Called from the thread that steps

    def step(self) -> bool:
        """Go on with everything by a little; True while there is more to do.

        An engine's exception ends the requests whose computation raised it, with a `FailureEvent`, and no other; the
        loss of an engine ends all that are in a slot, and those that wait if it cannot be started again.
        """
        try:
            self._recover()
            self._drop_ended()
            self._admit()
            self._encode_pictures()
            self._prefill()
            self._decode()
        except EngineLostError as error:
            self._lose_caches(error)
            # At once, so that the next question need not wait for it.
            try:
                self._recover()
            except EngineLostError as lasting:
                self.end_all(lasting)
        return self.has_work

    def _recover(self) -> None:
        """Start the engine again if it was lost since the last step, before anything relies on its caches."""
        if is_recoverable(self._decoder) and self._decoder.recover():
            self._lose_caches(EngineLostError("the processes that compute ended and were started anew"))

    def _lose_caches(self, error: EngineLostError) -> None:
        for sequence in list(self._running):
            self._fail(sequence, error)
        self._slots.forget()

    def end_all(self, error: BaseException | None = None) -> None:
        """End every request now: with a `FailureEvent` of `error`, or as cancelled."""
        with self._lock:
            waiting = list(self._queue)
            self._queue.clear()
        for sequence in [*self._running, *waiting]:
            if error is None:
                self._finish(sequence, "cancelled")
            else:
                self._fail(sequence, error)

    # The phases of a step

    def _drop_ended(self) -> None:
        """End what was cancelled or is past its deadline, waiting or running."""
        now = self._clock()
        with self._lock:
            sequences = [*self._running, *self._queue]
            ended = [(sequence, reason) for sequence in sequences if (reason := sequence.why_ended(now))]
            if ended:
                gone = {id(sequence) for sequence, _ in ended}
                self._queue = deque(sequence for sequence in self._queue if id(sequence) not in gone)
        for sequence, reason in ended:
            self._finish(sequence, reason)

    def _admit(self) -> None:
        """Give free slots to waiting requests, first come first served."""
        while len(self._slots):
            with self._lock:
                if not self._queue:
                    return
                sequence = self._queue.popleft()
                self._running.append(sequence)
            self._start(sequence)

    def _start(self, sequence: TokenSequence) -> None:
        used = [other.slot for other in self._running if other.has_slot]
        slot, num_shared = self._slots.acquire(sequence.content, used)
        # The last tokens are always computed: their logits choose the first new one.
        longest = max(sequence.num_prompt_tokens - self.limits.min_tokens_per_call, 0)
        sequence.take_slot(slot, min(num_shared, longest))
        sequence.queue_seconds = self._clock() - sequence.submitted_at
        self._stats.num_admitted += 1
        self._stats.queue_seconds += sequence.queue_seconds
        self._stats.num_prompt_tokens += sequence.num_prompt_tokens
        self._stats.num_reused_tokens += sequence.num_reused_tokens

    def _encode_pictures(self) -> None:
        """Find or encode pictures of admitted requests, the shortest first, in one call for all of them.

        After a call whoever can go on without one does so first: no question waits for two calls of others.
        """
        if self._has_encoded and any(one.is_ready for one in self._running):
            self._has_encoded = False
            return
        num_calls = self._stats.num_vision_calls
        for sequence, error in self._picture_encoder.encode_next(self._by_length()):
            self._fail(sequence, error)
        self._has_encoded = self._stats.num_vision_calls > num_calls
        for sequence in self._running:
            if sequence.pictures and not sequence.missing:
                sequence.join_embeds(self._model.vision.patches_per_token, self._model.decoder.hidden_size)
                self._forget_pictures(sequence)

    def _by_length(self) -> list[TokenSequence]:
        """Those with the fewest patches first, and whoever has waited long before all of them."""
        long_ago = self._clock() - self.limits.patience_seconds
        return sorted(
            self._running,
            key=lambda one: 0 if one.submitted_at <= long_ago else 1 + one.num_missing_patches,
        )

    def _prefill(self) -> None:
        """Take up to one chunk of prompt tokens into the cache, of the oldest requests first."""
        budget = self.limits.prefill_chunk_tokens
        for sequence in list(self._running):
            if not sequence.is_ready:
                continue
            num_tokens = self._chunk_tokens(sequence.num_prompt_tokens - sequence.num_cached_tokens, budget)
            if not num_tokens:
                return
            budget -= num_tokens
            self._stats.num_prefill_calls += 1
            try:
                prefill_chunk([sequence], self._decoder, self._model, num_tokens)
            except EngineLostError:
                raise
            except Exception as error:  # noqa: BLE001  any fault of an engine ends the requests that it hit
                self._fail(sequence, error)
                continue
            if sequence.is_prefilled:
                sequence.visual_embeds = sequence.visual_embeds[:0].copy()
                self._stats.num_first_tokens += 1
                self._stats.first_token_seconds += self._clock() - sequence.submitted_at
                self._tell_token(sequence)

    def _chunk_tokens(self, num_left: int, budget: int) -> int:
        """How many of a prompt's tokens to take now, so that neither this call nor the last has too few; 0 for none."""
        fewest = min(self.limits.min_tokens_per_call, num_left)
        num_tokens = min(num_left, budget)
        if 0 < num_left - num_tokens < self.limits.min_tokens_per_call:
            num_tokens = num_left - self.limits.min_tokens_per_call
        return num_tokens if num_tokens >= fewest else 0

    def _decode(self) -> None:
        """One more token of every answer that is being written, in one call over the slots that they span."""
        running = {sequence.slot: sequence for sequence in self._running if sequence.is_decoding}
        if not running:
            return
        errors: dict[int, Exception] = {}
        with timed(running.values(), "decode_seconds"):
            for step, first, slots in self._steps(running, errors):
                sequences = [running[slot] for slot in slots]
                for sequence in sequences:
                    sequence.num_cached_tokens += 1
                found = accept_tokens(
                    step, [slot - first for slot in slots], sequences, self._decoder.capacity
                )
                errors.update(
                    {slot: error for slot, error in zip(slots, found, strict=True) if error is not None}
                )
        for slot, sequence in running.items():
            if slot in errors:
                self._fail(sequence, errors[slot])
            else:
                self._tell_token(sequence)

    def _steps(
        self, running: dict[int, TokenSequence], errors: dict[int, Exception]
    ) -> Iterator[tuple[StepLogits, int, list[int]]]:
        """What the decoder says, its first slot, and which running slots it speaks of.

        After a failed call each is tried alone, and what fails is an error. That computes the same tokens at the same
        places of the cache, which changes nothing for the others.
        """
        first, last = self._span(running)
        rows = [self._row(slot, running) for slot in range(first, last + 1)]
        choosers = [running[slot].chooser if slot in running else None for slot in range(first, last + 1)]
        self._stats.num_decode_calls += 1
        self._stats.num_decode_rows += len(running)
        try:
            step = run_decoder(self._decoder, first, decode_inputs(rows, self._model), choosers)
        except EngineLostError:
            raise
        except Exception as error:  # noqa: BLE001  whom it hit is found out below
            logger.warning("a decode call over %d answers failed: %s", len(running), error)
        else:
            yield step, first, list(running)
            return
        for slot, sequence in running.items():
            alone = decode_inputs([rows[slot - first]], self._model)
            try:
                step = run_decoder(self._decoder, slot, alone, [sequence.chooser])
            except EngineLostError:
                raise
            except Exception as error:  # noqa: BLE001  any fault of an engine ends the requests that it hit
                errors[slot] = error
            else:
                yield step, slot, [slot]

    def _span(self, running: dict[int, TokenSequence]) -> tuple[int, int]:
        """First and last slot of a decode call."""
        first, last = min(running), max(running)
        while last - first + 1 < min(self.limits.min_tokens_per_call, self._decoder.num_slots):
            first, last = (first, last + 1) if last + 1 < self._decoder.num_slots else (first - 1, last)
        return first, last

    def _row(self, slot: int, running: dict[int, TokenSequence]) -> DecodeRow:
        if slot in running:
            return decode_row(running[slot])
        filling = next((sequence for sequence in self._running if sequence.slot == slot), None)
        num_cached = filling.num_cached_tokens if filling else self._slots.num_kept_tokens(slot)
        return idle_row(num_cached, self._model, self._decoder.capacity)

    # The ends of a request

    def _tell_token(self, sequence: TokenSequence) -> None:
        self._stats.num_new_tokens += 1
        event = sequence.event()
        if event.is_last:
            self._stats.num_finished += 1
            self._leave(sequence, is_cache_sound=True)
        self._tell(sequence, event)

    def _finish(self, sequence: TokenSequence, reason: FinishReason) -> None:
        self._stats.num_cancelled += reason == "cancelled"
        self._stats.num_expired += reason == "deadline"
        self._leave(sequence, is_cache_sound=True)
        self._tell(sequence, FinishEvent(sequence.number, reason, sequence.timings))

    def _fail(self, sequence: TokenSequence, error: BaseException) -> None:
        logger.error("request %d failed", sequence.number, exc_info=error)
        self._stats.num_failed += 1
        self._leave(sequence, is_cache_sound=False)
        self._tell(sequence, FailureEvent(sequence.number, error, sequence.timings))

    def _leave(self, sequence: TokenSequence, *, is_cache_sound: bool) -> None:
        """Give back what a request holds. Its slot is free for the next step."""
        self._forget_pictures(sequence)
        if not sequence.has_slot:
            return
        self._running.remove(sequence)
        keep = is_cache_sound and self.limits.reuse_prefixes
        # The last place of a full slot does not count: an idle row may overwrite it.
        content = sequence.content_in_slot(self._decoder.capacity - 1) if keep else EMPTY
        self._slots.release(sequence.slot, content)

    def _forget_pictures(self, sequence: TokenSequence) -> None:
        num_bytes = sequence.forget_pictures()
        with self._lock:
            self._picture_bytes -= num_bytes

    def _tell(self, sequence: TokenSequence, event: Event) -> None:
        """A listener that raises gives its request up and disturbs no other."""
        try:
            if sequence.on_event is not None:
                sequence.on_event(event)
        except Exception:
            logger.exception("the listener of request %d failed", sequence.number)
            sequence.ticket.is_cancelled = True

    # What `submit` refuses

    def _check_room(self, request: Request) -> None:
        """Raise `TryLaterError` unless there is room to wait. The lock is held."""
        if self._is_draining:
            self._stats.num_refused += 1
            raise DrainingError("the server is shutting down and takes no new requests.")
        new_bytes, held_bytes = request.inputs.patches.nbytes, self._picture_bytes
        if len(self._queue) >= self.limits.max_queue or (
            new_bytes and held_bytes and held_bytes + new_bytes > self.limits.max_queue_bytes
        ):
            self._stats.num_refused += 1
            raise QueueFullError(
                f"{len(self._queue)} requests with {held_bytes} bytes of pictures are waiting, of at most "
                f"{self.limits.max_queue} and {self.limits.max_queue_bytes}. Try again later."
            )
