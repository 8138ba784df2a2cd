"""A decoder divided among ranks against the same decoder in one graph: logits within rounding, the same tokens."""

import numpy as np
import onnx
import pytest

from engines.backends.onnxruntime.session import OnnxRuntimeDecoder, open_sessions
from engines.parallel.communicator import Alone
from export.bundle import open_bundle
from export.errors import UserError
from tests.support.bundles import shared_bundle
from tests.support.cases import CASES, make_batch
from tests.support.sessions import encode, greedy_tokens, logits_in_chunks, relative_error, require_own_cache

SLOTS, CAPACITY, STEPS = 4, 256, 32
TOLERANCE = 1e-5
"""Of the largest logit: a sum over ranks rounds in another order. Seen: 1.0e-6."""


def sizes(heads, key_heads, head_dim, *, tied, layers=3, **others):
    return {
        "dtype": "float32",
        "hidden_size": heads * head_dim,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "num_hidden_layers": layers,
        "tie_word_embeddings": tied,
        **others,
    }


SIZES = {
    # As 2B: four ranks have two heads of keys and values, and 509 tokens divide by none of the sizes.
    "ratio6_tied": sizes(12, 2, 16, tied=True, vocab_size=509),
    "ratio7_untied": sizes(28, 4, 16, tied=False, layers=4),
}
THIN = ("ratio6_tied", 4, 1)
GROUPS = [
    THIN,
    *(
        pytest.param(case, marks=pytest.mark.slow)
        for case in [
            ("ratio6_tied", 2, 1),
            ("ratio6_tied", 2, 2),
            ("ratio7_untied", 2, 1),
            ("ratio7_untied", 4, 1),
            ("ratio7_untied", 2, 3),
        ]
    ),
]
CASE = {case.name: case for case in CASES}


@pytest.fixture(scope="module", params=GROUPS, ids=str)
def bundles(request, tmp_path_factory):
    """The bundle in one graph, and the same checkpoint's divided."""
    name, ranks, stages = request.param
    whole = open_bundle(shared_bundle(tmp_path_factory, SIZES[name]))
    divided = shared_bundle(tmp_path_factory, SIZES[name], tensor_parallel=ranks, pipeline_stages=stages)
    return whole, open_bundle(divided)


@pytest.fixture(scope="module")
def engines(bundles):
    return [open_sessions(bundle, num_slots=SLOTS, capacity=CAPACITY, num_threads=1) for bundle in bundles]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_logits_are_the_wholes_within_rounding_and_tokens_are_equal(bundles, engines, case):
    config = bundles[0].config
    batch = make_batch(case, config)
    embeds = encode(engines[0].vision, batch, config.decoder.hidden_size)
    whole, divided = (batch.valid(engine.decoder.forward(0, batch.prefill(embeds))) for engine in engines)
    assert relative_error(divided, whole) < TOLERANCE
    tokens = [greedy_tokens(engine.decoder, batch, embeds, STEPS) for engine in engines]
    assert np.array_equal(tokens[0], tokens[1])


@pytest.mark.parametrize("chunk", [1, 7])
def test_chunked_prefill_is_the_wholes_within_rounding(bundles, engines, chunk):
    config = bundles[0].config
    batch = make_batch(CASE["image_and_video"], config)
    embeds = encode(engines[0].vision, batch, config.decoder.hidden_size)
    answers = [logits_in_chunks(engine.decoder, batch, embeds, chunk) for engine in engines]
    assert relative_error(answers[1], answers[0]) < TOLERANCE


def test_slots_of_ranks_do_not_share_a_cache(bundles, engines):
    config = bundles[1].config
    require_own_cache(engines[1].decoder, make_batch(CASE["text"], config), config.decoder.hidden_size)


def test_every_rank_has_its_part_of_the_cache_and_writes_no_weight(bundles):
    whole, divided = bundles
    names = [record.name for record in whole.manifest.weights]
    assert [record.name for record in divided.manifest.weights] == names
    for name in names:
        assert (divided.directory / name).read_bytes() == (whole.directory / name).read_bytes()
    heads = whole.config.decoder.num_key_value_heads
    for name in divided.graph_names[1:]:
        graph = onnx.load(divided.graph(name), load_external_data=False).graph
        caches = [value for value in graph.input if value.name.startswith("past_key.")]
        assert {value.type.tensor_type.shape.dim[1].dim_value for value in caches} == {
            max(heads // divided.manifest.tensor_parallel, 1)
        }


def test_a_group_of_another_size_is_refused(bundles):
    with pytest.raises(UserError, match=r"divided among \d ranks, this group has 1"):
        OnnxRuntimeDecoder(bundles[1], SLOTS, CAPACITY, communicator=Alone())


def test_a_rank_that_fails_ends_the_call_with_its_error_and_the_next_call_works(
    bundles, engines, monkeypatch
):
    config, decoder = bundles[1].config, engines[1].decoder
    batch = make_batch(CASE["text"], config)
    nothing = np.zeros((0, config.decoder.hidden_size), np.float32)
    before = decoder.forward(0, batch.prefill(nothing))

    def fails(*_arguments):
        raise RuntimeError("no memory on rank 1")

    with monkeypatch.context() as patch:
        patch.setattr(decoder._decoders[1], "forward", fails)
        with pytest.raises(RuntimeError, match="no memory on rank 1"):
            decoder.forward(0, batch.prefill(nothing))
    assert np.array_equal(decoder.forward(0, batch.prefill(nothing)), before)
