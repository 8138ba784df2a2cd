"""What came first and what came last in a film, asked of the small checkpoint, however the film counts its time."""

import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

import qv_export

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = ROOT / "models" / "qwen2-vl-tiny"
FILM = ROOT / "examples" / "pictures" / "departures.mp4"
pytestmark = pytest.mark.skipif(
    not CHECKPOINT.exists(), reason="models/qwen2-vl-tiny is not in this checkout"
)

# When each frame of the first text begins, then each of the second, and the rate that the file claims.
CLOCKS: dict[str, tuple[Sequence[float], Sequence[float], int]] = {
    "as it is": ((0, 0.5), (1, 1.5), 2),
    "a recording that slows down": ([i / 30 for i in range(60)], [2.0 + i for i in range(4)], 30),
    "a recording that speeds up": ([float(i) for i in range(4)], [4 + i / 30 for i in range(60)], 30),
    "slides of half a minute": ((0, 30), (60, 90), 30),
    "a rate of 1000": ([i / 2 for i in range(4)], [2 + i / 2 for i in range(4)], 1000),
    "a late start": ([5 + i / 10 for i in range(20)], [7 + i for i in range(3)], 30),
}
CONTAINERS = {"mp4": "libx264", "matroska": "libx264", "webm": "libvpx-vp9", "mpegts": "libx264"}


@pytest.fixture(scope="module")
def texts() -> tuple[Image.Image, Image.Image]:
    """The film's two pictures."""
    with av.open(FILM, "r") as container:
        frames = [frame.to_image() for frame in container.decode(video=0)]
    return frames[0], frames[-1]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> qv_export.Model:
    bundle = qv_export.export(CHECKPOINT, tmp_path_factory.mktemp("film-clocks") / "bundle", weights="link")
    return qv_export.load(bundle, max_context=1024)


def answers(model: qv_export.Model, film: bytes) -> list[str]:
    return [
        model.generate(f"Which text comes {place}?", videos=[film], max_new_tokens=8).text
        for place in ("first", "last")
    ]


def written(texts: Sequence[Image.Image], clock: str, container: str) -> bytes:
    *starts, rate = CLOCKS[clock]
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(CONTAINERS[container], rate=rate, options={"crf": "12"})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = *texts[0].size, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for text, times in zip(texts, starts, strict=True):
            for start in times:
                frame = av.VideoFrame.from_ndarray(np.asarray(text), format="rgb24")
                frame.pts, frame.time_base = round(1000 * start), Fraction(1, 1000)
                output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return file.getvalue()


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("clock", CLOCKS)
def test_the_first_text_and_the_last_are_told_whatever_the_clock(model, texts, clock, container):
    assert answers(model, written(texts, clock, container)) == ["A1", "B2"]


@pytest.mark.parametrize(
    "delays_ms",
    [
        ([500] * 2, [500] * 2),
        ([30] * 60, [1000] * 4),
        ([1000] * 4, [30] * 60),
        ([30_000] * 2, [30_000] * 2),
        ([0] * 20, [0] * 20),  # which browsers show for 100 ms each
        ([10] * 20, [10] * 20),
    ],
)
def test_an_animated_picture_is_told_by_its_delays(model, texts, delays_ms):
    frames = [text.copy() for text, delays in zip(texts, delays_ms, strict=True) for _ in delays]
    for number, frame in enumerate(frames):  # no two alike, which Pillow would write as one
        frame.putpixel((number, 0), (255, 255, 255))
    file = io.BytesIO()
    frames[0].save(
        file, "GIF", save_all=True, append_images=frames[1:], duration=[*delays_ms[0], *delays_ms[1]]
    )
    assert answers(model, file.getvalue()) == ["A1", "B2"]
