"""The bundle's graphs as anyone else's ONNX tool finds them: the files themselves, with portable function bodies."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from export.contract import decoder_contract, vision_contract
from export.inputs import VisionInputs
from tests.support.bundles import shared_bundle
from tests.support.cases import CASES, Batch, decode_step, make_batch
from tests.support.sessions import encode, relative_error
from validate.reference.sessions import ReferenceDecoder, ReferenceVision

ROUNDING = 1e-5  # of the largest value; measured: 3e-6
CASE = {case.name: case for case in CASES}
CAPACITY = 80


def open_plain(path: Path) -> ort.InferenceSession:
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def run_decoder(session: ort.InferenceSession, inputs: Any, cache: dict[str, np.ndarray]) -> np.ndarray:
    """One call without IO binding: the present comes back as new arrays, which are the next past."""
    outputs = session.run(None, {**vars(inputs), **cache})
    cache.update(zip(cache, outputs[1:], strict=True))
    return outputs[0]


def empty_cache(session: ort.InferenceSession, rows: int) -> dict[str, np.ndarray]:
    past = [value for value in session.get_inputs() if value.name.startswith("past_")]
    return {
        value.name: np.zeros((rows, value.shape[1], CAPACITY, value.shape[3]), np.float32) for value in past
    }


@pytest.fixture(scope="module")
def plain(copied) -> dict[str, ort.InferenceSession]:
    return {name: open_plain(copied.bundle / f"{name}.onnx") for name in ("vision", "decoder")}


@pytest.mark.parametrize("graph", ["vision", "decoder"])
def test_plain_onnxruntime_computes_no_bfloat16_on_a_cpu_as_the_documents_say(graph, tmp_path_factory):
    """If this fails, ONNX Runtime learned it: say so in README, architecture and troubleshooting."""
    bundle = shared_bundle(tmp_path_factory, {"dtype": "bfloat16"})
    with pytest.raises(ort_errors.NotImplemented, match=r"Could not find an implementation for (Gemm|Where)"):
        open_plain(bundle / f"{graph}.onnx")


@pytest.mark.parametrize("graph", ["vision", "decoder"])
def test_the_full_checker_passes_on_the_files_unless_they_are_hard_links(engine, graph):
    path = engine.bundle / f"{graph}.onnx"
    if engine.variant.weights == "copy":
        onnx.checker.check_model(path, full_check=True)
    else:  # onnx sees an attack in a second link: who gives a bundle away copies the weights
        with pytest.raises(onnx.checker.ValidationError, match="multiple hard links"):
            onnx.checker.check_model(path, full_check=True)


@pytest.mark.parametrize("case", ["one_image", "three_images", "video"])
def test_the_vision_graph_gives_the_references_numbers(copied, plain, case):
    batch = make_batch(CASE[case], copied.reference.config)
    longest = int(np.diff(batch.cu_seqlens).max())
    feeds = {
        "patches": batch.patches,
        "positions": batch.positions,
        "cu_seqlens": batch.cu_seqlens,
        "segment_range": np.arange(longest, dtype=np.int32),
    }
    expected = ReferenceVision(copied.reference).encode(
        VisionInputs.of(batch.patches, batch.positions, batch.cu_seqlens)
    )
    assert relative_error(plain["vision"].run(None, feeds)[0], expected) < ROUNDING


@pytest.mark.parametrize("case", ["text", "image_and_video", "ragged_batch"])
def test_the_decoder_graph_gives_the_references_numbers_in_prefill_and_decode(copied, plain, case):
    model = copied.reference
    batch = make_batch(CASE[case], model.config)
    width, rows = model.config.decoder.hidden_size, len(batch.prompts)
    embeds = encode(ReferenceVision(model), batch, width)
    reference, cache = ReferenceDecoder(model, rows, CAPACITY), empty_cache(plain["decoder"], rows)
    inputs = batch.prefill(embeds)
    logits, expected = run_decoder(plain["decoder"], inputs, cache), reference.forward(0, inputs)
    assert relative_error(batch.valid(logits), batch.valid(expected)) < ROUNDING
    for step in range(3):
        tokens = np.arange(rows) + step
        inputs = decode_step(tokens, batch.lengths + step, batch.deltas, width)
        assert (
            relative_error(run_decoder(plain["decoder"], inputs, cache), reference.forward(0, inputs))
            < ROUNDING
        )


def test_portable_bodies_take_a_ragged_chunk_after_a_filled_cache_in_one_call(copied, plain):
    model = copied.reference
    batch = make_batch(CASE["ragged_batch"], model.config)
    embeds = encode(ReferenceVision(model), batch, model.config.decoder.hidden_size)
    reference, cache = ReferenceDecoder(model, 4, CAPACITY), empty_cache(plain["decoder"], 4)
    starts = np.zeros(4, np.int64)
    for stops in (np.array([3, 7, 5, 2]), batch.lengths):
        inputs = batch.piece(embeds, starts, stops)
        logits, expected = run_decoder(plain["decoder"], inputs, cache), reference.forward(0, inputs)
        for row, length in enumerate(stops - starts):
            assert relative_error(logits[row, :length], expected[row, :length]) < ROUNDING
        starts = stops


def test_inputs_and_outputs_are_the_contracts(copied, plain):
    config = copied.reference.config
    contracts = {"vision": vision_contract(config, "float32"), "decoder": decoder_contract(config, "float32")}
    for name, contract in contracts.items():
        session = plain[name]
        for specs, values in (
            (contract.inputs, session.get_inputs()),
            (contract.outputs, session.get_outputs()),
        ):
            assert [(spec.name, list(spec.shape)) for spec in specs] == [
                (value.name, value.shape) for value in values
            ]


def test_weights_are_in_their_own_files_and_copied_only_when_asked(engine):
    weights = [path.stat() for path in engine.bundle.glob("*.safetensors")]
    assert len(weights) == (engine.variant.shape.shards or 1)
    assert {stat.st_nlink for stat in weights} == {1 if engine.variant.weights == "copy" else 2}
    graphs = [engine.bundle / f"{name}.onnx" for name in ("vision", "decoder")]
    assert sum(path.stat().st_size for path in graphs) < sum(stat.st_size for stat in weights) / 4


def test_packed_pictures_and_one_by_one_agree_in_the_portable_body(copied, plain):
    batch = make_batch(CASE["three_images"], copied.reference.config)
    prompt = batch.prompts[0]
    longest = np.arange(60, dtype=np.int32)
    ends = np.cumsum([height * width for _, height, width in prompt.grids])
    alone = []
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        feeds = {
            "patches": prompt.patches[start:end],
            "positions": Batch([prompt]).positions[:, start:end],
            "cu_seqlens": np.array([0, end - start], np.int32),
            "segment_range": longest,
        }
        alone.append(plain["vision"].run(None, feeds)[0])
    feeds = {
        "patches": batch.patches,
        "positions": batch.positions,
        "cu_seqlens": batch.cu_seqlens,
        "segment_range": longest,
    }
    assert relative_error(plain["vision"].run(None, feeds)[0], np.concatenate(alone)) < ROUNDING
