"""Draws the demo's pictures and videos, as the training samples are drawn but without noise.

python -m examples.tiny.demo_media [DIRECTORY]
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import av
import numpy as np
from PIL import Image

from examples.tiny.pictures import Color, Noise, Scene, Shape, load_font, set_line

QUIET = Noise(0, 0, 0, 0)
NAVY, GOLD, SKY = (24, 42, 74), (244, 214, 120), (222, 236, 247)
FRAMES_PER_SECOND = 2


def plate(text: str, size: tuple[int, int], face: str, background: Color, ink: Color) -> Scene:
    """Text in the middle."""
    font = load_font(face, 30)
    _, top, _, bottom = font.getbbox("H")
    width = set_line(text, font, 3)[1]
    glyphs, _ = set_line(text, font, 3, (size[0] - width) / 2, (size[1] - top - bottom) / 2)
    return Scene(size, background, QUIET, tuple(glyphs), ink)


def patch(color: str, kind: str) -> Scene:
    """One shape in the middle."""
    return Scene((56, 56), SKY, QUIET, shapes=(Shape(color, kind, (12, 12, 44, 44)),))


def table(rows: Sequence[tuple[str, str]], face: str) -> Scene:
    """Names at the left, values at the right."""
    font, size = load_font(face, 26), (200, 40 * len(rows) + 8)
    _, top, _, bottom = font.getbbox("H")
    glyphs = []
    for i, (name, value) in enumerate(rows):
        y = 4 + 40 * i + (40 - top - bottom) / 2
        right = size[0] - 6 - set_line(value, font, 3)[1]
        glyphs += [*set_line(name, font, 3, 6, y)[0], *set_line(value, font, 3, right, y)[0]]
    return Scene(size, (244, 241, 232), QUIET, tuple(glyphs), (40, 36, 30))


def marbles(colors: Sequence[str]) -> Scene:
    """Circles in two rows."""
    places = [(10 + 40 * (i % 3), 12 + 44 * (i // 3)) for i in range(len(colors))]
    shapes = [
        Shape(color, "circle", (x, y, x + 24, y + 24)) for color, (x, y) in zip(colors, places, strict=True)
    ]
    return Scene((126, 92), SKY, QUIET, shapes=tuple(shapes))


PICTURES: Mapping[str, Scene] = {
    "gate": plate("GATE7", (140, 56), "LatoBold", NAVY, GOLD),
    "zebra": plate("ZEBRA", (140, 56), "SourceSansProSemibold", (222, 240, 228), (20, 80, 52)),
    "ticket-1": plate("A17", (84, 42), "DejaVuSans", (252, 233, 214), (120, 44, 24)),
    "ticket-2": plate("B20", (84, 42), "RobotoBold", (222, 240, 228), (20, 80, 52)),
    "receipt": table([("TEA", "3.20"), ("BREAD", "2.86"), ("SALT", "0.75")], "Roboto"),
    "marbles": marbles(["red", "blue", "red", "blue", "red"]),
    "lamp-1": patch("blue", "circle"),
    "lamp-2": patch("yellow", "circle"),
}


def crossing() -> list[Scene]:
    """A square that goes from left to right."""
    squares = [Shape("red", "square", (x, 24, x + 24, 48)) for x in (6, 40, 80)]
    return [Scene((112, 70), SKY, QUIET, shapes=(square,)) for square in squares]


def departures() -> list[Scene]:
    """Two platforms, one after the other."""
    return [plate(text, (84, 42), "RobotoMedium", NAVY, GOLD) for text in ("A1", "B2")]


VIDEOS: Mapping[str, Sequence[Scene]] = {"crossing": crossing(), "departures": departures()}


def write_video(path: Path, scenes: Sequence[Scene]) -> None:
    """Each scene for one temporal step: two frames at the rate at which the model samples."""
    with av.open(path, "w") as container:
        height, width = scenes[0].pixels.shape[:2]
        stream = container.add_stream("libx264", FRAMES_PER_SECOND, options={"crf": "12"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for scene in scenes:
            for _ in range(2):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(scene.pixels))
                container.mux(stream.encode(frame))
        container.mux(stream.encode())


def main() -> None:
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "pictures"
    directory.mkdir(parents=True, exist_ok=True)
    for name, scene in PICTURES.items():
        Image.fromarray(scene.pixels).save(directory / f"{name}.png", optimize=True)
    for name, scenes in VIDEOS.items():
        write_video(directory / f"{name}.mp4", scenes)


if __name__ == "__main__":
    main()
