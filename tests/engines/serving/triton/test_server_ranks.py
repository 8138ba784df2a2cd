"""A real tritonserver over ranks: sixteen clients, and a rank that is killed."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from engines.ranks.launch import missing_parts
from engines.serving.settings import ServerSettings
from engines.serving.triton.repository import write_repository
from examples.demo import demo_questions
from examples.triton.client import stream_over_grpc
from export.bundle import open_bundle
from export.exporter import export_checkpoint
from tests.support.ranks import files_of, members, rank_processes, require_gone
from tests.support.triton import missing, running_server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
    pytest.mark.skipif(bool(missing_parts()), reason=f"not installed: {', '.join(missing_parts())}"),
]

TINY = Path(__file__).parents[4] / "models" / "qwen2-vl-tiny"
QUESTIONS = demo_questions()
CLIENTS = 16
LONG = 400


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    directory = tmp_path_factory.mktemp("server")
    export_checkpoint(TINY, directory / "bundle", pipeline_stages=2)
    settings = ServerSettings(num_slots=4, capacity=512, num_threads=1, num_ranks=2)
    write_repository(
        open_bundle(directory / "bundle"), directory / "repository", settings, allow_unvalidated=True
    )
    with running_server(directory / "repository", directory) as running:
        yield running


def ask(server, number, **settings):
    question = QUESTIONS[number % len(QUESTIONS)]
    images, videos = ([path.read_bytes() for path in paths] for paths in (question.images, question.videos))
    pieces = stream_over_grpc(server.grpc, question.prompt, images, videos, settings)
    return "".join(piece["text"] for piece in pieces)


def test_sixteen_clients_at_once_get_the_answers_of_the_model(server):
    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = list(pool.map(lambda number: ask(server, number), range(CLIENTS)))
    assert answers == [QUESTIONS[number % len(QUESTIONS)].answer for number in range(CLIENTS)]


def test_a_rank_that_is_killed_costs_the_answers_under_way_alone(server):
    ranks = rank_processes(server.process.pid)
    assert len(ranks) == 2
    group = [ranks[0].parent(), *ranks]
    files = files_of(group)
    question = QUESTIONS[0]
    images = [path.read_bytes() for path in question.images]
    # So hot that hardly any token is the one that ends an answer.
    endless = {"max_tokens": LONG, "temperature": 9.0, "top_k": 0, "top_p": 1.0, "seed": 3}
    stream = stream_over_grpc(server.grpc, question.prompt, images, (), endless)
    next(stream)
    ranks[1].kill()
    with pytest.raises(RuntimeError, match=r"a rank ended in the middle of an answer"):
        for _ in stream:
            pass
    assert ask(server, 0) == question.answer
    require_gone(group, files)


def test_the_ranks_end_with_the_server(server):
    processes = members(server.process.pid)
    files = files_of(processes)
    server.process.terminate()
    server.process.wait(60)
    require_gone(processes, files)
