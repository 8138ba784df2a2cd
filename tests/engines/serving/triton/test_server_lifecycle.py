"""A real tritonserver with clients that leave, clients that stop reading, and a server that is told to end.

On a random checkpoint, whose answers run to the length that is asked for.
"""

import json
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from engines.serving.settings import ServerSettings
from engines.serving.triton.interface import MODEL_NAME
from engines.serving.triton.repository import write_repository
from examples.triton.client import stream_over_grpc, stream_over_http
from export.bundle import open_bundle
from tests.support.bundles import shared_bundle
from tests.support.triton import missing, running_server

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

LONG = 1500


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    directory = tmp_path_factory.mktemp("repository")
    bundle = shared_bundle(tmp_path_factory, {"dtype": "float32"})
    settings = ServerSettings(num_slots=2, capacity=2048)
    write_repository(open_bundle(bundle), directory / "repository", settings, allow_unvalidated=True)
    return directory / "repository"


@pytest.fixture
def server(repository, tmp_path):
    with running_server(repository, tmp_path) as running:
        yield running


def wait_until(is_so, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_client_that_leaves_frees_its_slot_and_one_that_stops_reading_holds_up_nobody(server):
    leaving = stream_over_grpc(server.grpc, "Count.", settings={"max_tokens": LONG})
    assert next(leaving)["finish_reason"] == ""
    wait_until(lambda: server.metrics()["qv_slots_used"] == 1)
    leaving.close()
    wait_until(lambda: server.metrics()["qv_slots_used"] == 0)
    metrics = server.metrics()
    assert metrics["qv_requests_cancelled_total"] == 1
    assert metrics["qv_new_tokens_total"] < LONG

    with socket.create_connection(("127.0.0.1", server.http_port)) as silent:
        silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        messages = json.dumps([{"role": "user", "content": "Count."}])
        body = json.dumps({"messages": messages, "max_tokens": LONG}).encode()
        path = f"/v2/models/{MODEL_NAME}/generate_stream"
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        silent.sendall(head.encode() + body)
        wait_until(lambda: server.metrics()["qv_slots_used"] == 1)
        # Beside it, others are answered to their end, and at last its own slot is free too.
        [*_, last] = stream_over_http(server.http, "Count.", settings={"max_tokens": 5})
        assert last["finish_reason"] == "length"
        wait_until(lambda: server.metrics()["qv_slots_used"] == 0, seconds=120)
    assert server.is_ready()


def test_a_deadline_ends_an_answer_as_far_as_it_got(server):
    settings = {"max_tokens": LONG, "timeout_seconds": 0.3}
    pieces = list(stream_over_http(server.http, "Count.", settings=settings))
    assert pieces[-1]["finish_reason"] == "deadline"
    assert 0 < json.loads(pieces[-1]["usage"])["completion_tokens"] < LONG


def test_a_server_that_is_told_to_end_finishes_what_it_has_and_takes_nothing_new(server):
    answers: list[Any] = []
    reader = threading.Thread(
        target=lambda: answers.extend(stream_over_http(server.http, "Count.", settings={"max_tokens": 300}))
    )
    reader.start()
    wait_until(lambda: server.metrics()["qv_slots_used"] == 1)
    server.process.send_signal(signal.SIGTERM)
    wait_until(lambda: not server.is_ready())
    with pytest.raises((RuntimeError, OSError)):
        list(stream_over_http(server.http, "Count.", settings={"max_tokens": 5}))
    reader.join(60)
    assert answers[-1]["finish_reason"] == "length"
    assert json.loads(answers[-1]["usage"])["completion_tokens"] == 300
    assert server.process.wait(60) == 0


def test_administration_is_refused_without_the_key_and_answers_go_on(repository, tmp_path, monkeypatch):
    monkeypatch.setenv("ADMIN_KEY", "s3cret")
    script = Path(__file__).parents[4] / "examples" / "triton" / "restricted-tritonserver"

    def status(path, body=None, **headers):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://{running.http}/v2/{path}", data, headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            return int(error.code)

    with running_server(repository, tmp_path, [str(script)]) as running:
        for path, body in (
            ("logging", {"log_error": False}),
            ("trace/setting", {"trace_level": ["TIMESTAMPS"]}),
            ("repository/index", {}),
            ("repository/models/qwen2_vl/unload", {}),
            ("systemsharedmemory/status", None),
            ("models/qwen2_vl/config", None),
        ):
            assert status(path, body) == 403, path
            assert status(path, body, **{"admin-key": "wrong"}) == 403, path
        assert status("logging", {"log_verbose_level": 0}, **{"admin-key": "s3cret"}) == 200
        assert status("health/ready") == 200
        [*_, last] = stream_over_http(running.http, "Count.", settings={"max_tokens": 3})
        assert last["finish_reason"] == "length"
