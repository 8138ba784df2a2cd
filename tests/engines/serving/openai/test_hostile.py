"""What clients that mean no good can hold of a real server: places, memory, connections."""

import contextlib
import json
import socket
import time

import psutil
import pytest

from tests.engines.serving.openai.served import HELLO, ask

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n"


@contextlib.contextmanager
def connections(server, number):
    """As many open connections, closed at the end."""
    with contextlib.ExitStack() as opened:
        yield [
            opened.enter_context(socket.create_connection(("127.0.0.1", server.port), 60))
            for _ in range(number)
        ]


def answer_of(connection):
    """Status and body of the answer on a raw connection; the server closes it, or says how long the body is."""
    with connection.makefile("rb") as file:
        status = int(file.readline().split()[1])
        length = 0
        for line in iter(file.readline, b"\r\n"):
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        return status, file.read(length)


def test_bodies_that_do_not_come_take_nobodys_place(server, client):
    """More of them than the engine and its queue hold requests."""
    with connections(server, 100) as slow:
        for one in slow:
            one.sendall(HEAD + b"Content-Length: 1000\r\n\r\n{")
        time.sleep(0.3)
        assert ask(client, HELLO, max_tokens=1).choices


def test_bodies_of_all_requests_together_are_bounded_and_a_small_one_passes(server, client):
    """Six clients send 60 MB each and never end; what does not fit is told to come again."""
    process = psutil.Process(server.process.pid)
    idle = process.memory_info().rss
    piece = bytes(1 << 20)
    refused = 0
    with connections(server, 6) as large:
        for one in large:
            one.sendall(HEAD + b"Content-Length: 63000000\r\n\r\n")
            try:
                for _ in range(60):
                    one.sendall(piece)
            except OSError:
                refused += 1
                continue
        assert ask(client, HELLO, max_tokens=1).choices
        assert process.memory_info().rss - idle < 400 << 20
        for one in large:
            one.settimeout(0.2)
            with contextlib.suppress(TimeoutError, ConnectionResetError):
                status, body = answer_of(one)
                assert status == 429
                assert json.loads(body)["error"]["code"] == "queue_full"
                refused += 1
    assert refused >= 3


@pytest.mark.parametrize("length", [b"10000000000", b"99999999999999999999999"])
def test_a_body_that_announces_more_than_is_taken_is_refused_before_it_comes(server, length):
    with connections(server, 1) as [one]:
        one.sendall(HEAD + b"Content-Length: " + length + b"\r\n\r\n")
        assert answer_of(one)[0] in {400, 413}
