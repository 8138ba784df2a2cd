"""Which values inside a graph stand for which values inside the reference, and how does ONNX Runtime show them?

A tap is found by scope: the canonical graphs name a node after the module that it comes from
(`/layers.3/self_attn/q_proj/...`), so a module's output is what the last node of its scope gives.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

from engines.backends.onnxruntime.graph import load_graph, raised_weights
from engines.session import DecoderInputs
from export.bundle import open_bundle
from export.config import ModelConfig, load_config
from export.contract import CACHE_PARTS, cache_name
from export.processor.positions import segment_range

GraphName = Literal["vision", "decoder"]
Values = dict[str, npt.NDArray[Any]]

_MOVES_ONLY = {"Reshape", "Squeeze", "Unsqueeze", "Cast", "CastLike", "Identity", "Transpose"}
"""Ops that compute nothing: a wrong value that they give was made by the op before them."""


@dataclass(frozen=True)
class Tap:
    """One value in both worlds."""

    scope: str
    """Block and module in the graph, e.g. `layers.3/self_attn/q_proj`."""
    reference: str
    """Key of `Oracle`'s taps, e.g. `model.layers.3.self_attn.q_proj:out`."""
    value: str
    """Name of the graph's value."""
    node: str
    """The node that computes it."""
    op_type: str


class TapSession(Protocol):
    """An engine that shows what it computes on the way."""

    def vision(self, feeds: Sequence[npt.NDArray[Any]], taps: Sequence[Tap]) -> Values:
        """Values [P or V, C] by `Tap.value`, for patches, positions and cu_seqlens."""
        ...

    def decoder(self, calls: Sequence[DecoderInputs], taps: Sequence[Tap]) -> Values:
        """Values [tokens, C] of one slot's calls in a row, joined; `present_*` as the last call leaves them."""
        ...


class GraphTaps:
    """Looks up taps in a canonical graph."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._nodes = list(graph.node)
        self._producers = {name: node for node in graph.node for name in node.output}
        self._constants = {initializer.name for initializer in graph.initializer}
        for node in graph.node:  # in topological order: what is made of constants alone is constant
            if all(name in self._constants for name in node.input):
                self._constants.update(node.output)

    def output(self, scope: str, reference: str) -> Tap:
        """What a module gives: the last value of its scope."""
        node = [node for node in self._nodes if node.name.startswith(f"/{scope}/")][-1]
        return self._tap(scope, f"{reference}:out", node.output[0])

    def input(self, scope: str, reference: str, label: str) -> Tap:
        """What a module takes: a value that functions between modules made, such as attention or a residual sum."""
        nodes = [node for node in self._nodes if node.name.startswith(f"/{scope}/")]
        node = next(node for node in nodes if node.input and node.input[0] not in self._constants)
        return self._tap(label, f"{reference}:in", node.input[0])

    def op(self, scope: str, op_type: str, output: int, reference: str) -> Tap:
        """What one of our ops gives."""
        node = next(n for n in self._nodes if n.op_type == op_type and n.name.startswith(f"/{scope}/"))
        return self._tap(scope, reference, node.output[output])

    def _tap(self, scope: str, reference: str, value: str) -> Tap:
        node = self._producers[value]
        while node.op_type in _MOVES_ONLY and node.input[0] in self._producers:
            node = self._producers[node.input[0]]
        return Tap(scope, reference, value, node.name, node.op_type)


def boundary_taps(graph: onnx.GraphProto, name: GraphName, config: ModelConfig) -> list[Tap]:
    """The graph's pieces in order: embedding, blocks or layers, head."""
    taps = GraphTaps(graph)
    if name == "vision":
        blocks = [taps.output(f"blocks.{i}", f"visual.blocks.{i}") for i in range(config.vision.depth)]
        return [
            taps.output("patch_embed", "visual.patch_embed"),
            *blocks,
            taps.output("merger", "visual.merger"),
        ]
    layers = range(config.decoder.num_hidden_layers)
    return [
        taps.input("layers.0/input_layernorm", "model.layers.0.input_layernorm", "embed"),
        *(taps.output(f"layers.{i}", f"model.layers.{i}") for i in layers),
        taps.output("project", "lm_head"),
    ]


def inner_taps(graph: onnx.GraphProto, block: str) -> list[Tap]:
    """The modules and ops of one piece, in the order in which they run."""
    taps = GraphTaps(graph)
    match block.partition(".")[0]:
        case "blocks":
            return _vision_block_taps(taps, block)
        case "layers":
            return _decoder_layer_taps(taps, block)
        case "merger":
            return [
                taps.output(f"merger/{part}", f"visual.merger.{part.replace('/', '.')}")
                for part in ("ln_q", "mlp/0", "mlp/1", "mlp/2")
            ]
        case "project":
            return [
                taps.output("project/model/norm", "model.norm"),
                taps.output("project/lm_head", "lm_head"),
            ]
        case _:
            return []


def _vision_block_taps(taps: GraphTaps, block: str) -> list[Tap]:
    module = f"visual.{block}"
    return [
        taps.output(f"{block}/norm1", f"{module}.norm1"),
        taps.output(f"{block}/attn/qkv", f"{module}.attn.qkv"),
        taps.op(f"{block}/attn", "QvRotary", 0, f"{module}:rotated_q"),
        taps.op(f"{block}/attn", "QvRotary", 1, f"{module}:rotated_k"),
        taps.op(f"{block}/attn", "QvPatchAttention", 0, f"{module}.attn.proj:in"),
        taps.output(f"{block}/attn/proj", f"{module}.attn.proj"),
        taps.input(f"{block}/norm2", f"{module}.norm2", block),
        taps.output(f"{block}/norm2", f"{module}.norm2"),
        taps.output(f"{block}/mlp/fc1", f"{module}.mlp.fc1"),
        taps.input(f"{block}/mlp/fc2", f"{module}.mlp.fc2", f"{block}/mlp"),
        taps.output(f"{block}/mlp/fc2", f"{module}.mlp.fc2"),
        taps.output(block, module),
    ]


def _decoder_layer_taps(taps: GraphTaps, layer: str) -> list[Tap]:
    module = f"model.{layer}"
    attention = f"{layer}/self_attn"
    projections = [taps.output(f"{attention}/{x}_proj", f"{module}.self_attn.{x}_proj") for x in "qkv"]
    return [
        taps.output(f"{layer}/input_layernorm", f"{module}.input_layernorm"),
        *projections,
        taps.op(attention, "QvRotary", 0, f"{module}:rotated_q"),
        taps.op(attention, "QvRotary", 1, f"{module}:rotated_k"),
        taps.op(attention, "QvCachedAttention", 0, f"{module}.self_attn.o_proj:in"),
        taps.output(f"{attention}/o_proj", f"{module}.self_attn.o_proj"),
        taps.input(f"{layer}/post_attention_layernorm", f"{module}.post_attention_layernorm", layer),
        taps.output(f"{layer}/post_attention_layernorm", f"{module}.post_attention_layernorm"),
        taps.output(f"{layer}/mlp/gate_proj", f"{module}.mlp.gate_proj"),
        taps.output(f"{layer}/mlp/up_proj", f"{module}.mlp.up_proj"),
        taps.input(f"{layer}/mlp/down_proj", f"{module}.mlp.down_proj", f"{layer}/mlp"),
        taps.output(f"{layer}/mlp/down_proj", f"{module}.mlp.down_proj"),
        taps.output(layer, module),
    ]


def cache_rows(cache: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """One slot's keys or values by token: [1, K, L, D] to [L, K * D]."""
    by_token: npt.NDArray[Any] = cache[0].transpose(1, 0, 2)
    return by_token.reshape(len(by_token), -1)


class OnnxRuntimeTaps:
    """A bundle's graphs on ONNX Runtime with any of their values as further outputs: a `TapSession`."""

    def __init__(self, directory: Path) -> None:
        self._bundle = open_bundle(directory)
        self._config = load_config(directory)

    def vision(self, feeds: Sequence[npt.NDArray[Any]], taps: Sequence[Tap]) -> Values:
        """See `TapSession`."""
        names = [tap.value for tap in taps]
        patches, positions, cu_seqlens = feeds
        inputs = {"patches": patches, "positions": positions, "cu_seqlens": cu_seqlens}
        session, _weights = self._open(self._bundle.vision_graph, names)
        values = session.run(list(names), {**inputs, "segment_range": segment_range(cu_seqlens)})
        return {name: value.reshape(len(value), -1) for name, value in zip(names, values, strict=True)}

    def decoder(self, calls: Sequence[DecoderInputs], taps: Sequence[Tap]) -> Values:
        """See `TapSession`. The cache goes in and out by value: this session is for looking, not for speed."""
        decoder, names = self._config.decoder, [tap.value for tap in taps]
        capacity = max(int(call.write_index[0]) + call.token_ids.shape[1] for call in calls) + 1
        parts = [(part, layer) for layer in range(decoder.num_hidden_layers) for part in CACHE_PARTS]
        shape = (1, decoder.num_key_value_heads, capacity, decoder.head_dim)
        cache = {cache_name("past", *part): np.zeros(shape, np.float32) for part in parts}
        present = [cache_name("present", *part) for part in parts]
        joined: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in names}
        session, _weights = self._open(self._bundle.decoder_graph, names)
        for call in calls:
            values = session.run([*names, *present], {**vars(call), **cache})
            cache = dict(zip(cache, values[len(names) :], strict=True))
            for name, value in zip(names, values, strict=False):
                joined[name].append(value.reshape(call.token_ids.shape[1], -1))
        result = {name: np.concatenate(pieces) for name, pieces in joined.items()}
        for name, value in zip(present, cache.values(), strict=True):
            result[name] = cache_rows(value)
        return result

    def _open(self, path: Path, names: Sequence[str]) -> tuple[ort.InferenceSession, list[ort.OrtValue]]:
        """A session, and the weights that it shares with us: they must live as long as it does."""
        model = load_graph(path, self._config)
        known = {output.name for output in model.graph.output}
        model.graph.output.extend(
            onnx.helper.make_empty_tensor_value_info(name) for name in names if name not in known
        )
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(path.parent)
        )
        weights = []
        for name, array in raised_weights(model, path.parent):
            weights.append(ort.OrtValue.ortvalue_from_numpy(array))
            options.add_initializer(name, weights[-1])
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return session, weights


def canonical_graphs(directory: Path) -> Mapping[GraphName, onnx.GraphProto]:
    """Both graphs of a bundle, without their weights."""
    bundle = open_bundle(directory)
    return {
        "vision": onnx.load(bundle.vision_graph, load_external_data=False).graph,
        "decoder": onnx.load(bundle.decoder_graph, load_external_data=False).graph,
    }
