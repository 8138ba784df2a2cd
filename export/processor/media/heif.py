"""Puts a HEIF picture (HEIC, what iPhones write) together: tiles in a grid, cropped, turned, mirrored.

FFmpeg decodes the coded pictures; which of them make the primary one, where they go and how it is shown stands in the
boxes of `meta` (ISO/IEC 23008-12), read here.
"""

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

import av
from PIL import Image

from export.errors import UserError
from export.processor.media.limits import MAX_PICTURE_PIXELS
from export.processor.video.mp4_tables import check_tables

_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1", b"hevc", b"hevx")
_CODECS = "hevc,libdav1d,av1,h264,mjpeg"
_MAX_TILES = 4096

Box = tuple[bytes, bytes]
"""Kind and content."""


def is_heif(head: bytes) -> bool:
    """Whether a file that begins with these 12 bytes is a HEIF picture. (AVIF's is another brand.)"""
    return head[4:8] == b"ftyp" and head[8:12] in _BRANDS


@dataclass(frozen=True)
class HeifPlan:
    """How the primary picture is made."""

    tiles: tuple[int, ...]
    """Items that are decoded, row by row."""
    columns: int
    coded_size: tuple[int, int]
    """Width and height before cropping and turning."""
    transforms: tuple[Box, ...]
    """`clap`, `irot` and `imir`, in their order."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height as shown."""
        width, height = self.coded_size
        for kind, content in self.transforms:
            if kind == b"clap":
                _, _, width, height = _crop_box(content, (width, height))
            elif kind == b"irot" and content[0] & 1:
                width, height = height, width
        return width, height


def read_plan(content: bytes, name: str) -> HeifPlan:
    """Read the boxes.

    Raises:
        UserError: they are broken, or describe what is not read here.
    """
    try:
        plan = _plan(_Items.of(dict(_boxes(content))[b"meta"][4:], content))
    except (KeyError, IndexError, struct.error, ValueError, ZeroDivisionError) as error:
        raise UserError(
            f"{name} is a HEIC picture whose boxes are broken ({error!r:.80}).", "Save it again."
        ) from None
    width, height = plan.coded_size
    if not 0 < width * height <= MAX_PICTURE_PIXELS or 0 in plan.size or len(plan.tiles) > _MAX_TILES:
        raise UserError(
            f"{name} claims {width} x {height} pixels in {len(plan.tiles)} tiles; at most {MAX_PICTURE_PIXELS} pixels "
            f"in {_MAX_TILES} tiles are decoded. Resize it first."
        )
    return plan


def heif_image(content: bytes, name: str) -> Image.Image:
    """The primary picture, RGB, the right way up.

    Raises:
        UserError: it is broken, or too large.
    """
    plan = read_plan(content, name)
    decoded = _decoded_items(content, plan, name)
    missing = [item for item in plan.tiles if item not in decoded]
    if missing:
        raise UserError(
            f"{name} is truncated or corrupt: {len(missing)} of {len(plan.tiles)} tiles cannot be decoded."
        )
    image = Image.new("RGB", plan.coded_size)
    tile_width, tile_height = decoded[plan.tiles[0]].size
    for number, item in enumerate(plan.tiles):
        row, column = divmod(number, plan.columns)
        image.paste(decoded[item], (column * tile_width, row * tile_height))
    for kind, value in plan.transforms:
        image = _transformed(image, kind, value)
    return image


def _decoded_items(content: bytes, plan: HeifPlan, name: str) -> dict[int, Image.Image]:
    file = io.BytesIO(content)
    check_tables(file, name)
    found: dict[int, Image.Image] = {}
    try:
        options = {"format_whitelist": "mov", "codec_whitelist": _CODECS}
        with av.open(file, "r", options=options) as container:
            streams = [stream for stream in container.streams.video if stream.id in plan.tiles]
            for stream in streams:
                stream.codec_context.options = {"max_pixels": str(MAX_PICTURE_PIXELS)}
            for packet in container.demux(streams):
                for frame in packet.decode():
                    if isinstance(frame, av.VideoFrame) and packet.stream.id not in found:
                        found[packet.stream.id] = Image.fromarray(frame.to_ndarray(format="rgb24"))
    except (av.FFmpegError, ValueError) as error:
        raise UserError(f"{name} is truncated or corrupt: {error}.", "Send the file again.") from None
    return found


def _transformed(image: Image.Image, kind: bytes, content: bytes) -> Image.Image:
    if kind == b"clap":
        left, top, width, height = _crop_box(content, image.size)
        return image.crop((left, top, left + width, top + height))
    if kind == b"imir":  # axis 0 is the vertical one: left and right change places, as all readers do it
        flip = Image.Transpose.FLIP_LEFT_RIGHT if content[0] & 1 else Image.Transpose.FLIP_TOP_BOTTOM
        return image.transpose(flip)
    turns = (None, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)
    turn = turns[content[0] & 3]  # counter-clockwise
    return image.transpose(turn) if turn is not None else image


def _crop_box(content: bytes, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Left, top, width and height of a clean aperture, whose place is given by its centre."""
    numbers = struct.unpack_from(">IIIIiIiI", content)
    width, height = round(numbers[0] / numbers[1]), round(numbers[2] / numbers[3])
    left = round((size[0] - width) / 2 + numbers[4] / numbers[5])
    top = round((size[1] - height) / 2 + numbers[6] / numbers[7])
    if left < 0 or top < 0 or left + width > size[0] or top + height > size[1]:
        raise ValueError("a crop outside of the picture")
    return left, top, width, height


@dataclass
class _Items:
    """What `meta` says of its items."""

    content: bytes
    primary: int = 0
    kinds: dict[int, bytes] = field(default_factory=dict)
    parts: dict[int, list[int]] = field(default_factory=dict)
    """Of a grid, the items that it is made of."""
    properties: dict[int, list[Box]] = field(default_factory=dict)
    extents: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Place and length of an item's data, counted from the file's start."""

    @classmethod
    def of(cls, meta: bytes, content: bytes) -> "_Items":
        boxes = dict(_boxes(meta))
        items = cls(content)
        primary = boxes[b"pitm"]
        items.primary = int.from_bytes(primary[4:6] if primary[0] == 0 else primary[4:8])
        items._read_kinds(boxes[b"iinf"])
        items._read_places(boxes[b"iloc"], content.find(boxes[b"idat"]) if b"idat" in boxes else 0)
        if b"iref" in boxes:
            items._read_parts(boxes[b"iref"])
        items._read_properties(boxes[b"iprp"])
        return items

    def _read_kinds(self, box: bytes) -> None:
        for kind, entry in _boxes(box[6 if box[0] == 0 else 8 :]):
            if kind == b"infe" and entry[0] >= 2:
                wide = entry[0] > 2
                item = int.from_bytes(entry[4:8] if wide else entry[4:6])
                self.kinds[item] = entry[10:14] if wide else entry[8:12]

    def _read_places(self, box: bytes, data_place: int) -> None:
        reader = _Reader(box, 4)
        sizes = reader.number(2)
        offset_size, length_size, base_size = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15
        index_size = sizes & 15 if box[0] else 0
        for _ in range(reader.number(4 if box[0] == 2 else 2)):
            item = reader.number(4 if box[0] == 2 else 2)
            method = reader.number(2) & 15 if box[0] else 0
            reader.number(2)  # data reference
            place = reader.number(base_size)
            for extent in range(reader.number(2)):
                reader.number(index_size)
                offset, length = reader.number(offset_size), reader.number(length_size)
                if extent == 0:
                    self.extents[item] = (place + offset + (data_place if method == 1 else 0), length)

    def _read_parts(self, box: bytes) -> None:
        size = 4 if box[0] else 2
        for kind, content in _boxes(box[4:]):
            if kind == b"dimg":
                reader = _Reader(content, 0)
                whole = reader.number(size)
                self.parts[whole] = [reader.number(size) for _ in range(reader.number(2))]

    def _read_properties(self, box: bytes) -> None:
        boxes = dict(_boxes(box))
        known = list(_boxes(boxes[b"ipco"]))
        table = boxes[b"ipma"]
        reader = _Reader(table, 4)
        for _ in range(reader.number(4)):
            item = reader.number(4 if table[0] else 2)
            for _ in range(reader.number(1)):
                number = reader.number(2) & 0x7FFF if table[3] & 1 else reader.number(1) & 0x7F
                if number:
                    self.properties.setdefault(item, []).append(known[number - 1])


class _Reader:
    """Big-endian numbers one after another."""

    def __init__(self, content: bytes, place: int) -> None:
        self._content, self._place = content, place

    def number(self, num_bytes: int) -> int:
        value = self._content[self._place : self._place + num_bytes]
        if len(value) < num_bytes:
            raise ValueError("a table that is cut off")
        self._place += num_bytes
        return int.from_bytes(value)


def _plan(items: _Items) -> HeifPlan:
    properties = items.properties.get(items.primary, [])
    transforms = tuple(one for one in properties if one[0] in {b"clap", b"irot", b"imir"})
    kind = items.kinds[items.primary]
    if kind == b"grid":
        place, length = items.extents[items.primary]
        grid = items.content[place : place + length]
        rows, columns = grid[2] + 1, grid[3] + 1
        wide = grid[1] & 1
        width, height = struct.unpack_from(">II" if wide else ">HH", grid, 4)
        tiles = tuple(items.parts[items.primary])
        if len(tiles) != rows * columns:
            raise ValueError(f"{len(tiles)} tiles for {rows} x {columns} places")
        return HeifPlan(tiles, columns, (width, height), transforms)
    width, height = struct.unpack_from(">II", dict(properties)[b"ispe"], 4)
    return HeifPlan((items.primary,), 1, (width, height), transforms)


def _boxes(content: bytes) -> Iterator[Box]:
    place = 0
    while place + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, place)
        header = 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", content, place + 8)
            header = 16
        length = length or len(content) - place
        if length < header:
            raise ValueError("a box without room for its header")
        yield kind, content[place + header : place + length]
        place += length
