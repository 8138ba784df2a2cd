"""The small bundle that tests write."""

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
from safetensors.numpy import save_file

from export.bundle import Bundle, open_bundle, place_weights, writing_bundle
from export.records.manifest import FileRecord, Manifest, Source, content_key

CONFIG = Path(__file__).parents[2] / "models" / "qwen2-vl-tiny" / "config.json"


def make_weights(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    save_file(
        {
            "a.weight": rng.normal(size=(64, 33)).astype(np.float32),
            "b.weight": rng.normal(size=(5000,)).astype(ml_dtypes.bfloat16),
            "c.bias": np.zeros((0, 4), np.float32),
        },
        path,
    )
    return path


def graph_bytes(words: bytes) -> bytes:
    """A serialized ONNX graph that says `words` and nothing else."""
    model = onnx.ModelProto(ir_version=10, doc_string=words.decode())
    model.graph.output.add(name="y")
    return model.SerializeToString()


def fill(
    directory: Path,
    weights: list[FileRecord],
    graph: bytes = b"vision graph",
    mode: str = "copy",
    key: str | None = None,
) -> Manifest:
    (directory / "vision.onnx").write_bytes(graph_bytes(graph))
    (directory / "decoder.onnx").write_bytes(graph_bytes(b"decoder graph"))
    (directory / "config.json").write_bytes(CONFIG.read_bytes())
    manifest = Manifest(
        qv_export_version="0.1.0",
        created="2026-01-01T00:00:00+00:00",
        tools={"onnx": "1.23.2"},
        source=Source("checkpoint", "0" * 64),
        dtype="float32",
        weights_mode=mode,
        graphs={role: FileRecord.from_file(directory / f"{role}.onnx") for role in ("vision", "decoder")},
        weights=tuple(weights),
        files=(FileRecord.from_file(directory / "config.json"),),
        key=key or content_key({"vision": graph.decode()}),
    )
    manifest.write(directory)
    return manifest


def write_bundle(
    output: Path, weights: Path, graph: bytes = b"vision graph", key: str | None = None
) -> Bundle:
    with writing_bundle(output) as directory:
        fill(directory, place_weights([weights], directory, "copy"), graph, key=key)
    return open_bundle(output)
