"""What a video's packets say before one is decoded: when each frame stands, and how much is missing."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from export.errors import UserError
from export.processor.media.limits import MediaLimits

_CLOCK_TOLERANCE_S = 1.0
"""How far the last frame may stay behind the announced end: clocks round, and the last frame may stand long."""
_SLACK_BYTES = 1 << 12
_DENSE_FORMATS = frozenset({"matroska", "webm", "flv"})
"""A damaged stretch makes their readers jump to the next group of frames, seconds on, without a word."""
_HEADER_BYTES, _HOLE_SHARE = 1024, 0.005
_LEAST_AVI_FRAME_BYTES = 8
"""A frame that was dropped is a chunk without content."""
_WITHOUT_TIMES = frozenset({"avi"})
"""Formats whose frames have no times; what FFmpeg says of them is their place in the file."""


@dataclass(frozen=True)
class Survey:
    """What the first pass found."""

    num_frames: int
    """Packets that are shown."""
    ticks: Sequence[int] | None
    """When each frame stands, ascending; None where there is no single clock."""
    has_own_times: bool
    """Whether the decoder will say these times with the frames. An AVI tells only in which order they are decoded, so
    the first frame that is shown has the first time, and so on."""
    end_tick: int
    time_base: Fraction
    declared_fps: float | None
    cut: str
    """What is missing at the end, a clause; empty: nothing."""
    lost_share: float
    """Of the frames, at the end."""
    hole_share: float
    """Of the file's bytes, between its frames, that hold none."""
    damage: str
    """The first packet that is marked as damaged, a clause; it may well be decodable."""


@dataclass
class _Packets:
    """What a pass over the packets gathers."""

    num_packets: int = 0
    num_bytes: int = 0
    last_place: int = 0
    times: list[int | None] = field(default_factory=list)
    """Presentation times of shown packets, in the file's order; the decoding time where a file has no other."""
    decoding_times: list[int | None] = field(default_factory=list)
    longest_end: int = 0
    damage: str = ""
    broken: str = ""
    covered_to: int = 0
    hole_bytes: int = 0

    def cover(self, place: int | None, num_bytes: int, file_size: int) -> None:
        """Take note of where a packet lies: between two of them there is room for headers, not for frames."""
        if place is None:
            return
        hole = place - self.covered_to
        if self.covered_to and hole > max(_HEADER_BYTES, _HOLE_SHARE * file_size):
            self.hole_bytes += hole
        self.covered_to = max(self.covered_to, place + num_bytes)


def survey_packets(container: InputContainer, stream: VideoStream, name: str, limits: MediaLimits) -> Survey:
    """Go through all packets of a stream.

    Raises:
        UserError: more frames than the limit, or frames that lie over each other.
    """
    found = _gather(container, stream, name, limits)
    time_base = stream.time_base or Fraction(1, 1000)
    has_own_times = container.format.name not in _WITHOUT_TIMES and None not in found.times
    ticks = _single_clock(found.times if has_own_times else found.decoding_times, found.decoding_times)
    last_gap = max((b - a for a, b in pairwise(ticks[-3:])), default=0) if ticks else 0
    end_tick = max(found.longest_end, ticks[-1] + last_gap) if ticks else found.longest_end
    gap_s = float(max((b - a for a, b in pairwise(ticks)), default=0) * time_base) if ticks else 0.0
    cut, lost_share = _missing(container, stream, found, end_s=float(end_tick * time_base), gap_s=gap_s)
    return Survey(
        len(found.times),
        ticks,
        has_own_times,
        end_tick,
        time_base,
        float(stream.average_rate or stream.guessed_rate or 0) or None,
        cut,
        lost_share,
        found.hole_bytes / container.size if container.size else 0.0,
        found.damage,
    )


def _gather(container: InputContainer, stream: VideoStream, name: str, limits: MediaLimits) -> _Packets:
    found = _Packets()
    # Packets that a container stores compressed may be larger than their file, but not by much.
    most_bytes = 2 * container.size + _SLACK_BYTES
    try:
        # Where frames lie side by side, what no stream's packet covers is a hole.
        is_dense = not _DENSE_FORMATS.isdisjoint(container.format.name.split(","))
        for packet in container.demux() if is_dense else container.demux(stream):
            if packet.size == 0:
                continue
            if is_dense:
                found.cover(packet.pos, packet.size, container.size)
            if packet.stream.index != stream.index:
                continue
            if packet.is_corrupt and not found.damage:
                found.damage = f"packet {found.num_packets} is cut off or damaged"
            found.num_packets += 1
            found.num_bytes += packet.size
            found.last_place = max(found.last_place, packet.pos or 0)
            _check_amount(found, most_bytes, name, limits)
            if packet.is_discard:
                continue
            found.times.append(packet.pts)
            found.decoding_times.append(packet.dts)
            time = packet.pts if packet.pts is not None else packet.dts
            if time is not None:
                found.longest_end = max(found.longest_end, time + (packet.duration or 0))
    except av.FFmpegError as error:
        found.broken = f"{error.strerror} after {found.num_packets} packets"
    return found


def _check_amount(found: _Packets, most_bytes: int, name: str, limits: MediaLimits) -> None:
    if found.num_packets > limits.max_video_frames:
        raise UserError(
            f"{name} has more than {limits.max_video_frames} frames, which is the most that is read. Cut it."
        )
    if found.num_bytes > most_bytes:
        raise UserError(
            f"{name} has frames that lie over each other: its first {found.num_packets} have {found.num_bytes} bytes, "
            "more than the whole file.",
            "Convert the video again.",
        )


def _single_clock(times: Sequence[int | None], decoding_times: Sequence[int | None]) -> list[int] | None:
    """Ascending times of the frames; None where some have none, or where two recordings were joined."""
    known = [time for time in times if time is not None]
    decoding = [time for time in decoding_times if time is not None]
    if any(later < earlier for earlier, later in pairwise(decoding)):
        return None
    if len(known) == len(times) and len(set(known)) == len(known):
        return sorted(known)
    return None


def _missing(
    container: InputContainer, stream: VideoStream, found: _Packets, *, end_s: float, gap_s: float
) -> tuple[str, float]:
    """What is missing at the end and which share of the frames that is, at a guess.

    Raises no error for what an edit list hides, or for frames that a camera dropped: only for bytes and seconds that
    were promised. A stream without an index (MPEG-TS, fragmented MP4) that is cut between two frames looks whole.
    """
    size = container.size
    if "mov" in container.format.name:
        beyond, total = _entries_beyond(((entry.pos, entry.size) for entry in stream.index_entries), size)
        if beyond:
            return f"its header announces {total} frames, {total - beyond} are there", beyond / total
    announced_s = _announced_seconds(container, stream)
    tolerance_s = max(_CLOCK_TOLERANCE_S, 1.5 * gap_s)
    if end_s + tolerance_s < announced_s:
        return (
            f"it announces {announced_s:.1f} s, its frames stop at {end_s:.1f} s",
            1 - end_s / announced_s,
        )
    if found.broken:
        return found.broken, max(0.0, 1 - found.last_place / size) if size else 1.0
    return "", 0.0


def _entries_beyond(entries: Iterable[tuple[int, int]], size: int) -> tuple[int, int]:
    """How many of an index's frames end behind the file, and how many there are."""
    beyond = total = 0
    for place, length in entries:
        total += 1
        beyond += place + length > size
    return beyond, total


def _announced_seconds(container: InputContainer, stream: VideoStream) -> float:
    """How long the stream should last, where something trustworthy says so: Matroska's own tag, AVI's header.

    A part that is cut out of a film may carry the tag of the whole, but not its duration; a film that was written to a
    pipe has a number of frames in its header for which the file has no room.
    """
    parts = stream.metadata.get("DURATION", "").split(":")
    try:
        hours, minutes, seconds = map(float, parts)
    except ValueError:
        if container.format.name == "avi" and stream.average_rate:
            has_room = _LEAST_AVI_FRAME_BYTES * stream.frames <= container.size
            return float(stream.frames / stream.average_rate) if has_room else 0.0
        return 0.0
    said_s = 3600 * hours + 60 * minutes + seconds
    return min(said_s, container.duration / av.time_base) if container.duration else said_s
