"""A group of processes: what it computes, and how it ends, whoever dies."""

import os
import pickle
import signal
import subprocess

import numpy as np
import pytest

from engines.backends.onnxruntime.session import open_sessions
from engines.ranks.launch import missing_parts
from engines.ranks.layout import layout_of
from engines.ranks.messages import Start
from engines.ranks.sessions import open_ranks
from engines.runtime.lost import EngineLostError, is_recoverable
from export.bundle import open_bundle
from export.errors import UserError
from plugins.child_python import program_command
from tests.support.bundles import HEAD_RATIOS, shared_bundle
from tests.support.cases import CASES, make_batch
from tests.support.ranks import files_of, members, rank_processes, require_gone
from tests.support.sessions import encode, greedy_tokens

pytestmark = pytest.mark.skipif(
    bool(missing_parts()), reason=f"the extra `parallel` is not installed: {', '.join(missing_parts())}"
)

SLOTS, CAPACITY = 4, 256
DIVIDED = {
    "ratio6_tied": {**HEAD_RATIOS["ratio6_tied"], "num_attention_heads": 12, "num_key_value_heads": 2},
    "ratio7_untied": {**HEAD_RATIOS["ratio7_untied"], "num_attention_heads": 28, "num_key_value_heads": 4},
}
CASE = {case.name: case for case in CASES}


def bundle_of(factory, name="ratio6_tied", stages=1):
    checkpoint = {"dtype": "float32", **HEAD_RATIOS[name]}
    return open_bundle(shared_bundle(factory, checkpoint, pipeline_stages=stages))


def start_of(bundle, num_ranks):
    layout = layout_of(num_ranks, len(bundle.stages))
    return Start(bundle.directory, "onnxruntime", None, layout, SLOTS, CAPACITY, 1)


def computed(engine, batch, embeds, num_steps):
    """What an engine makes of a batch: embeddings, a prompt's logits, tokens, a prompt's logits in chunks."""
    decoder, width = engine.decoder, embeds.shape[1]
    found = {
        "embeds": encode(engine.vision, batch, width),
        "logits": batch.valid(decoder.forward(0, batch.prefill(embeds))).copy(),
        "tokens": greedy_tokens(decoder, batch, embeds, num_steps),
    }
    if len(batch.prompts) == 1:
        chunks = [decoder.forward(1, part).copy() for part in batch.chunks(embeds, 7)]
        found["chunks"] = np.concatenate(chunks, axis=1)
    return found


def require_equal(bundle, alone, ranks, cases, num_steps):
    """Bit for bit."""
    for case in cases:
        batch = make_batch(case, bundle.config)
        embeds = encode(alone.vision, batch, bundle.config.decoder.hidden_size)
        expected = computed(alone, batch, embeds, num_steps)
        for what, array in computed(ranks, batch, embeds, num_steps).items():
            assert np.array_equal(array, expected[what]), f"{case.name}: {what}"


def test_two_stages_and_a_rank_for_images_compute_what_one_process_does(tmp_path_factory):
    bundle = bundle_of(tmp_path_factory, stages=2)
    alone = open_sessions(bundle, num_slots=SLOTS, capacity=CAPACITY, num_threads=1)
    ranks = open_ranks(start_of(bundle, 3))
    processes = members(os.getpid())
    files = files_of(processes)
    assert len(files) >= 3
    try:
        assert len(rank_processes(os.getpid())) == 3
        require_equal(bundle, alone, ranks, [CASE["image_and_video"], CASE["ragged_batch"]], 6)
    finally:
        ranks.close()
    require_gone(processes, files, 0.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "stages", "num_ranks"),
    [
        ("ratio6_tied", 2, 2),
        ("ratio6_tied", 3, 3),
        ("ratio7_untied", 2, 2),
        ("ratio7_untied", 3, 3),
        ("ratio7_untied", 1, 2),
        ("ratio6_tied", 1, 4),
    ],
)
def test_stages_and_encoders_in_processes_compute_what_one_process_does(
    tmp_path_factory, name, stages, num_ranks
):
    bundle = bundle_of(tmp_path_factory, name, stages)
    alone = open_sessions(
        bundle_of(tmp_path_factory, name), num_slots=SLOTS, capacity=CAPACITY, num_threads=1
    )
    ranks = open_ranks(start_of(bundle, num_ranks))
    try:
        require_equal(bundle, alone, ranks, CASES, 32)
    finally:
        ranks.close()


@pytest.mark.slow
@pytest.mark.parametrize(("parts", "stages"), [(2, 1), (4, 1), (2, 2)])
@pytest.mark.parametrize("name", ["ratio6_tied", "ratio7_untied"])
def test_parts_in_processes_compute_what_parts_in_threads_do(tmp_path_factory, name, parts, stages):
    checkpoint = {"dtype": "float32", **DIVIDED[name]}
    divided = shared_bundle(tmp_path_factory, checkpoint, tensor_parallel=parts, pipeline_stages=stages)
    bundle = open_bundle(divided)
    alone = open_sessions(bundle, num_slots=SLOTS, capacity=CAPACITY, num_threads=parts)
    layout = layout_of(parts * stages, stages, parts)
    ranks = open_ranks(Start(bundle.directory, "onnxruntime", None, layout, SLOTS, CAPACITY, 1))
    try:
        require_equal(bundle, alone, ranks, [CASE["image_and_video"], CASE["ragged_batch"]], 8)
    finally:
        ranks.close()


@pytest.mark.parametrize(
    "killed", [pytest.param(0, marks=pytest.mark.slow), 1, pytest.param("mpirun", marks=pytest.mark.slow)]
)
def test_whoever_dies_the_group_ends_and_starts_anew(tmp_path_factory, killed):
    bundle = bundle_of(tmp_path_factory, stages=2)
    batch = make_batch(CASE["text"], bundle.config)
    nothing = np.zeros((0, bundle.config.decoder.hidden_size), np.float32)
    ranks = open_ranks(start_of(bundle, 2))
    try:
        first = ranks.decoder.forward(0, batch.prefill(nothing))
        processes = members(os.getpid())
        files = files_of(processes)
        victim = (
            next(one for one in processes if "mpirun" in one.name() or "prterun" in one.name())
            if killed == "mpirun"
            else rank_processes(os.getpid())[killed]
        )
        victim.send_signal(signal.SIGKILL)
        with pytest.raises(EngineLostError, match="a rank ended in the middle of an answer"):
            for _ in range(1000):  # a call that was under way, or the next
                ranks.decoder.forward(0, batch.prefill(nothing))
        with pytest.raises(EngineLostError, match="before the next question"):
            ranks.decoder.forward(0, batch.prefill(nothing))
        require_gone(processes, files)
        assert is_recoverable(ranks.decoder)
        assert ranks.decoder.recover()
        assert not ranks.decoder.recover()
        assert np.array_equal(ranks.decoder.forward(0, batch.prefill(nothing)), first)
    finally:
        ranks.close()


def test_ranks_leave_when_their_leader_is_killed(tmp_path_factory):
    bundle = bundle_of(tmp_path_factory, stages=2)
    program = (
        "import sys, time, pickle\n"
        "from engines.ranks.sessions import open_ranks\n"
        "engine = open_ranks(pickle.loads(bytes.fromhex(sys.argv[1])))\n"
        "print('open', flush=True)\n"
        "time.sleep(600)"
    )
    command = [*program_command(program), pickle.dumps(start_of(bundle, 2)).hex()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as leader:
        assert leader.stdout is not None
        assert leader.stdout.readline() == "open\n"
        processes = members(leader.pid)
        assert len(processes) >= 3
        files = files_of(processes)
        leader.kill()
        leader.wait()
    require_gone(processes, files)


def test_what_a_rank_cannot_open_is_the_leader_s_error_and_nothing_is_left(tmp_path_factory, tmp_path):
    start = start_of(bundle_of(tmp_path_factory, stages=2), 2)
    before = members(os.getpid())
    with pytest.raises(UserError, match="nowhere"):
        open_ranks(Start(tmp_path / "nowhere", *list(vars(start).values())[1:]))
    assert members(os.getpid()) == before


def test_ranks_that_do_not_start_are_an_error_that_says_how(tmp_path_factory, tmp_path):
    hostfile = tmp_path / "hosts"
    hostfile.write_text("nowhere.invalid slots=2\n")
    with pytest.raises(EngineLostError, match="the ranks did not start"):
        open_ranks(start_of(bundle_of(tmp_path_factory, stages=2), 2), hostfile)


def test_a_hostfile_that_is_not_there_is_refused(tmp_path_factory, tmp_path):
    with pytest.raises(UserError, match="no hostfile"):
        open_ranks(start_of(bundle_of(tmp_path_factory, stages=2), 2), tmp_path / "hosts")
