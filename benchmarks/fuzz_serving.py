"""Does a real server survive whatever is sent to it, and does nobody get anybody else's answer?

    python -m benchmarks.fuzz_serving [--requests 10000] [--clients 8] [--seed 0]

Requests from a grammar of sound and broken conversations, pictures and parameters, over HTTP on loopback, to a
tritonserver with the small trained checkpoint. Every tenth is the same sound question of each client, whose answer
must stay what it was alone: a leak between requests would change it. At the end the server must be ready, its
processes the same, and no KV slot in use. Exits with 1 if any of that does not hold.
"""

import argparse
import base64
import io
import json
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.measure import print_table
from engines.triton_server.interface import MODEL_NAME
from engines.triton_server.repository import write_repository
from engines.triton_server.settings import ServerSettings
from export.bundle import open_bundle
from export.exporter import export_checkpoint
from tests.support.triton import RunningServer, missing, running_server

TINY = Path(__file__).parents[1] / "models" / "qwen2-vl-tiny"
NUM_SLOTS = 8
ODD_STRINGS = (
    *("", "x", "<|im_end|>", "<|image_pad|>" * 5, "\x00", "\ud7ff", "é" * 50, "👩‍👩‍👧", "../../etc/passwd"),
    *("file:///etc/passwd", "http://127.0.0.1/", "media:0", "data:image/png;base64,", "[" * 200, "a" * 3000),
)
ODD_NUMBERS = (0, -1, 1, 2, 3, 2**31 - 1, 2**63 - 1, 1e-9, 0.5, 1e30, None, True)


class Grammar:
    """Requests, sound and broken, from one random generator."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)

    def request(self) -> bytes:
        if self._chance(0.05):
            return self._bytes()
        body: dict[str, Any] = {"messages": self._messages(), "max_tokens": 3}
        for name in (
            "max_tokens",
            "temperature",
            "top_p",
            "top_k",
            "repetition_penalty",
            "seed",
            "timeout_seconds",
        ):
            if self._chance(0.05):
                body[name] = self._one(ODD_NUMBERS)
        if self._chance(0.1):
            body["stop"] = [self._one(ODD_STRINGS) for _ in range(self._random.integers(0, 20))]
        if self._chance(0.05):
            body["media"] = [self._one(ODD_STRINGS)]
        if self._chance(0.03):
            del body["messages"]
        return json.dumps(body).encode("utf-8", "surrogatepass")

    def _messages(self) -> Any:
        if self._chance(0.05):
            return self._one([*ODD_STRINGS, *ODD_NUMBERS])
        messages = [self._message() for _ in range(self._random.integers(0, 4))]
        text = json.dumps(messages)
        return text[: self._random.integers(0, len(text) + 1)] if self._chance(0.05) else text

    def _message(self) -> Any:
        role = self._one(ODD_STRINGS[:4] if self._chance(0.04) else ["user", "assistant", "system"])
        parts = [self._part() for _ in range(self._random.integers(0, 4))]
        content = self._one([self._one(ODD_STRINGS), None, 7]) if self._chance(0.1) else parts
        return {"role": role, "content": content}

    def _part(self) -> Any:
        kind = self._one(["video", "image_url", "audio"] if self._chance(0.06) else ["text", "image"])
        odd = self._one([*ODD_STRINGS, 7])
        if kind == "text":
            return {"type": "text", "text": odd if self._chance(0.3) else "What is this?"}
        return {"type": kind, kind: odd if self._chance(0.06) else self._picture()}

    def _picture(self) -> str:
        """A picture, whole, cut or with bytes changed."""
        height, width = self._random.integers(1, 120, 2)
        file = io.BytesIO()
        pixels = self._random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file, self._one(["PNG", "JPEG", "GIF", "WEBP"]))
        data = bytearray(file.getvalue())
        if self._chance(0.1):
            data = data[: self._random.integers(0, len(data))]
        if self._chance(0.1) and data:
            for place in self._random.integers(0, len(data), 8):
                data[place] = self._random.integers(0, 256)
        return base64.b64encode(bytes(data)).decode()

    def _bytes(self) -> bytes:
        return self._random.bytes(int(self._random.integers(0, 300)))

    def _one(self, choices: Any) -> Any:
        return choices[self._random.integers(0, len(choices))]

    def _chance(self, probability: float) -> bool:
        return bool(self._random.random() < probability)


def sound_request(client: int) -> bytes:
    """A question that only this client asks, with a picture of its own."""
    random = np.random.default_rng([1, client])
    file = io.BytesIO()
    Image.fromarray(random.integers(0, 256, (56, 84, 3), dtype=np.uint8)).save(file, "PNG")
    content = [
        {"type": "image", "image": base64.b64encode(file.getvalue()).decode()},
        {"type": "text", "text": f"What does picture {client} show?"},
    ]
    return json.dumps(
        {"messages": json.dumps([{"role": "user", "content": content}]), "max_tokens": 12}
    ).encode()


def answer_to(server: RunningServer, body: bytes) -> tuple[str, str]:
    """("answer", text), ("refused", "") for an error of the request's own, or ("fault", message)."""
    url = f"http://{server.http}/v2/models/{MODEL_NAME}/generate_stream"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data=body), timeout=120) as response:
            lines = response.read().decode().splitlines()
    except urllib.error.HTTPError as error:
        text = error.read().decode(errors="replace")
        kind = "fault" if "fault of the server" in text or "not healthy" in text else "refused"
        return kind, text if kind == "fault" else ""
    except OSError as error:
        return "fault", str(error)
    pieces = [json.loads(line.removeprefix("data:")) for line in lines if line.startswith("data:")]
    errors = [piece["error"] for piece in pieces if "error" in piece]
    if errors:
        return ("fault" if "fault of the server" in errors[0] else "refused"), errors[0]
    return "answer", "".join(piece["text"] for piece in pieces)


def fuzz(server: RunningServer, num_requests: int, num_clients: int, seed: int) -> Counter[str]:
    """Send everything; counts of how it ended."""
    alone = [answer_to(server, sound_request(client)) for client in range(num_clients)]

    def client(number: int) -> Counter[str]:
        grammar, ended = Grammar(seed * 1000 + number), Counter[str]()
        for i in range(number, num_requests, num_clients):
            if i // num_clients % 10 == 0:
                is_same = answer_to(server, sound_request(number)) == alone[number]
                ended["sound, answered as alone" if is_same else "SOUND, ANSWERED OTHERWISE"] += 1
            else:
                kind, message = answer_to(server, grammar.request())
                ended[kind] += 1
                if kind == "fault":
                    print(message, file=sys.stderr)
        return ended

    with ThreadPoolExecutor(num_clients) as pool:
        return sum(pool.map(client, range(num_clients)), Counter())


def main() -> None:
    parser = argparse.ArgumentParser(description="Send a server whatever the grammar makes.")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if missing():
        parser.error(str(missing()))
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        export_checkpoint(TINY, directory / "bundle")
        settings = ServerSettings(num_slots=NUM_SLOTS, capacity=512)
        write_repository(
            open_bundle(directory / "bundle"), directory / "repository", settings, allow_unvalidated=True
        )
        with running_server(directory / "repository", directory) as server:
            processes = server.processes()
            start = time.monotonic()
            ended = fuzz(server, options.requests, options.clients, options.seed)
            seconds = time.monotonic() - start
            time.sleep(1)  # metrics are written a few times a second
            slots_used = int(server.metrics()["qv_slots_used"])
            lives = server.is_ready() and server.processes() == processes
    rows = [(what, f"{count:,}") for what, count in sorted(ended.items())]
    rows += [
        ("KV slots in use at the end", str(slots_used)),
        ("same processes, ready", "yes" if lives else "NO"),
    ]
    print_table(f"{options.requests:,} requests in {seconds:.0f} s", ("ended as", "number"), rows)
    if ended["fault"] or ended["SOUND, ANSWERED OTHERWISE"] or slots_used or not lives:
        sys.exit(1)


if __name__ == "__main__":
    main()
