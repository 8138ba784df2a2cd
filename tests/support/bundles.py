"""Exported random checkpoints that tests share, each written once a run, whichever worker asks first."""

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from examples.random_checkpoint import write_checkpoint
from export.bundle import WeightsMode
from export.exporter import export_checkpoint
from export.models.configuration import KvCachePrecision
from export.quantization.make import Part

HEAD_RATIOS: Mapping[str, Mapping[str, Any]] = {
    "ratio6_tied": {
        "hidden_size": 192,
        "num_attention_heads": 6,
        "num_key_value_heads": 1,
        "num_hidden_layers": 3,
        "tie_word_embeddings": True,
    },
    "ratio7_untied": {
        "hidden_size": 448,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "num_hidden_layers": 4,
        "tie_word_embeddings": False,
    },
}
"""Checkpoints, as `write_checkpoint` takes them, with so many query heads for one of keys, and the head tied or not."""


def shared_bundle(
    tmp_path_factory: pytest.TempPathFactory,
    checkpoint: Mapping[str, Any],
    *,
    dtype: str | None = None,
    weights: WeightsMode = "copy",
    quantize: Mapping[Part, str] | None = None,
    kv_cache: KvCachePrecision | None = None,
    pipeline_stages: int = 1,
    tensor_parallel: int = 1,
) -> Path:
    """The bundle of a random checkpoint, which lies beside it as `checkpoint`. Read it; copy it to change it.

    Args:
        tmp_path_factory: pytest's; its root is one for all workers of a run.
        checkpoint: arguments of `write_checkpoint`.
        dtype, weights, quantize, kv_cache, pipeline_stages, tensor_parallel: of `export_checkpoint`.
    """
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    divided = [pipeline_stages, tensor_parallel]
    options = [dtype, weights, dict(quantize or {}), kv_cache, *divided, dict(checkpoint)]
    asked = json.dumps(options, sort_keys=True)
    directory = root / f"shared-bundle-{hashlib.sha256(asked.encode()).hexdigest()[:16]}"
    directory.mkdir(exist_ok=True)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (directory / "bundle").exists():  # an export is whole or not there
            source = write_checkpoint(directory / "checkpoint", **checkpoint)
            export_checkpoint(
                source,
                directory / "bundle",
                dtype=dtype,
                weights=weights,
                quantize=quantize,
                kv_cache=kv_cache,
                pipeline_stages=pipeline_stages,
                tensor_parallel=tensor_parallel,
            )
    return directory / "bundle"
