"""What the README says of the exported files in a runtime that knows nothing of qv-export."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from tests.support.bundles import shared_bundle

GRAPHS = ("vision", "decoder")


def test_float32_graphs_open_and_run_in_plain_onnx_runtime(tmp_path_factory: pytest.TempPathFactory) -> None:
    bundle = shared_bundle(tmp_path_factory, {"dtype": "float32"})
    sessions = {name: ort.InferenceSession(bundle / f"{name}.onnx") for name in GRAPHS}
    num_patches = 16  # a grid of 4 x 4, in merge order
    index = np.arange(num_patches, dtype=np.int32)
    rows, columns = index // 8 * 2 + index % 4 // 2, index // 4 % 2 * 2 + index % 2
    [embeds] = sessions["vision"].run(
        None,
        {
            "patches": np.random.default_rng(0).standard_normal((num_patches, 1176), dtype=np.float32),
            "positions": np.stack([rows, columns]),
            "cu_seqlens": np.array([0, num_patches], np.int32),
            "segment_range": index,
        },
    )
    assert embeds.shape[0] == num_patches // 4
    assert np.isfinite(embeds).all()


@pytest.mark.parametrize("name", GRAPHS)
def test_bfloat16_graphs_are_beyond_plain_onnx_runtime_on_a_cpu(
    name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """If this fails, ONNX Runtime has learned it: the README and docs/architecture.md may say so."""
    bundle: Path = shared_bundle(tmp_path_factory, {"dtype": "bfloat16"})
    with pytest.raises(Exception, match="NOT_IMPLEMENTED"):
        ort.InferenceSession(bundle / f"{name}.onnx")
