"""How jobs and answers travel between a server and its media processes: a length, a header, then plain bytes.

Jobs are pickled, for the server is trusted. Answers are JSON and pixels: what comes back was in the hands of a decoder
that read a stranger's file.
"""

import json
import pickle
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from export.processor.media.budget import NO_BUDGET, Budget
from export.processor.media.decode import LocalReader

_MAX_HEADER_BYTES = 1 << 20
_LENGTH = struct.Struct(">I")

Receive = Callable[[memoryview], None]
"""Fills a buffer from the other side."""


@dataclass(frozen=True)
class Job:
    """One call of a media process."""

    operation: str
    """`sizes` of pictures, or the kind of medium to decode: `image` or `video`."""
    reader: LocalReader
    files: tuple[int, ...]
    """Bytes of each file that follows."""
    is_list: bool = False
    """Whether the files are one video's frames."""
    budget: Budget = NO_BUDGET


@dataclass(frozen=True, eq=False)
class Reply:
    """What a media process answers: one of the three."""

    header: dict[str, Any]
    frames: npt.NDArray[np.uint8] | None = None
    """[T, H, W, 3]"""


def send_job(connection: socket.socket, job: Job, files: list[bytes]) -> None:
    """Write one job."""
    header = pickle.dumps(job)
    connection.sendall(_LENGTH.pack(len(header)) + header)
    for file in files:
        connection.sendall(file)


def receive_job(connection: socket.socket) -> tuple[Job, list[bytes]] | None:
    """The next job with its files; None when the server is gone."""

    def fill(buffer: memoryview) -> None:
        fill_from_socket(connection, buffer)

    try:
        job = pickle.loads(_read(fill, _number(fill)))  # from the server, see above
        return job, [bytes(_read(fill, size)) for size in job.files]
    except EOFError:
        return None


def send_reply(
    connection: socket.socket, header: dict[str, Any], frames: list[npt.NDArray[np.uint8]]
) -> None:
    """Write one answer: `header` must be JSON."""
    if frames:
        header = {**header, "shape": [len(frames), *frames[0].shape]}
    text = json.dumps(header).encode()
    connection.sendall(_LENGTH.pack(len(text)) + text)
    for frame in frames:
        connection.sendall(np.ascontiguousarray(frame).data)


def receive_reply(fill: Receive, max_pixels: int) -> Reply:
    """Read one answer, which may be anything.

    Raises:
        ValueError: it is no answer.
        EOFError: the process ended.
    """
    length = _number(fill)
    if length > _MAX_HEADER_BYTES:
        raise ValueError(f"a header of {length} bytes")
    header = json.loads(bytes(_read(fill, length)))
    if not isinstance(header, dict):
        raise ValueError("a header that is no object")
    if "shape" not in header:
        return Reply(header)
    shape = header["shape"]
    is_sound = isinstance(shape, list) and len(shape) == 4 and all(type(n) is int and n > 0 for n in shape)
    if not is_sound or shape[3] != 3 or shape[0] * shape[1] * shape[2] > max_pixels:
        raise ValueError(f"frames of shape {shape!r:.80}")
    frames = np.empty(shape, np.uint8)
    fill(frames.data.cast("B"))
    return Reply(header, frames)


def fill_from_socket(connection: socket.socket, buffer: memoryview) -> None:
    """Fill the buffer, however long it takes.

    Raises:
        EOFError: the other side is gone.
    """
    while buffer:
        count = connection.recv_into(buffer)
        if count == 0:
            raise EOFError
        buffer = buffer[count:]


def _number(fill: Receive) -> int:
    (number,) = _LENGTH.unpack(_read(fill, _LENGTH.size))
    return int(number)


def _read(fill: Receive, size: int) -> bytearray:
    content = bytearray(size)
    fill(memoryview(content))
    return content
