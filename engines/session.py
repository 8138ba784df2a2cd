"""What an engine offers, so that the runtime and the validator can drive it without knowing which one it is.

Letters are the contract's: V visual tokens, B batch, Q query tokens to project, C hidden.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from export.errors import UserError
from export.inputs import DecoderInputs, DeviceRows, VisionInputs


class EngineError(RuntimeError):
    """An engine answered with something no sound engine answers: not-a-number logits, rows missing.

    A fault of the engine, of the export or of the checkpoint, never of the user's prompt: the command line
    exits with 3.
    """


class RefusedGraphError(UserError, EngineError):
    """A graph of a bundle that its runtime does not take: the bundle's fault, whoever wrote it."""


class VisionSession(Protocol):
    """The vision graph, ready to run."""

    def encode(self, inputs: VisionInputs) -> npt.NDArray[np.float32]:
        """All patches of one call to visual tokens [V, C] in CPU memory."""
        ...


class DeviceVisionSession(VisionSession, Protocol):
    """A vision graph whose embeddings may stay where they are made, for a decoder on the same device."""

    def encode_on_device(self, inputs: VisionInputs) -> DeviceRows:
        """As `encode`; the rows stay on the device."""
        ...


class DecoderSession(Protocol):
    """The decoder graph with its KV cache: `num_slots` slots of `capacity` tokens each."""

    @property
    def num_slots(self) -> int: ...

    @property
    def capacity(self) -> int:
        """Tokens that fit into one slot."""
        ...

    def forward(self, first_slot: int, inputs: DecoderInputs) -> npt.NDArray[np.float32]:
        """Run row b of `inputs` on slot `first_slot + b`; returns logits [B, Q, vocab] in CPU memory.

        The returned array may be reused by the next call: read or copy it before.
        """
        ...


@dataclass(frozen=True, eq=False)
class Candidates:
    """A call's likeliest tokens, and what says whether they are enough: `export.contract.candidates_contract`."""

    top_logits: npt.NDArray[np.float32]
    """[B, Q, k], the largest first."""
    top_ids: npt.NDArray[np.int64]
    """[B, Q, k]"""
    log_sum_exp: npt.NDArray[np.float32]
    """[B, Q] over the whole vocabulary."""
    asked_logits: npt.NDArray[np.float32]
    """[B, Q, A] of the ids that were asked for."""
    whole: Callable[[int], npt.NDArray[np.float32]]
    """Logits [Q, vocab] of a row, brought from where they are; until the next call."""


class CandidateDecoder(DecoderSession, Protocol):
    """A decoder whose logits are far from the host, and which picks candidates where they are."""

    def candidates(
        self, first_slot: int, inputs: DecoderInputs, asked_ids: npt.NDArray[np.int64]
    ) -> Candidates:
        """As `forward`, with candidates in place of logits.

        Args:
            first_slot: see `forward`.
            inputs: see `forward`.
            asked_ids: [B, A] token ids of each row whose logits are wanted too; below 0: none.
        """
        ...


class Engine(NamedTuple):
    """Both sessions of an engine that is loaded."""

    vision: VisionSession
    decoder: DecoderSession

    def keep_compiled(self) -> None:
        """Write down what was compiled on this machine so far, where something was, for its next start."""
        for session in self:
            keep = getattr(session, "keep_compiled", None)
            if keep is not None:
                keep()

    def close(self) -> None:
        """End what computes outside of this process, where something does; the sessions cannot be used after it."""
        for session in self:
            close = getattr(session, "close", None)
            if close is not None:
                close()


@dataclass(frozen=True, eq=False)
class CallPlan:
    """A decoder's call as the calls that its graphs can take. Every rank of a decoder works out the same one."""

    calls: Sequence[tuple[int, DecoderInputs]]
    """The first row of each, and what it takes."""
    join: Callable[[Sequence[npt.NDArray[np.float32]]], npt.NDArray[np.float32]]
    """The logits of each to those of the whole call, [B, Q, vocab]."""


class StageSession(Protocol):
    """One stage of a decoder, or all of it, with the KV slots of its layers: what one rank holds."""

    @property
    def num_slots(self) -> int: ...

    @property
    def capacity(self) -> int:
        """Tokens that fit into one slot."""
        ...

    def plan(self, inputs: DecoderInputs, num_groups: int) -> CallPlan:
        """Divide a call.

        Args:
            inputs: of the decoder. Only the number of its visual embeddings counts here: they may have no columns.
            num_groups: that the rows of a step shall go in, so that as many stages work at once.
        """
        ...

    def run(self, first_slot: int, values: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run one call of a plan.

        Args:
            first_slot: of its first row.
            values: what the graph takes, by name, caches left out; others are ignored.

        Returns:
            What it gives, by name, caches left out.
        """
        ...


class RankSessions(NamedTuple):
    """What one rank of a decoder in several processes holds."""

    vision: VisionSession
    stage: StageSession | None
    """None: it encodes images alone."""


@dataclass(frozen=True)
class Probe:
    """One value inside a graph, and the module of the reference that computes the same."""

    scope: str
    """Block and module in the graph, e.g. `layers.3/self_attn/q_proj`."""
    reference: str
    """The module in the reference and its side, e.g. `model.layers.3.self_attn.q_proj:out`."""
    value: str
    """Name of the graph's value."""
    node: str
    """The node that computes it."""
    op_type: str


Values = dict[str, npt.NDArray[Any]]
"""What probes showed, by `Probe.value`."""


class ProbeSession(Protocol):
    """An engine that shows what it computes on the way."""

    def vision(self, inputs: VisionInputs, probes: Sequence[Probe]) -> Values:
        """Values [P or V, C] by `Probe.value`."""
        ...

    def decoder(self, calls: Sequence[DecoderInputs], probes: Sequence[Probe]) -> Values:
        """Values [tokens, C] of one slot's calls in a row, joined; `present_*` as the last call leaves them."""
        ...


def cache_rows(cache: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """One slot's keys or values by token: [1, K, L, D] to [L, K * D]."""
    by_token: npt.NDArray[Any] = cache[0].transpose(1, 0, 2)
    return by_token.reshape(len(by_token), -1)


def require_slots(decoder: DecoderSession, first_slot: int, inputs: DecoderInputs) -> None:
    """Refuse a call that reaches past a session's slots or past their end.

    Raises:
        ValueError: it does; the caller should have known.
    """
    batch, num_tokens = inputs.token_ids.shape
    if not 0 <= first_slot <= decoder.num_slots - batch:
        raise ValueError(f"slots {first_slot} to {first_slot + batch - 1} asked, of {decoder.num_slots}")
    end = int(inputs.write_index.max()) + num_tokens
    if end > decoder.capacity:
        raise ValueError(f"cache positions up to {end} asked, of {decoder.capacity}")
