"""Hostile requests at the level of HTTP: what a client may do to a server with bytes and time. A list and a chooser.

Each is a coroutine that opens its own connection, misbehaves, and says what became of it: the status that it was
answered with, `closed` (the server ended the connection) or `left` (it went itself).
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from random import Random

PATH = "/v1/chat/completions"
WAIT_SECONDS = 20.0
"""For an answer to one of them; a server may take longer to give a silent client up, and then the client leaves."""

Attack = Callable[["Line", Random], Awaitable[str]]


class Line:
    """One connection of a client that may do anything with it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def send(self, data: bytes) -> bool:
        """False: the server has closed it."""
        try:
            self._writer.write(data)
            await asyncio.wait_for(self._writer.drain(), WAIT_SECONDS)
        except (ConnectionError, TimeoutError):
            return False
        return True

    async def outcome(self) -> str:
        """The status that comes, or what comes instead of one."""
        try:
            line = await asyncio.wait_for(self._reader.readline(), WAIT_SECONDS)
        except TimeoutError:
            return "left"
        except (ConnectionError, ValueError):
            return "closed"
        parts = line.split()
        if not parts:
            return "closed"
        return (
            parts[1].decode("ascii", "replace")
            if len(parts) > 1 and parts[0].startswith(b"HTTP/")
            else "no HTTP"
        )

    def half_close(self) -> None:
        with suppress(OSError):  # the server was first
            self._writer.write_eof()


def body(random: Random, **fields: object) -> bytes:
    """A sound request with a short answer."""
    text = f"Say {random.randrange(10**6)}"
    return json.dumps({"messages": [{"role": "user", "content": text}], "max_tokens": 2, **fields}).encode()


def head(length: int | str, *lines: str, path: str = PATH, method: str = "POST") -> bytes:
    fields = ["Host: localhost", "Content-Type: application/json", f"Content-Length: {length}", *lines]
    return "\r\n".join([f"{method} {path} HTTP/1.1", *fields, "", ""]).encode("latin-1")


async def slow_body(line: Line, random: Random) -> str:
    """Some bytes at a time, then the rest or nothing."""
    data = body(random)
    await line.send(head(len(data)))
    for start in range(random.randrange(4, 12)):
        if not await line.send(data[start : start + 1]):
            return "closed"
        await asyncio.sleep(random.uniform(0, 0.03))
    if random.random() < 0.5:
        return "left"
    await line.send(data[start + 1 :])
    return await line.outcome()


async def slow_head(line: Line, random: Random) -> str:
    data = head(10)
    for start in range(0, random.randrange(1, len(data)), 7):
        if not await line.send(data[start : start + 7]):
            return "closed"
        await asyncio.sleep(random.uniform(0, 0.01))
    return "left"


async def short_body(line: Line, random: Random) -> str:
    """Less than was declared, and then half a connection."""
    data = body(random)
    await line.send(head(len(data) + random.choice((1, 100, 10**6))) + data)
    line.half_close()
    return await line.outcome()


async def long_body(line: Line, random: Random) -> str:
    """More than was declared: the rest is no request."""
    data = body(random)
    await line.send(head(len(data)) + data + b"\x00" * random.randrange(1, 4000))
    return await line.outcome()


async def declared_huge(line: Line, random: Random) -> str:
    await line.send(head(random.choice((10**9, 10**10, 10**18, 2**63, 2**64))))
    return await line.outcome()


async def no_length(line: Line, random: Random) -> str:
    lengths = ("-1", "abc", "1e3", "0x10", "", " ", "1, 2", "9" * 400, "٣")
    await line.send(head(random.choice(lengths).encode("utf-8", "replace").decode("latin-1")) + body(random))
    return await line.outcome()


async def two_lengths(line: Line, random: Random) -> str:
    data = body(random)
    extra = random.choice(
        (f"Content-Length: {len(data) + 5}", "Transfer-Encoding: chunked", "Transfer-Encoding: gzip")
    )
    await line.send(head(len(data), extra) + data)
    return await line.outcome()


async def broken_chunks(line: Line, random: Random) -> str:
    fields = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    chunks = (
        b"zz\r\nabc\r\n",
        b"-5\r\nabc\r\n",
        b"ffffffffffffffff\r\nabc",
        b"5;x=" + b"y" * 9000 + b"\r\nabcde\r\n",
        b"3\r\nabcdef\r\n",
    )
    await line.send(fields + random.choice(chunks))
    line.half_close()
    return await line.outcome()


async def many_chunks(line: Line, random: Random) -> str:
    """A sound body, a byte a chunk."""
    data = body(random)
    fields = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    await line.send(fields + b"".join(b"1\r\n%c\r\n" % byte for byte in data) + b"0\r\n\r\n")
    return await line.outcome()


async def huge_head(line: Line, random: Random) -> str:
    size = random.choice((9_000, 70_000, 1_000_000))
    shapes = (
        f"X-Large: {'a' * size}",
        "\r\n".join(f"X-{i}: b" for i in range(size // 10)),
        f"Cookie: {';' * size}",
    )
    await line.send(head(2, random.choice(shapes)) + b"{}")
    return await line.outcome()


async def no_http(line: Line, random: Random) -> str:
    lines = (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + random.randbytes(200),  # a TLS handshake
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        random.randbytes(random.randrange(1, 3000)),
        b"\r\n" * 500,
        b"GET\r\n\r\n",
        b"POST " + PATH.encode() + b"\r\n\r\n",
    )
    await line.send(random.choice(lines))
    line.half_close()
    return await line.outcome()


async def odd_target(line: Line, random: Random) -> str:
    paths = (
        "/" + "a" * 60_000,
        "/../../etc/passwd",
        "/v1/models/%00",
        "/v1/models/" + "%2e" * 5000,
        "//",
        "*",
        "/metrics?" + "x" * 9000,
        "http://other/",
    )
    method = random.choice(("GET", "POST", "PUT", "DELETE", "TRACE", "CONNECT", "OPTIONS", "BREW", "get"))
    await line.send(head(0, path=random.choice(paths), method=method))
    return await line.outcome()


async def odd_fields(line: Line, random: Random) -> str:
    fields = (
        "X\x00Y: 1",
        "Host: a\r\nHost: b",
        "Authorization: Bearer " + "k" * 5000,
        "X-Request-Id: \x7f\x01",
        "X-Request-Id: " + "é" * 50,
        " folded: 1",
        "Expect: 100-continue",
        "Upgrade: websocket\r\nConnection: Upgrade",
    )
    data = body(random)
    await line.send(head(len(data), random.choice(fields)) + data)
    return await line.outcome()


async def pipelined(line: Line, random: Random) -> str:
    """Several at once, the last one cut."""
    one = body(random)
    await line.send((head(len(one)) + one) * random.randrange(2, 6) + head(len(one)) + one[:5])
    return await line.outcome()


async def leaves(line: Line, random: Random) -> str:
    """Asks for a long answer and goes: before it, or in the middle of its stream."""
    data = body(random, max_tokens=200, ignore_eos=True, stream=bool(random.getrandbits(1)))
    await line.send(head(len(data)) + data)
    if random.random() < 0.5:
        await line.outcome()
    return "left"


async def reads_nothing(line: Line, random: Random) -> str:
    """Asks for a stream and takes none of it for a while."""
    data = body(random, max_tokens=100, ignore_eos=True, stream=True, logprobs=True, top_logprobs=20)
    await line.send(head(len(data)) + data)
    await asyncio.sleep(random.uniform(0, 0.3))
    return "left"


async def says_nothing(_line: Line, random: Random) -> str:
    await asyncio.sleep(random.uniform(0, 0.5))
    return "left"


PICTURE_PART = b'{"type": "image_url", "image_url": {"url": "data:image/png;base64,%s"}}'
ODD_BODIES = (
    b"",
    b"{",
    b"[" * 100_000,
    b"\xff\xfe",
    b"null",
    b'{"messages": 1}',
    b'{"a": 1, "a": 2}',
    b'"' + b"\\u0000" * 3000 + b'"',
    b"9" * 100_000,
    b'{"messages": [{"role": "user", "content": "' + b"a " * 60_000 + b'"}]}',
    b'{"messages": [{"role": "user", "content": [%s]}]}' % (PICTURE_PART % (b"A" * 200_000)),
)


async def odd_body(line: Line, random: Random) -> str:
    """Bytes that are no JSON, or JSON that is no request."""
    data = random.choice((*ODD_BODIES, random.randbytes(3000)))
    await line.send(head(len(data)) + data)
    return await line.outcome()


ATTACKS: tuple[Attack, ...] = (
    slow_body,
    slow_head,
    short_body,
    long_body,
    declared_huge,
    no_length,
    two_lengths,
    broken_chunks,
    many_chunks,
    huge_head,
    no_http,
    odd_target,
    odd_fields,
    pipelined,
    leaves,
    reads_nothing,
    says_nothing,
    odd_body,
)


async def attack_once(port: int, random: Random) -> tuple[str, str]:
    """One of them, over a connection of its own: its name and its outcome."""
    attack = random.choice(ATTACKS)
    name = getattr(attack, "__name__", "attack")
    try:
        reader, writer = await asyncio.wait_for(asyncio.open_connection("127.0.0.1", port), WAIT_SECONDS)
    except (ConnectionError, TimeoutError):
        return name, "no connection"
    try:
        return name, await attack(Line(reader, writer), random)
    finally:
        writer.transport.abort()  # a reset: the rudest end
