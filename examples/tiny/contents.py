"""What does each visual token show, and how is that written as an embedding?

The generator knows where every character and shape stands, so it can tell each visual token (a square of 28 x 28
pixels) what it shows. `Codebook` writes that as a vector: one fixed orthogonal direction for each character, colour
and kind of shape, for the first, second and third thing of a square, for the character left of them, and a few for a
shape's edges. The language
model learns the tasks from these vectors before it sees a picture; the vision encoder then learns to produce them.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from examples.tiny.pictures import COLORS, SHAPES, Glyph, Scene
from examples.tiny.tasks import CHARACTERS

PAIRS = tuple((color, kind) for color in COLORS for kind in SHAPES)
THINGS: dict[str | tuple[str, str], int] = {
    thing: i for i, thing in enumerate((*CHARACTERS, *PAIRS), start=1)
}
"""0 is nothing."""
INSIDE, BEFORE = 3, 2
SLOTS = INSIDE + BEFORE
"""The things in a token, up to three in reading order, more are dropped; and the two characters left of the first."""
REACH = 1.6
"""Tokens between two characters' middles within which one is told to stand left of the other."""
EDGE_PERIODS = (8.0, 3.0)
"""A shape's edges are written as sine and cosine with these periods, in tokens."""


@dataclass(frozen=True)
class Contents:
    """What V visual tokens show."""

    things: NDArray[np.int64]
    """[V, SLOTS] indices of THINGS."""
    edges: NDArray[np.float32]
    """[V, 4] left, top, right and bottom of the first shape, in tokens from this one's corner; NaN without one."""


def contents_of_scene(scene: Scene, grid: tuple[int, int]) -> Contents:
    """What the tokens of one picture or one temporal step show, in rows.

    Args:
        scene: what is drawn.
        grid: rows and columns of visual tokens to which it is resized.
    """
    rows, columns = grid
    scale = np.array([columns / scene.size[0], rows / scene.size[1]])
    things = np.zeros((rows * columns, SLOTS), np.int64)
    edges = np.full((rows * columns, 4), np.nan, np.float32)
    used = [0] * (rows * columns)

    def put(thing: int, center: tuple[float, float]) -> tuple[int, NDArray[np.float64]] | None:
        """Note a thing in its token; the token, and its corner, if it is the token's first."""
        corner = np.clip(np.floor(np.array(center) * scale), 0, (columns - 1, rows - 1))
        token = int(corner[1]) * columns + int(corner[0])
        used[token] += 1
        if used[token] <= INSIDE:
            things[token, used[token] - 1] = thing
        return (token, corner) if used[token] == 1 else None

    left: list[Glyph] = []
    for glyph in scene.glyphs:
        if left and not _stands_left(left[0], glyph, scale[0]):
            left = []
        first = put(THINGS[glyph.character], glyph.center)
        if first:
            things[first[0], INSIDE : INSIDE + len(left)] = [THINGS[other.character] for other in left]
        left = [glyph, *left][:BEFORE]
    for shape in sorted(scene.shapes, key=lambda shape: shape.center):
        first = put(THINGS[shape.color, shape.kind], shape.center)
        if first:
            edges[first[0]] = (np.array(shape.box).reshape(2, 2) * scale - first[1]).reshape(-1)
    return Contents(things, edges)


def _stands_left(glyph: Glyph, other: Glyph, scale: float) -> bool:
    return glyph.y == other.y and (other.center[0] - glyph.center[0]) * scale < REACH


def join_contents(parts: Iterable[Contents]) -> Contents:
    things, edges = zip(*((part.things, part.edges) for part in parts), strict=True)
    return Contents(np.concatenate(things), np.concatenate(edges))


class Codebook:
    """The fixed directions. A vector is a constant that marks visual tokens plus the codes of what the token shows."""

    def __init__(self, width: int, seed: int = 0) -> None:
        singles = [*CHARACTERS, *COLORS, *SHAPES]
        sizes = (1, INSIDE * len(singles), 4 * 2 * len(EDGE_PERIODS), len(CHARACTERS))
        generator = torch.Generator().manual_seed(seed)
        codes = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
        mark, inside, self.edge_codes, before = codes[: sum(sizes)].split(sizes)
        two_before = F.normalize(torch.randn(before.shape, generator=generator), dim=-1)
        self.mark = mark[0]
        slots = inside.unflatten(0, (INSIDE, len(singles)))
        at = {name: i for i, name in enumerate(singles)}
        pairs = torch.stack([slots[:, at[color]] + slots[:, at[kind]] for color, kind in PAIRS], 1)
        characters = torch.cat([slots[:, : len(CHARACTERS)], before[None], two_before[None]])
        self.things = F.pad(torch.cat([characters, F.pad(pairs, (0, 0, 0, 0, 0, BEFORE))], 1), (0, 0, 1, 0))
        """[SLOTS, THINGS, C]; nothing is zero"""
        self.lengths = self.things.square().sum(-1)
        self.lengths[INSIDE:, 1 + len(CHARACTERS) :] = math.inf  # no shape stands there
        self.words = {name: slots[0, i] for name, i in at.items()}
        """The codes of characters, colours and kinds in the first slot."""

    def to(self, device: str) -> "Codebook":
        for name in ("mark", "edge_codes", "things", "lengths"):
            setattr(self, name, getattr(self, name).to(device))
        return self

    def embeddings(self, things: Tensor, edges: Tensor) -> Tensor:
        """What the language model is given in place of a picture: [V, C]."""
        slots = [self.things[slot][things[:, slot]] for slot in range(SLOTS)]
        return self.mark + sum(slots) + self.edge_features(edges) @ self.edge_codes

    def edge_features(self, edges: Tensor) -> Tensor:
        """[V, 16]; zeros without a shape."""
        angles = torch.cat([edges * (2 * math.pi / period) for period in EDGE_PERIODS], -1)
        return 0.5 * torch.cat([angles.sin(), angles.cos()], -1).nan_to_num(0.0)

    def loss(self, visual_embeds: Tensor, things: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
        """How far vectors are from saying what their tokens show, and the share of tokens that say all things right."""
        squares = F.mse_loss(visual_embeds, self.embeddings(things, edges), reduction="none").sum(-1)
        logits = torch.einsum("vc,stc->vst", visual_embeds - self.mark, self.things) * SHARPNESS
        logits = logits - SHARPNESS / 2 * self.lengths  # the nearest code is the most likely one
        names = F.cross_entropy(logits.flatten(0, 1), things.flatten(), reduction="none").view_as(things)
        right = (logits.argmax(-1) == things).all(-1)
        return squares.mean() + names.sum(-1).mean(), right


SHARPNESS = 8.0
"""By how much the logit of a code rises along its direction."""
