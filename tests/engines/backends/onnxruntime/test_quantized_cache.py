"""Bundles whose KV cache is kept in 8 bits, on ONNX Runtime: the reference's numbers, however the cache is used."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from engines.backends import BACKENDS
from engines.backends.base import bundle_costs
from engines.backends.onnxruntime.session import OnnxRuntimeDecoder
from engines.open import choose_engine
from engines.sizing.limits import Limits
from engines.store.build import build_engine_directory
from engines.store.cache import EngineRequest
from engines.store.compatibility import this_machine
from export.bundle import open_bundle
from export.contract import is_cache_name
from export.errors import UserError
from export.exporter import export_checkpoint
from tests.support.bundles import shared_bundle
from tests.support.cases import CASES, SHAPES, decode_step, make_batch
from tests.support.sessions import encode, relative_error
from validate.reference.sessions import ReferenceDecoder, ReferenceVision

NUM_SLOTS, CAPACITY = 5, 224
SHAPE = next(shape for shape in SHAPES if shape.name == "ratio6_dim64")
CASE = {case.name: case for case in CASES}
ROUNDING = 2e-5
TURNED_TIES = {"int8": 5e-3, "fp8": 2e-2}
"""Of the largest logit: a value that lies between two codes may be rounded to either. Measured: 2e-6 and 2e-4."""
PRECISIONS = {"int8": "int8", "fp8": "float8_e4m3fn"}


@pytest.fixture(scope="module", params=PRECISIONS)
def cached(request, tmp_path_factory):
    """An opened bundle, the reference of the same weights, and the precision."""
    from export.models.qwen2_vl.model import load_reference

    directory = shared_bundle(tmp_path_factory, SHAPE.arguments(), kv_cache=request.param)
    return open_bundle(directory), load_reference(directory), request.param


def sessions(cached, case):
    """Both decoders, a batch, and its embeddings."""
    bundle, reference, _ = cached
    batch = make_batch(CASE[case], reference.config)
    embeds = encode(ReferenceVision(reference), batch, reference.config.decoder.hidden_size)
    engine = OnnxRuntimeDecoder(bundle, NUM_SLOTS, CAPACITY)
    return engine, ReferenceDecoder(reference, NUM_SLOTS, CAPACITY), batch, embeds


@pytest.mark.parametrize("case", ["one_image", "ragged_batch"])
def test_prefill_and_decode_give_the_reference_s_logits(cached, case):
    engine, reference, batch, embeds = sessions(cached, case)
    tolerance = TURNED_TIES[cached[2]]
    prefill = batch.prefill(embeds)
    actual, expected = (batch.valid(decoder.forward(1, prefill)) for decoder in (engine, reference))
    assert relative_error(actual, expected) < tolerance
    tokens = np.arange(10, 10 + len(batch.prompts))
    for step in range(3):
        inputs = decode_step(tokens, batch.lengths + step, batch.deltas, embeds.shape[1])
        assert relative_error(engine.forward(1, inputs), reference.forward(1, inputs)) < tolerance


def test_rounding_the_cache_is_seen(cached, tmp_path_factory):
    """A reference without it is further off than any tie."""
    from export.models.qwen2_vl.model import load_reference

    engine, _, batch, embeds = sessions(cached, "one_image")
    plain = load_reference(shared_bundle(tmp_path_factory, SHAPE.arguments()))
    expected = ReferenceDecoder(plain, 1, CAPACITY).forward(0, batch.prefill(embeds))
    assert relative_error(engine.forward(0, batch.prefill(embeds)), expected) > TURNED_TIES[cached[2]]


def test_a_prompt_in_chunks_is_the_whole_prompt(cached):
    engine, _, batch, embeds = sessions(cached, "one_image")
    whole = engine.forward(0, batch.prefill(embeds))
    pieces = [engine.forward(2, piece) for piece in batch.chunks(embeds, 5)]
    assert relative_error(np.concatenate(pieces, axis=1), whole) < TURNED_TIES[cached[2]]


def test_a_slot_that_kept_a_prefix_goes_on_from_it(cached):
    engine, _, batch, embeds = sessions(cached, "text")
    whole = engine.forward(0, batch.prefill(embeds))
    shared = np.array([9])
    engine.forward(3, batch.piece(embeds, np.zeros_like(shared), batch.lengths))
    rest = engine.forward(3, batch.piece(embeds, shared, batch.lengths))
    assert relative_error(rest, whole[:, 9:]) < ROUNDING


def test_the_contract_has_codes_and_a_scale_for_each_token_and_head(cached):
    bundle, reference, precision = cached
    decoder = reference.config.decoder
    caches = [spec for spec in bundle.contract("decoder").inputs if is_cache_name(spec.name)]
    assert [(spec.name, spec.dtype, spec.shape[3]) for spec in caches[:4]] == [
        ("past_key.0", PRECISIONS[precision], decoder.head_dim),
        ("past_value.0", PRECISIONS[precision], decoder.head_dim),
        ("past_key_scale.0", "float32", 1),
        ("past_value_scale.0", "float32", 1),
    ]
    assert bundle.manifest.precision == {"KV cache": f"{precision}, a scale for each token and head"}


def test_a_plan_counts_codes_and_scales(cached):
    bundle, _, _ = cached
    decoder = bundle.config.decoder
    per_token = bundle_costs(BACKENDS["onnxruntime"], bundle)(Limits()).kv_bytes_per_token
    assert per_token == 2 * decoder.num_hidden_layers * decoder.num_key_value_heads * (decoder.head_dim + 4)


@pytest.mark.parametrize("target", ["onnxruntime-cuda", "tensorrt-rtx", "tensorrt"])
def test_targets_that_keep_no_such_cache_refuse_it_by_name(cached, target):
    bundle, _, precision = cached
    backend, sms = BACKENDS[target], (89,) if "tensorrt" in target else ()
    refusal = f"keeps its KV cache in {precision}, which {target} does not: its (attention|layer)"
    with pytest.raises(UserError, match=refusal):
        build_engine_directory(bundle, EngineRequest(backend, Limits(), sms, {}), [], 1, lambda *_: None)
    with pytest.raises(UserError, match=refusal):
        choose_engine(bundle, target, num_slots=1, capacity=8, machine=this_machine())


def test_a_precision_that_there_is_not_is_refused(cached, tmp_path):
    unknown: Any = "int4"
    with pytest.raises(UserError, match="kv_cache 'int4' is none of int8, fp8"):
        export_checkpoint(cached[0].directory.parent / "checkpoint", tmp_path / "bundle", kv_cache=unknown)


@pytest.mark.slow
def test_stages_share_the_layers_of_the_cache(tmp_path_factory):
    directory = shared_bundle(tmp_path_factory, SHAPE.arguments(), kv_cache="int8", pipeline_stages=2)
    whole = open_bundle(shared_bundle(tmp_path_factory, SHAPE.arguments(), kv_cache="int8"))
    batch = make_batch(CASE["text"], whole.config)
    embeds = np.zeros((0, whole.config.decoder.hidden_size), np.float32)
    cut, one = (OnnxRuntimeDecoder(bundle, 1, CAPACITY) for bundle in (open_bundle(directory), whole))
    inputs = replace(batch.prefill(embeds))
    np.testing.assert_array_equal(cut.forward(0, inputs), one.forward(0, inputs))
