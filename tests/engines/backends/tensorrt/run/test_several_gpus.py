"""On two GPUs or more: a decoder in stages, each on a GPU of its own, against the same decoder on the CPU.

    pytest -m multi_gpu

builds the engines for the GPUs that are there and takes a minute or two with the small random checkpoint.
"""

import shutil

import numpy as np
import pytest

from engines.backends import backend_of
from engines.backends.onnxruntime.session import open_sessions as open_onnxruntime
from engines.backends.tensorrt.library import TENSORRT_TARGETS
from engines.gpus import gpu_facts
from engines.open import open_engine
from engines.sizing.limits import Limits
from engines.store.build import build_engine_directory
from engines.store.cache import EngineRequest
from export.bundle import open_bundle
from tests.support.bundles import shared_bundle
from tests.support.cases import CASES, make_batch
from tests.support.sessions import encode, greedy_tokens, relative_error

SLOTS, CAPACITY, STEPS = 4, 512, 16
TOLERANCE = 5e-2
"""Of the largest value: bfloat16 on the GPUs, float32 on the CPU."""


@pytest.mark.multi_gpu
@pytest.mark.tensorrt
@pytest.mark.parametrize("target", TENSORRT_TARGETS)
def test_stages_on_gpus_of_their_own_give_the_tokens_of_the_cpu(tmp_path_factory, tmp_path, target):
    gpus, backend = gpu_facts(), backend_of(target)
    if missing := backend.missing():
        pytest.skip(missing)
    if not all(backend.serves(gpu.sm) for gpu in gpus):
        pytest.skip(f"{target} builds no engine for one of {', '.join(gpu.name for gpu in gpus)}")
    sizes = {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 4}
    source = shared_bundle(
        tmp_path_factory, {"dtype": "bfloat16", **sizes}, pipeline_stages=min(len(gpus), 4)
    )
    bundle = open_bundle(shutil.copytree(source, tmp_path / "bundle"))
    limits = Limits(max_patches=1024, max_segments=16, max_batch=SLOTS, max_context=CAPACITY)
    request = EngineRequest(backend, limits, backend.architectures((), lambda: gpus))
    built = build_engine_directory(bundle, request, gpus, 1, lambda *_: None)
    ours = open_engine(bundle, built.record.key, num_slots=SLOTS, capacity=CAPACITY)
    expected = open_onnxruntime(bundle, num_slots=SLOTS, capacity=CAPACITY)
    for case in CASES:
        batch = make_batch(case, bundle.config)
        embeds = encode(expected.vision, batch, bundle.config.decoder.hidden_size)
        prefill = batch.prefill(embeds)
        want = batch.valid(expected.decoder.forward(0, prefill))
        assert relative_error(batch.valid(ours.decoder.forward(0, prefill)), want) < TOLERANCE, case.name
        # In groups of rows or all together, on these GPUs: the same tokens.
        together = greedy_tokens(ours.decoder, batch, embeds, STEPS)
        for row, prompt in enumerate(batch.prompts):
            alone = type(batch)([prompt])
            own = encode(expected.vision, alone, bundle.config.decoder.hidden_size)
            assert np.array_equal(greedy_tokens(ours.decoder, alone, own, STEPS)[0], together[row]), case.name
