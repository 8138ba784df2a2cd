"""What one request does to another, counted in steps of the engine and not in seconds: the endpoint in this process."""

import asyncio
import json
import threading
import time

import pytest

from benchmarks.http_clients import openai_body
from engines.open import choose_engine
from engines.runtime.answer import TokenEvent
from engines.serving.openai.app import make_app
from engines.serving.served import ServedModel
from engines.serving.settings import ServerSettings
from engines.store.compatibility import this_machine
from export.bundle import open_bundle
from tests.engines.serving.openai.served import HELLO, QUESTIONS, messages_of

LONG = {"messages": HELLO, "stream": True, "max_tokens": 400, "ignore_eos": True, "logit_bias": {"33": 100}}


def served_model(bundle, num_slots):
    opened = open_bundle(bundle)
    chosen = choose_engine(opened, None, num_slots=num_slots, capacity=512, machine=this_machine())
    return ServedModel(opened, chosen, ServerSettings(num_slots=num_slots, capacity=512, num_threads=1))


@pytest.fixture(scope="module")
def model(bundle):
    with served_model(bundle, 2) as served:
        yield served


@pytest.fixture
def endpoint(model):
    app = make_app(model, "tiny", with_page=False)
    yield app.state.chat
    app.state.chat.close()


class Client:
    """One request by ASGI: what came back so far, and leaving at will."""

    def __init__(self, endpoint, fields):
        self.endpoint, self.body = endpoint, json.dumps(fields).encode()
        self.chunks: list[bytes] = []
        self.status = 0
        self.came = asyncio.Condition()
        self.has_left = asyncio.Event()
        self._is_sent = False

    async def ask(self):
        scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": []}
        await self.endpoint(scope, self._receive, self._send)

    async def _receive(self):
        if not self._is_sent:
            self._is_sent = True
            return {"type": "http.request", "body": self.body}
        await self.has_left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message):
        async with self.came:
            if message["type"] == "http.response.start":
                self.status = message["status"]
            elif message.get("body"):
                self.chunks.append(message["body"])
            self.came.notify_all()

    async def wait_for_chunks(self, number):
        async with self.came:
            await asyncio.wait_for(self.came.wait_for(lambda: len(self.chunks) >= number), 60)


def test_a_client_that_leaves_a_stream_frees_its_slot_within_one_step(model, endpoint, monkeypatch):
    scheduler = model.service.scheduler
    at: dict[str, int] = {}
    cancel, leave = model.service.cancel, scheduler._leave

    def cancelled(ticket):
        at.setdefault("cancelled", scheduler._stats.num_decode_calls)
        cancel(ticket)

    def left(sequence, **fields):
        at.setdefault("left", scheduler._stats.num_decode_calls)
        leave(sequence, **fields)

    monkeypatch.setattr(model.service, "cancel", cancelled)
    monkeypatch.setattr(scheduler, "_leave", left)

    async def run():
        client = Client(endpoint, LONG)
        task = asyncio.create_task(client.ask())
        await client.wait_for_chunks(5)
        assert model.service.stats().slots_used == 1
        client.has_left.set()
        await asyncio.wait_for(task, 60)
        return len(client.chunks)

    num_chunks = asyncio.run(run())
    assert num_chunks < 300
    assert at["left"] - at["cancelled"] <= 1  # the call that was under way
    assert model.service.stats().slots_used == 0


def test_while_a_picture_is_prepared_the_engine_goes_on_with_other_answers(model, endpoint, monkeypatch):
    """Its preparation does not end before twenty more tokens of the other answer have come."""
    inputs, is_enough = model.inputs, threading.Event()
    steps: dict[str, int] = {}

    def slow(messages, **fields):
        found = inputs(messages, **fields)
        if any(isinstance(message["content"], list) for message in messages):
            steps["begun"] = model.service.stats().num_decode_calls
            assert is_enough.wait(60), "the engine waited for a picture of another request"
            steps["done"] = model.service.stats().num_decode_calls
        return found

    monkeypatch.setattr(model, "inputs", slow)
    question = next(question for question in QUESTIONS if question.images)

    async def run():
        talker, looker = Client(endpoint, LONG), Client(endpoint, {"messages": messages_of(question)})
        talking = asyncio.create_task(talker.ask())
        await talker.wait_for_chunks(3)
        looking = asyncio.create_task(looker.ask())
        while "begun" not in steps:
            await asyncio.sleep(0.005)
        await talker.wait_for_chunks(len(talker.chunks) + 20)
        while (
            model.service.stats().num_decode_calls < steps["begun"] + 20
        ):  # of chunks some were on their way
            await asyncio.sleep(0.005)
        is_enough.set()
        await asyncio.wait_for(looking, 60)
        talker.has_left.set()
        await asyncio.wait_for(talking, 60)
        return looker

    looker = asyncio.run(run())
    assert steps["done"] - steps["begun"] >= 20
    assert json.loads(looker.chunks[0])["choices"][0]["message"]["content"] == question.answer


def test_sixteen_clients_at_once_get_the_token_ids_that_each_gets_alone(bundle, monkeypatch):
    """Half of them with a picture, every fourth in a form, every third drawn: each is known by its seed."""
    found: dict[int, list[int]] = {}
    bodies = [json.loads(openai_body(number, 12)) for number in range(16)]
    for number, body in enumerate(bodies):
        body |= {"seed": number, "stream": number % 2 == 0}
        body |= {} if number % 3 else {"temperature": 1.3, "top_k": 0}
        body |= {} if number % 4 else {"guided_regex": "([a-z]+ ){40}"}

    with served_model(bundle, 16) as model:
        submit = model.service.submit

        def recorded(request, listen, **fields):
            ids = found[request.seed] = []

            def hear(event):
                ids.extend([event.token_id] if isinstance(event, TokenEvent) else [])
                listen(event)

            return submit(request, hear, **fields)

        monkeypatch.setattr(model.service, "submit", recorded)
        chat = make_app(model, "tiny", with_page=False).state.chat

        async def run():
            clients = [Client(chat, body) for body in bodies]
            for client in clients:
                await asyncio.wait_for(client.ask(), 60)
            alone, before = dict(found), model.service.stats()
            found.clear()
            clients = [Client(chat, body) for body in bodies]
            await asyncio.wait_for(asyncio.gather(*(client.ask() for client in clients)), 120)
            assert {client.status for client in clients} == {200}
            return alone, before, model.service.stats()

        try:
            alone, before, after = asyncio.run(run())
        finally:
            chat.close()
    assert {len(ids) for ids in alone.values()} == {12}
    assert len({tuple(ids) for ids in alone.values()}) > 8
    assert found == alone
    rows = after.num_decode_rows - before.num_decode_rows
    assert rows > 4 * (after.num_decode_calls - before.num_decode_calls)


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_request_out_of_time_is_answered_while_the_engine_is_within_a_call(
    model, endpoint, monkeypatch, is_stream
):
    """The call does not end before the answer came."""
    scheduler, is_answered, is_within = model.service.scheduler, threading.Event(), threading.Event()
    prefill = scheduler._prefill

    def long_call():
        is_within.set()
        assert is_answered.wait(30), "the request waited for a call of the engine"
        prefill()

    monkeypatch.setattr(scheduler, "_prefill", long_call)
    client = Client(endpoint, {"messages": HELLO, "max_tokens": 4, "timeout": 0.3, "stream": is_stream})

    async def run():
        try:
            await asyncio.wait_for(client.ask(), 20)
        finally:
            is_answered.set()

    asyncio.run(run())
    assert is_within.is_set()
    assert client.status == 408 or is_stream
    assert b'"code":"deadline"' in b"".join(client.chunks)
    until = time.monotonic() + 20
    while model.service.stats().slots_used and time.monotonic() < until:
        time.sleep(0.01)
    assert model.service.stats().slots_used == 0
