"""`qv-export serve` as OpenAI's own client sees it, over loopback, with the small trained checkpoint."""

import base64
import json
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from PIL import Image

from examples.tiny.tasks import make_sample
from tests.engines.serving.openai.served import HELLO, MODEL, QUESTIONS, ask, body_of, messages_of
from tests.support.pictures import encoded


@pytest.mark.parametrize("question", QUESTIONS, ids=[question.prompt for question in QUESTIONS])
def test_a_question_is_answered_right_whole_and_streamed(client, question):
    whole = ask(client, messages_of(question))
    assert whole.choices[0].message.content == question.answer
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    chunks = list(ask(client, messages_of(question), stream=True, stream_options={"include_usage": True}))
    *body, last = chunks
    assert "".join(chunk.choices[0].delta.content or "" for chunk in body) == question.answer
    assert body[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in body] == [None] * (len(body) - 1) + ["stop"]
    assert last.choices == []
    assert last.usage.completion_tokens == whole.usage.completion_tokens
    assert {chunk.id for chunk in chunks} == {last.id}


def test_what_an_answer_locates_comes_with_its_end(client):
    sample = next(s for s in (make_sample("box", (3, n)) for n in range(20)) if len(s.media) == 1)
    url = (
        "data:image/png;base64,"
        + base64.b64encode(encoded(Image.fromarray(sample.media[0].frames[0]), "PNG")).decode()
    )
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": sample.prompt}]
    messages = [{"role": "user", "content": content}]
    [whole] = ask(client, messages).choices
    assert whole.located[0]["kind"] == "box"
    assert whole.located[0]["pixels"]
    *before, last = [chunk.choices[0] for chunk in ask(client, messages, stream=True)]
    assert last.located == whole.located
    assert not any(hasattr(choice, "located") for choice in before)


def test_without_the_wish_a_stream_tells_no_usage(client):
    chunks = list(ask(client, HELLO, stream=True, max_tokens=2))
    assert all(chunk.usage is None for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason in {"stop", "length"}


def test_the_model_is_listed_and_found_and_no_other(client):
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt")
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt", messages=HELLO)
    assert body_of(caught.value)["code"] == "model_not_found"
    assert body_of(caught.value)["param"] == "model"


def test_the_new_name_of_the_limit_of_tokens_means_what_the_old_one_means(client):
    old = ask(client, HELLO, max_tokens=3)
    new = ask(client, HELLO, max_completion_tokens=3)
    assert old.choices[0].message.content == new.choices[0].message.content
    assert old.usage.completion_tokens == new.usage.completion_tokens <= 3


def test_a_stop_string_ends_the_answer_and_is_left_out(client):
    question = next(question for question in QUESTIONS if len(question.answer) > 1)
    answer = ask(client, messages_of(question), stop=question.answer[1:])
    assert answer.choices[0].message.content == question.answer[:1]
    assert answer.choices[0].finish_reason == "stop"


def image_url(**address):
    return {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": address}]}]}


REFUSED = {
    "an unknown field": ({"wish": 1}, "wish", "nothing here follows it"),
    "a field misspelt": ({"presense_penalty": 1}, "presense_penalty", "(meant presence_penalty?)"),
    "a field by another name": ({"add_vision_id": True}, "add_vision_id", "(meant chat_template_kwargs?)"),
    "two unknown fields": ({"wish": 1, "hope": 2}, "wish", "hope"),
    "a number out of range": ({"temperature": -1}, "temperature", "greater than or equal to 0"),
    "a number of another type": ({"top_p": "x"}, "top_p", "valid number"),
    "a truth as a number": ({"max_tokens": True}, "max_tokens", "valid integer"),
    "no messages": ({"messages": []}, "messages", "at least 1"),
    "too many tokens": ({"max_tokens": 1 << 20}, "max_tokens", "this server allows"),
    "too much time": ({"timeout": 1e9}, "timeout", "at most"),
    "an empty stop string": ({"stop": ""}, "stop", "empty"),
    "a negative seed": ({"seed": -1}, "seed", "greater than or equal to 0"),
    "a detail of a picture": (image_url(url="x", detail="tiny"), "messages", "detail"),
    "a web address": (image_url(url="https://example.org/a.png"), "messages", "fetches no web addresses"),
    "a path": (image_url(url="file:///etc/passwd"), "messages", "never read"),
    "a key of a message": (
        {"messages": [{"role": "user", "content": "x", "mood": "good"}]},
        "messages",
        "mood",
    ),
    "a prompt that does not fit": (
        {"messages": [{"role": "user", "content": "a b " * 2000}]},
        "messages",
        "512",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_followed_is_refused_by_name_in_openais_form(client, case):
    body, param, text = REFUSED[case]
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/chat/completions", body={"model": MODEL, "messages": HELLO, **body}, cast_to=object)
    error = body_of(caught.value)
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert text in error["message"]


def http(server, path, data=None, headers=None):
    """Status, headers and body of one plain request."""
    request = urllib.request.Request(server.url + path, data, headers or {})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.headers, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b'"x"', b"[" * 100_000])
def test_a_body_that_is_no_json_object_is_a_bad_request(server, body):
    status, _, answer = http(server, "/v1/chat/completions", body)
    assert status == 400
    assert json.loads(answer)["error"]["code"] == "invalid_json"


def test_health_readiness_version_metrics_and_schema_are_there(server, client):
    assert http(server, "/health")[0] == 200
    assert json.loads(http(server, "/ready")[2])["status"] == "ready"
    assert set(json.loads(http(server, "/version")[2])) >= {"version", "onnxruntime"}
    ask(client, HELLO, max_tokens=1)
    metrics = http(server, "/metrics")[2].decode()
    assert f'qv_slots{{model="{MODEL}"}} 8.0' in metrics
    assert f'qv_first_token_seconds_count{{model="{MODEL}"}}' in metrics
    schema = json.loads(http(server, "/openapi.json")[2])
    fields = schema["components"]["schemas"]["ChatCompletionRequest"]["properties"]
    assert {"messages", "max_completion_tokens", "stop"} <= set(fields)
    assert http(server, "/nothing")[0] == 404
    assert http(server, "/v1/chat/completions")[0] == 405


def test_the_metrics_have_the_names_that_the_triton_model_has(server):
    from engines.serving.metrics import METRICS

    metrics = http(server, "/metrics")[2].decode()
    found = {line.partition("{")[0] for line in metrics.splitlines() if not line.startswith("#")}
    assert found == {metric.name for metric in METRICS}


def test_sixteen_clients_at_once_get_exactly_what_each_gets_alone(client):
    cases = [(question, max_tokens) for max_tokens in (2, 3, 5, 24) for question in QUESTIONS][:16]
    assert len(cases) == 16

    def answer(case):
        question, max_tokens = case
        chunks = list(ask(client, messages_of(question), max_tokens=max_tokens, stream=True))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        return text, chunks[-1].choices[0].finish_reason

    alone = [answer(case) for case in cases]
    with ThreadPoolExecutor(16) as clients:
        together = list(clients.map(answer, cases))
    assert together == alone
    assert len({text for text, _ in alone}) >= len(QUESTIONS)
