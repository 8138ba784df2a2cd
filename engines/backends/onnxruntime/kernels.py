"""Which products ONNX Runtime computes with codes, by what it writes down of one small call."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.backends.onnxruntime.session import create_session, new_cache
from export.bundle import Bundle
from export.contract import GraphName, is_cache_name

_BY_CODES = {"MatMulNBits", "MatMulIntegerToFloat", "GatherBlockQuantized", "DynamicQuantizeMatMul"}
_CAPACITY = 8
_RAN = "_kernel_time"
_LOOKED_UP = (
    "/codes"  # a look-up of int8 rows is several nodes, which `quantized.fit_quantized` names after the first
)


def kernels_by_codes(bundle: Bundle, graph: GraphName) -> set[str]:
    """Names of the graph's nodes for which a kernel ran that reads codes.

    Raises:
        EngineError: ONNX Runtime refuses the graph.
    """
    with tempfile.TemporaryDirectory() as directory:
        session, _weights = create_session(
            bundle, graph, 1, may_pack=graph == "vision", profile=Path(directory) / "ran"
        )
        session.run(None, _smallest_feeds(bundle, graph))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    ran = {
        event["name"].removesuffix(_RAN): event["args"]["op_name"]
        for event in events
        if event.get("name", "").endswith(_RAN)
    }
    return {
        name.removesuffix(_LOOKED_UP)
        for name, op in ran.items()
        if op in _BY_CODES or (op == "Gather" and name.endswith(_LOOKED_UP))
    }


def _smallest_feeds(bundle: Bundle, graph: GraphName) -> dict[str, npt.NDArray[Any]]:
    """One group of patches, or one token into an empty cache."""
    num_patches = bundle.config.vision.patches_per_token
    sizes = {"P": num_patches, "M": num_patches, "N + 1": 2, "V": 0, "B": 1, "S": 1, "Q": 1, "L": _CAPACITY}
    feeds = {
        spec.name: new_cache(spec, sizes["B"], _CAPACITY)
        if is_cache_name(spec.name)
        else np.zeros([dim if isinstance(dim, int) else sizes[dim] for dim in spec.shape], spec.dtype)
        for spec in bundle.contract(graph, "float32").inputs
    }
    values = {
        "cu_seqlens": [0, num_patches],
        "segment_range": np.arange(num_patches),
        "kv_lengths": [1],
    }
    for name in values.keys() & feeds.keys():
        feeds[name][...] = values[name]
    return feeds
