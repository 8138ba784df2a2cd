"""Ranks that are processes under MPI against threads of one process: the same bits."""

import subprocess

import numpy as np
import pytest

from engines.backends.onnxruntime.session import open_sessions
from engines.ranks import launch
from export.bundle import open_bundle
from plugins.child_python import program_command
from tests.engines.backends.onnxruntime.test_ranks import CAPACITY, SIZES, SLOTS
from tests.support.bundles import shared_bundle
from tests.support.cases import CASES, make_batch
from tests.support.sessions import encode, greedy_tokens

RANK = """
import sys, numpy as np
from pathlib import Path
from mpi4py import MPI
from engines.backends.onnxruntime.session import OnnxRuntimeDecoder, OnnxRuntimeVision
from engines.parallel.mpi import MpiCommunicator
from export.bundle import open_bundle
from tests.engines.backends.onnxruntime.test_mpi_ranks import STEPS, answers
bundle, folder = open_bundle(Path(sys.argv[1])), Path(sys.argv[2])
end = MpiCommunicator(MPI.COMM_WORLD)
decoder = OnnxRuntimeDecoder(bundle, 4, 256, 1, communicator=end)
np.savez(folder / f"rank{end.rank}.npz", **answers(bundle, OnnxRuntimeVision(bundle, 1), decoder))
"""
STEPS = 32


def answers(bundle, vision, decoder):
    """Logits of prefills, whole and in chunks, and the tokens that follow."""
    found = {}
    for case in CASES:
        if case.name not in ("image_and_video", "ragged_batch"):
            continue
        batch = make_batch(case, bundle.config)
        embeds = encode(vision, batch, bundle.config.decoder.hidden_size)
        found[f"{case.name}.logits"] = decoder.forward(0, batch.prefill(embeds)).copy()
        found[f"{case.name}.tokens"] = greedy_tokens(decoder, batch, embeds, STEPS)
        if len(batch.prompts) == 1:
            parts = [decoder.forward(1, part).copy() for part in batch.chunks(embeds, 7)]
            found[f"{case.name}.chunks"] = np.concatenate(parts, axis=1)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("name", "ranks"), [("ratio6_tied", 2), ("ratio6_tied", 4), ("ratio7_untied", 4)])
def test_processes_and_threads_have_the_same_bits(tmp_path_factory, tmp_path, name, ranks):
    directory = shared_bundle(tmp_path_factory, SIZES[name], tensor_parallel=ranks)
    bundle = open_bundle(directory)
    engine = open_sessions(bundle, num_slots=SLOTS, capacity=CAPACITY, num_threads=1)
    expected = answers(bundle, engine.vision, engine.decoder)
    mpirun = launch.launch_command(ranks, "nowhere", None)
    prefix = mpirun[: mpirun.index("-n") + 2]
    subprocess.run([*prefix, *program_command(RANK), str(directory), str(tmp_path)], check=True, timeout=240)
    for rank in range(ranks):
        found = np.load(tmp_path / f"rank{rank}.npz")
        assert set(found.files) == set(expected)
        for key, values in expected.items():
            assert np.array_equal(found[key], values), (rank, key)
