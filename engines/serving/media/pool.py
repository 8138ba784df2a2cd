"""The processes that decode media for a server: started, bounded, ended and replaced.

A stranger's file meets native decoders only there. A job that takes too long, or whose client left, ends with its
process; the next one is forked in a few milliseconds.
"""

import contextlib
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from types import TracebackType
from typing import Any, Self

from engines.serving.media.channel import Job, Reply
from engines.serving.media.process import LargeJobError, Parent, Worker
from engines.serving.media.turns import FILM, LARGE, SMALL, Cost, NoTurnError, Turns
from export.errors import UserError
from export.processor.images import describe
from export.processor.media.budget import NO_BUDGET, Budget
from export.processor.media.decode import LocalReader
from export.processor.media.medium import DecodedMedium

SMALL_SECONDS = 0.25
"""Of computing, which a job that looks small may take: some that look so hold text, or scans without number."""
_PIXELS_PER_SECOND = 30e6
"""Of a plain picture, for the order of jobs alone."""
_VIDEO_COST = Cost(seconds=2.0, pixels=1 << 25, size=FILM)
_SMALL_PIXELS = 1 << 22
"""Of a picture that takes a moment."""
_HEADER_SECONDS = 0.001


@dataclass(frozen=True)
class MediaSettings:
    """Bounds on all media of a server together, and on one.

    Raises:
        UserError: values out of range; all of them at once.
    """

    num_workers: int = 3
    """Processes that decode: one is kept for small pictures, and of three one for pictures of any size."""
    worker_memory_bytes: int = 640 << 20
    """What such a process may take: a picture of 67 megapixels with transparency, a video of 3840 x 2160."""
    max_pixels: int = 1 << 26
    """Pixels of pictures that are decoded at the same time, over all requests."""
    picture_seconds: float = 10.0
    """The longest that decoding a picture may take, without the wait for a process."""
    video_seconds: float = 120.0

    def __post_init__(self) -> None:
        problems = [
            f"{one.name} must be a number above 0, found {getattr(self, one.name)!r}"
            for one in fields(self)
            if isinstance(getattr(self, one.name), bool)
            or not isinstance(getattr(self, one.name), int if one.type in {int, "int"} else int | float)
            or not getattr(self, one.name) > 0
        ]
        if problems:
            raise UserError("The media settings are out of range:\n- " + "\n- ".join(problems))


class MediaPool:
    """Media processes: made at once, ended by `close` or with `with`."""

    def __init__(self, settings: MediaSettings | None = None) -> None:
        self.settings = settings or MediaSettings()
        self._turns = Turns(self.settings.num_workers, self.settings.max_pixels)
        self._lock = threading.Lock()
        self._idle: list[Worker] = []
        self._parent: Parent | None = None
        self._is_closed = False
        self._idle = [self._new_worker() for _ in range(self.settings.num_workers)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all processes."""
        with self._lock:
            self._is_closed = True
            for worker in self._idle:
                worker.end()
            self._idle = []
            if self._parent is not None:
                self._parent.end()

    def reader(
        self, local: LocalReader, deadline: float, is_cancelled: Callable[[], bool] | None = None
    ) -> "PooledReader":
        """What decodes one request's media.

        Args:
            local: settings and limits.
            deadline: of the request, on the monotonic clock.
            is_cancelled: whether the client left; looked at ten times a second.
        """
        return PooledReader(self, local, deadline, is_cancelled or _never)

    def run(
        self,
        job: Job,
        files: list[bytes],
        cost: Cost,
        spent_seconds: float,
        deadline: float,
        is_cancelled: Callable[[], bool],
    ) -> Reply:
        """Run one job on a process of its turn; see `PooledReader` for the errors."""
        try:
            return self._run(job, files, cost, spent_seconds, deadline, is_cancelled)
        except LargeJobError:  # not as small as it looked: from the start, among its like
            large = replace(cost, seconds=self.settings.picture_seconds, size=LARGE)
            return self._run(job, files, large, spent_seconds, deadline, is_cancelled)

    def _run(
        self,
        job: Job,
        files: list[bytes],
        cost: Cost,
        spent_seconds: float,
        deadline: float,
        is_cancelled: Callable[[], bool],
    ) -> Reply:
        with self._turns.turn(cost, spent_seconds, deadline, is_cancelled):
            most = self.settings.video_seconds if cost.size == FILM else self.settings.picture_seconds
            most_cpu_seconds = SMALL_SECONDS if cost.size == SMALL else math.inf
            worker = self._take(is_slowed=cost.size != SMALL)
            try:
                until = min(deadline, time.monotonic() + most)
                reply = worker.run(job, files, until, is_cancelled, most_cpu_seconds)
            except BaseException:
                self._replace(worker)
                raise
            # After a fault or for want of memory, nobody knows what it left behind.
            if reply.header.keys() & {"fault", "too_large"}:
                self._replace(worker)
            else:
                self._put_back(worker)
            return reply

    def _take(self, *, is_slowed: bool) -> Worker:
        """A process as is asked for; one that was slowed down stays so, which costs a fork in time."""
        with self._lock:
            worker = self._idle_worker(is_slowed=is_slowed) or self._new_worker()
        if is_slowed:
            worker.slow_down()
        return worker

    def _idle_worker(self, *, is_slowed: bool) -> Worker | None:
        """One that waits for work; where none is as it must be, one of them ends and makes room for that."""
        self._idle.sort(
            key=lambda worker: (worker.is_slowed <= is_slowed, worker.is_slowed)
        )  # the best one last
        while self._idle:
            worker = self._idle.pop()
            is_fit = worker.is_slowed <= is_slowed
            if worker.is_alive() and is_fit:
                return worker
            worker.end()
            if not is_fit:
                break
        return None

    def _put_back(self, worker: Worker) -> None:
        with self._lock:
            if self._is_closed:
                worker.end()
            else:
                self._idle.append(worker)

    def _replace(self, worker: Worker) -> None:
        worker.end()
        with self._lock:
            if not self._is_closed:
                with contextlib.suppress(OSError):  # tried again when the next job comes
                    self._idle.append(self._new_worker())

    def _new_worker(self) -> Worker:
        if self._is_closed:
            raise OSError("the media processes are closed")
        try:
            self._parent = self._parent or Parent(self.settings.worker_memory_bytes)
            return self._parent.fork()
        except (OSError, EOFError):
            if self._parent is not None:
                self._parent.end()
            self._parent = Parent(self.settings.worker_memory_bytes)
            return self._parent.fork()


class PooledReader:
    """A `MediaReader` whose decoders run in processes that can be ended."""

    def __init__(
        self, pool: MediaPool, local: LocalReader, deadline: float, is_cancelled: Callable[[], bool]
    ) -> None:
        self._pool, self._local, self._deadline, self._is_cancelled = pool, local, deadline, is_cancelled
        self._spent_seconds = 0.0
        self._costs: dict[int, Cost] = {}

    def picture_sizes(self, pictures: Sequence[Any]) -> list[tuple[int, int]]:
        """Width and height of each, as their headers say: bytes alone.

        Raises:
            UserError: one is no picture, takes too long, or ends the process that looks at it.
        """
        if not pictures:
            return []
        cost = Cost(_HEADER_SECONDS * len(pictures), 0)
        reply = self._run("sizes", list(pictures), cost, "A picture", is_list=True)
        sizes = reply.header.get("sizes")
        if not isinstance(sizes, list) or len(sizes) != len(pictures):
            raise UserError("The pictures cannot be read.", "Save them again.")
        for picture, (width, height, work) in zip(pictures, sizes, strict=True):
            self._costs[id(picture)] = _cost(int(width) * int(height), int(work))
        return [(int(width), int(height)) for width, height, _ in sizes]

    def decode(self, kind: str, source: Any, budget: Budget = NO_BUDGET) -> DecodedMedium:
        """One medium: bytes, or a list of bytes for a video of single frames.

        Raises:
            UserError: it cannot be used, takes too long or too much memory, or ends the process that decodes it.
        """
        is_list = isinstance(source, list | tuple)
        cost = _VIDEO_COST if kind == "video" else self._costs.get(id(source), _cost(_SMALL_PIXELS))
        name = describe(source).replace("picture", kind if kind == "video" else "picture")
        files = list(source) if is_list else [source]
        reply = self._run(kind, files, cost, name, is_list=is_list, budget=budget)
        if reply.frames is None:
            raise UserError(f"{name} cannot be decoded.", "Save it again.")
        seconds, notes = reply.header.get("seconds", []), reply.header.get("notes", [])
        size = reply.header.get("size")
        return DecodedMedium(
            list(reply.frames),
            tuple(float(second) for second in seconds),
            None if size is None else (int(size[0]), int(size[1])),
            tuple(str(note)[:1000] for note in notes[:16]),
        )

    def _run(
        self,
        operation: str,
        files: list[bytes],
        cost: Cost,
        name: str,
        *,
        is_list: bool,
        budget: Budget = NO_BUDGET,
    ) -> Reply:
        job = Job(operation, self._local, tuple(map(len, files)), is_list, budget)
        started = time.monotonic()
        try:
            reply = self._pool.run(job, files, cost, self._spent_seconds, self._deadline, self._is_cancelled)
        except (NoTurnError, TimeoutError):
            if self._is_cancelled():
                raise UserError("cancelled by the client") from None
            seconds = time.monotonic() - started
            raise UserError(
                f"{name} was not decoded within {seconds:.1f} s.",
                "Send a smaller or shorter one, or try again later.",
            ) from None
        except (EOFError, ValueError, ConnectionError):
            raise UserError(
                f"{name} ended the process that decoded it: it is broken.", "Save it again."
            ) from None
        finally:
            self._spent_seconds += time.monotonic() - started
        if "refused" in reply.header:
            raise UserError(str(reply.header["refused"]))
        if "too_large" in reply.header:
            most = self._pool.settings.worker_memory_bytes >> 20
            raise UserError(f"{name} takes more than {most} MB to decode.", "Send it smaller.")
        if "fault" in reply.header:
            raise RuntimeError(f"a media process failed: {reply.header['fault']}")
        return reply


def _cost(num_pixels: int, work_pixels: int | None = None) -> Cost:
    work = num_pixels if work_pixels is None else work_pixels
    return Cost(work / _PIXELS_PER_SECOND, num_pixels, SMALL if work <= _SMALL_PIXELS else LARGE)


def _never() -> bool:
    return False
