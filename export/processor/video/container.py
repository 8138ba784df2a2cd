"""Reads frames from a video file, without trusting what it says about itself.

A first pass over the packets, without decoding, finds when each frame stands and how much of the file is missing; a
second pass decodes and hands out the wanted ones. FFmpeg gets the open file, never a name, and only self-contained
formats: a playlist could make it read other files or addresses.
"""

import io
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream
from PIL import Image

from export.errors import UserError
from export.processor.media.file_kinds import HEAD_BYTES, seems
from export.processor.media.limits import DEFAULT_LIMITS, MAX_LOST_SHARE, MAX_PICTURE_PIXELS, MediaLimits
from export.processor.media.shown import display_matrix, shown_image
from export.processor.media.survey import Survey, survey_packets
from export.processor.video.mp4_tables import check_tables
from export.processor.video.timeline import regular_rate

_FORMATS = "mov,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,ogg,flv,asf,ivf"
_CODECS = (
    "av1", "dnxhd", "dvvideo", "ffv1", "ffvhuff", "flv", "h263", "h264", "hevc", "huffyuv", "libdav1d", "libvpx",
    "libvpx-vp9", "mjpeg", "mpeg1video", "mpeg2video", "mpeg4", "msmpeg4", "msmpeg4v2", "png", "prores", "qtrle",
    "rawvideo", "theora", "utvideo", "vc1", "vp8", "vp9", "wmv1", "wmv2", "wmv3",
)  # fmt: skip
"""FFmpeg has three hundred decoders, most for the files of one old game, hardly tested and never needed here."""
_MAX_THREADS = 4
"""Each holds frames of its own; more would be memory, hardly speed."""
_WITH_UNREFERENCED = frozenset({"h264", "hevc"})
"""Codecs whose decoders pass over a frame to which no other refers, at a word before its packet."""


class _Decoded(NamedTuple):
    """A frame, and how it is turned before it is shown."""

    picture: av.VideoFrame
    matrix: bytes | None


class ContainerFrames:
    """A video stream of a container file: the one that players choose."""

    has_one_size = False

    def __init__(self, source: Path | bytes, name: str, limits: MediaLimits = DEFAULT_LIMITS) -> None:
        self.name = name
        self.num_decoded = 0
        self._source, self._limits = source, limits
        self._survey = self._look_through()
        self.num_frames = self._survey.num_frames
        self._num_failed = self._num_corrupt = self._num_packets = 0
        self._failure = ""
        ticks = self._survey.ticks
        self.starts_s: Sequence[float] | None = None
        self.end_s = 0.0
        if ticks is None:
            self.fps = self._survey.declared_fps
            return
        self.fps = regular_rate(ticks, self._survey.time_base, self._survey.declared_fps)
        if self.fps is None:
            self.starts_s = [float((tick - ticks[0]) * self._survey.time_base) for tick in ticks]
            self.end_s = float((self._survey.end_tick - ticks[0]) * self._survey.time_base)

    @property
    def notes(self) -> list[str]:
        """What was lost, as far as is known; complete after `read`."""
        found = [f"{self.name}: {self._survey.cut}."] if self._survey.cut else []
        if self._survey.hole_share:
            found.append(
                f"{self.name}: {self._survey.hole_share:.0%} of it, between its frames, cannot be read."
            )
        if self._num_failed:
            found.append(
                f"{self.name}: {self._num_failed} of {self.num_frames} frames cannot be decoded ({self._failure}); the "
                "ones before them stand in their place."
            )
        if self._num_corrupt:
            found.append(f"{self.name}: {self._num_corrupt} frames are damaged and shown as far as they go.")
        return found

    def read(self, indices: Sequence[int]) -> Iterator[Image.Image]:
        """Decode up to the last of the ascending `indices`; stops without error where the stream ends before it.

        A frame that cannot be decoded is replaced by the one before it.

        Raises:
            UserError: more than the stated share cannot be decoded, or anything with `strict`.
        """
        ticks = self._survey.ticks if self._survey.has_own_times else None
        wanted = iter(indices if ticks is None else [ticks[index] for index in indices])
        target = next(wanted, None)
        previous: _Decoded | None = None
        self.num_decoded = self._num_failed = self._num_corrupt = self._num_packets = 0
        with self._open() as container:
            ratio = self._video_stream(container).sample_aspect_ratio
            for frame in self._decode(container, None if ticks is None else _around(indices, ticks)):
                pts = frame.picture.pts
                place = self.num_decoded if ticks is None or pts is None else pts
                while target is not None and place >= target:
                    # The wanted frame itself, or the last one before it where it is missing.
                    shown = frame if place == target or previous is None else previous
                    yield shown_image(shown.picture, ratio, shown.matrix)
                    target = next(wanted, None)
                previous = frame
                self.num_decoded += 1
                if target is None:
                    break
            while target is not None and ticks is not None and previous is not None:
                yield shown_image(previous.picture, ratio, previous.matrix)
                target = next(wanted, None)
        self._judge()

    def _judge(self) -> None:
        """Raise where too much was lost."""
        if self.num_decoded == 0:
            reason = f" ({self._failure})" if self._failure else ""
            raise UserError(
                f"{self.name}: not one frame could be decoded{reason}.", "Convert the video again."
            )
        if self._survey.hole_share and self._limits.strict:
            raise self._has_hole(self._survey.hole_share, 0)
        share = self._survey.lost_share + self._survey.hole_share
        share += self._num_failed / max(self._num_packets, self.num_decoded + self._num_failed)
        if share > MAX_LOST_SHARE:
            raise UserError(
                f"{self.name} is damaged: {share:.0%} of its frames cannot be decoded ({self._failure}); at most "
                f"{MAX_LOST_SHARE:.0%} may be lost.",
                "Convert or download the video again.",
            )

    def _has_hole(self, share: float, most: float) -> UserError:
        return UserError(
            f"{self.name} is damaged: {share:.0%} of it, between its frames, cannot be read; at most {most:.0%} may be "
            "lost.",
            "Record or download the video again.",
        )

    def _decode(self, container: InputContainer, needed: Container[int] | None) -> Iterator["_Decoded"]:
        """All frames, but for those that nobody sees where the decoder can do without them.

        Args:
            container: opened anew.
            needed: the times of frames that may be seen; None: any may.
        """
        stream = self._video_stream(container)
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = _MAX_THREADS
        # The frames themselves may be larger than the container says.
        stream.codec_context.options = {"max_pixels": str(MAX_PICTURE_PIXELS)}
        is_choosy = stream.codec_context.codec.name in _WITH_UNREFERENCED and not self._limits.strict
        packets = container.demux(stream)
        matrix: bytes | None = None
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    return
                self._num_packets += packet.size > 0
                if is_choosy and needed is not None:
                    stream.codec_context.skip_frame = "DEFAULT" if packet.pts in needed else "NONREF"
                frames = packet.decode()
            except (av.FFmpegError, ValueError) as error:
                self._failed(error)
                if isinstance(error, av.error.EOFError):
                    return
                continue
            for frame in frames:
                self._num_corrupt += frame.is_corrupt
                # Said in the stream itself (H.264's display orientation), it comes with some frames alone and holds
                # until another is said. Writers say it with the first frame only, and mean the film.
                matrix = display_matrix(frame) or matrix
                yield _Decoded(frame, matrix)

    def _failed(self, error: Exception) -> None:
        self._num_failed += 1
        self._failure = self._failure or f"frame {self._num_packets}: {_reason(error)}"
        if self._limits.strict:
            raise UserError(
                f"{self.name} is damaged: frame {self._num_packets} cannot be decoded ({_reason(error)}).",
                "Convert or download the video again.",
            ) from None

    def _look_through(self) -> Survey:
        """The first pass.

        Raises:
            UserError: no frame, too many, or too much of the file is missing.
        """
        with self._open() as container:
            stream = self._video_stream(container)
            survey = survey_packets(container, stream, self.name, self._limits)
        if survey.cut and (self._limits.strict or survey.lost_share > MAX_LOST_SHARE):
            raise UserError(
                f"{self.name} ends early: {survey.cut}.", "Record, convert or download the video again."
            )
        if survey.hole_share > MAX_LOST_SHARE and not self._limits.strict:
            raise self._has_hole(survey.hole_share, MAX_LOST_SHARE)
        if survey.damage and self._limits.strict:
            raise UserError(
                f"{self.name} is damaged: {survey.damage}.", "Record or download the video again."
            )
        if survey.num_frames == 0:
            raise UserError(
                f"{self.name} holds no frame: its video stream is empty. Check how it was recorded."
            )
        return survey

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
                    f"{self.name} holds no frame: it ends after its header.", "Record it again."
                ) from None
            except (av.FFmpegError, OSError, ValueError) as error:  # OSError: an empty file
                raise UserError(
                    f"{self.name} is not a video that can be read, or its index is cut off ({_reason(error)})."
                    f"{self._seems(file)}",
                    "Expected a whole file in MP4, MOV, Matroska, WebM, AVI, MPEG, Ogg, FLV or ASF format.",
                ) from None
            with container:
                yield container

    @staticmethod
    def _seems(file: io.BufferedIOBase) -> str:
        file.seek(0)
        return seems(file.read(HEAD_BYTES))

    def _video_stream(self, container: InputContainer) -> VideoStream:
        # A song's cover picture is a video stream of one frame.
        streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            found: list[str] = sorted(
                {str(stream.type) for stream in container.streams if stream.type != "video"}
            )
            found += ["a cover picture"] if container.streams.video else []
            kinds = ", ".join(found) or "no stream at all"
            raise UserError(
                f"{self.name} has no video stream, found only: {kinds}.", "Give a file with pictures in it."
            )
        # An animated AVIF holds a still picture, too, marked as default alike.
        stream = max(streams, key=lambda s: (bool(s.disposition & Disposition.default), s.frames != 1))
        self._check_size(stream)
        return stream

    def _check_size(self, stream: VideoStream) -> None:
        if stream.codec_context is None or stream.codec_context.codec.name not in _CODECS:
            found = "" if stream.codec_context is None else f" ({stream.codec_context.codec.name})"
            raise UserError(
                f"{self.name}: no decoder here for its video stream{found}.", "Convert it to H.264 first."
            )
        if stream.width * stream.height > MAX_PICTURE_PIXELS:
            raise UserError(
                f"{self.name} claims frames of {stream.width} x {stream.height} pixels; at most {MAX_PICTURE_PIXELS} "
                "are decoded. Shrink the video first."
            )


def _around(indices: Sequence[int], ticks: Sequence[int]) -> Container[int]:
    """Times of the frames that are wanted, and of their neighbours: the one before stands in for one that is broken,
    and the two fields of a frame may be packets of their own.
    """
    return {ticks[near] for index in indices for near in range(max(0, index - 1), min(len(ticks), index + 2))}


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
