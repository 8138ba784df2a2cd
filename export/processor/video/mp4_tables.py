"""Size of the index that FFmpeg would build for an MP4, held against the file behind it.

An MP4's tables may say "four billion samples of one size" in twenty bytes, and FFmpeg makes an entry of some 40 bytes
for each while it opens the file. So the tables are looked at first: what they announce must stand in some proportion
to the file. FFmpeg reads a table wherever it stands, so they are looked for by name in all that is no media data,
not along the tree that a well-formed file has.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from export.errors import UserError

MAX_SAMPLES = 1 << 22
"""Samples of a file's tracks together: ten hours of video at 60 frames a second with sound are 3.9 million."""
MAX_EDITED_SAMPLES = 1 << 23
"""Samples times the edits beyond an ordinary one: FFmpeg walks the samples again for each edit."""
_MOST_ANNOUNCED = 16
"""How many times the file's own bytes its samples may announce: a download that broke off holds a part of them."""
_SLACK_BYTES = 1 << 16
_PCM_SAMPLES_PER_ENTRY = 1024

_CHUNK_BYTES = 1 << 20
_TABLE = re.compile(rb"trak|stsz|stz2|stts|stsc|stco|co64|hdlr|elst|trun|cmov")
_OTHER_CONTAINERS = (
    b"RIFF", b"\x1aE\xdf\xa3", b"OggS", b"FLV", b"\x00\x00\x01\xba", b"\x30\x26\xb2\x75", b"DKIF",
)  # fmt: skip


def check_tables(file: BinaryIO, name: str) -> None:
    """Raise UserError where the tables of an MP4, MOV or HEIF announce far more than the file can hold.

    Reads all but the media data, some 300 MB a second, and leaves the file at its start. Any other file passes.
    """
    size = file.seek(0, 2)
    file.seek(0)
    if file.read(4).startswith(_OTHER_CONTAINERS):
        file.seek(0)
        return
    tracks = [_Track()]
    for place, tag in _tables(file, size):
        if tag == b"trak":
            tracks.append(_Track())
        else:
            _read_table(file, place, tag, size, tracks[-1], name)
    file.seek(0)
    limit = _MOST_ANNOUNCED * size + _SLACK_BYTES
    num_samples = sum(track.num_entries(limit) for track in tracks)
    num_edits = sum(track.num_edits for track in tracks)
    if max(track.announced for track in tracks) > limit or num_samples > MAX_SAMPLES:
        raise _refusal(name, f"{max(num_samples, *(t.num_samples for t in tracks))} samples", size)
    if max(0, num_edits - 2 * len(tracks)) * num_samples > MAX_EDITED_SAMPLES:
        raise _refusal(name, f"{num_edits} edits of {num_samples} samples", size)


@dataclass
class _Track:
    """What the tables since the last `trak` announce."""

    num_samples: int = 0
    announced: int = 0
    """Bytes of samples, or samples of runs, that take no room of their own in the tables."""
    num_edits: int = 0
    num_chunks: int = 0
    handlers: set[bytes] = field(default_factory=set)
    steps: list[tuple[int, int]] = field(default_factory=list)
    """Number of entries and duration of the first one, of each `stts`."""
    runs: list[tuple[int, int]] = field(default_factory=list)
    """First chunk, samples a chunk."""

    def num_entries(self, limit: int) -> int:
        """Entries of FFmpeg's index. PCM sound has one for a thousand samples, or for a chunk."""
        ends = [first for first, _ in self.runs[1:]] + [self.num_chunks + 1]
        lengths = [max(0, end - first) for (first, _), end in zip(self.runs, ends, strict=False)]
        in_runs = sum(length * count for length, (_, count) in zip(lengths, self.runs, strict=True))
        if in_runs > limit:
            self.announced = max(self.announced, in_runs)
        is_sound = b"soun" in self.handlers and b"vide" not in self.handlers
        if is_sound and self.steps and all(step == (1, 1) for step in self.steps):
            return in_runs // _PCM_SAMPLES_PER_ENTRY + self.num_chunks
        return self.num_samples


def _tables(file: BinaryIO, size: int) -> Iterator[tuple[int, bytes]]:
    """Place of the payload and name of every table outside of the media data, in the file's order."""
    for start, end, kind in _top_level_boxes(file, size):
        if kind == b"mdat":
            continue
        overlap = b""
        place = start
        while place < end:
            file.seek(place)
            block = overlap + file.read(min(_CHUNK_BYTES, end - place))
            if len(block) <= len(overlap):
                break
            for match in _TABLE.finditer(block):
                at = place - len(overlap) + match.start()
                yield _payload(file, at), match.group()
            place += len(block) - len(overlap)
            overlap = b"" if _TABLE.match(block, len(block) - 4) else block[-3:]


def _top_level_boxes(file: BinaryIO, size: int) -> Iterator[tuple[int, int, bytes]]:
    place = 0
    while place + 8 <= size:
        file.seek(place)
        head = file.read(16)
        length, kind = struct.unpack_from(">I4s", head)
        header = 8
        if length == 1 and len(head) == 16:
            length, header = int.from_bytes(head[8:16]), 16
        elif length == 0:
            length = size - place
        if length < header:
            return
        yield place, min(place + length, size), kind
        place += length


def _payload(file: BinaryIO, tag_at: int) -> int:
    """Where the payload begins: a length of 1 means that the real one follows the name."""
    file.seek(max(0, tag_at - 4))
    return tag_at + (12 if tag_at >= 4 and file.read(4) == b"\0\0\0\1" else 4)


def _read_table(file: BinaryIO, place: int, tag: bytes, size: int, track: _Track, name: str) -> None:
    file.seek(place)
    head = file.read(12).ljust(12, b"\0")
    flags, first, second = struct.unpack(">III", head)
    count = second if tag in {b"stsz", b"stz2"} else first
    bytes_each = _bytes_of_entry(tag, flags, first)
    if count * bytes_each > size - place - 8:  # its flags and its count stand before
        raise _refusal(name, f"a table of {count} entries", size)
    match tag:
        case b"cmov":
            raise UserError(f"{name} has a compressed index (cmov), which is not read.", "Convert it first.")
        case b"hdlr":
            track.handlers.add(head[8:12])
        case b"stsz" | b"stz2" | b"trun":
            track.num_samples += count
            if not bytes_each:
                track.announced = max(track.announced, count * (first if tag == b"stsz" else 1))
        case b"elst":
            track.num_edits += count
        case b"stts":
            track.steps.append((count, _number(file, place + 12)))
        case b"stco" | b"co64":
            track.num_chunks = max(track.num_chunks, count)
        case b"stsc":
            file.seek(place + 8)
            track.runs = [(run[0], run[1]) for run in struct.iter_unpack(">III", file.read(12 * count))]


def _bytes_of_entry(tag: bytes, flags: int, first: int) -> float:
    """What an entry takes in its table; 0 where any number of them takes no room."""
    match tag:
        case b"stsz":
            return 0 if first else 4
        case b"stz2":
            return (first & 0xFF) / 8
        case b"trun":  # each of the flags 0x100 to 0x800 adds four bytes to every sample's entry
            return 4 * (flags & 0xF00).bit_count()
        case b"elst" | b"stsc":
            return 12
        case b"stts" | b"co64":
            return 8
    return 4 if tag == b"stco" else 0


def _number(file: BinaryIO, place: int) -> int:
    """The second number of a table's first entry."""
    file.seek(place)
    return int.from_bytes(file.read(4))


def _refusal(name: str, found: str, size: int) -> UserError:
    return UserError(
        f"{name} announces {found} in {size} bytes: it is cut off inside of its index, or made to exhaust a reader's "
        "memory.",
        "Convert or download the video again.",
    )
