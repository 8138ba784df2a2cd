"""A decoder cut into stages against the same decoder in one graph, bit for bit."""

import hashlib
import json
import shutil

import numpy as np
import onnx
import pytest

from engines.backends.onnxruntime.session import open_sessions
from export.bundle import open_bundle
from export.errors import UserError
from tests.support.bundles import HEAD_RATIOS, shared_bundle
from tests.support.cases import CASES, make_batch
from tests.support.sessions import encode, greedy_tokens, logits_in_chunks, require_own_cache

SLOTS, CAPACITY, STEPS = 4, 256, 32
CASE = {case.name: case for case in CASES}


@pytest.fixture(
    scope="module", params=[("ratio6_tied", 2), ("ratio6_tied", 3), ("ratio7_untied", 3)], ids=str
)
def bundles(request, tmp_path_factory):
    """The bundle in one graph, and the same checkpoint's in stages."""
    name, stages = request.param
    checkpoint = {"dtype": "float32", **HEAD_RATIOS[name]}
    whole = open_bundle(shared_bundle(tmp_path_factory, checkpoint))
    return whole, open_bundle(shared_bundle(tmp_path_factory, checkpoint, pipeline_stages=stages))


@pytest.fixture(scope="module")
def engines(bundles):
    return [open_sessions(bundle, num_slots=SLOTS, capacity=CAPACITY, num_threads=1) for bundle in bundles]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_logits_and_tokens_are_bit_identical(bundles, engines, case):
    config = bundles[0].config
    batch = make_batch(case, config)
    embeds = encode(engines[0].vision, batch, config.decoder.hidden_size)
    whole, staged = (engine.decoder.forward(0, batch.prefill(embeds)) for engine in engines)
    assert np.array_equal(batch.valid(whole), batch.valid(staged))
    tokens = [greedy_tokens(engine.decoder, batch, embeds, STEPS) for engine in engines]
    assert np.array_equal(tokens[0], tokens[1])


@pytest.mark.parametrize("chunk", [1, 7])
def test_chunked_prefill_is_bit_identical(bundles, engines, chunk):
    config = bundles[0].config
    batch = make_batch(CASE["image_and_video"], config)
    embeds = encode(engines[0].vision, batch, config.decoder.hidden_size)
    answers = [logits_in_chunks(engine.decoder, batch, embeds, chunk) for engine in engines]
    assert np.array_equal(answers[0], answers[1])


def test_slots_of_one_engine_do_not_share_a_cache(bundles, engines):
    config = bundles[1].config
    require_own_cache(engines[1].decoder, make_batch(CASE["text"], config), config.decoder.hidden_size)


def test_stages_hold_every_weight_once_and_write_none(bundles):
    whole, staged = bundles
    names = [record.name for record in whole.manifest.weights]
    assert [record.name for record in staged.manifest.weights] == names
    for name in names:
        digests = [hashlib.sha256((bundle.directory / name).read_bytes()).digest() for bundle in bundles]
        assert digests[0] == digests[1]
    held = [
        {
            weight.name
            for weight in onnx.load(staged.graph(stage.graph), load_external_data=False).graph.initializer
            if weight.external_data
        }
        for stage in staged.stages
    ]
    shared = {"model.embed_tokens.weight"} if staged.config.decoder.tie_word_embeddings else set()
    for i, first in enumerate(held):
        for second in held[i + 1 :]:
            assert first & second <= shared
    in_one = onnx.load(whole.graph("decoder"), load_external_data=False).graph.initializer
    assert set.union(*held) == {weight.name for weight in in_one if weight.external_data}


def test_the_key_of_stages_is_another_one(bundles):
    assert bundles[0].manifest.key != bundles[1].manifest.key


@pytest.mark.parametrize(
    ("stages", "problem"),
    [
        ([1, 1], "graphs must hold vision, decoder.0 and decoder.1|stages have 2 layers"),
        ([3], "must be a list of numbers of layers"),
        ([0, 3], "must be a list of numbers of layers"),
        ("2", "must be a list of numbers of layers"),
        ([10**30, 1, 1, 1, 1, 1], "graphs must hold"),
    ],
)
def test_a_manifest_of_other_stages_is_refused(bundles, tmp_path, stages, problem):
    copy = shutil.copytree(bundles[1].directory, tmp_path / "bundle")
    content = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**content, "stages": stages}))
    with pytest.raises(UserError, match=problem):
        _ = open_bundle(copy).stages
