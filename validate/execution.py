"""An engine goes through a case: encode, prefill, decode what the reference said."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engines.session import DecoderSession, Engine, VisionSession
from export.checkpoint.config import ModelConfig
from export.inputs import ModelInputs
from validate.cases.builtin import Profile
from validate.cases.feeds import decode_call, prefill_call
from validate.cases.prompts import PreparedCase, pack_patches
from validate.records.records import ExpectedPrompt, PromptAnswer

Embeds = npt.NDArray[np.float32]
Logits = npt.NDArray[np.float32]
Index = npt.NDArray[np.int64]


@dataclass(frozen=True)
class EngineUnderTest:
    """An engine to validate, not yet open: it takes memory from `open` until its sessions are dropped."""

    name: str
    dtype: str
    """What it computes in, which is the noise it is allowed."""
    profile: Profile
    open: Callable[[int, int], Engine]
    """(num_slots, capacity) to sessions."""
    rounds_inputs: bool = False
    """Its products of weights in few bits round their inputs to 8 bits, which is part of the noise it is allowed."""


class OpenEngine:
    """An engine's sessions, and the calls that a case is made of."""

    def __init__(self, vision: VisionSession, decoder: DecoderSession, config: ModelConfig) -> None:
        self.vision = vision
        self.decoder = decoder
        self.config = config

    def answer(self, case: PreparedCase, expected: Sequence[ExpectedPrompt]) -> list[PromptAnswer]:
        """The case as one batch in slots 0 to B-1: pictures packed, prompts padded, then the forced tokens."""
        visual_embeds = self.encode(case.prompts)
        index = [prompt.prompt_index for prompt in expected]
        if case.prefill_chunk_tokens is None:
            prefill_logits = self.prefill(0, case.prompts, visual_embeds, index)
        else:
            prefill_logits = [
                self.prefill_in_chunks(row, prompt, visual_embeds[row], index[row], case.prefill_chunk_tokens)
                for row, prompt in enumerate(case.prompts)
            ]
        tokens = np.stack([prompt.continuation for prompt in expected])  # [B, T]
        decode_logits = self.decode(0, case.prompts, tokens)
        return [
            PromptAnswer(*parts) for parts in zip(visual_embeds, prefill_logits, decode_logits, strict=True)
        ]

    def encode(self, prompts: Sequence[ModelInputs]) -> list[Embeds]:
        """All pictures of the batch packed in one call; [V, C] for each prompt."""
        sizes = [len(prompt.patches) // self.config.vision.patches_per_token for prompt in prompts]
        if not any(sizes):
            return [np.zeros((0, self.config.decoder.hidden_size), np.float32) for _ in prompts]
        return np.split(self.vision.encode(pack_patches(prompts)), np.cumsum(sizes)[:-1])

    def prefill(
        self,
        first_slot: int,
        prompts: Sequence[ModelInputs],
        visual_embeds: Sequence[Embeds],
        index: Sequence[Index],
    ) -> list[Logits]:
        """The whole batch in one call: logits [K', vocab] of each prompt's asked tokens."""
        call = prefill_call(prompts, visual_embeds, self.config, index)
        logits = self.decoder.forward(first_slot, call)
        return [row[: len(asked)].copy() for row, asked in zip(logits, index, strict=True)]

    def prefill_in_chunks(
        self, slot: int, prompt: ModelInputs, visual_embeds: Embeds, index: Index, chunk_tokens: int
    ) -> Logits:
        """One prompt piece by piece, as a scheduler does between the decode steps of others."""
        pieces = []
        for start in range(0, len(prompt.token_ids), chunk_tokens):
            stop = min(start + chunk_tokens, len(prompt.token_ids))
            asked = index[(index >= start) & (index < stop)] - start
            projected = asked if len(asked) else np.array([stop - start - 1])
            call = prefill_call([prompt], [visual_embeds], self.config, [projected], start, stop)
            logits = self.decoder.forward(slot, call)
            pieces.append(logits[0, : len(asked)].copy())
        return np.concatenate(pieces)

    def decode(
        self, first_slot: int, prompts: Sequence[ModelInputs], tokens: npt.NDArray[np.int64]
    ) -> list[Logits]:
        """Forced tokens [B, T], one step a call: logits [T, vocab] of each prompt."""
        steps = [
            self.decoder.forward(first_slot, decode_call(tokens[:, step], prompts, step, self.config))[
                :, 0
            ].copy()
            for step in range(tokens.shape[1])
        ]
        return list(np.stack(steps, axis=1))
