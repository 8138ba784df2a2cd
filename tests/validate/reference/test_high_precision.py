from dataclasses import asdict

import numpy as np
import pytest
import torch

from validate.execution import OpenEngine
from validate.records.metrics import compare_logits, compare_tensors
from validate.records.records import ERRORS, Measurement, loudest
from validate.reference.high_precision import HighPrecisionReference, extended, jittered
from validate.reference.sessions import ReferenceDecoder, ReferenceVision


@pytest.fixture(scope="module")
def high_precision(exported):
    return HighPrecisionReference.from_directory(exported.bundle)


@pytest.fixture(scope="module")
def prompt(exported):
    return exported.plan.cases[0].prompts[0]


def test_one_causal_call_says_what_stepwise_decoding_says(high_precision, prompt, exported):
    """The high_precision never decodes: prompt and continuation in one call must be the same thing."""
    continuation = high_precision.continue_greedily(prompt, 5)
    index = np.arange(len(prompt.token_ids))
    answer = high_precision.answer(prompt, continuation, index, "float32")
    stepwise = OpenEngine(
        ReferenceVision(high_precision.model), ReferenceDecoder(high_precision.model, 1, 100), exported.config
    )
    embeds = stepwise.encode([prompt])
    prefill = stepwise.prefill(0, [prompt], embeds, [index])[0]
    decode = stepwise.decode(0, [prompt], continuation[None])[0]
    assert compare_tensors(prefill, answer.prefill_logits).worst_token_error < 1e-5
    assert compare_tensors(decode, answer.decode_logits).worst_token_error < 1e-5
    greedy = np.concatenate([prefill[-1:], decode])[:-1].argmax(-1)
    assert greedy.tolist() == continuation.tolist()


def test_the_continuation_holds_no_pads_for_pictures(high_precision, prompt, exported):
    weight = high_precision.model.lm_head.weight
    kept = weight[exported.config.image_token_id].clone()
    try:
        weight[exported.config.image_token_id] = 1e3 * weight[high_precision.continue_greedily(prompt, 1)[0]]
        tokens = high_precision.continue_greedily(prompt, 4)
    finally:
        weight[exported.config.image_token_id] = kept
    assert exported.config.image_token_id not in tokens


def test_noise_grows_as_the_dtype_shrinks(high_precision, prompt):
    continuation, index = np.array([5, 6]), np.array([0, len(prompt.token_ids) - 1])
    exact = high_precision.answer(prompt, continuation, index, "float64")
    errors = [
        compare_tensors(
            high_precision.answer(prompt, continuation, index, dtype).visual_embeds, exact.visual_embeds
        ).worst_token_error
        for dtype in ("float32", "float16", "bfloat16")
    ]
    assert 1e-8 < errors[0] < 1e-5
    assert 1e-4 < errors[1] < errors[2] < 0.5


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_another_precision_leaves_the_weights_as_they_were(high_precision, prompt, dtype):
    before = {name: tensor.clone() for name, tensor in high_precision.model.state_dict().items()}
    high_precision.answer(prompt, np.array([5]), np.array([0]), dtype)
    after = high_precision.model.state_dict()
    assert all(after[name].dtype == torch.float32 for name in before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    if high_precision.config.decoder.tie_word_embeddings:
        assert high_precision.model.lm_head.weight is high_precision.model.model.embed_tokens.weight


def test_positions_of_a_continuation_go_on_by_the_delta(prompt):
    longer = extended(prompt, np.array([7, 8, 9]))
    start = len(prompt.token_ids)
    assert prompt.position_delta != 0
    assert (
        longer.position_ids[:, start:].tolist() == [[start + i + prompt.position_delta for i in range(3)]] * 3
    )
    assert longer.token_ids[start:].tolist() == [7, 8, 9]


def test_rotated_queries_and_keys_are_what_the_cache_holds(high_precision, prompt):
    """The rotation is computed again beside the model: here against the keys that the model itself cached."""
    continuation = np.array([3, 4])
    embeds = high_precision.answer(prompt, continuation, np.array([0]), "float32").visual_embeds
    modules = [f"model.layers.1.self_attn.{x}_proj" for x in "qkv"]
    probes = high_precision.decoder_probes(prompt, continuation, embeds, modules, "float32")
    assert np.array_equal(probes["model.layers.1:rotated_k"], probes["present_key.1"])
    assert not np.array_equal(probes["model.layers.1.self_attn.k_proj:out"], probes["present_key.1"])


def test_a_jitter_stays_within_the_dtypes_rounding_and_draws_another_noise(exported):
    prompt = exported.plan.cases[0].prompts[0]
    assert jittered(prompt, "float32", 0) is prompt
    for dtype, half_step in (("float32", 2.0**-24), ("bfloat16", 2.0**-8)):
        changed = jittered(prompt, dtype, 1).patches
        assert changed.dtype == np.float32
        assert (changed != prompt.patches).any()
        # float32 rounds the changed value once more.
        np.testing.assert_allclose(changed, prompt.patches, rtol=half_step + 2.0**-24, atol=0)


def test_the_loudest_draw_counts_error_by_error():
    logits = np.random.default_rng(0).normal(size=(2, 4, 8)).astype(np.float32)
    quiet, loud = (
        Measurement({"decode_logits": compare_logits(logits[0] + error, logits[0])}, (step,))
        for error, step in ((1e-6 * logits[1], 2.0), (1e-3 * logits[1], 1.0))
    )
    both = loudest([quiet, loud])
    assert both.error_by_step == (2.0,)
    assert asdict(both.tensors["decode_logits"]) == {
        **asdict(quiet.tensors["decode_logits"]),
        **{name: getattr(loud.tensors["decode_logits"], name) for name in ERRORS},
    }
