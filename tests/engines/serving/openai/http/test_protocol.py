import socket
import threading
import time

import pytest
import uvicorn

from engines.serving.openai.http import protocol
from engines.serving.openai.http.protocol import BoundedProtocol
from engines.serving.openai.run import listen

REQUEST = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"
SLOW_SECONDS = 0.8


async def app(scope, receive, send):
    """Answers at once, or after longer than a head may take."""
    if scope["path"] == "/slow":
        import asyncio

        await asyncio.sleep(SLOW_SECONDS)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
def port(monkeypatch):
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.4)
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(
        uvicorn.Config(app, http=BoundedProtocol, ws="none", lifespan="off", log_config=None)
    )
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield listener.getsockname()[1]
    server.should_exit = True
    thread.join()
    listener.close()


def seconds_until_closed(connection):
    start = time.monotonic()
    connection.settimeout(5)
    while connection.recv(4096):
        pass
    return time.monotonic() - start


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost:", REQUEST + b"GET / HT"])
def test_a_head_that_does_not_come_ends_the_connection(port, sent):
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(sent)
        if sent.startswith(REQUEST):
            time.sleep(0.1)
            connection.sendall(b"TP/1.1\r\nHo")
        assert 0.1 < seconds_until_closed(connection) < 2


def test_a_letter_now_and_then_does_not_help(port):
    with socket.create_connection(("127.0.0.1", port)) as connection:
        start = time.monotonic()
        with pytest.raises(OSError):  # noqa: PT011  whatever the closed connection says
            while time.monotonic() - start < 4:
                connection.sendall(b"G")
                time.sleep(0.1)
                if connection.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK) == b"":
                    raise OSError
        assert time.monotonic() - start < 2


def test_an_answer_may_take_longer_than_a_head(port):
    with socket.create_connection(("127.0.0.1", port)) as connection:
        for path in (b"/slow", b"/"):
            connection.sendall(REQUEST.replace(b" / ", b" " + path + b" "))
            received = b""
            while not received.endswith(b"ok"):
                received += connection.recv(4096)
            assert b"200 OK" in received
