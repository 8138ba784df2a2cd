"""`run --ranks`: the same answer from several processes, and what cannot be computed so is refused."""

import json

import pytest
from click.testing import CliRunner

from engines.ranks.launch import missing_parts
from export.errors import UserError
from qv_export.commands.run.command import run
from tests.support.bundles import shared_bundle

needs_mpi = pytest.mark.skipif(bool(missing_parts()), reason=f"not installed: {', '.join(missing_parts())}")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return shared_bundle(tmp_path_factory, {"dtype": "float32", "num_hidden_layers": 2}, pipeline_stages=2)


def answer(bundle, *options):
    arguments = [
        bundle,
        "--prompt",
        "Hello",
        "--max-new-tokens",
        4,
        "--temperature",
        0,
        "--json",
        "--threads",
        1,
    ]
    result = CliRunner().invoke(run, [*map(str, arguments), *map(str, options)], catch_exceptions=False)
    assert result.exit_code == 0
    return json.loads(result.stdout)["token_ids"]


@needs_mpi
def test_two_ranks_answer_as_one_process_does(bundle):
    assert answer(bundle, "--ranks", 2) == answer(bundle)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ranks", 1], "--ranks 1: this bundle's decoder has 2 stages.*Ask for --ranks 2"),
        (["--ranks", 2, "--device", "cuda:1"], "--device cuda:1 is one GPU, and each of --ranks 2"),
        (["--ranks", 2, "--target", "onnxruntime-cuda"], "onnxruntime-cuda"),
        (["--hostfile", "hosts"], "--hostfile names the machines of --ranks"),
    ],
)
def test_what_ranks_cannot_do_is_refused_by_name(bundle, options, message):
    with pytest.raises(UserError, match=message):
        answer(bundle, *options)
