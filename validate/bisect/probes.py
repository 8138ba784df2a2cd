"""The probe points of a graph: which of its values stand for which values inside the reference.

A probe is found by scope: the canonical graphs name a node after the module that it comes from
(`/layers.3/self_attn/q_proj/...`), so a module's output is what the last node of its scope gives.
"""

from collections.abc import Mapping

import onnx

from engines.session import Probe
from export.bundle import Bundle
from export.checkpoint.config import ModelConfig
from export.contract import GraphName

_MOVES_ONLY = {"Reshape", "Squeeze", "Unsqueeze", "Cast", "CastLike", "Identity", "Transpose"}
"""Ops that compute nothing: a wrong value that they give was made by the op before them."""


class GraphProbes:
    """Looks up probes in a canonical graph."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._nodes = list(graph.node)
        self._producers = {name: node for node in graph.node for name in node.output}
        self._constants = {initializer.name for initializer in graph.initializer}
        for node in graph.node:  # in topological order: what is made of constants alone is constant
            if all(name in self._constants for name in node.input):
                self._constants.update(node.output)

    def output(self, scope: str, reference: str) -> Probe:
        """What a module gives: the last value of its scope."""
        node = [node for node in self._nodes if node.name.startswith(f"/{scope}/")][-1]
        return self._probe(scope, f"{reference}:out", node.output[0])

    def input(self, scope: str, reference: str, label: str) -> Probe:
        """What a module takes: a value that functions between modules made, such as attention or a residual sum."""
        nodes = [node for node in self._nodes if node.name.startswith(f"/{scope}/")]
        node = next(node for node in nodes if node.input and node.input[0] not in self._constants)
        return self._probe(label, f"{reference}:in", node.input[0])

    def op(self, scope: str, op_type: str, output: int, reference: str) -> Probe:
        """What one of our ops gives."""
        node = next(n for n in self._nodes if n.op_type == op_type and n.name.startswith(f"/{scope}/"))
        return self._probe(scope, reference, node.output[output])

    def _probe(self, scope: str, reference: str, value: str) -> Probe:
        node = self._producers[value]
        while node.op_type in _MOVES_ONLY and node.input[0] in self._producers:
            node = self._producers[node.input[0]]
        return Probe(scope, reference, value, node.name, node.op_type)


def boundary_probes(graph: onnx.GraphProto, name: GraphName, config: ModelConfig) -> list[Probe]:
    """The graph's pieces in order: embedding, blocks or layers, head."""
    probes = GraphProbes(graph)
    if name == "vision":
        blocks = [probes.output(f"blocks.{i}", f"visual.blocks.{i}") for i in range(config.vision.depth)]
        return [
            probes.output("patch_embed", "visual.patch_embed"),
            *blocks,
            probes.output("merger", "visual.merger"),
        ]
    layers = range(config.decoder.num_hidden_layers)
    return [
        probes.input("layers.0/input_layernorm", "model.layers.0.input_layernorm", "embed"),
        *(probes.output(f"layers.{i}", f"model.layers.{i}") for i in layers),
        probes.output("project", "lm_head"),
    ]


def inner_probes(graph: onnx.GraphProto, block: str) -> list[Probe]:
    """The modules and ops of one piece, in the order in which they run."""
    probes = GraphProbes(graph)
    match block.partition(".")[0]:
        case "blocks":
            return _vision_block_probes(probes, block)
        case "layers":
            return _decoder_layer_probes(probes, block)
        case "merger":
            return [
                probes.output(f"merger/{part}", f"visual.merger.{part.replace('/', '.')}")
                for part in ("ln_q", "mlp/0", "mlp/1", "mlp/2")
            ]
        case "project":
            return [
                probes.output("project/model/norm", "model.norm"),
                probes.output("project/lm_head", "lm_head"),
            ]
        case _:
            return []


def _vision_block_probes(probes: GraphProbes, block: str) -> list[Probe]:
    module = f"visual.{block}"
    return [
        probes.output(f"{block}/norm1", f"{module}.norm1"),
        probes.output(f"{block}/attn/qkv", f"{module}.attn.qkv"),
        probes.op(f"{block}/attn", "QvRotary", 0, f"{module}:rotated_q"),
        probes.op(f"{block}/attn", "QvRotary", 1, f"{module}:rotated_k"),
        probes.op(f"{block}/attn", "QvPatchAttention", 0, f"{module}.attn.proj:in"),
        probes.output(f"{block}/attn/proj", f"{module}.attn.proj"),
        probes.input(f"{block}/norm2", f"{module}.norm2", block),
        probes.output(f"{block}/norm2", f"{module}.norm2"),
        probes.output(f"{block}/mlp/fc1", f"{module}.mlp.fc1"),
        probes.input(f"{block}/mlp/fc2", f"{module}.mlp.fc2", f"{block}/mlp"),
        probes.output(f"{block}/mlp/fc2", f"{module}.mlp.fc2"),
        probes.output(block, module),
    ]


def _decoder_layer_probes(probes: GraphProbes, layer: str) -> list[Probe]:
    module = f"model.{layer}"
    attention = f"{layer}/self_attn"
    projections = [probes.output(f"{attention}/{x}_proj", f"{module}.self_attn.{x}_proj") for x in "qkv"]
    return [
        probes.output(f"{layer}/input_layernorm", f"{module}.input_layernorm"),
        *projections,
        probes.op(attention, "QvRotary", 0, f"{module}:rotated_q"),
        probes.op(attention, "QvRotary", 1, f"{module}:rotated_k"),
        probes.op(attention, "QvCachedAttention", 0, f"{module}.self_attn.o_proj:in"),
        probes.output(f"{attention}/o_proj", f"{module}.self_attn.o_proj"),
        probes.input(f"{layer}/post_attention_layernorm", f"{module}.post_attention_layernorm", layer),
        probes.output(f"{layer}/post_attention_layernorm", f"{module}.post_attention_layernorm"),
        probes.output(f"{layer}/mlp/gate_proj", f"{module}.mlp.gate_proj"),
        probes.output(f"{layer}/mlp/up_proj", f"{module}.mlp.up_proj"),
        probes.input(f"{layer}/mlp/down_proj", f"{module}.mlp.down_proj", f"{layer}/mlp"),
        probes.output(f"{layer}/mlp/down_proj", f"{module}.mlp.down_proj"),
        probes.output(layer, module),
    ]


def canonical_graphs(bundle: Bundle) -> Mapping[GraphName, onnx.GraphProto]:
    """Vision encoder and decoder of a bundle without their weights; the stages of a decoder as one graph again."""
    graphs = {
        name: onnx.load(bundle.graph(name), load_external_data=False).graph for name in bundle.graph_names
    }
    decoder = onnx.GraphProto()
    for stage in bundle.stages:
        decoder.MergeFrom(graphs[stage.graph])
    return {"vision": graphs["vision"], "decoder": decoder}
