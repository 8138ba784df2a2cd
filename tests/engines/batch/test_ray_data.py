"""A run on a Ray cluster: room for what feeds the actors, and every row once though one of them is killed."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import psutil
import pytest

from engines.batch.answers import Waiting
from engines.batch.parts import Parts
from engines.batch.ray_data import RowWorker, Share, answers_of_ray, batch_size, share_of
from engines.batch.rows import Broken, Given, Row
from engines.batch.run import run_batch
from engines.batch.worker import BatchWorker, ModelChoice
from export.errors import UserError
from tests.support.serve import ROOT


@pytest.mark.parametrize(
    ("resources", "device", "num_nodes", "asked", "expected"),
    [
        ({"CPU": 2.0}, "cpu", 2, None, Share(2, 0.5, 0, 1)),
        ({"CPU": 2.0}, "cpu", 2, 4, Share(4, 0.25, 0, 1)),
        ({"CPU": 64.0}, "cpu", 2, None, Share(2, 1.0, 0, 32)),
        ({"CPU": 1.0}, "cpu", 1, None, Share(1, 0.5, 0, 1)),
        ({"CPU": 8.0, "GPU": 8.0}, "gpu", 1, None, Share(8, 0.5, 1, 1)),
        ({"CPU": 64.0, "GPU": 8.0}, "gpu", 2, 4, Share(4, 1.0, 1, 1)),
    ],
)
def test_actors_leave_half_of_the_cpus_to_what_feeds_them(resources, device, num_nodes, asked, expected):
    share = share_of(resources, device, num_nodes, asked)
    assert share == expected
    assert share.num_actors * share.num_cpus <= resources["CPU"] / 2 or share.num_cpus == 1.0
    assert share.num_actors * share.num_cpus < resources["CPU"]


def test_a_cluster_that_cannot_do_it_is_refused():
    with pytest.raises(UserError, match="no CPU"):
        share_of({"GPU": 1.0}, "gpu", 1, None)
    with pytest.raises(UserError, match="2 asked, the Ray cluster has 1"):
        share_of({"CPU": 8.0, "GPU": 1.0}, "gpu", 1, 2)
    with pytest.raises(UserError, match="1 asked, the Ray cluster has 0"):
        share_of({"CPU": 8.0}, "gpu", 1, None)


def test_a_batch_fills_the_slots_and_leaves_no_actor_alone():
    assert batch_size(1_000_000, Share(8, 0.5, 1, 1), 8) == 64
    assert batch_size(40, Share(2, 0.5, 0, 1), 2) == 5
    assert batch_size(3, Share(2, 0.5, 0, 1), 8) == 8


def test_without_ray_the_command_that_adds_it_is_told(monkeypatch, bundle):
    monkeypatch.setattr("export.install.find_spec", lambda _name: None)

    async def first():
        return [one async for one in answers_of_ray(ModelChoice(bundle), iter([]), Waiting(), "auto", None)]

    with pytest.raises(UserError, match="ray, pyarrow and pandas") as refused:
        asyncio.run(first())
    assert "ray" in str(refused.value.remedy)


def test_a_mistake_of_the_model_is_told_to_whoever_sent_the_rows(bundle, tmp_path):
    import pickle

    worker = RowWorker(ModelChoice(tmp_path))
    [told] = worker({"row": [pickle.dumps(Row("a", Broken("")))]})["answered"]
    assert isinstance(pickle.loads(told), UserError)


@pytest.fixture
def cluster(monkeypatch):
    """Two nodes of one CPU each, on this machine."""
    yield from started_cluster(monkeypatch, 1)


@pytest.fixture
def wide_cluster(monkeypatch):
    """Two nodes of two CPUs each."""
    yield from started_cluster(monkeypatch, 2)


def started_cluster(monkeypatch, num_cpus):
    pytest.importorskip("ray", reason="needs Ray: pip install 'qv-export[ray]'")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    settings = {"num_cpus": num_cpus, "object_store_memory": 90_000_000}
    started = Cluster(initialize_head=True, head_node_args={**settings, "include_dashboard": False})
    started.add_node(**settings)
    yield started
    started.shutdown()


def actors():
    """Processes of the workers that hold a model."""
    found = []
    for process in psutil.process_iter(["name", "cmdline"]):
        title = " ".join(process.info["cmdline"] or [])
        if "ray::MapWorker(MapBatches(RowWorker))" in title:
            found.append(process)
    return found


@pytest.mark.slow
def test_two_nodes_answer_every_row_once_though_a_worker_is_killed(cluster, bundle, tmp_path):
    body = b'{"messages": [{"role": "user", "content": "Say %d"}], "min_tokens": 24, "max_tokens": 24}'
    rows = [Row(f"r{number}", Given(body % number), number) for number in range(40)]
    rows.append(Row("broken", Broken("no row")))
    choice = ModelChoice(bundle, num_slots=2, max_context=256)
    killed: list[int] = []

    def kill_one(tally):
        if not killed and tally.num_rows < 30 and (found := actors()):
            os.kill(found[0].pid, signal.SIGKILL)
            killed.append(found[0].pid)

    def on_ray(left, waiting):
        return answers_of_ray(choice, left, waiting, cluster.address, None)

    tally = run_batch(on_ray, rows, Parts(tmp_path / "ray", 0, resume=False), kill_one)
    assert killed
    assert (tally.num_rows, tally.num_errors) == (41, 1)
    found = answers_in(tmp_path / "ray")
    assert max(Counter(name for name, _ in found).values()) == 1
    worker = RowWorker(ModelChoice(bundle, num_slots=2, max_context=256, num_threads=1))
    try:
        expected = [(one.row.id, answer_of(one.content)) for one in worker.answer(rows)]
    finally:
        worker.close()
    assert sorted(found) == sorted(expected)


@pytest.mark.slow
def test_the_pipeline_of_ones_own_answers_every_picture_as_one_process_does(wide_cluster, bundle, tmp_path):
    """`examples/batch/ray_corpus.py` as it stands, on the cluster of two nodes."""
    pandas = pytest.importorskip("pandas", reason="comes with the extra ray")
    pictures = sorted((ROOT / "examples" / "pictures").glob("*.png"))[:6]
    folder, output, prompt = tmp_path / "pictures", tmp_path / "answers", "What is in this picture?"
    folder.mkdir()
    for picture in pictures:
        shutil.copy(picture, folder)
    script = ROOT / "examples" / "batch" / "ray_corpus.py"
    done = subprocess.run(
        [sys.executable, script, bundle, folder, output, prompt],
        cwd=ROOT,
        env={**os.environ, "RAY_ADDRESS": wide_cluster.address},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = pandas.read_parquet(output)
    worker = BatchWorker(ModelChoice(bundle, num_threads=1), prompt)
    try:
        expected = worker(
            {"path": [str(one) for one in pictures], "bytes": [one.read_bytes() for one in pictures]}
        )
    finally:
        worker.close()
    told = {Path(name).name: answer for name, answer in zip(found["id"], found["answer"], strict=True)}
    assert told == dict(zip([one.name for one in pictures], expected["answer"], strict=True))
    assert all(told.values())


def answers_in(output):
    import json

    lines = [line for part in sorted(output.glob("*.jsonl")) for line in part.read_text().splitlines()]
    return [(row["custom_id"], answer_of(row)) for row in map(json.loads, lines)]


def answer_of(row):
    if row["error"]:
        return row["error"]["message"]
    return row["response"]["body"]["choices"][0]["message"]["content"]
