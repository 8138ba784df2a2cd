"""How are frames read from a video file, without trusting what it says about itself?

A first pass over the packets, without decoding, counts the frames and finds a file that ends early; a second pass
decodes and hands out the wanted ones. FFmpeg gets the open file, never a name, and only self-contained formats: a
playlist could make it read other files or addresses.
"""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream
from PIL import Image

from export.errors import UserError
from export.processor.media.limits import DEFAULT_LIMITS, MAX_PICTURE_PIXELS, MediaLimits
from export.processor.media.mp4_tables import check_tables

_FORMATS = "mov,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,ogg,flv,asf,ivf"
_CODECS = (
    "av1", "dnxhd", "dvvideo", "ffv1", "ffvhuff", "flv", "h263", "h264", "hevc", "huffyuv", "libdav1d", "libvpx",
    "libvpx-vp9", "mjpeg", "mpeg1video", "mpeg2video", "mpeg4", "msmpeg4", "msmpeg4v2", "png", "prores", "qtrle",
    "rawvideo", "theora", "utvideo", "vc1", "vp8", "vp9", "wmv1", "wmv2", "wmv3",
)  # fmt: skip
"""FFmpeg has three hundred decoders, most for the files of one old game, hardly tested and never needed here."""
_CLOCK_TOLERANCE_S = 1.0
"""How far the last frame may stay behind the announced end: clocks round, and the last frame may stand long."""
_SLACK_BYTES = 1 << 12


class ContainerFrames:
    """The first video stream of a container file."""

    def __init__(self, source: Path | bytes, name: str, limits: MediaLimits = DEFAULT_LIMITS) -> None:
        self.name = name
        self.num_decoded = 0
        self._source, self._limits = source, limits
        self.num_frames, self.fps = self._survey()

    def read(self, indices: Sequence[int]) -> Iterator[Image.Image]:
        """Decode up to the last of the ascending `indices`; stops without error where the stream ends before it.

        Raises:
            UserError: a frame cannot be decoded.
        """
        wanted = iter(indices)
        index = next(wanted, None)
        with self._open() as container:
            self.num_decoded = 0
            for frame in self._decode(container):
                while index == self.num_decoded:
                    yield _upright_image(frame)
                    index = next(wanted, None)
                self.num_decoded += 1
                if index is None:
                    return
        if self.num_decoded == 0:
            raise UserError(f"{self.name}: not one frame could be decoded. Convert the video again.")

    def _decode(self, container: InputContainer) -> Iterator[av.VideoFrame]:
        stream = self._video_stream(container)
        stream.thread_type = "AUTO"
        # The frames themselves may be larger than the container says.
        stream.codec_context.options = {"max_pixels": str(MAX_PICTURE_PIXELS)}
        try:
            yield from container.decode(stream)
        except (av.FFmpegError, ValueError) as error:
            raise UserError(
                f"{self.name} is damaged: frame {self.num_decoded} cannot be decoded ({_reason(error)}). "
                "Convert or download the video again."
            ) from None

    def _survey(self) -> tuple[int, float | None]:
        """Count frames from the packets alone, and check that the file is whole.

        A stream without an index (MPEG-TS, fragmented MP4) that is cut between two frames looks whole.

        Returns:
            The number of frames and the average frames a second, None where the file has no clock.
        """
        with self._open() as container:
            stream = self._video_stream(container)
            num_packets, num_shown, end_s = self._count_packets(container, stream)
            announced_s = _announced_seconds(stream)
            if num_packets < stream.frames:
                raise self._ends_early(
                    f"its header announces {stream.frames} frames, {num_packets} are there"
                )
            if end_s + _CLOCK_TOLERANCE_S < announced_s:
                raise self._ends_early(f"it announces {announced_s:.1f} s, its frames stop at {end_s:.1f} s")
            if num_shown == 0:
                raise UserError(
                    f"{self.name} holds no frame: its video stream is empty. Check how it was recorded."
                )
            return num_shown, float(stream.average_rate or stream.guessed_rate or 0) or None

    def _count_packets(self, container: InputContainer, stream: VideoStream) -> tuple[int, int, float]:
        """How many packets there are, how many of them are shown, and when the last one ends, in seconds."""
        num_packets = num_shown = num_bytes = 0
        end_s = 0.0
        # Packets that a container stores compressed may be larger than their file, but not by much.
        most_bytes = 2 * container.size + _SLACK_BYTES
        try:
            for packet in container.demux(stream):
                if packet.size == 0:
                    continue
                if packet.is_corrupt:
                    raise self._ends_early(f"packet {num_packets} is cut off")
                num_packets += 1
                num_bytes += packet.size
                self._check_amount(num_packets, num_bytes, most_bytes)
                num_shown += not packet.is_discard
                if packet.pts is not None and packet.time_base is not None:
                    end_s = max(end_s, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        except av.FFmpegError as error:
            raise self._ends_early(f"{_reason(error)} after {num_packets} packets") from None
        return num_packets, num_shown, end_s

    def _check_amount(self, num_packets: int, num_bytes: int, most_bytes: int) -> None:
        if num_packets > self._limits.max_video_frames:
            raise UserError(
                f"{self.name} has more than {self._limits.max_video_frames} frames, which is the most that is read. "
                "Cut it."
            )
        if num_bytes > most_bytes:
            raise UserError(
                f"{self.name} has frames that lie over each other: its first {num_packets} have {num_bytes} bytes, "
                "more than the whole file. Convert the video again."
            )

    @contextmanager
    def _open(self) -> Iterator[InputContainer]:
        with io.BytesIO(self._source) if isinstance(self._source, bytes) else self._source.open("rb") as file:
            check_tables(file, self.name)
            try:
                container = av.open(
                    file, "r", options={"format_whitelist": _FORMATS, "codec_whitelist": ",".join(_CODECS)}
                )
            except av.error.EOFError:
                raise UserError(
                    f"{self.name} holds no frame: it ends after its header. Record it again."
                ) from None
            except (av.FFmpegError, OSError, ValueError) as error:  # OSError: an empty file
                raise UserError(
                    f"{self.name} is not a video that can be read, or its index is cut off ({_reason(error)}). "
                    "Expected a whole file in MP4, MOV, Matroska, WebM, AVI, MPEG, Ogg, FLV or ASF format."
                ) from None
            with container:
                yield container

    def _video_stream(self, container: InputContainer) -> VideoStream:
        for stream in container.streams.video:
            # A song's cover picture is a video stream of one frame.
            if not stream.disposition & Disposition.attached_pic:
                self._check_size(stream)
                return stream
        kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "no stream at all"
        raise UserError(
            f"{self.name} has no video stream, found only: {kinds}. Give a file with pictures in it."
        )

    def _check_size(self, stream: VideoStream) -> None:
        if stream.codec_context is None or stream.codec_context.codec.name not in _CODECS:
            found = "" if stream.codec_context is None else f" ({stream.codec_context.codec.name})"
            raise UserError(
                f"{self.name}: no decoder here for its video stream{found}. Convert it to H.264 first."
            )
        if stream.width * stream.height > MAX_PICTURE_PIXELS:
            raise UserError(
                f"{self.name} claims frames of {stream.width} x {stream.height} pixels; at most {MAX_PICTURE_PIXELS} "
                "are decoded. Shrink the video first."
            )

    def _ends_early(self, found: str) -> UserError:
        return UserError(f"{self.name} ends early: {found}. Record, convert or download the video again.")


def _announced_seconds(stream: VideoStream) -> float:
    """How long the stream should last by Matroska's own tag; 0 where nothing trustworthy says so."""
    parts = stream.metadata.get("DURATION", "").split(":")
    try:
        hours, minutes, seconds = map(float, parts)
    except ValueError:
        return 0.0
    return 3600 * hours + 60 * minutes + seconds


def _upright_image(frame: av.VideoFrame) -> Image.Image:
    """RGB, turned as a phone's recording asks (counter-clockwise, by quarters only)."""
    image = Image.fromarray(frame.to_ndarray(format="rgb24"))
    quarter = round(frame.rotation / 90) % 4
    turns = {1: Image.Transpose.ROTATE_90, 2: Image.Transpose.ROTATE_180, 3: Image.Transpose.ROTATE_270}
    return image.transpose(turns[quarter]) if quarter else image


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
