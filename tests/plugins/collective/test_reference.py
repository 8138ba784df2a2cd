"""The collectives of two processes by PyTorch's gloo, and the ONNX bodies of ranks that are threads, against NumPy."""

import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import onnxruntime as ort
import pytest

from engines.backends.onnxruntime.collective import allow_collectives, number_of
from engines.parallel.threads import thread_group
from plugins.child_python import program_command
from plugins.collective import onnx_functions
from plugins.registry import ALL_GATHER, ALL_REDUCE
from tests.support.op_models import op_model

RANK = """
import sys, torch, torch.distributed as dist
from plugins.collective import op
rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
x = torch.arange(6.0).reshape(3, 2) * (rank + 1)
results = [op.all_reduce(x, 2), op.all_gather(x, 2), op.gather_last(x, 2), op.all_reduce(x, 1)]
torch.save(results, f"{folder}/{rank}.pt")
dist.destroy_process_group()
"""


def test_two_processes_sum_and_gather_by_the_reference(tmp_path):
    torch = pytest.importorskip("torch")
    ranks = [subprocess.Popen([*program_command(RANK), str(rank), str(tmp_path)]) for rank in range(2)]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    x = np.arange(6.0).reshape(3, 2)
    for rank in range(2):
        results = [result.numpy() for result in torch.load(tmp_path / f"{rank}.pt")]
        np.testing.assert_array_equal(results[0], 3 * x)
        np.testing.assert_array_equal(results[1], np.concatenate([x, 2 * x]))
        np.testing.assert_array_equal(results[2], np.concatenate([x, 2 * x], axis=1))
        np.testing.assert_array_equal(results[3], (rank + 1) * x)


@pytest.mark.parametrize("signature", [ALL_REDUCE, ALL_GATHER], ids=lambda signature: signature.name)
@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_onnx_bodies_ask_the_communicator_of_their_rank(signature, num_ranks):
    given = np.random.default_rng(num_ranks).standard_normal((num_ranks, 4, 5)).astype(np.float32)
    ends = thread_group(num_ranks)

    def run(end):
        bodies = onnx_functions.onnxruntime(number_of(end))
        [body] = [body for body in bodies if body.name == signature.name]
        model = op_model(replace(signature, attributes={"num_ranks": num_ranks}), body, [given[end.rank]])
        options = ort.SessionOptions()
        allow_collectives(options)
        session = ort.InferenceSession(model.SerializeToString(), options)
        return session.run(None, {"x": given[end.rank]})[0]

    with ThreadPoolExecutor(num_ranks) as pool:
        results = list(pool.map(run, ends))
    expected = given.sum(axis=0) if signature is ALL_REDUCE else given.reshape(-1, 5)
    for result in results:
        np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-6)
        assert result.tobytes() == results[0].tobytes()


def test_a_runtime_without_the_custom_op_refuses_the_graph():
    x = np.zeros((2, 2), np.float32)
    body = onnx_functions.portable()[0]
    with pytest.raises(Exception, match="QvCollective"):
        ort.InferenceSession(op_model(ALL_REDUCE, body, [x]).SerializeToString())
