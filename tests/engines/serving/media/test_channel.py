import json
import socket
import struct

import numpy as np
import pytest

from engines.serving.media.channel import fill_from_socket, receive_reply, send_reply


@pytest.fixture
def ends():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def receive(connection, max_pixels=10_000):
    return receive_reply(lambda buffer: fill_from_socket(connection, buffer), max_pixels)


def test_frames_arrive_as_they_were_sent(ends):
    frames = list(np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3), np.uint8))
    send_reply(ends[1], {"note": "x"}, frames)
    reply = receive(ends[0])
    assert reply.header["note"] == "x"
    assert np.array_equal(reply.frames, frames)


@pytest.mark.parametrize(
    "header",
    [
        b"[]", b"nothing", b"{", b'{"shape": 3}', b'{"shape": [1, 2, 3]}', b'{"shape": [1, -2, 3, 3]}',
        b'{"shape": [1, 2, 3, 4]}', b'{"shape": [1000, 1000, 1000, 3]}', b'{"shape": [true, 2, 2, 3]}',
        b'{"shape": [1.5, 2, 2, 3]}', b"\xff\xfe",
    ],
)  # fmt: skip
def test_an_answer_that_is_none_is_refused_before_memory_is_taken_for_it(ends, header):
    ends[1].sendall(struct.pack(">I", len(header)) + header)
    with pytest.raises(ValueError, match=r"frames of shape|no object|Expecting|decode|codec"):
        receive(ends[0])


def test_a_header_without_end_is_refused(ends):
    ends[1].sendall(struct.pack(">I", 1 << 31))
    with pytest.raises(ValueError, match="header of"):
        receive(ends[0])


def test_an_answer_that_stops_on_the_way_is_an_end(ends):
    header = json.dumps({"shape": [1, 10, 10, 3]}).encode()
    ends[1].sendall(struct.pack(">I", len(header)) + header + b"123")
    ends[1].close()
    with pytest.raises(EOFError):
        receive(ends[0])
