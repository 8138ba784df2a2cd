"""A `qv-export serve` of its own for tests: started on a free port, ended by its process id."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openai import OpenAI

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 120


@dataclass
class RunningServe:
    """A server that listens."""

    process: "subprocess.Popen[str]"
    url: str = ""
    lines: list[str] = field(default_factory=list)
    """What it wrote to stderr."""

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def client(self, api_key: str = "none") -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=api_key, max_retries=0, timeout=60)

    def get(self, path: str) -> tuple[int, Any, bytes]:
        """Status, headers and body of a plain request."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=60) as response:
                return response.status, response.headers, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.headers, error.read()

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)


@contextmanager
def running_serve(
    bundle: Path, *options: object, env: dict[str, str] | None = None
) -> Iterator[RunningServe]:
    """Start it and wait until it listens; end it, by force if it must be."""
    arguments = ["serve", bundle, "--port", 0, *options]
    process = subprocess.Popen(
        [sys.executable, "-m", "qv_export", *map(str, arguments)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env={**os.environ, **(env or {})},
    )
    server = RunningServe(process)
    reader = threading.Thread(target=_read, args=(server,), daemon=True)
    reader.start()
    try:
        _wait_until_it_listens(server)
        yield server
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        reader.join(5)


def _read(server: RunningServe) -> None:
    assert server.process.stderr is not None
    for line in server.process.stderr:
        server.lines.append(line)
        found = re.match(r"(http://\S+)/v1 answers", line)
        if found:
            server.url = found[1]


def _wait_until_it_listens(server: RunningServe) -> None:
    until = time.monotonic() + START_SECONDS
    while not server.url:
        assert server.process.poll() is None, "".join(server.lines)
        assert time.monotonic() < until, "the server does not listen"
        time.sleep(0.05)
