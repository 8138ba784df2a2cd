"""What goes into a bundle's graphs and what comes out: names, shapes and dtypes, declared once.

ONNX inputs, engine profiles, the validator's feeds and the Triton configuration all read this. No torch.

Letters: P patches, N segments, M longest segment, V visual tokens, B batch, S query tokens, L KV capacity in tokens,
Q query tokens to project. Numbers come from the model's configuration.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from export.checkpoint.config import DecoderConfig, ModelConfig
from export.models.configuration import KV_CACHE_DTYPES

GraphName = str
"""`vision`, and `decoder`; or `decoder.0`, `decoder.1` ... for a decoder that is cut into stages.

Of a decoder that is divided among ranks, each with its rank: `decoder.rank0`, `decoder.0.rank1`.
"""

Dim = int | str
"""A fixed size, or the letter of a dynamic one."""


LOGITS = "logits"


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
            *_cache_specs(decoder, dtype, PAST),
        ),
        outputs=(
            TensorSpec(LOGITS, "float32", ("B", "Q", decoder.vocab_size), "one row for each asked token"),
            *_cache_specs(decoder, dtype, PRESENT),
        ),
    )


def _cache_specs(decoder: DecoderConfig, dtype: str, time: str) -> Iterator[TensorSpec]:
    """Keys and values of each layer; in 8 bits with a scale for each token and KV head."""
    rows = ("B", decoder.num_key_value_heads, "L")
    codes = KV_CACHE_DTYPES[decoder.kv_cache] if decoder.kv_cache else dtype
    for layer in range(decoder.num_hidden_layers):
        for part in cache_parts(decoder):
            doc = f"cached {part.replace('_', ' ')}s of layer {layer}"
            yield TensorSpec(
                cache_name(time, part, layer),
                "float32" if part in SCALE_PARTS else codes,
                (*rows, 1 if part in SCALE_PARTS else decoder.head_dim),
                doc if time == PAST else f"the same memory as {cache_name(PAST, part, layer)}",
            )


def graph_contract(
    name: GraphName, config: ModelConfig, dtype: str, stages: "Sequence[DecoderStage]" = ()
) -> GraphContract:
    """What the graph of a name takes and gives.

    Args:
        name: "vision", "decoder", or a stage's.
        config: the model's sizes; a rank's, of a decoder that is divided among ranks.
        dtype: what it computes in.
        stages: of a decoder that is cut or divided.
    """
    if name == "vision":
        return vision_contract(config, dtype)
    stage = next((stage for stage in stages if stage.graph == name), None)
    return decoder_contract(config, dtype) if stage is None else stage_contract(config, dtype, stage)


@dataclass(frozen=True)
class DecoderStage:
    """Neighbouring layers of the decoder that are one graph: all of them, unless the decoder is cut."""

    graph: GraphName
    layers: range
    is_first: bool
    """Embeds the tokens, too."""
    is_last: bool
    """Projects onto the vocabulary, too."""

    @property
    def border(self) -> str:
        """Name of what it takes from the stage before: [B, S, C]."""
        return border_name(self.layers.start)

    @property
    def next_border(self) -> str:
        """Name of what it gives to the stage after: [B, S, C]."""
        return border_name(self.layers.stop)


BORDER_PREFIX = "hidden."


def border_name(layer: int) -> str:
    """Name of the hidden state that goes into a layer where the decoder is cut before it, e.g. `hidden.14`."""
    return f"{BORDER_PREFIX}{layer}"


_RANK = ".rank"


def decoder_stages(layers: Sequence[int], rank: int | None = None) -> tuple[DecoderStage, ...]:
    """The stages of a decoder.

    Args:
        layers: how many each has, in order.
        rank: whose, of a tensor-parallel group; None: the decoder is not divided among ranks.
    """
    of_rank = "" if rank is None else f"{_RANK}{rank}"
    borders = [0, *accumulate(layers)]
    return tuple(
        DecoderStage(
            ("decoder" if len(layers) == 1 else f"decoder.{i}") + of_rank,
            range(start, stop),
            is_first=i == 0,
            is_last=i == len(layers) - 1,
        )
        for i, (start, stop) in enumerate(pairwise(borders))
    )


def rank_of(graph: GraphName) -> int | None:
    """Whose graph it is, of a tensor-parallel group; None: of an undivided decoder, or the vision encoder."""
    _, _, rank = graph.partition(_RANK)
    return int(rank) if rank else None


_EMBEDDED = ("token_ids", "visual_embeds")
_EVERYWHERE = ("position_ids", "write_index", "kv_lengths")


def stage_contract(config: ModelConfig, dtype: str, stage: DecoderStage) -> GraphContract:
    """One stage's part of `decoder_contract`: the caches of its layers, and hidden states at its borders."""
    whole = decoder_contract(config, dtype)
    caches = {
        cache_name(time, part, i)
        for time in (PAST, PRESENT)
        for part in cache_parts(config.decoder)
        for i in stage.layers
    }

    def is_taken(spec: TensorSpec) -> bool:
        if is_cache_name(spec.name):
            return spec.name in caches
        if spec.name in _EVERYWHERE:
            return True
        return stage.is_first if spec.name in _EMBEDDED else stage.is_last

    def hidden(name: str, doc: str) -> TensorSpec:
        return TensorSpec(name, dtype, ("B", "S", config.decoder.hidden_size), doc)

    before = () if stage.is_first else (hidden(stage.border, "the stage before gave it"),)
    after = () if stage.is_last else (hidden(stage.next_border, "for the stage after"),)
    return GraphContract(
        inputs=(*before, *filter(is_taken, whole.inputs)), outputs=(*after, *filter(is_taken, whole.outputs))
    )


NUM_CANDIDATES = 256
"""Of a row's likeliest tokens that an engine gives. Part of what a seed means: a draw goes through them first."""


MAX_ASKED = 64
"""Ids of a row whose logits an engine is asked for: enough for every bias that people set by hand."""


def candidates_contract(config: ModelConfig) -> GraphContract:
    """What a decoder gives beside its logits where those are far from the host: enough to choose from most of the time.

    No exported graph holds it. A backend adds it when it opens a graph or builds an engine
    (`engines.backends.candidates`), so that every bundle has it and nobody else pays for it. Letters as above, and A
    ids that are asked for.
    """
    num_candidates = min(NUM_CANDIDATES, config.decoder.vocab_size)
    return GraphContract(
        inputs=(TensorSpec("asked_ids", "int64", ("B", "A"), "tokens whose logits are wanted too"),),
        outputs=(
            TensorSpec("top_logits", "float32", ("B", "Q", num_candidates), "the largest first"),
            TensorSpec("top_ids", "int64", ("B", "Q", num_candidates), "their tokens"),
            TensorSpec("log_sum_exp", "float32", ("B", "Q"), "over the whole vocabulary"),
            TensorSpec("asked_logits", "float32", ("B", "Q", "A"), "of the asked tokens"),
        ),
    )


def with_candidates(contract: GraphContract, config: ModelConfig) -> GraphContract:
    """What a decoder's graph, or its last stage, takes and gives once candidates were added to it."""
    more = candidates_contract(config)
    return GraphContract((*contract.inputs, *more.inputs), (*contract.outputs, *more.outputs))


CACHE_PARTS = ("key", "value")
SCALE_PARTS = ("key_scale", "value_scale")


def cache_parts(decoder: DecoderConfig) -> tuple[str, ...]:
    """What the cache of a layer consists of."""
    return (*CACHE_PARTS, *SCALE_PARTS) if decoder.kv_cache else CACHE_PARTS


PAST, PRESENT = "past", "present"


def cache_name(time: str, part: str, layer: int) -> str:
    """Name of a cache tensor, e.g. `past_key.3`; `time` is PAST for the input, PRESENT for the output."""
    return f"{time}_{part}.{layer}"


def is_cache_name(name: str, *times: str) -> bool:
    """True for the name of a cache tensor of one of those times; without any, of either."""
    return name.startswith(
        tuple(f"{time}_{part}." for time in times or (PAST, PRESENT) for part in (*CACHE_PARTS, *SCALE_PARTS))
    )


def present_of(past: str) -> str:
    """Name of the output that is the same memory as a cache input."""
    return PRESENT + past.removeprefix(PAST)
