"""How jobs and answers travel between a server and its media processes: small headers over a socket, files and pixels
in memory that both map.

Jobs are pickled, for the server is trusted. Answers are JSON and pixels: what comes back was in the hands of a decoder
that read a stranger's file. The server makes all memory and fixes its size, so that nobody takes it away under it.
"""

import contextlib
import fcntl
import json
import math
import mmap
import os
import pickle
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from export.processor.media.budget import NO_BUDGET, Budget
from export.processor.media.decode import LocalReader

_MAX_HEADER_BYTES = 1 << 20
_LENGTH = struct.Struct(">I")
_FIXED_SIZE = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL

Receive = Callable[[memoryview], None]
"""Fills a buffer from the other side."""


@dataclass(frozen=True)
class Job:
    """One call of a media process."""

    operation: str
    """`sizes` of pictures, or the kind of medium to decode: `image` or `video`."""
    reader: LocalReader
    files: tuple[int, ...]
    """Bytes of each file."""
    is_list: bool = False
    """Whether the files are one video's frames."""
    budget: Budget = NO_BUDGET


@dataclass(frozen=True, eq=False)
class Reply:
    """What a media process answers: one of the three."""

    header: dict[str, Any]
    frames: npt.NDArray[np.uint8] | None = None
    """[T, H, W, 3], to be read alone"""


@contextmanager
def shared_memory(num_bytes: int) -> Iterator[int]:
    """Memory of this size that has no name, as a descriptor; only what is written of it takes room.

    Whoever has mapped it keeps it after the context ends.
    """
    descriptor = os.memfd_create("media", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, num_bytes)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _FIXED_SIZE)
        yield descriptor
    finally:
        os.close(descriptor)


def send_job(connection: socket.socket, job: Job, files: Sequence[bytes], frames: int) -> None:
    """Write one job.

    Args:
        connection: to the media process.
        job: what to do.
        files: with what.
        frames: shared memory that takes the answer's pixels.
    """
    header = pickle.dumps(job)
    with shared_memory(sum(map(len, files))) as memory:
        place = 0
        for file in files:
            place += os.pwrite(memory, file, place)
        socket.send_fds(connection, [_LENGTH.pack(len(header))], [memory, frames])
    connection.sendall(header)


@contextmanager
def received_job(connection: socket.socket) -> Iterator[tuple[Job, list[bytes], int] | None]:
    """The next job with its files and the shared memory for its answer; None when the server is gone."""
    with contextlib.ExitStack() as opened:
        try:
            length, descriptors, _, _ = socket.recv_fds(connection, _LENGTH.size, 2)
            for descriptor in descriptors:
                opened.callback(os.close, descriptor)
            if len(length) != _LENGTH.size or len(descriptors) != 2:
                raise EOFError
            header = bytearray(_LENGTH.unpack(length)[0])
            fill_from_socket(connection, memoryview(header))
        except EOFError:
            yield None
            return
        job = pickle.loads(header)  # from the server, see above
        yield job, _files(descriptors[0], job.files), descriptors[1]


def _files(memory: int, sizes: Sequence[int]) -> list[bytes]:
    places = [0]
    for size in sizes:
        places.append(places[-1] + size)
    return [os.pread(memory, size, place) for size, place in zip(sizes, places, strict=False)]


def send_reply(
    connection: socket.socket, header: dict[str, Any], frames: Sequence[npt.NDArray[np.uint8]], memory: int
) -> None:
    """Write one answer: `header` must be JSON, `memory` is what the server sent for the pixels."""
    if frames:
        header = {**header, "shape": [len(frames), *frames[0].shape]}
    place = 0
    for frame in frames:
        start = place // mmap.PAGESIZE * mmap.PAGESIZE
        with mmap.mmap(memory, place - start + frame.nbytes, offset=start) as window:
            window[place - start :] = np.ascontiguousarray(frame).data.cast("B")
        place += frame.nbytes
    text = json.dumps(header).encode()
    connection.sendall(_LENGTH.pack(len(text)) + text)


def receive_reply(fill: Receive, memory: int) -> Reply:
    """Read one answer, which may be anything.

    Args:
        fill: from the media process.
        memory: what was sent for the pixels; it bounds them.

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
    if not is_sound or shape[3] != 3 or math.prod(shape) > os.fstat(memory).st_size:
        raise ValueError(f"frames of shape {shape!r:.80}")
    content = mmap.mmap(memory, math.prod(shape), prot=mmap.PROT_READ)
    return Reply(header, np.frombuffer(content, np.uint8).reshape(shape))


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
