"""Draws the pictures that documentation and tests ask about: a street and a bar chart.

    python examples/make_pictures.py [DIRECTORY]

Drawn at three times their size and scaled down, so that edges are smooth; the same pixels each time.
"""

import sys
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

SCALE = 3
PICTURES = Path(__file__).parent / "pictures"
MONTHS = {"Jan": 42, "Feb": 58, "Mar": 31, "Apr": 76, "May": 64, "Jun": 90}

Box = tuple[float, float, float, float]


class Canvas:
    """Draws in the picture's own coordinates."""

    def __init__(self, width: int, height: int, colour: str) -> None:
        self.size = (width, height)
        self._image = Image.new("RGB", (width * SCALE, height * SCALE), colour)
        self._draw = ImageDraw.Draw(self._image)

    def box(self, box: Box, colour: str, radius: float = 0) -> None:
        self._draw.rounded_rectangle([value * SCALE for value in box], radius * SCALE, fill=colour)

    def oval(self, box: Box, colour: str) -> None:
        self._draw.ellipse([value * SCALE for value in box], fill=colour)

    def polygon(self, points: list[tuple[float, float]], colour: str) -> None:
        self._draw.polygon([(x * SCALE, y * SCALE) for x, y in points], fill=colour)

    def text(self, x: float, y: float, text: str, colour: str, size: int) -> None:
        """Text centred at a point."""
        font = ImageFont.load_default(size * SCALE)
        self._draw.text((x * SCALE, y * SCALE), text, fill=colour, font=font, anchor="mm")

    def finished(self) -> Image.Image:
        return self._image.resize(self.size, Image.Resampling.LANCZOS)


def street() -> Image.Image:
    """Two houses, a tree, a red car at a bus stop sign."""
    canvas = Canvas(480, 320, "#a9d4f0")
    canvas.oval((392, 24, 444, 76), "#fbe27a")
    for x, y in ((60, 40), (96, 30), (130, 44)):
        canvas.oval((x, y, x + 70, y + 30), "#ffffff")
    house(canvas, 30, 130, "#e8c39e", "#9c4a3c", "12")
    house(canvas, 190, 110, "#c9d7c0", "#4d5a6b", "14")
    canvas.box((360, 150, 374, 232), "#7a5236")
    for box in ((322, 80, 412, 170), (340, 60, 394, 120)):
        canvas.oval(box, "#4f9a54")
    canvas.box((0, 232, 480, 250), "#c8c4bb")
    canvas.box((0, 250, 480, 320), "#5b5e66")
    for x in range(10, 480, 80):
        canvas.box((x, 284, x + 44, 289), "#f2f2e9")
    car(canvas, 120, 216)
    canvas.box((440, 140, 445, 240), "#6c6f75")
    canvas.box((416, 112, 470, 150), "#1f5fae", 5)
    canvas.text(443, 131, "BUS", "#ffffff", 18)
    return canvas.finished()


def house(canvas: Canvas, x: float, y: float, wall: str, roof: str, number: str) -> None:
    canvas.box((x, y, x + 130, 232), wall)
    canvas.polygon([(x - 10, y), (x + 140, y), (x + 65, y - 56)], roof)
    for column in (x + 14, x + 86):
        canvas.box((column, y + 18, column + 30, y + 50), "#6fa3c7", 2)
    canvas.box((x + 50, y + 50, x + 80, 232), "#6b4630", 3)
    canvas.text(x + 65, y + 38, number, "#3b3b3b", 13)


def car(canvas: Canvas, x: float, y: float) -> None:
    canvas.polygon([(x + 26, y + 22), (x + 46, y), (x + 104, y), (x + 126, y + 22)], "#c93a34")
    canvas.polygon([(x + 36, y + 21), (x + 50, y + 5), (x + 72, y + 5), (x + 72, y + 21)], "#cfe6f3")
    canvas.polygon([(x + 78, y + 21), (x + 78, y + 5), (x + 101, y + 5), (x + 114, y + 21)], "#cfe6f3")
    canvas.box((x, y + 20, x + 150, y + 50), "#c93a34", 9)
    canvas.box((x + 140, y + 27, x + 150, y + 35), "#fbe27a", 3)
    for wheel in (x + 24, x + 98):
        canvas.oval((wheel, y + 36, wheel + 30, y + 66), "#26272b")
        canvas.oval((wheel + 9, y + 45, wheel + 21, y + 57), "#b9bcc2")


def chart() -> Image.Image:
    """Bars with their months and values: small text to read."""
    canvas = Canvas(420, 300, "#ffffff")
    canvas.text(210, 22, "Bicycles rented per month", "#222222", 17)
    for value in range(0, 101, 25):
        y = 250 - value * 2
        canvas.box((44, y, 404, y + 1), "#d5d8dd")
        canvas.text(26, y, str(value), "#555555", 12)
    for index, (month, value) in enumerate(MONTHS.items()):
        x = 60 + index * 58
        canvas.box(
            (x, 250 - value * 2, x + 36, 250), "#3b7dc4" if value < max(MONTHS.values()) else "#e08b2d"
        )
        canvas.text(x + 18, 242 - value * 2, str(value), "#222222", 12)
        canvas.text(x + 18, 266, month, "#222222", 13)
    return canvas.finished()


DRAWINGS: dict[str, Callable[[], Image.Image]] = {"street": street, "chart": chart}


def main() -> None:
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURES
    directory.mkdir(parents=True, exist_ok=True)
    for name, draw in DRAWINGS.items():
        path = directory / f"{name}.png"
        draw().save(path, optimize=True)
        print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
