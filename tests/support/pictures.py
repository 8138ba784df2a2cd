"""Generated pictures and videos that stand for what users send."""

import io
import tempfile
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from PIL import ExifTags, Image

SIZES = [(1, 1), (1, 200), (200, 1), (13, 2000), (14, 14), (27, 29), (28, 28), (42, 70), (56, 98), (100, 100),
         (224, 224), (337, 251), (251, 337), (640, 97), (97, 640)]  # fmt: skip
"""Width and height; rounding to 28 goes either way, sides of half a token and the extreme ratio among them."""

MODES = ("1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "LA", "PA", "RGBX", "RGBa",
         "I;16", "I;16L", "I;16B", "I;16N")  # fmt: skip
"""Every mode of Pillow but "La", which neither Pillow nor Transformers converts."""


def picture(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """A smooth gradient with noise: flat, busy and clipped areas all occur."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width]
    channels = [rows * 255 / max(height - 1, 1), columns * 255 / max(width - 1, 1), (rows + columns) % 256]
    noisy = np.stack([*channels, columns * 3 % 256], axis=2) + rng.normal(0, 40, (height, width, 4))
    pixels = np.clip(noisy, 0, 255).astype(np.uint8)
    if mode.startswith("I;16"):
        # Beyond 8 bits, so that clipping shows.
        return Image.frombytes(mode, (width, height), (pixels[..., 0].astype(np.uint16) * 200).tobytes())
    if mode in {"I", "F"}:
        array = pixels[..., 0].astype(np.int32 if mode == "I" else np.float32) * 2 - 100
        return Image.fromarray(array)
    if mode in {"P", "PA", "1", "L", "LA"}:
        base = Image.fromarray(pixels[..., :3]).convert("L" if mode in {"1", "L", "LA"} else "P")
        image = base.convert(mode)
        if mode in {"LA", "PA"}:
            image.putalpha(Image.fromarray(pixels[..., 3]))
        return image
    if mode in {"RGB", "YCbCr", "LAB", "HSV"}:
        return Image.frombytes(mode, (width, height), pixels[..., :3].tobytes())
    return Image.frombytes(mode, (width, height), pixels.tobytes())


def varied_pictures() -> Iterator[tuple[str, Image.Image]]:
    """Over 200 pictures, named: all sizes, all modes, all EXIF rotations, transparency in a palette."""
    for seed, (width, height) in enumerate(SIZES):
        yield f"RGB {width}x{height}", picture(width, height, seed=seed)
    for mode in MODES:
        for seed, (width, height) in enumerate(SIZES[3:13]):
            yield f"{mode} {width}x{height}", picture(width, height, mode, seed)
    for orientation in range(1, 9):
        yield f"EXIF {orientation}", Image.open(io.BytesIO(rotated_jpeg(orientation)))
    for mode in ("P", "L", "RGB", "1"):
        yield f"tRNS {mode}", Image.open(io.BytesIO(transparent_png(mode)))


def rotated_jpeg(orientation: int, width: int = 90, height: int = 60) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return encoded(picture(width, height), "JPEG", exif=exif, quality=95)


def transparent_png(mode: str) -> bytes:
    """A picture whose transparency is one colour that a chunk names, not a channel."""
    image = picture(60, 40, mode)
    return encoded(image, "PNG", transparency=image.getpixel((5, 5)))


def encoded(image: Image.Image, format_: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format_, **options)
    return file.getvalue()


def moving_frames(num_frames: int, width: int = 96, height: int = 64) -> list[np.ndarray]:
    """Frames that differ all over, and whose mean brightness grows: frame i is recognisable after compression."""
    rows, columns = np.mgrid[0:height, 0:width]
    base = (rows + columns) % 64
    return [
        np.repeat((base + 180 * i // max(num_frames - 1, 1)).astype(np.uint8)[..., None], 3, axis=2)
        for i in range(num_frames)
    ]


def numbered_frame(number: int, width: int = 168, height: int = 112) -> np.ndarray:
    """A frame that shows its number, to 4095: twelve bits as black and white blocks, 6 x 2."""
    frame = np.full((height, width, 3), 128, np.uint8)
    for bit in range(12):
        row, column = divmod(bit, 6)
        block = frame[
            height * row // 2 : height * (row + 1) // 2, width * column // 6 : width * (column + 1) // 6
        ]
        block[:] = 235 if number >> bit & 1 else 20
    return frame


def shown_number(frame: np.ndarray | Image.Image) -> int:
    """The number that a frame shows, at any size."""
    grey = np.asarray(frame, float).mean(-1)
    height, width = grey.shape
    number = 0
    for bit in range(12):
        row, column = divmod(bit, 6)
        y, x = (2 * row + 1) * height // 4, (2 * column + 1) * width // 12
        number |= int(grey[y - 2 : y + 3, x - 2 : x + 3].mean() > 128) << bit
    return number


def video_file(
    frames: list[np.ndarray], *, fps: int = 10, format_: str = "mp4", codec: str = "libx264", **options: str
) -> bytes:
    """Encode frames; `options` go to the container's writer."""
    with tempfile.TemporaryDirectory() as folder:
        # A file, not memory: moving an MP4's index to its front reads the file again.
        path = Path(folder) / "video"
        with av.open(path, "w", format=format_, options=options) as container:
            quick = {"deadline": "realtime", "cpu-used": "8"} if codec.startswith("libvpx") else {}
            stream = container.add_stream(codec, rate=fps, options={"g": "5", **quick})
            assert isinstance(stream, av.VideoStream)
            stream.height, stream.width = frames[0].shape[:2]
            stream.pix_fmt = "yuv420p"
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
        return path.read_bytes()


def silent_audio_file() -> bytes:
    """A container that holds sound and no picture."""
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        assert isinstance(stream, av.AudioStream)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    return file.getvalue()


def save(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
