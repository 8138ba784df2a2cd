"""Operations and bytes of a call, beside what PyTorch counts in the reference itself."""

from dataclasses import replace

import pytest

from engines.sizing.work import decode_bytes, prefill_operations, vision_operations
from export.checkpoint.config import load_config
from export.models.sizes import decoder_weights
from tests.support.serve import ROOT


@pytest.fixture(scope="module")
def config():
    return load_config(ROOT / "models" / "qwen2-vl-tiny")


def test_a_prompt_costs_its_weights_for_each_token_and_attention_for_each_pair(config):
    one, two, three = (prefill_operations(config, n) for n in (1, 2, 3))
    pair = 4 * config.decoder.num_attention_heads * config.decoder.head_dim * config.decoder.num_hidden_layers
    assert (three - two) - (two - one) == pair
    assert one == 2 * decoder_weights(config) + pair


def test_products_of_the_vision_encoder_are_those_that_torch_counts(config):
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from export.models.qwen2_vl.vision import VisionEncoder

    patches = 64
    encoder = VisionEncoder(config.vision)
    values = torch.zeros(patches, config.vision.patch_values)
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), counter:
        encoder(
            values,
            torch.zeros(2, patches, dtype=torch.int32),
            torch.tensor([0, patches], dtype=torch.int32),
            torch.arange(patches, dtype=torch.int32),
        )
    attention = 4 * config.vision.embed_dim * config.vision.depth * patches**2
    products = vision_operations(config, [patches]) - attention
    assert counter.get_total_flops() in {products, products + attention}


def test_segments_attend_to_themselves_alone(config):
    together, apart = vision_operations(config, [512]), vision_operations(config, [256, 256])
    assert together - apart == 4 * config.vision.embed_dim * config.vision.depth * (512**2 - 2 * 256**2)


def test_a_step_reads_weights_once_and_the_cache_of_every_slot(config):
    empty, full = decode_bytes(config, 4, 1, 0), decode_bytes(config, 4, 8, 100)
    decoder = config.decoder
    per_token = 2 * decoder.num_hidden_layers * decoder.num_key_value_heads * decoder.head_dim
    assert empty == 4 * decoder_weights(config)
    assert full - empty == 4 * 8 * 100 * per_token
    untied = replace(config, decoder=replace(decoder, tie_word_embeddings=False))
    assert decode_bytes(untied, 4, 1, 0) == empty  # the embedding's table is looked up, not read
