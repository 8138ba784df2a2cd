"""What each visual token shows, written as an embedding.

The generator knows where every character and shape stands, so it can tell each visual token (a square of 28 x 28
pixels) what it shows. `Codebook` writes that as a vector: one fixed orthogonal direction for each character, colour
and kind of shape, for the first and second thing of a square, for what a character's neighbours are or how many shapes
have a shape's colour, and a few for where the first thing's edges are. The language model learns the tasks from these
vectors before it sees a picture; the vision encoder then learns to produce them.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from examples.tiny.pictures import COLORS, SHAPES, Box, Glyph, Scene
from examples.tiny.tasks import CHARACTERS

PAIRS = tuple((color, kind) for color in COLORS for kind in SHAPES)
LINE_END = "end of a line"
NEIGHBOURS = (*CHARACTERS, LINE_END)
"""What stands beside a character: another one, or none, for there its line begins or ends."""
THINGS: dict[str | tuple[str, str], int] = {
    thing: i for i, thing in enumerate((*NEIGHBOURS, *PAIRS), start=1)
}
"""0 is nothing."""
INSIDE = 2
BEFORE, AFTER = INSIDE, INSIDE + 1
SLOTS = INSIDE + 2
"""Two things in a token, in reading order; more are dropped. Then what stands left of the first character, and right of
the last; of shapes, how many have the first one's colour, and the last one's."""
EDGE_PERIODS = (2.0, 0.5)
"""Edges are written as sine and cosine with these periods, in widths or heights of the picture."""


@dataclass(frozen=True)
class Contents:
    """What V visual tokens show."""

    things: NDArray[np.int64]
    """[V, SLOTS] indices of THINGS."""
    edges: NDArray[np.float32]
    """[V, 4] left, top, right and bottom of the first thing, as shares of the picture; NaN without one."""


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

    def put(thing: int, center: tuple[float, float]) -> tuple[int, int]:
        """Note a thing in its token: which one, and how many were there before."""
        corner = np.clip(np.floor(np.array(center) * scale), 0, (columns - 1, rows - 1))
        token = int(corner[1]) * columns + int(corner[0])
        place = used[token]
        used[token] += 1
        if place < INSIDE:
            things[token, place] = thing
        return token, place

    for left, glyph, right in zip(
        (None, *scene.glyphs), scene.glyphs, (*scene.glyphs[1:], None), strict=False
    ):
        token, place = put(THINGS[glyph.character], glyph.center)
        if place == 0:
            edges[token] = _edges(glyph.box, scene)
            things[token, BEFORE] = _neighbour(glyph, left)
        if place < INSIDE:
            things[token, AFTER] = _neighbour(glyph, right)
    for shape in sorted(scene.shapes, key=lambda shape: shape.center):
        token, place = put(THINGS[shape.color, shape.kind], shape.center)
        number = THINGS[str(sum(other.color == shape.color for other in scene.shapes))]
        if place == 0:
            edges[token] = _edges(shape.box, scene)
            things[token, BEFORE] = number
        if place < INSIDE:
            things[token, AFTER] = number
    return Contents(things, edges)


def _edges(box: Box, scene: Scene) -> NDArray[np.float64]:
    return (np.array(box).reshape(2, 2) / scene.size).reshape(-1)


def _neighbour(glyph: Glyph, other: Glyph | None) -> int:
    """The thing beside a character in its line, given the next one that is drawn on that side. A row is one line."""
    return THINGS[other.character if other and glyph.y == other.y else LINE_END]


def join_contents(parts: Iterable[Contents]) -> Contents:
    things, edges = zip(*((part.things, part.edges) for part in parts), strict=True)
    return Contents(np.concatenate(things), np.concatenate(edges))


class Codebook:
    """The fixed directions. A vector is a constant that marks visual tokens plus the codes of what the token shows."""

    def __init__(self, width: int, seed: int = 0) -> None:
        singles = [*CHARACTERS, *COLORS, *SHAPES]
        sizes = (1, INSIDE * len(singles), 4 * 2 * len(EDGE_PERIODS), 2 * len(NEIGHBOURS))
        generator = torch.Generator().manual_seed(seed)
        codes = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
        mark, inside, self.edge_codes, beside = codes[: sum(sizes)].split(sizes)
        self.mark = mark[0]
        slots = inside.unflatten(0, (INSIDE, len(singles)))
        at = {name: i for i, name in enumerate(singles)}
        pairs = torch.stack([slots[:, at[color]] + slots[:, at[kind]] for color, kind in PAIRS], 1)
        self.things = torch.zeros(SLOTS, 1 + len(THINGS), width)
        self.things[:INSIDE, 1 : 1 + len(CHARACTERS)] = slots[:, : len(CHARACTERS)]
        self.things[:INSIDE, 1 + len(NEIGHBOURS) :] = pairs
        self.things[INSIDE:, 1 : 1 + len(NEIGHBOURS)] = beside.unflatten(0, (2, len(NEIGHBOURS)))
        """[SLOTS, THINGS, C]; nothing is zero"""
        self.lengths = self.things.square().sum(-1)
        self.lengths[:, 1:][self.lengths[:, 1:] == 0] = math.inf  # no shape stands beside, no end inside
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
        """[V, 16]; zeros without a thing."""
        angles = torch.cat([edges * (2 * math.pi / period) for period in EDGE_PERIODS], -1)
        return torch.cat([angles.sin(), angles.cos()], -1).nan_to_num(0.0)

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
