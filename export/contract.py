"""What goes into the two graphs and what comes out: names, shapes and dtypes, declared once.

ONNX inputs, engine profiles, the validator's feeds and the Triton configuration all read this. No torch.

Letters: P patches, N segments, M longest segment, V visual tokens, B batch, S query tokens, L KV capacity in tokens,
Q query tokens to project. Numbers come from the model's configuration.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from export.checkpoint.config import ModelConfig

GraphName = Literal["vision", "decoder"]
GRAPH_NAMES: tuple[GraphName, ...] = get_args(GraphName)

Dim = int | str
"""A fixed size, or the letter of a dynamic one."""


@dataclass(frozen=True)
class TensorSpec:
    """One graph input or output."""

    name: str
    dtype: str
    shape: tuple[Dim, ...]
    doc: str


@dataclass(frozen=True)
class GraphContract:
    """Inputs and outputs of a graph, in order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def input(self, name: str) -> TensorSpec:
        return next(spec for spec in self.inputs if spec.name == name)


def vision_contract(config: ModelConfig, dtype: str) -> GraphContract:
    """The vision encoder's: any number of pictures and videos, packed in one row of patches."""
    vision = config.vision
    return GraphContract(
        inputs=(
            TensorSpec(
                "patches", dtype, ("P", vision.patch_values), "pixel values in the checkpoint's flatten order"
            ),
            TensorSpec("positions", "int32", (2, "P"), "row and column of each patch, in merge order"),
            TensorSpec(
                "cu_seqlens", "int32", ("N + 1",), "patch offsets of segments; attention never crosses one"
            ),
            TensorSpec(
                "segment_range", "int32", ("M",), "0 .. M-1, M the longest segment: carries M as a shape"
            ),
        ),
        outputs=(
            TensorSpec(
                "visual_embeds", dtype, ("V", vision.hidden_size), "merged tokens, ready for the decoder"
            ),
        ),
    )


def decoder_contract(config: ModelConfig, dtype: str) -> GraphContract:
    """The decoder's: prefill (S = n) and decode (S = 1) alike; the cache is updated in place."""
    decoder = config.decoder
    cache = ("B", decoder.num_key_value_heads, "L", decoder.head_dim)
    layers = range(decoder.num_hidden_layers)
    return GraphContract(
        inputs=(
            TensorSpec(
                "token_ids", "int64", ("B", "S"), "text tokens; image and video pads where visual tokens go"
            ),
            TensorSpec(
                "visual_embeds", dtype, ("V", decoder.hidden_size), "one row for each pad; may be empty"
            ),
            TensorSpec("position_ids", "int32", (3, "B", "S"), "temporal, height, width"),
            TensorSpec("write_index", "int64", ("B",), "where this call's keys go in the cache"),
            TensorSpec("kv_lengths", "int64", ("B",), "valid cache length after this call, at least 1"),
            TensorSpec("logits_index", "int64", ("B", "Q"), "which query tokens to project"),
            *(
                TensorSpec(cache_name("past", part, i), dtype, cache, f"cached {part}s of layer {i}")
                for i in layers
                for part in CACHE_PARTS
            ),
        ),
        outputs=(
            TensorSpec("logits", "float32", ("B", "Q", decoder.vocab_size), "one row for each asked token"),
            *(
                TensorSpec(
                    cache_name("present", part, i), dtype, cache, f"the same memory as past_{part}.{i}"
                )
                for i in layers
                for part in CACHE_PARTS
            ),
        ),
    )


CACHE_PARTS = ("key", "value")


def cache_name(time: str, part: str, layer: int) -> str:
    """Name of a cache tensor, e.g. `past_key.3`; `time` is "past" for the input, "present" for the output."""
    return f"{time}_{part}.{layer}"
