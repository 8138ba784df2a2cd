"""Which frames of a video are seen: by number where they come at a regular rate, by time where they do not.

The paper samples two frames a second, seconds of the film. A file's own rate says nothing about a screen recording,
a slideshow or a film whose frames were dropped, so the times at which frames stand decide.
"""

from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction

from export.processor.settings import VideoSettings

_RATE_TOLERANCE = 0.01
_TIME_TOLERANCE_S = 1e-6
_MAX_POINTS = 1 << 16


def sample_frames(num_frames: int, fps: float | None, settings: VideoSettings) -> list[int]:
    """Indices of the frames to use where they come at a regular rate.

    Follows Transformers' Qwen2VLVideoProcessor with `do_sample_frames` (an even number rounded down, evenly spaced
    from frame 0), but for two things: a clip shorter than `min_frames` is used whole, where Transformers drops an odd
    frame, and the spacing is exact integer arithmetic.

    Args:
        num_frames: of the whole video.
        fps: None for frames that count as sampled already.
        settings: how many a second, how many at least and at most.
    """
    if fps is None or num_frames < settings.min_frames:
        count = min(num_frames, settings.max_frames)
    else:
        count = min(_wanted(num_frames / fps, settings), _even(num_frames, settings))
    return [i * num_frames // count for i in range(count)]


def sample_by_time(starts_s: Sequence[float], end_s: float, settings: VideoSettings) -> list[int]:
    """Indices of the frames that stand at evenly spaced moments of the video, each once.

    A frame that stands for long is seen once, as every frame of a slow video is. Where that leaves fewer than
    `min_frames`, the moments move closer together.

    Args:
        starts_s: when each frame begins, ascending from 0.
        end_s: when the last one ends.
        settings: how many a second, how many at least and at most.
    """
    num_frames = len(starts_s)
    if num_frames < settings.min_frames or end_s <= 0:
        return sample_frames(num_frames, None, settings)
    count = _wanted(end_s, settings)
    while True:
        moments = (k * end_s / count + _TIME_TOLERANCE_S for k in range(count))
        chosen = sorted({max(0, bisect_right(starts_s, moment) - 1) for moment in moments})
        if len(chosen) >= settings.min_frames:
            return chosen[: settings.max_frames]
        if count > _MAX_POINTS:
            return [i * num_frames // settings.min_frames for i in range(settings.min_frames)]
        count *= 2


def _wanted(seconds: float, settings: VideoSettings) -> int:
    wanted = max(seconds * settings.fps, settings.min_frames)
    return _even(min(wanted, settings.max_frames), settings)


def _even(number: float, settings: VideoSettings) -> int:
    even = settings.frame.temporal_patch_size
    return max(int(number) // even, 1) * even


def regular_rate(ticks: Sequence[int], time_base: Fraction, declared: float | None) -> float | None:
    """Frames a second, None where frames do not come at a regular rate.

    Clocks round: a frame may stand off its place by half a step. The declared rate is exact where it is about right.

    Args:
        ticks: ascending times of all frames.
        time_base: seconds a tick.
        declared: what the container says.
    """
    span = ticks[-1] - ticks[0] if ticks else 0
    if len(ticks) < 2 or span <= 0:
        return declared
    step = span / (len(ticks) - 1)
    if any(abs(tick - ticks[0] - i * step) > step / 2 + 1 for i, tick in enumerate(ticks)):
        return None
    observed = float(1 / (step * time_base))
    # Whole ticks: over a short clip they leave the rate open by as much.
    tolerance = max(_RATE_TOLERANCE, 1.5 / span)
    return declared if declared and abs(declared / observed - 1) <= tolerance else observed
