"""A process that decodes strangers' pictures and videos, and the parent that makes such processes in a few ms.

The server starts one parent, which imports the decoders once and forks a worker whenever it is handed a socket. A
worker has a bound on its memory, writes no file, and ends with its socket; the server ends it when it takes too long.
No torch, and nothing of the server.
"""

import os
import resource
import signal
import socket
import sys
from typing import Any

import av  # noqa: F401 - loaded once, before the forks
import numpy as np
import numpy.typing as npt
from PIL import Image

from engines.serving.media.channel import Job, received_job, send_reply
from export.errors import UserError
from export.processor.media.image_headers import decoding_work

_MAX_OPEN_FILES = 64


def main(control_descriptor: int, memory_bytes: int) -> None:
    """Fork a worker for each socket that comes over the control socket, and answer with its process id.

    Args:
        control_descriptor: of a Unix socket; the end of it ends this process.
        memory_bytes: what a worker may take beyond what it starts with.
    """
    Image.init()  # every plugin, so that no worker imports one
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel clears ended workers away
    control = socket.socket(fileno=control_descriptor)
    control.sendall(b"r")  # ready
    while True:
        data, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not data or not descriptors:
            return
        process = os.fork()
        if process == 0:
            control.close()
            try:
                _work(socket.socket(fileno=descriptors[0]), memory_bytes)
            finally:
                os._exit(0)
        os.close(descriptors[0])
        control.sendall(process.to_bytes(4))


def _work(connection: socket.socket, memory_bytes: int) -> None:
    """Answer jobs until the server closes the socket."""
    _confine(memory_bytes)
    try:
        while _answered(connection):
            pass
    except OSError:
        pass  # the server is gone


def _answered(connection: socket.socket) -> bool:
    """Answer one job; False when the server is gone."""
    with received_job(connection) as received:
        if received is None:
            return False
        job, files, memory = received
        header, frames = _answer(job, files)
        send_reply(connection, header, frames, memory)
        return True


def _confine(memory_bytes: int) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):  # no decoder writes into the server's log
        os.dup2(null, descriptor)
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - no more modules in here
        start_bytes = int(file.read().split()[0]) * resource.getpagesize()
    for kind, most in (
        (resource.RLIMIT_AS, start_bytes + memory_bytes),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, _MAX_OPEN_FILES),
    ):
        resource.setrlimit(kind, (most, most))


def _answer(job: Job, files: list[bytes]) -> tuple[dict[str, Any], list[npt.NDArray[np.uint8]]]:
    try:
        if job.operation == "sizes":
            sizes = job.reader.picture_sizes(files)
            works = [decoding_work(file, *size) for file, size in zip(files, sizes, strict=True)]
            return {"sizes": [[*size, work] for size, work in zip(sizes, works, strict=True)]}, []
        decoded = job.reader.decode(job.operation, files if job.is_list else files[0], job.budget)
        header = {"seconds": decoded.seconds, "size": decoded.size, "notes": decoded.notes}
        return header, list(decoded.frames)
    except UserError as error:
        return {"refused": str(error)}, []
    except MemoryError:
        return {"too_large": True}, []
    except Exception as error:  # noqa: BLE001 - the server logs it, and this process goes
        return {"fault": f"{type(error).__name__}: {error}"[:1000]}, []


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
