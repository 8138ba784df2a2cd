"""Draws training pictures: text in several fonts and coloured shapes, on noisy backgrounds of any size."""

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, lru_cache
from pathlib import Path

import matplotlib as mpl
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Pixels = NDArray[np.uint8]
Color = tuple[int, int, int]
Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels; right and bottom lie outside."""

FACES = (
    *("Lato", "LatoBold", "ManropeMedium", "ManropeBold", "Roboto", "RobotoMedium", "RobotoBold"),
    *("SourceSansPro", "SourceSansProSemibold", "DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono-Bold"),
)
"""Faces of five families. All come from packages: `font-*` on PyPI, DejaVu with matplotlib."""

COLORS: dict[str, Color] = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (40, 80, 220),
    "yellow": (240, 210, 40),
    "purple": (150, 50, 190),
    "black": (25, 25, 25),
}
SHAPES = ("circle", "square", "triangle")


@lru_cache(maxsize=1)
def _font_paths() -> dict[str, str]:
    paths: dict[str, str] = {}
    for entry in importlib.metadata.entry_points(group="fonts_ttf"):
        paths |= {name: str(path) for name, path in entry.load().items()}
    folder = Path(mpl.get_data_path()) / "fonts" / "ttf"
    paths |= {path.stem: str(path) for path in folder.glob("DejaVu*.ttf")}
    missing = [face for face in FACES if face not in paths]
    if missing:
        raise SystemExit(f"Fonts {', '.join(missing)} are not installed: pip install -e '.[tiny]'")
    return paths


@cache
def load_font(face: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(_font_paths()[face], size)


def random_font(rng: Generator, smallest: int, largest: int) -> ImageFont.FreeTypeFont:
    return load_font(FACES[rng.integers(len(FACES))], int(rng.integers(smallest, largest + 1)))


# --- backgrounds ------------------------------------------------------------------------------------


def random_ink(rng: Generator) -> tuple[Color, Color]:
    """A background and a text colour of clearly different brightness."""
    dark, light = rng.integers(0, 90, 3), rng.integers(165, 256, 3)
    pair = (light, dark) if rng.random() < 0.7 else (dark, light)
    background, ink = (tuple(int(value) for value in color) for color in pair)
    return background, ink  # type: ignore[return-value]


def pale(rng: Generator) -> Color:
    """A background on which every colour of COLORS stands out."""
    red, green, blue = (int(value) for value in rng.integers(205, 256, 3))
    return red, green, blue


@dataclass(frozen=True)
class Noise:
    """Grain and a slight shade from side to side."""

    strength: float
    left: float
    right: float
    seed: int

    @classmethod
    def random(cls, rng: Generator) -> "Noise":
        left, right = rng.uniform(-12, 12, 2)
        return cls(float(rng.uniform(0, 8)), float(left), float(right), int(rng.integers(2**32)))

    def add_to(self, image: Image.Image) -> Pixels:
        pixels = np.asarray(image)
        grain = np.random.default_rng(self.seed).standard_normal(pixels.shape[:2], dtype=np.float32)
        grain = grain * self.strength + np.linspace(self.left, self.right, pixels.shape[1], dtype=np.float32)
        return np.clip(pixels + grain[..., None], 0, 255).astype(np.uint8)


# --- scenes -------------------------------------------------------------------------------------------


def _middle(box: Box) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


@dataclass(frozen=True)
class Glyph:
    """One character; `x` is where its advance begins, `y` the top of its line."""

    character: str
    x: float
    y: float
    font: ImageFont.FreeTypeFont

    @property
    def box(self) -> Box:
        """Its own width, the capitals' height, so that a dot lies in its line."""
        left, _, right, _ = _bounds(self.font, self.character)
        _, top, _, bottom = _bounds(self.font, "H")
        return self.x + left, self.y + top, self.x + right, self.y + bottom

    @property
    def center(self) -> tuple[float, float]:
        return _middle(self.box)


@dataclass(frozen=True)
class Shape:
    color: str
    kind: str
    box: Box

    @property
    def center(self) -> tuple[float, float]:
        return _middle(self.box)


@dataclass(frozen=True)
class Scene:
    """Everything that one picture shows; `pixels` draws it when they are asked for."""

    size: tuple[int, int]
    """Width and height."""
    background: Color
    noise: Noise
    glyphs: tuple[Glyph, ...] = ()
    ink: Color = (0, 0, 0)
    shapes: tuple[Shape, ...] = ()
    rules: tuple[int, ...] = field(default=())
    """Heights of the lines between rows."""

    @cached_property
    def pixels(self) -> Pixels:
        image = Image.new("RGB", self.size, self.background)
        draw = ImageDraw.Draw(image)
        for shape in self.shapes:
            _draw_shape(draw, shape)
        for glyph in self.glyphs:
            draw.text((glyph.x, glyph.y), glyph.character, self.ink, glyph.font)
        for y in self.rules:
            draw.line((2, y, self.size[0] - 3, y), self.ink)
        return self.noise.add_to(image)


@cache
def _bounds(font: ImageFont.FreeTypeFont, text: str) -> tuple[float, float, float, float]:
    return font.getbbox(text)


def _draw_shape(draw: ImageDraw.ImageDraw, shape: Shape) -> None:
    left, top, right, bottom = shape.box
    color = COLORS[shape.color]
    if shape.kind == "circle":
        draw.ellipse((left, top, right - 1, bottom - 1), color)
    elif shape.kind == "square":
        draw.rectangle((left, top, right - 1, bottom - 1), color)
    else:
        draw.polygon([((left + right) / 2, top), (right - 1, bottom - 1), (left, bottom - 1)], color)


# --- text ---------------------------------------------------------------------------------------------


def set_line(
    text: str, font: ImageFont.FreeTypeFont, spacing: int, x: float = 0, y: float = 0
) -> tuple[list[Glyph], float]:
    """The glyphs of a line that begins at (x, y), `spacing` pixels apart, and the line's width."""
    start = x
    glyphs = []
    for character in text:
        glyphs.append(Glyph(character, x, y, font))
        x += _advance(font, character) + spacing
    return glyphs, x - spacing - start


@cache
def _advance(font: ImageFont.FreeTypeFont, character: str) -> float:
    return font.getlength(character)


def text_scene(
    text: str,
    rng: Generator,
    font: ImageFont.FreeTypeFont,
    canvas: tuple[int, int] | None = None,
    spacing: int = 0,
) -> Scene:
    """Text somewhere on a canvas: of the given width and height, but never too small, or with narrow margins.

    Args:
        text: one line.
        rng: chooses colours, place and noise.
        font: face and size.
        canvas: width and height; None fits the text.
        spacing: pixels put between characters.
    """
    _, top, _, bottom = _bounds(font, "H")
    glyphs, line_width = set_line(text, font, spacing)
    width, height = int(line_width) + 5, int(bottom - top) + 5
    if canvas is None:
        canvas = (width + int(rng.integers(0, 13)), height + int(rng.integers(0, 11)))
    canvas = (max(canvas[0], width), max(canvas[1], height))
    x = 2 + int(rng.integers(0, canvas[0] - width + 1))
    y = 2 - top + int(rng.integers(0, canvas[1] - height + 1))
    glyphs, _ = set_line(text, font, spacing, x, y)
    background, ink = random_ink(rng)
    return Scene(canvas, background, Noise.random(rng), tuple(glyphs), ink)


def table_scene(rows: Sequence[tuple[str, str]], rng: Generator) -> Scene:
    """Names at the left, values at the right, one row under another: a receipt, or a table of two columns."""
    font, spacing = random_font(rng, 24, 28), int(rng.integers(2, 5))
    widths = [max(set_line(row[column], font, spacing)[1] for row in rows) for column in range(2)]
    line = max(int(font.size * 1.2), 32) + int(rng.integers(0, 9))
    gap, margin = int(rng.integers(40, 61)), int(rng.integers(2, 9))
    size = (int(sum(widths)) + gap + 2 * margin, line * len(rows) + 2 * margin)
    _, top, _, bottom = _bounds(font, "H")
    above = (line - bottom + top) / 2 - top
    glyphs: list[Glyph] = []
    for i, row in enumerate(rows):
        y = margin + i * line + above
        right = size[0] - margin - set_line(row[1], font, spacing)[1]
        for cell, x in zip(row, (margin, right), strict=True):
            glyphs += set_line(cell, font, spacing, x, y)[0]
    rules = tuple(margin + i * line for i in range(1, len(rows))) if rng.random() < 0.4 else ()
    background, ink = random_ink(rng)
    return Scene(size, background, Noise.random(rng), tuple(glyphs), ink, rules=rules)


def page_scene(size: tuple[int, int], characters: str, rng: Generator) -> Scene:
    """Lines of random characters that fill the picture."""
    font, spacing = random_font(rng, 24, 40), int(rng.integers(2, 8))
    _, top, _, bottom = _bounds(font, "H")
    line = int(bottom - top) + int(rng.integers(6, 20))
    glyphs: list[Glyph] = []
    y = int(rng.integers(2, 8)) - top
    while y + bottom < size[1] or not glyphs:
        text = "".join(characters[i] for i in rng.integers(0, len(characters), 12))
        x = int(rng.integers(2, 20))
        glyphs += [g for g in set_line(text, font, spacing, x, y)[0] if g.center[0] < size[0] - 8]
        y += line
    background, ink = random_ink(rng)
    return Scene(size, background, Noise.random(rng), tuple(glyphs), ink)


def grid_scene(size: tuple[int, int], pitch: int, characters: str, rng: Generator) -> Scene:
    """A picture of `size` squares of `pitch` pixels, most with one character near their middle."""
    font = random_font(rng, 24, 34)
    glyphs: list[Glyph] = []
    for row in range(size[1]):
        y = (row + rng.uniform(0.35, 0.65)) * pitch - Glyph("H", 0, 0, font).center[1]
        for column in range(size[0]):
            if rng.random() < 0.85:
                glyph = Glyph(characters[rng.integers(len(characters))], 0, y, font)
                x = (column + rng.uniform(0.4, 0.6)) * pitch - glyph.center[0]
                glyphs.append(replace(glyph, x=x))
    background, ink = random_ink(rng)
    return Scene((size[0] * pitch, size[1] * pitch), background, Noise.random(rng), tuple(glyphs), ink)


# --- shapes -------------------------------------------------------------------------------------------


def shapes_scene(size: tuple[int, int], shapes: Sequence[Shape], rng: Generator) -> Scene:
    return Scene(size, pale(rng), Noise.random(rng), shapes=tuple(shapes))


def place_boxes(
    number: int, size: tuple[int, int], sides: tuple[int, int], rng: Generator, gap: int = 4
) -> list[Box]:
    """Up to `number` boxes that do not touch, each of a random side; fewer where no room is left."""
    boxes: list[Box] = []
    for _ in range(number * 12):
        if len(boxes) == number:
            break
        side = int(rng.integers(sides[0], sides[1] + 1))
        left, top = (int(rng.integers(2, max(length - side - 1, 3))) for length in size)
        box = (left, top, left + side, top + side)
        if all(_apart(box, other, gap) for other in boxes):
            boxes.append(box)
    return boxes


def _apart(one: Box, other: Box, gap: int) -> bool:
    return (
        one[2] + gap <= other[0]
        or other[2] + gap <= one[0]
        or one[3] + gap <= other[1]
        or other[3] + gap <= one[1]
    )
