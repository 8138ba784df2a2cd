"""What is drawn? Text in several fonts, coloured shapes, tables and receipts, on noisy backgrounds of any size."""

import importlib.metadata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
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
    *("Caladea", "CaladeaBold", "Lato", "LatoBold", "ManropeMedium", "ManropeBold", "Roboto", "RobotoMedium"),
    *("RobotoBold", "SourceSansPro", "SourceSansProSemibold", "SourceSerifPro", "SourceSerifProSemibold"),
    *("DejaVuSans", "DejaVuSansMono-Bold", "DejaVuSerif"),
)
"""Faces of seven families. All come from packages: `font-*` on PyPI, DejaVu with matplotlib."""

COLORS: dict[str, Color] = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (40, 80, 220),
    "yellow": (240, 210, 40),
    "purple": (150, 50, 190),
    "black": (25, 25, 25),
}
CELL = 28
"""Pixels along each side of one visual token."""
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


def add_noise(image: Image.Image, rng: Generator) -> Pixels:
    """Grain of random strength and a slight shade from side to side."""
    pixels = np.asarray(image)
    strength = rng.uniform(0, 10)
    grain = rng.standard_normal(pixels.shape[:2], dtype=np.float32) * strength
    left, right = rng.uniform(-12, 12, 2)
    grain += np.linspace(left, right, pixels.shape[1], dtype=np.float32)
    return np.clip(pixels + grain[..., None], 0, 255).astype(np.uint8)


# --- text ---------------------------------------------------------------------------------------------


def draw_text(
    text: str,
    rng: Generator,
    font: ImageFont.FreeTypeFont,
    canvas: tuple[int, int] | None = None,
    spacing: int = 0,
) -> Pixels:
    """Text somewhere on a canvas: of the given width and height, but never too small, or with narrow margins.

    Args:
        text: one line.
        rng: chooses colours, place and noise.
        font: face and size.
        canvas: width and height; None fits the text.
        spacing: pixels put between characters.
    """
    left, top, right, bottom = font.getbbox(text)
    width, height = int(right - left) + 4 + spacing * (len(text) - 1), int(bottom - top) + 4
    if canvas is None:
        canvas = (width + int(rng.integers(0, 17)), height + int(rng.integers(0, 13)))
    canvas = (max(canvas[0], width), max(canvas[1], height))
    background, ink = random_ink(rng)
    image = Image.new("RGB", canvas, background)
    draw = ImageDraw.Draw(image)
    x = 2 - left + rng.integers(0, canvas[0] - width + 1)
    y = 2 - top + rng.integers(0, canvas[1] - height + 1)
    for i, part in enumerate(text if spacing else [text]):
        draw.text((x + spacing * i + font.getlength(text[:i]), y), part, ink, font)
    return add_noise(image, rng)


def draw_cells(text: str, rng: Generator) -> Pixels:
    """Text with each character in the middle of a square of its own, as large as one visual token."""
    font = random_font(rng, 18, 26)
    background, ink = random_ink(rng)
    image = Image.new("RGB", (CELL * len(text), CELL), background)
    draw = ImageDraw.Draw(image)
    for i, character in enumerate(text):
        left, top, right, bottom = font.getbbox(character)
        x, y = (CELL - right - left) / 2 + rng.uniform(-2, 2), (CELL - bottom - top) / 2 + rng.uniform(-2, 2)
        draw.text((CELL * i + x, y), character, ink, font)
    return add_noise(image, rng)


def draw_table(rows: Sequence[tuple[str, str]], rng: Generator) -> Pixels:
    """Names at the left, values at the right, one row under another: a receipt, or a table of two columns."""
    font = random_font(rng, 15, 20)
    boxes = [[font.getbbox(cell) for cell in row] for row in rows]
    widths = [max(int(row[column][2]) for row in boxes) for column in range(2)]
    line = max(int(box[3]) for row in boxes for box in row) + int(rng.integers(3, 9))
    gap, margin = int(rng.integers(12, 41)), int(rng.integers(3, 11))
    size = (sum(widths) + gap + 2 * margin, line * len(rows) + 2 * margin)
    background, ink = random_ink(rng)
    image = Image.new("RGB", size, background)
    draw = ImageDraw.Draw(image)
    ruled = rng.random() < 0.4
    for i, (name, value) in enumerate(rows):
        y = margin + i * line
        draw.text((margin, y), name, ink, font)
        draw.text((size[0] - margin - boxes[i][1][2], y), value, ink, font)
        if ruled and i:
            draw.line((margin // 2, y, size[0] - margin // 2, y), ink)
    return add_noise(image, rng)


# --- shapes -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    color: str
    kind: str
    box: Box


def draw_shapes(size: tuple[int, int], shapes: Iterable[Shape], background: Color) -> Image.Image:
    image = Image.new("RGB", size, background)
    draw = ImageDraw.Draw(image)
    for shape in shapes:
        left, top, right, bottom = shape.box
        color = COLORS[shape.color]
        if shape.kind == "circle":
            draw.ellipse((left, top, right - 1, bottom - 1), color)
        elif shape.kind == "square":
            draw.rectangle((left, top, right - 1, bottom - 1), color)
        else:
            draw.polygon([((left + right) / 2, top), (right - 1, bottom - 1), (left, bottom - 1)], color)
    return image


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
