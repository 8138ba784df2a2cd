"""`serve` over ranks: everybody gets what he gets alone, and the death of a rank costs the answers under way alone."""

import signal
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from engines.ranks.launch import missing_parts
from export.exporter import export_checkpoint
from tests.engines.serving.openai.served import MODEL, QUESTIONS, ask, messages_of
from tests.support.ranks import files_of, members, rank_processes, require_gone
from tests.support.serve import ROOT, running_serve

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing_parts()), reason=f"not installed: {', '.join(missing_parts())}"),
]

CLIENTS = 16
NUM_STAGES = 2


@pytest.fixture(scope="module")
def ranks_server(tmp_path_factory):
    directory = tmp_path_factory.mktemp("staged") / "bundle"
    export_checkpoint(ROOT / "models" / MODEL, directory, pipeline_stages=NUM_STAGES)
    options = ("--threads", 1, "--max-context", 512, "--slots", 4, "--model-name", MODEL)
    with running_serve(directory, *options, "--ranks", NUM_STAGES + 1) as running:
        yield running


def text_of(completion):
    return completion.choices[0].message.content


def asked(client, number):
    return text_of(ask(client, messages_of(QUESTIONS[number % len(QUESTIONS)])))


def test_sixteen_clients_get_the_answers_of_the_model(ranks_server):
    with ThreadPoolExecutor(CLIENTS) as pool:
        together = list(pool.map(lambda number: asked(ranks_server.client(), number), range(CLIENTS)))
    assert together == [QUESTIONS[number % len(QUESTIONS)].answer for number in range(CLIENTS)]


@pytest.mark.parametrize("killed", [0, 1, 2])
def test_a_rank_that_is_killed_costs_the_answers_under_way_alone(ranks_server, killed):
    client = ranks_server.client()
    expected = asked(client, 0)
    ranks = rank_processes(ranks_server.process.pid)
    assert len(ranks) == NUM_STAGES + 1
    group = [ranks[0].parent(), *ranks]
    files = files_of(group)
    endless = {"temperature": 0, "max_completion_tokens": 400, "extra_body": {"ignore_eos": True}}
    stream = client.chat.completions.create(
        model=MODEL, messages=messages_of(QUESTIONS[0]), stream=True, **endless
    )
    next(stream)
    ranks[killed].send_signal(signal.SIGKILL)
    with pytest.raises(
        openai.APIError, match=r"a rank ended in the middle of an answer.*Send the request again"
    ):
        for _ in stream:
            pass
    assert asked(client, 0) == expected
    require_gone(group, files)
    assert ranks_server.process.poll() is None


def test_a_rank_that_is_killed_while_nobody_asks_costs_nobody(ranks_server):
    client = ranks_server.client()
    expected = asked(client, 1)
    rank_processes(ranks_server.process.pid)[1].kill()
    time.sleep(2)
    assert asked(client, 1) == expected


def test_the_ranks_end_with_their_server(ranks_server):
    processes = members(ranks_server.process.pid)
    files = files_of(processes)
    ranks_server.terminate()
    assert ranks_server.process.wait(60) is not None
    require_gone(processes, files)
