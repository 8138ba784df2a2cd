import socket

import pytest
from click.testing import CliRunner

from examples.triton import client


@pytest.fixture
def nobody() -> str:
    """Host and port where no server listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_no_server_is_one_line(protocol: str, nobody: str) -> None:
    arguments = ["--prompt", "x", "--protocol", protocol, "--url", nobody]
    done = CliRunner().invoke(client.main, arguments)
    assert (done.exit_code, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    assert nobody in line
    assert "Give its --url" in line


def test_an_answer_ends_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = [
        {"text": "Two", "finish_reason": "", "usage": ""},
        {"text": " cats", "finish_reason": "stop", "usage": "{}"},
    ]
    monkeypatch.setattr(client, "stream_over_grpc", lambda *_: iter(pieces))
    done = CliRunner().invoke(client.main, ["--prompt", "x"])
    assert done.stdout == "Two cats\n"
    assert done.stderr == "[stop] {}\n"
