import json
import os
import socket
import struct

import numpy as np
import pytest

from engines.serving.media.channel import (
    Job,
    fill_from_socket,
    receive_reply,
    received_job,
    send_job,
    send_reply,
    shared_memory,
)
from export.processor.media.decode import LocalReader
from export.processor.settings import ImageSettings, VideoSettings


@pytest.fixture
def ends():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def memory():
    with shared_memory(30_000) as descriptor:
        yield descriptor


def receive(connection, memory):
    return receive_reply(lambda buffer: fill_from_socket(connection, buffer), memory)


@pytest.mark.parametrize("size", [(20, 30), (64, 64), (1, 1)])
def test_frames_arrive_as_they_were_sent(ends, size):
    frames = list(np.random.default_rng(0).integers(0, 256, (3, *size, 3), np.uint8))
    with shared_memory(1 << 20) as memory:
        send_reply(ends[1], {"note": "x"}, frames, memory)
        reply = receive(ends[0], memory)
    assert reply.header["note"] == "x"
    assert np.array_equal(reply.frames, frames)


@pytest.mark.parametrize("files", [[], [b""], [b"one", b"", b"three" * 10_000]])
def test_a_job_arrives_with_its_files(ends, memory, files):
    job = Job("sizes", LocalReader(ImageSettings(), VideoSettings()), tuple(map(len, files)), is_list=True)
    send_job(ends[0], job, files, memory)
    with received_job(ends[1]) as received:
        assert received is not None
        assert received[:2] == (job, files)
    ends[0].close()
    with received_job(ends[1]) as received:
        assert received is None


def test_no_process_takes_the_memory_away_that_another_one_reads(memory):
    for size in (0, 40_000):
        with pytest.raises(OSError, match="not permitted"):
            os.ftruncate(memory, size)


def test_a_process_cannot_write_more_frames_than_there_is_memory_for(ends, memory):
    with pytest.raises(ValueError, match="mmap length"):
        send_reply(ends[1], {}, [np.zeros((200, 200, 3), np.uint8)], memory)


@pytest.mark.parametrize(
    "header",
    [
        b"[]", b"nothing", b"{", b'{"shape": 3}', b'{"shape": [1, 2, 3]}', b'{"shape": [1, -2, 3, 3]}',
        b'{"shape": [1, 2, 3, 4]}', b'{"shape": [1000, 1000, 1000, 3]}', b'{"shape": [true, 2, 2, 3]}',
        b'{"shape": [1.5, 2, 2, 3]}', b"\xff\xfe",
    ],
)  # fmt: skip
def test_an_answer_that_is_none_is_refused_before_memory_is_taken_for_it(ends, memory, header):
    ends[1].sendall(struct.pack(">I", len(header)) + header)
    with pytest.raises(ValueError, match=r"frames of shape|no object|Expecting|decode|codec"):
        receive(ends[0], memory)


def test_a_header_without_end_is_refused(ends, memory):
    ends[1].sendall(struct.pack(">I", 1 << 31))
    with pytest.raises(ValueError, match="header of"):
        receive(ends[0], memory)


def test_an_answer_that_stops_on_the_way_is_an_end(ends, memory):
    header = json.dumps({"shape": [1, 10, 10, 3]}).encode()
    ends[1].sendall(struct.pack(">I", len(header)) + header[:-3])
    ends[1].close()
    with pytest.raises(EOFError):
        receive(ends[0], memory)
