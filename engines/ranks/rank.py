"""What one rank computes: its stage of every call of the decoder, and its part of every call of the vision encoder.

A rank never waits for a later one but for the first, which waits for the answers once it has done its own part of
everything asked: so the calls of one `Forward` are in different stages at the same time.
"""

import logging
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.ranks.layout import Layout
from engines.ranks.messages import Command, Encode, Forward
from engines.ranks.peers import Peers
from engines.runtime.vision.dealt import Dealt
from engines.session import CallPlan, EngineError, RankSessions
from export.errors import UserError
from export.inputs import DecoderInputs, VisionInputs

logger = logging.getLogger(__name__)

Answer = npt.NDArray[np.float32] | Exception
"""What a call gave, or what it raised, on whichever rank."""

_FEED_NAMES = tuple(field.name for field in fields(DecoderInputs))


class Rank:
    """One rank of a group.

    Args:
        peers: of the group.
        layout: who does what.
        sessions: what this rank holds.
    """

    def __init__(self, peers: Peers, layout: Layout, sessions: RankSessions) -> None:
        self._peers, self._layout = peers, layout
        self._vision, self._stage = sessions
        self._number = peers.rank
        self._given: list[Any] = []  # where this rank is the first and the last

    def lead(self, command: Command) -> list[Answer]:
        """Do a command as the first rank: hand the others their parts, do its own, gather.

        Returns:
            An answer for each call.
        """
        if isinstance(command, Encode):
            return [self._encode_all(command.inputs)]
        # Embeddings enter the first stage; the others need to know how many there are.
        slim = Forward([(slot, _without_embeds(inputs)) for slot, inputs in command.calls])
        for rank in range(1, self._layout.num_decoding):
            self._peers.send(rank, slim if self._layout.stage_of(rank) else command)
        plans = self._run_stage(command)
        return [self._joined(plan) for plan in plans]

    def follow(self, command: Command) -> None:
        """Do one's part of a command as another rank."""
        if isinstance(command, Encode):
            self._peers.send(0, self._encode(command.inputs))
        else:
            self._run_stage(command)

    # The decoder

    def _run_stage(self, command: Forward) -> list[CallPlan]:
        """This rank's stage of every call, from the rank before to the next."""
        assert self._stage is not None
        plans = []
        for first_slot, inputs in command.calls:
            plan = self._stage.plan(inputs, self._layout.num_stages)
            for row, call in plan.calls:
                self._run_call(first_slot + row, call)
            plans.append(plan)
        return plans

    def _run_call(self, first_slot: int, inputs: DecoderInputs) -> None:
        before = self._layout.before(self._number)
        taken = {} if before is None else self._peers.receive(before)
        self._give(taken if isinstance(taken, Exception) else self._stage_values(first_slot, inputs, taken))

    def _stage_values(
        self, first_slot: int, inputs: DecoderInputs, taken: dict[str, Any]
    ) -> dict[str, npt.NDArray[Any]] | Exception:
        assert self._stage is not None
        values = {name: getattr(inputs, name) for name in _FEED_NAMES}
        try:
            return self._stage.run(first_slot, {**values, **taken})
        except Exception as error:
            logger.exception("a call of the decoder failed on rank %d", self._number)
            if self._layout.num_parts > 1:
                raise  # the others of this stage wait for it in the middle of the graph: the whole group must end
            return portable_error(error)

    def _give(self, values: dict[str, npt.NDArray[Any]] | Exception) -> None:
        after = self._layout.after(self._number)
        if after is not None:
            self._peers.send(after, values)
        elif self._number == self._layout.answering:
            if self._number == 0:
                self._given.append(values)
            else:
                self._peers.send(0, values)

    def _joined(self, plan: CallPlan) -> Answer:
        answers = [self._next_answer() for _ in plan.calls]
        for answer in answers:
            if isinstance(answer, Exception):
                return answer
        return plan.join([answer["logits"] for answer in answers])

    def _next_answer(self) -> Any:
        answering = self._layout.answering
        return self._given.pop(0) if answering == 0 else self._peers.receive(answering)

    # The vision encoder

    def _encode_all(self, inputs: VisionInputs) -> Answer:
        dealt = Dealt(inputs, self._layout.num_ranks)
        for rank, part in enumerate(dealt.parts):
            if rank:
                self._peers.send(rank, Encode(part))
        answers: Sequence[Answer] = [
            self._encode(part) if rank == 0 else self._peers.receive(rank)
            for rank, part in enumerate(dealt.parts)
        ]
        for answer in answers:
            if isinstance(answer, Exception):
                return answer
        return dealt.gathered([answer for answer in answers if not isinstance(answer, Exception)])

    def _encode(self, inputs: VisionInputs) -> Answer:
        try:
            return self._vision.encode(inputs)
        except Exception as error:
            logger.exception("a call of the vision encoder failed on rank %d", self._number)
            return portable_error(error)


def _without_embeds(inputs: DecoderInputs) -> DecoderInputs:
    return replace(inputs, visual_embeds=np.zeros((len(inputs.visual_embeds), 0), np.float32))


def portable_error(error: Exception) -> Exception:
    """An error as another process can read it, whatever library raised it here."""
    if isinstance(error, UserError | EngineError):
        return error
    return EngineError(f"{type(error).__name__}: {error}")
