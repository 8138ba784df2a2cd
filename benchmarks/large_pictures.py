"""What large pictures of some clients do to the tokens of another one: the gaps between them, with and without.

    python -m benchmarks.large_pictures [--clients 2] [--seconds 20] [--megapixels 12]

One `qv-export serve` on this machine's CPU, the small checkpoint on one thread. A client streams answers, and the gaps
between its tokens are counted for `--seconds` alone; then again while others ask, as fast as they are answered, about
pictures of `--megapixels` that the processor makes as small as it can (`mm_processor_kwargs`): what those cost is
reading and decoding, and nothing in the engine. Beside that stands what one decoding takes in a process of its own.
"""

import argparse
import asyncio
import base64
import io
import json
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.measure import print_table, seconds_text
from benchmarks.serving_triton import endless_checkpoint
from export.exporter import export_checkpoint
from export.processor.processor import Processor
from tests.support.serve import running_serve

CAPACITY = 2048
SMALLEST = {"min_pixels": 4 * 28 * 28, "max_pixels": 4 * 28 * 28}
HEADER = ("others", "tokens", "gap, median", "p95", "p99", "longest", "pictures answered")


def large_picture(megapixels: float) -> bytes:
    """A JPEG of noise."""
    side = int((megapixels * 1e6) ** 0.5)
    file = io.BytesIO()
    Image.effect_noise((side, side), 60).convert("RGB").save(file, "JPEG")
    return file.getvalue()


def picture_body(picture: bytes) -> bytes:
    url = "data:image/jpeg;base64," + base64.b64encode(picture).decode()
    message = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}
    return json.dumps({"messages": [message], "max_tokens": 1, "mm_processor_kwargs": SMALLEST}).encode()


@asynccontextmanager
async def posted(port: int, body: bytes) -> AsyncIterator[asyncio.StreamReader]:
    """The answer to a request, from its head on; who leaves early hangs up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    status = await reader.readline()
    if b" 200 " not in status:
        raise RuntimeError(f"{status!r}: {(await reader.read())[:500]!r}")
    try:
        yield reader
    finally:
        writer.close()


async def gaps_of(port: int, seconds: float) -> list[float]:
    """Between the tokens of answers, one after another."""
    # One token over and over: special ones, which an endless answer else says, have no text and come as no event.
    talk = {
        "messages": [{"role": "user", "content": "Hello"}],
        "stream": True,
        "max_tokens": CAPACITY - 64,
        "logit_bias": {"33": 100},
    }
    until, gaps = time.perf_counter() + seconds, list[float]()
    while time.perf_counter() < until:
        before = None
        async with posted(port, json.dumps(talk).encode()) as reader:
            while time.perf_counter() < until and (line := await reader.readline()):
                if line.startswith(b"data: {"):
                    now = time.perf_counter()
                    gaps += [] if before is None else [now - before]
                    before = now
    return gaps


async def row(port: int, num_clients: int, seconds: float, body: bytes) -> list[str]:
    num_answered = 0

    async def look() -> None:
        nonlocal num_answered
        while True:
            async with posted(port, body) as reader:
                await reader.read()
            num_answered += 1

    looking = [asyncio.create_task(look()) for _ in range(num_clients)]
    gaps = await gaps_of(port, seconds)
    for task in looking:
        task.cancel()
    for result in await asyncio.gather(*looking, return_exceptions=True):
        if isinstance(result, Exception):
            raise result
    figures = [*np.quantile(gaps, (0.5, 0.95, 0.99)), max(gaps)]
    return [str(num_clients), str(len(gaps)), *map(seconds_text, figures), str(num_answered)]


async def rows(port: int, options: argparse.Namespace, body: bytes) -> list[list[str]]:
    await gaps_of(port, min(options.seconds, 2.0))  # warms up
    return [await row(port, number, options.seconds, body) for number in (0, options.clients)]


def decode_seconds(bundle: Path, picture: bytes) -> float:
    """In this process, the better of two."""
    processor = Processor.from_directory(bundle)
    content: list[dict[str, Any]] = [{"type": "image", "image": picture, **SMALLEST}]
    found = []
    for _ in range(2):
        started = time.perf_counter()
        processor.inputs_from_messages([{"role": "user", "content": content}])
        found.append(time.perf_counter() - started)
    return min(found)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=2, help="with large pictures (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each (default: %(default)s)")
    parser.add_argument("--megapixels", type=float, default=12.0, help="(default: %(default)s)")
    options = parser.parse_args()
    picture = large_picture(options.megapixels)
    with tempfile.TemporaryDirectory() as name:
        bundle = Path(name) / "bundle"
        export_checkpoint(endless_checkpoint(Path(name) / "checkpoint"), bundle)
        alone = decode_seconds(bundle, picture)
        with running_serve(bundle, "--threads", 1, "--max-context", CAPACITY) as server:
            found = asyncio.run(rows(server.port, options, picture_body(picture)))
    print_table(
        f"Tokens of one client beside pictures of {options.megapixels:g} megapixels, "
        f"each {seconds_text(alone)} of decoding",
        HEADER,
        found,
    )


if __name__ == "__main__":
    main()
