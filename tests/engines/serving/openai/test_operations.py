"""A server with one slot and one place to wait: what it does with crowds, leavers, giants and its own end."""

import base64
import io
import json
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from PIL import Image

from tests.engines.serving.openai.served import HELLO, MODEL, ask
from tests.support.serve import running_serve

LONG = {"max_tokens": 400, "extra_body": {"ignore_eos": True}}
SPEAKING = {"logit_bias": {"33": 100}}
"""Every token has a text, and none ends the answer."""
SECRET = "xyzzyplugh"


@pytest.fixture(scope="module")
def small(bundle):
    options = ("--threads", 1, "--max-context", 1024, "--model-name", MODEL, "--slots", 1, "--max-queue", 1)
    with running_serve(bundle, *options) as running:
        yield running


def metric(server, name):
    text = server.get("/metrics")[2].decode()
    [value] = re.findall(rf"^{name}{{.*}} (\S+)$", text, re.MULTILINE)
    return float(value)


def wait_for(condition, seconds=20.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_crowd_is_told_to_try_again_later_and_when(small):
    def one(_):
        try:
            return ask(small.client(), HELLO, **LONG).usage.completion_tokens
        except openai.RateLimitError as error:
            return error.type, int(error.response.headers["retry-after"]) >= 1

    with ThreadPoolExecutor(6) as clients:
        outcomes = list(clients.map(one, range(6)))
    assert set(outcomes) == {400, ("rate_limit_error", True)}
    assert ask(small.client(), HELLO, max_tokens=1).choices


@pytest.mark.parametrize("is_streamed", [True, False])
def test_a_client_that_leaves_frees_its_slot(small, is_streamed):
    cancelled = metric(small, "qv_requests_cancelled_total")
    body = {"model": MODEL, "messages": HELLO, "stream": is_streamed, "max_tokens": 900, "ignore_eos": True}
    content = json.dumps(body).encode()
    with socket.create_connection(("127.0.0.1", small.port), timeout=20) as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b"
            % (len(content), content)
        )
        wait_for(lambda: metric(small, "qv_slots_used") == 1)
    started = time.monotonic()
    wait_for(lambda: metric(small, "qv_slots_used") == 0)
    assert time.monotonic() - started < 1.0  # 900 tokens take longer
    assert metric(small, "qv_requests_cancelled_total") == cancelled + 1
    wait_for(lambda: any('"left"' in line for line in small.lines))


def status_of(server, head, body=b""):
    """What the server answers to raw bytes: its status, or None where it only closes the connection."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        try:
            connection.sendall(head + body)
            answer = connection.recv(65536)
        except ConnectionError:
            return None
    return int(answer.split()[1]) if answer else None


POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"


def test_a_body_too_large_is_refused_before_it_is_sent(small):
    assert status_of(small, POST + b"Content-Length: 999999999999\r\n\r\n") == 413


@pytest.mark.parametrize(
    "head",
    [
        POST + b"Content-Length: x\r\n\r\n",
        POST + b"Content-Length: -1\r\n\r\n",
        POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcde",
        POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        POST + b"X: " + b"y" * 200_000 + b"\r\n\r\n",
        b"\x00\xff\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\n\r\n",
    ],
    ids=range(7),
)
def test_what_is_no_http_is_refused_and_harms_nobody(small, head):
    assert status_of(small, head) in {400, None}
    assert ask(small.client(), HELLO, max_tokens=1).choices


def test_half_closed_and_silent_connections_take_no_place(small):
    silent = [socket.create_connection(("127.0.0.1", small.port)) for _ in range(40)]
    for connection in silent[:20]:
        connection.sendall(POST + b"Content-Length: 50\r\n\r\n{")
        connection.shutdown(socket.SHUT_WR)
    for connection in silent[20:]:
        connection.sendall(b"POST /v1/chat")
    wait_for(lambda: _answers(small))
    for connection in silent:
        connection.close()


def _answers(server):
    try:
        return bool(ask(server.client(), HELLO, max_tokens=1).choices)
    except openai.RateLimitError:
        return False


def test_ids_of_requests_stand_in_answers_and_in_the_log_and_contents_in_neither(small):
    answer = ask(
        small.client(),
        [{"role": "user", "content": SECRET}],
        max_tokens=2,
        extra_headers={"x-request-id": "mine-1"},
    )
    assert answer._request_id == "mine-1"
    assert answer.id == "chatcmpl-mine-1"
    forged = ask(small.client(), HELLO, max_tokens=1, extra_headers={"x-request-id": 'a" "b'})
    assert re.fullmatch(r"[0-9a-f]{32}", str(forged._request_id))
    wait_for(lambda: any("mine-1" in line for line in small.lines))
    told = next(json.loads(line) for line in small.lines if "mine-1" in line)
    assert told["outcome"] == "answered"
    assert told["completion_tokens"] >= 1
    assert told["prompt_tokens"] > 1
    assert not any(SECRET in line for line in small.lines)


def test_an_answer_out_of_time_says_so(small):
    with pytest.raises(openai.APIStatusError) as caught:
        ask(small.client(), HELLO, max_tokens=900, extra_body={"ignore_eos": True, "timeout": 0.05})
    assert caught.value.status_code == 408
    assert caught.value.code == "deadline"


def test_a_large_picture_of_one_client_does_not_stop_the_tokens_of_another(bundle):
    file = io.BytesIO()
    Image.effect_noise((3000, 3000), 80).convert("RGB").save(file, "PNG", compress_level=1)
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    picture = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]
    with running_serve(bundle, "--threads", 1, "--max-context", 2048, "--model-name", MODEL) as server:
        stream = ask(server.client(), HELLO, stream=True, max_tokens=1900, **SPEAKING)
        next(iter(stream))
        seconds = {}

        def look():
            started = time.monotonic()
            try:
                ask(server.client(), picture, max_tokens=1)
            finally:
                seconds["sent"], seconds["answered"] = started, time.monotonic()

        thread = threading.Thread(target=look)
        thread.start()
        arrivals = []
        for _ in stream:
            arrivals.append(time.monotonic())
            if "answered" in seconds:
                break
        thread.join()
    between = [moment for moment in arrivals if seconds["sent"] < moment < seconds["answered"]]
    assert len(between) >= 20


def test_sigterm_lets_what_was_taken_end_and_takes_nothing_new(bundle):
    with running_serve(bundle, "--threads", 1, "--max-context", 1024, "--model-name", MODEL) as server:
        stream = ask(server.client(), HELLO, stream=True, max_tokens=600, **SPEAKING)
        chunks = [next(iter(stream))]
        server.terminate()
        chunks += list(stream)
        assert chunks[-1].choices[0].finish_reason == "length"
        assert server.process.wait(30) == 143
        with pytest.raises(openai.APIConnectionError):
            ask(server.client(), HELLO, max_tokens=1)
    assert not any("Traceback" in line for line in server.lines)
