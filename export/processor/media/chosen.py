"""The frames that one part's budget leaves of a video: a stretch of it, and how many of that."""

from bisect import bisect_right
from collections.abc import Sequence
from math import ceil, floor

from export.errors import UserError
from export.processor.media.budget import Budget
from export.processor.settings import VideoSettings
from export.processor.video.frames import FrameSource
from export.processor.video.timeline import sample_by_time, sample_frames

_TIME_TOLERANCE_S = 1e-6


def choose_frames(frames: FrameSource, settings: VideoSettings, budget: Budget) -> list[int]:
    """Indices of the frames that are seen, ascending.

    Args:
        frames: the whole video.
        settings: the checkpoint's, with what the budget asks.
        budget: for the stretch and the number of frames.

    Raises:
        UserError: the stretch or the number does not fit the video.
    """
    first, end = _stretch(frames, budget)
    if budget.nframes is not None:
        return [first + index for index in _evenly(frames, end - first, budget.nframes, settings)]
    if frames.starts_s is None:
        chosen = sample_frames(end - first, frames.fps, settings)
    else:
        starts = [start - frames.starts_s[first] for start in frames.starts_s[first:end]]
        end_s = frames.starts_s[end] if end < len(frames.starts_s) else frames.end_s
        chosen = sample_by_time(starts, end_s - frames.starts_s[first], settings)
    return [first + index for index in chosen]


def seconds_of(frames: FrameSource, indices: Sequence[int]) -> tuple[float, ...]:
    """When each of these frames begins; empty where there is no clock."""
    if frames.starts_s is not None:
        return tuple(round(frames.starts_s[index], 3) for index in indices)
    return tuple(round(index / frames.fps, 3) for index in indices) if frames.fps else ()


def _evenly(frames: FrameSource, num_frames: int, wanted: int, settings: VideoSettings) -> list[int]:
    even = settings.frame.temporal_patch_size
    count = max(even, round(wanted / even) * even)
    if count > num_frames:
        raise UserError(f"{frames.name} has {num_frames} frames to choose from; nframes asks for {count}.")
    return [index * num_frames // count for index in range(count)]


def _stretch(frames: FrameSource, budget: Budget) -> tuple[int, int]:
    """First frame and the one behind the last between `video_start` and `video_end`."""
    asked = [name for name in ("fps", "video_start", "video_end") if getattr(budget, name) is not None]
    has_clock = frames.starts_s is not None or frames.fps is not None
    if asked and not has_clock:
        raise UserError(
            f"{frames.name} has no clock: {', '.join(asked)} cannot be followed.", "Leave them out."
        )
    if budget.video_start is None and budget.video_end is None:
        return 0, frames.num_frames
    start_s, end_s = budget.video_start or 0.0, budget.video_end
    if frames.starts_s is not None:
        lasts_s = frames.end_s
        first = max(
            0, bisect_right(frames.starts_s, start_s + _TIME_TOLERANCE_S) - 1
        )  # the one that stands then
        end = (
            len(frames.starts_s)
            if end_s is None
            else bisect_right(frames.starts_s, end_s + _TIME_TOLERANCE_S)
        )
    else:
        rate = frames.fps or 1.0
        lasts_s = frames.num_frames / rate
        first = ceil(start_s * rate - _TIME_TOLERANCE_S)
        end = frames.num_frames if end_s is None else floor(end_s * rate + _TIME_TOLERANCE_S) + 1
    end = min(end, frames.num_frames)
    if first >= end or start_s >= lasts_s:
        until = "its end" if end_s is None else f"{end_s:g} s"
        raise UserError(
            f"{frames.name} lasts {lasts_s:.2f} s: it has no frame from {start_s:g} s to {until}."
        )
    return first, end
