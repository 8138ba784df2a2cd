"""The clients of `benchmarks.serving_http`: a process of their own that asks over HTTP and sees when answers come."""

import asyncio
import base64
import json
import time
from collections.abc import Callable
from typing import Any


def ask_all(
    port: int, path: str, kind: str, num_clients: int, num_requests: int, first: int, num_new_tokens: int
) -> dict[str, Any]:
    """What N clients see that ask at the same time over HTTP.

    Bodies are made before the clock starts, and of an answer no more is read than when it began and ended.
    """
    body_of: Callable[..., bytes] = {"openai": openai_body, "triton": triton_body}[kind]
    bodies = [body_of(number, num_new_tokens) for number in range(first, first + num_requests)]
    return asyncio.run(_ask_all(port, path, bodies, num_clients, num_new_tokens))


async def _ask_all(
    port: int, path: str, bodies: list[bytes], num_clients: int, num_new_tokens: int
) -> dict[str, Any]:
    left = iter(bodies)
    waits: list[float] = []

    async def client() -> None:
        for body in left:
            started = time.perf_counter()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            status = await reader.readline()
            if b" 200 " not in status:
                raise RuntimeError(f"{status!r}: {(await reader.read())[:500]!r}")
            await reader.readuntil(b"data: ")
            waits.append(time.perf_counter() - started)
            rest = await reader.read()
            if b'"error"' in rest:
                raise RuntimeError(rest[-500:])
            writer.close()

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(num_clients)))
    seconds = time.perf_counter() - started
    waits.sort()
    return {
        "tokens_per_second": len(bodies) * num_new_tokens / seconds,
        "first_token_median": waits[len(waits) // 2],
        "first_token_p95": waits[min(int(0.95 * len(waits)), len(waits) - 1)],
    }


def openai_body(number: int, num_new_tokens: int) -> bytes:
    from engines.bench.questions import bench_question

    [message] = bench_question(number)
    content = [
        {"type": "image_url", "image_url": {"url": _data_url(part["image"])}}
        if part["type"] == "image"
        else part
        for part in message["content"]
    ]
    return json.dumps(
        {
            "messages": [{"role": "user", "content": content}],
            "stream": True,
            "max_tokens": num_new_tokens,
            "ignore_eos": True,
        }
    ).encode()


def triton_body(number: int, num_new_tokens: int) -> bytes:
    from engines.bench.questions import bench_question

    [message] = bench_question(number)
    content = [
        {"type": "image", "image": _data_url(part["image"])} if part["type"] == "image" else part
        for part in message["content"]
    ]
    messages = json.dumps([{"role": "user", "content": content}])
    return json.dumps({"messages": messages, "max_tokens": num_new_tokens, "stream": True}).encode()


def _data_url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()
