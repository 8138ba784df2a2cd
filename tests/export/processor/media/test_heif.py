import contextlib
import io
import struct
from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest

from export.errors import UserError
from export.processor.images import image_size, load_image
from export.processor.media import heif

TILE = 64


def box(kind, *content):
    body = b"".join(content)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def full(kind, version, flags, *content):
    return box(kind, struct.pack(">I", version << 24 | flags), *content)


def coded_tiles(arrays):
    """HEVC pictures of one kind: the decoder's configuration, and each one's bytes as an MP4 stores them."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream(
            "libx265", rate=1, options={"x265-params": "log-level=0:keyint=1:qp=10"}
        )
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = TILE, TILE, "yuv444p"
        for i, array in enumerate(arrays):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24").reformat(format="yuv444p")
            frame.pts, frame.time_base = i, Fraction(1)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    content = file.getvalue()
    at = content.index(b"hvcC") - 4
    configuration = content[at : at + struct.unpack_from(">I", content, at)[0]]
    with av.open(io.BytesIO(content), "r") as container:
        return configuration, [bytes(packet) for packet in container.demux(video=0) if packet.size]


def heic(arrays, columns=1, size=None, transforms=()):
    """A HEIC file by hand: one picture, or a grid of tiles with the primary item 100."""
    configuration, samples = coded_tiles(arrays)
    is_grid = len(arrays) > 1
    width, height = size or (TILE, TILE)
    rows = len(arrays) // columns
    ids = list(range(1, len(arrays) + 1))
    primary = 100 if is_grid else 1
    grids = [struct.pack(">BBBBHH", 0, 0, rows - 1, columns - 1, width, height)] if is_grid else []
    entries = [full(b"infe", 2, 0, struct.pack(">HH4sx", item, 0, b"hvc1")) for item in ids]
    if is_grid:
        entries.append(full(b"infe", 2, 0, struct.pack(">HH4sx", 100, 0, b"grid")))
    properties = [
        configuration,
        full(b"ispe", 0, 0, struct.pack(">II", TILE, TILE)),
        full(b"ispe", 0, 0, struct.pack(">II", width, height)),
        *transforms,
    ]
    numbers_of_primary = [3, *range(4, 4 + len(transforms))] + ([] if is_grid else [1])
    associations = [(item, [1, 2]) for item in ids if item != primary] + [(primary, numbers_of_primary)]
    associations.sort()
    ipma = struct.pack(">I", len(associations)) + b"".join(
        struct.pack(">HB", item, len(numbers)) + bytes(numbers) for item, numbers in associations
    )

    def file(place):
        places = []
        for sample in [*grids, *samples]:
            places.append((place, len(sample)))
            place += len(sample)
        locations = b"".join(
            struct.pack(">HHHII", item, 0, 1, *where)
            for item, where in zip([*[100][: len(grids)], *ids], places, strict=True)
        )
        meta = full(
            b"meta", 0, 0,
            full(b"hdlr", 0, 0, struct.pack(">I4s12sx", 0, b"pict", b"")),
            full(b"pitm", 0, 0, struct.pack(">H", primary)),
            full(b"iloc", 0, 0, struct.pack(">HH", 0x4400, len(places)), locations),
            full(b"iinf", 0, 0, struct.pack(">H", len(entries)), *entries),
            *[full(b"iref", 0, 0, box(b"dimg", struct.pack(f">HH{len(ids)}H", 100, len(ids), *ids))) for _ in grids],
            box(b"iprp", box(b"ipco", *properties), full(b"ipma", 0, 0, ipma)),
        )  # fmt: skip
        return box(b"ftyp", b"heic\0\0\0\0mif1heic") + meta

    head_size = len(file(0)) + 8
    return file(head_size) + box(b"mdat", *grids, *samples)


@pytest.fixture(scope="module")
def scene():
    """Six tiles' worth: every place has a colour of its own."""
    rows, columns = np.mgrid[0 : 2 * TILE, 0 : 3 * TILE]
    return np.stack(
        [rows * 255 // (2 * TILE), columns * 255 // (3 * TILE), (rows + columns) % 200], axis=2
    ).astype(np.uint8)


def tiles_of(scene):
    return [
        scene[row : row + TILE, column : column + TILE]
        for row in range(0, scene.shape[0], TILE)
        for column in range(0, scene.shape[1], TILE)
    ]


def close(image, expected):
    found = np.asarray(image).astype(int)
    return found.shape == expected.shape and np.abs(found - expected).mean() < 4


def test_a_single_picture_is_read(scene):
    content = heic([scene[:TILE, :TILE]])
    assert image_size(content) == (TILE, TILE)
    assert close(load_image(content), scene[:TILE, :TILE])


def test_tiles_are_laid_in_their_grid_and_cut_to_its_size(scene):
    content = heic(tiles_of(scene), columns=3, size=(170, 100))
    assert image_size(content) == (170, 100)
    assert close(load_image(content), scene[:100, :170])


def aperture(width, height, x=0, y=0):
    return box(b"clap", struct.pack(">IIIIiIiI", width, 1, height, 1, x, 1, y, 1))


TRANSFORMS: dict[str, Any] = {
    "a quarter": ([box(b"irot", b"\x01")], lambda a: np.rot90(a, 1)),
    "half a turn": ([box(b"irot", b"\x02")], lambda a: np.rot90(a, 2)),
    "three quarters": ([box(b"irot", b"\x03")], lambda a: np.rot90(a, 3)),
    "crop": ([aperture(40, 20, -4, 6)], lambda a: a[28:48, 8:48]),
    "crop, then a quarter": ([aperture(40, 20), box(b"irot", b"\x01")], lambda a: np.rot90(a[22:42, 12:52])),
    "a mirror": ([box(b"imir", b"\x01")], np.fliplr),
    "upside down": ([box(b"imir", b"\x00")], np.flipud),
}


@pytest.mark.parametrize("kind", TRANSFORMS)
def test_it_is_shown_as_its_transforms_say(scene, kind):
    transforms, expected = TRANSFORMS[kind]
    content = heic([scene[:TILE, :TILE]], transforms=transforms)
    shown = expected(scene[:TILE, :TILE])
    assert image_size(content) == (shown.shape[1], shown.shape[0])
    assert close(load_image(content), shown)


def test_a_file_is_read_as_bytes_are(tmp_path, scene):
    path = tmp_path / "photo.heic"
    path.write_bytes(heic([scene[:TILE, :TILE]]))
    assert close(load_image(path), scene[:TILE, :TILE])
    assert image_size(path) == (TILE, TILE)


def test_a_size_that_it_claims_is_checked_before_a_tile_is_decoded(monkeypatch, scene):
    def never(*arguments):
        raise AssertionError("decoded")

    content = heic(tiles_of(scene), columns=3, size=(60_000, 60_000))
    monkeypatch.setattr(heif, "_decoded_items", never)
    with pytest.raises(UserError, match="claims 60000 x 60000 pixels"):
        load_image(content)


def test_broken_boxes_are_one_error_wherever_they_end_or_differ(scene):
    content = heic(tiles_of(scene), columns=3, size=(170, 100))
    rng = np.random.default_rng(0)
    meta_end = content.index(b"mdat")
    for _ in range(300):
        broken = bytearray(content)
        for place in rng.integers(12, meta_end, 3):
            broken[place] = rng.integers(256)
        _readable_or_refused(bytes(broken))
    for end in range(12, meta_end, 23):
        _readable_or_refused(content[:end])


def _readable_or_refused(content):
    with contextlib.suppress(UserError):  # anything else is a fault
        load_image(content)


def test_a_tile_that_is_missing_is_an_error(scene):
    content = heic(tiles_of(scene), columns=3, size=(170, 100))
    with pytest.raises(UserError, match="truncated or corrupt"):
        load_image(content[: len(content) - 400])
