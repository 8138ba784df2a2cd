"""The models and prompts that the parity tests go through.

All of it is data: nine shapes of the family, and prompts by their parts. No torch: sessions and the reference take
the same arrays.
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from export.checkpoint.config import ModelConfig
from export.inputs import DecoderInputs
from export.models.qwen2_vl.positions import cu_seqlens_from_grids, patch_positions
from tests.support.mrope_rule import position_ids_by_the_paper


@dataclass(frozen=True)
class Shape:
    """A random checkpoint: arguments of `examples.random_checkpoint.write_checkpoint`."""

    name: str
    sizes: dict[str, Any]
    dtype: str = "float32"
    layout: str = "published"
    shards: int | None = None
    seed: int = 0

    def arguments(self) -> dict[str, Any]:
        return {
            "dtype": self.dtype,
            "layout": self.layout,
            "shards": self.shards,
            "seed": self.seed,
            **self.sizes,
        }


def _sizes(
    heads: int, kv_heads: int, head_dim: int, layers: int, tied: bool, **others: Any
) -> dict[str, Any]:
    return {
        "hidden_size": heads * head_dim,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "num_hidden_layers": layers,
        "tie_word_embeddings": tied,
        **others,
    }


# A vision head of 80 channels is the published one; 32, 16 and 40 are others that the 2-D rotary allows.
SHAPES = (
    Shape("ratio1_dim32", _sizes(4, 4, 32, 2, True)),
    Shape("ratio2_dim32", _sizes(4, 2, 32, 3, False), layout="nested"),
    Shape("ratio6_dim64", _sizes(6, 1, 64, 2, True, vision_num_heads=4)),
    Shape("ratio8_dim64", _sizes(8, 1, 64, 2, False, vision_depth=3), layout="nested", shards=3),
    Shape(
        "ratio6_dim128",
        _sizes(6, 1, 128, 2, True, vision_embed_dim=160, rope_theta=10_000.0, rms_norm_eps=1e-5),
    ),
    Shape("ratio2_dim128", _sizes(2, 1, 128, 4, False, vision_embed_dim=80, vision_mlp_ratio=2), shards=2),
    Shape("ratio8_dim32_half", _sizes(16, 2, 32, 2, True, mrope_section=(2, 6, 8)), dtype="float16"),
    Shape(
        "ratio1_dim128_bfloat", _sizes(2, 2, 128, 3, False, vision_depth=4), dtype="bfloat16", layout="nested"
    ),
    # A context stretched from 64 tokens, so that every prompt turns frequencies that were blended or divided.
    Shape(
        "yarn_dim32", _sizes(4, 2, 32, 2, True, yarn={"factor": 4.0, "original_max_position_embeddings": 64})
    ),
)


@dataclass(frozen=True)
class Image:
    """A picture of `height` x `width` patches of 14 x 14 pixels."""

    height: int
    width: int
    steps: int = 1


@dataclass(frozen=True)
class Video:
    """`steps` temporal patches (two frames each) of `height` x `width` patches."""

    steps: int
    height: int
    width: int


Part = int | Image | Video
"""An integer stands for that many text tokens."""


@dataclass(frozen=True)
class Case:
    """One batch of prompts, each a sequence of parts."""

    name: str
    prompts: tuple[tuple[Part, ...], ...]
    seed: int = 0
    """Chosen so that greedy decoding meets no near-tie: over 32 steps on all shapes, the two likeliest tokens are at
    least 1.5e-4 of the largest logit apart, ten times what rounding moves."""
    transformers_positions_agree: bool = True
    """False where Transformers 5.23 departs from the paper's position ids: a video with more steps than rows."""


CASES = (
    Case("text", ((23,),), seed=2),
    Case("one_image", ((5, Image(4, 6), 7),), seed=2),
    Case("three_images", ((3, Image(4, 4), 4, Image(6, 10), 2, Image(8, 2), 5),), seed=3),
    Case("image_150_to_1", ((4, Image(2, 300), 6),)),
    Case("video", ((6, Video(3, 6, 8), 5),)),
    Case("long_video", ((4, Video(9, 4, 6), 5, Image(4, 4), 3),), transformers_positions_agree=False),
    Case("image_and_video", ((2, Video(2, 4, 6), 3, Image(6, 4), 4, Video(3, 6, 6), 1, Image(4, 2), 5),)),
    Case(
        "ragged_batch",
        (
            (9,),
            (2, Image(6, 4), 3, Video(2, 4, 4), 6),
            (4, Image(4, 4), 1),
            (1, Video(2, 4, 6), 2, Image(2, 4), 30),
        ),
        seed=2,
    ),
)


@dataclass(frozen=True, eq=False)
class Prompt:
    """The tensors of one prompt, as the processor would give them; its pictures are noise."""

    token_ids: npt.NDArray[np.int64]  # [S]
    kinds: str
    """One letter a token: "t" text, "i" image, "v" video."""
    grids: list[tuple[int, int, int]]
    grid_kinds: str
    """One letter a grid."""
    patches: npt.NDArray[np.float32]  # [P, patch_values]
    position_ids: npt.NDArray[np.int32] = field(init=False)  # [3, S], by the paper's rule
    position_delta: int = field(init=False)

    def __post_init__(self) -> None:
        position_ids, delta = position_ids_by_the_paper(self.kinds, self.grids)
        object.__setattr__(self, "position_ids", position_ids.astype(np.int32))
        object.__setattr__(self, "position_delta", int(delta))

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def num_visual_tokens(self) -> int:
        return len(self.kinds) - self.kinds.count("t")


def make_prompt(parts: Sequence[Part], config: ModelConfig, name: str, seed: int = 0) -> Prompt:
    """Random words and random pixels, the same for one name and seed."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    first_special = config.vision_start_token_id - 9
    kinds, grids, grid_kinds = "", [], ""
    for part in parts:
        if isinstance(part, int):
            kinds += "t" * part
            continue
        grids.append((part.steps, part.height, part.width))
        grid_kinds += "i" if isinstance(part, Image) else "v"
        kinds += grid_kinds[-1] * (part.steps * part.height * part.width // 4)
    tokens = rng.integers(0, first_special, len(kinds))
    visual = np.array(list(kinds))
    tokens[visual == "i"] = config.image_token_id
    tokens[visual == "v"] = config.video_token_id
    num_patches = sum(steps * height * width for steps, height, width in grids)
    patches = rng.standard_normal((num_patches, config.vision.patch_values), dtype=np.float32)
    return Prompt(tokens, kinds, grids, grid_kinds, patches)


@dataclass(frozen=True, eq=False)
class Batch:
    """Prompts that go through the model together."""

    prompts: list[Prompt]

    @cached_property
    def patches(self) -> npt.NDArray[np.float32]:
        return np.concatenate([prompt.patches for prompt in self.prompts])

    @property
    def grids(self) -> list[tuple[int, int, int]]:
        return [grid for prompt in self.prompts for grid in prompt.grids]

    @property
    def grid_kinds(self) -> str:
        return "".join(prompt.grid_kinds for prompt in self.prompts)

    @property
    def positions(self) -> npt.NDArray[np.int32]:
        return patch_positions(self.grids)

    @property
    def cu_seqlens(self) -> npt.NDArray[np.int32]:
        return cu_seqlens_from_grids(self.grids)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        return np.array([len(prompt) for prompt in self.prompts], np.int64)

    @property
    def deltas(self) -> npt.NDArray[np.int64]:
        return np.array([prompt.position_delta for prompt in self.prompts], np.int64)

    def prefill(self, visual_embeds: npt.NDArray[np.float32]) -> DecoderInputs:
        """All prompts from an empty cache; asks for the logits of every token."""
        return self.piece(visual_embeds, np.zeros_like(self.lengths), self.lengths)

    def chunks(self, visual_embeds: npt.NDArray[np.float32], size: int) -> Iterator[DecoderInputs]:
        """The same in calls of at most `size` tokens. All prompts must have one length."""
        for start in range(0, int(self.lengths.max()), size):
            starts = np.full_like(self.lengths, start)
            yield self.piece(visual_embeds, starts, np.minimum(starts + size, self.lengths))

    def piece(
        self,
        visual_embeds: npt.NDArray[np.float32],
        starts: npt.NDArray[np.int64],
        stops: npt.NDArray[np.int64],
    ) -> DecoderInputs:
        """Tokens `starts[b] : stops[b]` of each prompt, padded on the right; `visual_embeds` is the whole batch's."""
        rows, columns = len(self.prompts), int((stops - starts).max())
        token_ids = np.zeros((rows, columns), np.int64)
        position_ids = np.zeros((3, rows, columns), np.int32)
        embeds = []
        pending = visual_embeds
        for row, (prompt, start, stop) in enumerate(zip(self.prompts, starts, stops, strict=True)):
            token_ids[row, : stop - start] = prompt.token_ids[start:stop]
            position_ids[:, row, : stop - start] = prompt.position_ids[:, start:stop]
            is_visual = np.array(list(prompt.kinds)) != "t"
            first, last = is_visual[:start].sum(), is_visual[:stop].sum()
            embeds.append(pending[first:last])
            pending = pending[is_visual.sum() :]
        return DecoderInputs(
            token_ids=token_ids,
            visual_embeds=np.concatenate(embeds),
            position_ids=position_ids,
            write_index=starts,
            kv_lengths=stops,
            logits_index=np.tile(np.arange(columns), (rows, 1)),
        )

    def valid(self, by_token: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Drop the padding of [B, S, ...]: [T, ...], row after row."""
        return np.concatenate([row[:length] for row, length in zip(by_token, self.lengths, strict=True)])


def make_batch(case: Case, config: ModelConfig) -> Batch:
    """The case's prompts for a model: only token ids and patch size depend on it."""
    rows = enumerate(case.prompts)
    return Batch([make_prompt(parts, config, f"{case.name} {row}", case.seed) for row, parts in rows])


def decode_step(
    tokens: npt.NDArray[np.int64],
    write_index: npt.NDArray[np.int64],
    deltas: npt.NDArray[np.int64],
    width: int,
) -> DecoderInputs:
    """One new token [B] a row at cache position `write_index` [B]; `width` is the decoder's hidden size."""
    positions = (write_index + deltas).astype(np.int32)
    return DecoderInputs(
        token_ids=tokens[:, None],
        visual_embeds=np.zeros((0, width), np.float32),
        position_ids=np.tile(positions[None, :, None], (3, 1, 1)),
        write_index=write_index,
        kv_lengths=write_index + 1,
        logits_index=np.zeros((len(tokens), 1), np.int64),
    )
