"""What is handed to ONNX Runtime on a GPU: a kernel for every operator, in its dtype, and the meaning of the graph."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from engines.backends.candidates import add_candidates
from engines.backends.onnxruntime.session import open_sessions
from engines.backends.onnxruntime_cuda.graph import load_graph
from engines.backends.onnxruntime_cuda.kernels import uncovered
from engines.session import EngineError
from export.bundle import Bundle, open_bundle
from export.exporter import export_checkpoint
from export.inputs import DecoderInputs, VisionInputs

TINY = Path(__file__).parents[4] / "models" / "qwen2-vl-tiny"


@pytest.fixture(scope="module", params=["float32", "float16", "bfloat16"])
def bundle(request, tmp_path_factory) -> Bundle:
    output = tmp_path_factory.mktemp(request.param) / "bundle"
    export_checkpoint(TINY, output, dtype=request.param)
    return open_bundle(output)


@pytest.mark.parametrize("name", ["vision", "decoder"])
def test_every_operator_has_a_cuda_kernel_in_its_dtype(bundle, name):
    model = load_graph(bundle.graph(name), bundle.config, bundle.manifest.dtype)
    if name == "decoder":
        add_candidates(model, bundle.config)
    assert not uncovered(model)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)


def test_without_its_detour_a_bfloat16_decoder_would_pad_on_the_host(bundle):
    if bundle.manifest.dtype != "bfloat16":
        pytest.skip("the kernel lacks bfloat16 alone")
    model = onnx.load(bundle.graph("decoder"), load_external_data=False)
    assert uncovered(model)[0].endswith("of bfloat16")


def test_an_operator_without_a_kernel_is_refused_by_name(bundle, tmp_path):
    model = onnx.load(bundle.graph("vision"), load_external_data=False)
    model.graph.node.append(onnx.helper.make_node("NonZero", ["positions"], ["found"], name="n"))
    onnx.save(model, tmp_path / "vision.onnx")
    with pytest.raises(EngineError, match="no CUDA kernel for NonZero"):
        load_graph(tmp_path / "vision.onnx", bundle.config, bundle.manifest.dtype)


def test_the_float32_graphs_mean_on_the_cpu_what_the_cpu_backend_computes(tmp_path):
    """The bodies of the other dtypes are these with casts, and `GroupQueryAttention`, which its own test compares."""
    export_checkpoint(TINY, tmp_path / "bundle", dtype="float32")
    bundle = open_bundle(tmp_path / "bundle")
    random = np.random.default_rng(0)
    vision, decoder = open_sessions(bundle, num_slots=1, capacity=32, num_threads=1)
    patches = random.normal(0, 1, (24, bundle.config.vision.patch_values)).astype(np.float32)
    call = VisionInputs.of(
        patches, random.integers(0, 6, (2, 24)).astype(np.int32), np.array([0, 8, 24], np.int32)
    )
    (embeds,) = _session(bundle, "vision").run(["visual_embeds"], vars(call))
    np.testing.assert_allclose(embeds, vision.encode(call), atol=2e-4)
    ids = np.array([[5, 9, bundle.config.image_token_id, 17, 3]])
    places = np.tile(np.arange(5, dtype=np.int32), (3, 1, 1))
    feeds = DecoderInputs(ids, embeds[:1], places, np.zeros(1, np.int64), np.array([5]), np.arange(5)[None])
    dims, layers = bundle.config.decoder, range(bundle.config.decoder.num_hidden_layers)
    empty = np.zeros((1, dims.num_key_value_heads, 32, dims.head_dim), np.float32)
    caches = {f"past_{part}.{layer}": empty for layer in layers for part in ("key", "value")}
    asked = {"asked_ids": np.array([[7, 0, -1]])}
    names = ["logits", "top_logits", "top_ids", "log_sum_exp", "asked_logits"]
    found = _session(bundle, "decoder").run(names, {**vars(feeds), **caches, **asked})
    logits = found[0]
    np.testing.assert_allclose(logits, decoder.forward(0, feeds), atol=1e-3)
    np.testing.assert_array_equal(found[1], -np.sort(-logits, axis=-1)[..., : found[1].shape[-1]])
    np.testing.assert_array_equal(np.take_along_axis(logits, found[2], axis=-1), found[1])
    wide = logits.astype(np.float64)
    top = wide.max(axis=-1)
    expected = top + np.log(np.exp(wide - top[..., None]).sum(axis=-1))
    np.testing.assert_allclose(found[3], expected, atol=3e-6)
    np.testing.assert_array_equal(found[4][..., :2], logits[..., [7, 0]])


def _session(bundle: Bundle, name: str) -> ort.InferenceSession:
    model = load_graph(bundle.graph(name), bundle.config, "float32")
    if name == "decoder":
        add_candidates(model, bundle.config)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(bundle.directory)
    )
    return ort.InferenceSession(model.SerializeToString(), options)
