"""An engine small enough to check by hand and strict enough to notice every wrong input.

A one-layer attention in NumPy, float64 inside. Its cache is really written at `write_index` and read up to
`kv_lengths`; unwritten entries and padding are NaN, so that reading one poisons the logits.
`logits_without_cache` is the same model in one plain function of the whole sequence: the truth that chunks,
batches and decode steps are compared with.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from engines.runtime.tokens.sampling import next_token
from export.checkpoint.config import DecoderConfig, ModelConfig, VisionConfig
from export.checkpoint.generation_config import GenerationConfig
from export.inputs import DecoderInputs, ModelInputs, VisionInputs

VOCAB, HIDDEN, PATCH_VALUES = 61, 12, 6
IMAGE, VIDEO = 7, 9
MODEL = ModelConfig(
    vision=VisionConfig(
        depth=1,
        embed_dim=8,
        num_heads=1,
        mlp_ratio=1,
        in_channels=1,
        patch_size=1,
        temporal_patch_size=PATCH_VALUES,
        spatial_merge_size=2,
        hidden_size=HIDDEN,
    ),
    decoder=DecoderConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=1,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=HIDDEN,
        rms_norm_eps=1e-6,
        rope_theta=1e4,
        mrope_section=(2, 2, 2),
        tie_word_embeddings=False,
        max_position_embeddings=4096,
    ),
    image_token_id=IMAGE,
    video_token_id=VIDEO,
    vision_start_token_id=5,
    vision_end_token_id=6,
    dtype="float32",
)

Array = npt.NDArray[np.float64]
_weights = np.random.default_rng(20240918)
EMBEDDING = _weights.standard_normal((VOCAB, HIDDEN))
QUERY, KEY, VALUE = (_weights.standard_normal((HIDDEN, HIDDEN)) / 2 for _ in range(3))
HEAD = _weights.standard_normal((HIDDEN, VOCAB))
MERGER = _weights.standard_normal((4 * PATCH_VALUES, HIDDEN)) / 4
AXES = _weights.standard_normal((3, HIDDEN))


def make_inputs(token_ids: list[int], seed: int = 0) -> ModelInputs:
    """A prompt with random patches for its visual tokens, irregular positions and a delta of its own."""
    random = np.random.default_rng(seed)
    num_visual = sum(token_id in (IMAGE, VIDEO) for token_id in token_ids)
    position_ids = random.integers(0, 50, (3, len(token_ids))).astype(np.int32)
    return ModelInputs(
        token_ids=np.array(token_ids, np.int64),
        position_ids=position_ids,
        position_delta=int(position_ids.max(initial=0)) + 1 - len(token_ids),
        patches=random.standard_normal((4 * num_visual, PATCH_VALUES)).astype(np.float32),
        positions=np.zeros((2, 4 * num_visual), np.int32),
        cu_seqlens=np.arange(0, 4 * num_visual + 1, 4, dtype=np.int32),
        grids=((1, 2, 2),) * num_visual,
    )


def make_conversation(token_ids: list[int], pictures: Sequence[int] = ()) -> ModelInputs:
    """A prompt that may grow: plain positions, and for each visual token a picture that only its number decides."""
    num_tokens, num_visual = len(token_ids), sum(token_id in (IMAGE, VIDEO) for token_id in token_ids)
    assert len(pictures) == num_visual
    patches = [np.random.default_rng(number).standard_normal((4, PATCH_VALUES)) for number in pictures]
    return ModelInputs(
        token_ids=np.array(token_ids, np.int64),
        position_ids=np.tile(np.arange(num_tokens, dtype=np.int32), (3, 1)),
        position_delta=0,
        patches=np.concatenate([np.zeros((0, PATCH_VALUES)), *patches]).astype(np.float32),
        positions=np.zeros((2, 4 * num_visual), np.int32),
        cu_seqlens=np.arange(0, 4 * num_visual + 1, 4, dtype=np.int32),
        grids=((1, 2, 2),) * num_visual,
    )


def encode_patches(patches: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return (patches.reshape(-1, 4 * PATCH_VALUES) @ MERGER).astype(np.float32)


def embed(token_ids: npt.NDArray[np.int64], visual: npt.NDArray[np.float32], positions: npt.NDArray) -> Array:
    """Tokens [T] or their rows of visual embeddings, with positions [3, T] mixed in: [T, C].

    A visual token without a row left is one that the model wrote itself, and plain text.
    """
    hidden = EMBEDDING[token_ids]
    visual_at = np.flatnonzero(np.isin(token_ids, (IMAGE, VIDEO)))
    assert len(visual) <= len(visual_at), "visual_embeds must hold the rows of this call's visual tokens only"
    hidden[visual_at[: len(visual)]] = visual
    return hidden + 2 * sum(np.sin(positions[axis, :, None] * AXES[axis]) for axis in range(3))


def attend(query: Array, keys: Array, values: Array) -> Array:
    """One query [C] over a cache [L, C]: logits [vocab]."""
    scores = keys @ (query @ QUERY) / np.sqrt(HIDDEN)
    weights = np.exp(scores - scores.max())
    return (np.tanh(query) + 4 * (weights / weights.sum()) @ values) @ HEAD


def logits_without_cache(inputs: ModelInputs, new_token_ids: list[int]) -> Array:
    """Logits [vocab] after the prompt and the answer so far, recomputed from nothing.

    A new token's position is one past the prompt's largest and counts on from there, on all three axes.
    """
    first = int(inputs.position_ids.max()) + 1
    new_positions = np.tile(np.arange(first, first + len(new_token_ids)), (3, 1))
    token_ids = np.concatenate([inputs.token_ids, np.array(new_token_ids, np.int64)])
    positions = np.concatenate([inputs.position_ids, new_positions], axis=1)
    hidden = embed(token_ids, encode_patches(inputs.patches), positions)
    return attend(hidden[-1], hidden @ KEY, hidden @ VALUE)


def tokens_without_cache(inputs: ModelInputs, config: GenerationConfig, seed: int) -> list[int]:
    """The truth: every step recomputes the whole sequence, with no cache, chunk or batch in sight."""
    generator = np.random.default_rng(seed)
    token_ids: list[int] = []
    for _ in range(config.max_new_tokens):
        seen = np.isin(np.arange(VOCAB), [*inputs.token_ids, *token_ids])
        logits = logits_without_cache(inputs, token_ids).astype(np.float32)
        token_ids.append(next_token(logits, seen, config, generator))
        if token_ids[-1] in config.eos_token_ids:
            break
    return token_ids


class FakeVision:
    """A vision session that counts its calls."""

    def __init__(self) -> None:
        self.num_calls = 0
        self.embeds = np.zeros((0, HIDDEN), np.float32)

    def encode(self, inputs: VisionInputs) -> npt.NDArray[np.float32]:
        assert inputs.patches.dtype == np.float32
        assert inputs.cu_seqlens[-1] == len(inputs.patches) == inputs.positions.shape[1]
        self.num_calls += 1
        self.embeds = encode_patches(inputs.patches)
        return self.embeds


class FakeDecoder:
    """A decoder session over a cache of NaN that checks the contract of every call and keeps the calls."""

    def __init__(self, num_slots: int = 4, capacity: int = 64) -> None:
        self.num_slots, self.capacity = num_slots, capacity
        self.keys = np.full((num_slots, capacity, HIDDEN), np.nan)
        self.values = np.full((num_slots, capacity, HIDDEN), np.nan)
        self.calls: list[tuple[int, DecoderInputs]] = []
        self._logits = np.zeros(0, np.float32)

    def forward(self, first_slot: int, inputs: DecoderInputs) -> npt.NDArray[np.float32]:
        self._check(first_slot, inputs)
        self.calls.append((first_slot, inputs))
        # The session may reuse its output buffer: what the runtime kept of the last call must not matter.
        self._logits[...] = np.nan
        batch, length = inputs.token_ids.shape
        hidden = embed(inputs.token_ids.reshape(-1), inputs.visual_embeds, inputs.position_ids.reshape(3, -1))
        hidden = hidden.reshape(batch, length, HIDDEN)
        rows = [self._row(first_slot + row, row, hidden[row], inputs) for row in range(batch)]
        self._logits = np.stack(rows).astype(np.float32)
        return self._logits

    def _row(self, slot: int, row: int, hidden: Array, inputs: DecoderInputs) -> Array:
        start, stop = int(inputs.write_index[row]), int(inputs.kv_lengths[row])
        hidden = hidden.copy()
        hidden[stop - start :] = np.nan  # padding is computed and written like any token
        self.keys[slot, start : start + len(hidden)] = hidden @ KEY
        self.values[slot, start : start + len(hidden)] = hidden @ VALUE
        return np.stack(
            [
                attend(
                    hidden[query],
                    self.keys[slot, : start + query + 1],
                    self.values[slot, : start + query + 1],
                )
                for query in inputs.logits_index[row]
            ]
        )

    def _check(self, first_slot: int, inputs: DecoderInputs) -> None:
        batch, length = inputs.token_ids.shape
        valid = inputs.kv_lengths - inputs.write_index
        assert batch >= 1
        assert 0 <= first_slot <= self.num_slots - batch
        assert inputs.position_ids.shape == (3, batch, length)
        assert inputs.write_index.shape == inputs.kv_lengths.shape == (batch,)
        assert inputs.logits_index.shape[0] == batch
        assert inputs.visual_embeds.shape[1] == HIDDEN
        for name, dtype in [
            ("token_ids", np.int64),
            ("visual_embeds", np.float32),
            ("position_ids", np.int32),
            ("write_index", np.int64),
            ("kv_lengths", np.int64),
            ("logits_index", np.int64),
        ]:
            assert getattr(inputs, name).dtype == dtype, name
        assert np.all(valid >= 1)
        assert np.all(valid <= length)
        assert length == valid.max(), "no more padding than the longest row needs"
        assert np.all(inputs.write_index + length <= self.capacity), "padding must stay within the slot"
        assert np.all((inputs.logits_index >= 0) & (inputs.logits_index < valid[:, None]))
