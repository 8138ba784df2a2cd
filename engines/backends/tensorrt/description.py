"""TensorRT's own description of the layers that it built.

Read from its network and profiles: a CPU deserializes no engine, so nothing can be read from the engine itself there.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

from engines.backends.facts import Implementation, LayerFacts, ShapeRange, TensorFacts
from engines.backends.tensorrt.api import ILayer, INetworkDefinition, ITensor, Named
from plugins.registry import CACHED_ATTENTION, COLLECTIVES, PATCH_ATTENTION, SIGNATURES

_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "FP8": "float8_e4m3fn",
    "INT4": "int4",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}
_OPS = tuple(signature.name for signature in (*SIGNATURES, *COLLECTIVES))
_SOURCE = re.compile(r"^\[ONNX Layer: (.*)\]$")
_CALL = re.compile(r"^(?P<node>.*) \(\w+\)$")
_PLACE = re.compile(rf"^(?P<call>.*?/(?P<op>{'|'.join(_OPS)})[^/]*)(?:/.*)?$")

_PLUGIN_LAYERS = {"PLUGIN", "PLUGIN_V2", "PLUGIN_V3"}
_NATIVE_LAYERS = {
    "ATTENTION_INPUT",
    "ATTENTION_OUTPUT",
    "DIST_COLLECTIVE",
    "KV_CACHE_UPDATE",
    "ROTARY_EMBEDDING",
}
_ATTENTIONS = {PATCH_ATTENTION.name, CACHED_ATTENTION.name}


def describe_tensors(
    network: INetworkDefinition, shapes: Mapping[str, tuple[ShapeRange, ...]]
) -> tuple[tuple[TensorFacts, ...], tuple[TensorFacts, ...]]:
    """Inputs and outputs of an `INetworkDefinition`; `shapes` holds the profiles of its dynamic inputs."""
    inputs = (network.get_input(i) for i in range(network.num_inputs))
    outputs = (network.get_output(i) for i in range(network.num_outputs))
    return (
        tuple(_tensor(tensor, shapes.get(tensor.name, ())) for tensor in inputs),
        tuple(_tensor(tensor, ()) for tensor in outputs),
    )


def _tensor(tensor: ITensor, profiles: tuple[ShapeRange, ...]) -> TensorFacts:
    return TensorFacts(tensor.name, dtype_name(tensor.dtype), tuple(tensor.shape), profiles)


def dtype_name(dtype: Named) -> str:
    """A `DataType` by the contract's name; TensorRT's own where the contract has none."""
    return _DTYPES.get(dtype.name, dtype.name)


def describe_layers(network: INetworkDefinition) -> tuple[LayerFacts, ...]:
    """Every layer of an `INetworkDefinition`, with the ONNX node it came from."""
    return tuple(_layer(network.get_layer(i)) for i in range(network.num_layers))


def _layer(layer: ILayer) -> LayerFacts:
    node, op = source_of(layer.metadata or "")
    dtype = dtype_name(layer.get_output(0).dtype) if layer.num_outputs else ""
    return LayerFacts(layer.name, layer.type.name, dtype, node, op)


def source_of(metadata: str) -> tuple[str, str]:
    """Node in the main graph and op of ours, from the parser's metadata of a layer.

    That is `[ONNX Layer: /blocks.0/attn/QvRotary/cos]` for a node of a body that was put in the place of its call
    (`plugins.onnx.inline`), and `[ONNX Layer: /blocks.0/attn/QvRotary]` where a plugin took that place. In a function
    that the parser itself expands, the node is followed by the calls around it, the outermost last:
    `[ONNX Layer: node_of_cos | /blocks.0/attn/QvRotary (QvRotary)]`.
    """
    found = _SOURCE.match(metadata)
    if not found:
        return "", ""
    *_, outermost = found[1].split(" | ")
    call = _CALL.match(outermost)
    node = call["node"] if call else outermost
    place = _PLACE.match(node)
    return (place["call"], place["op"]) if place else (node, "")


def ops_of(layers: Sequence[LayerFacts], *, is_decomposed: bool = False) -> Mapping[str, Implementation]:
    """Who computes each op: a plugin, TensorRT's native layer for the purpose, or plain layers.

    Args:
        layers: the network's, before TensorRT expands any.
        is_decomposed: its attention has no fused kernel, whatever layers stand for it.
    """
    types = defaultdict(set)
    for layer in layers:
        if layer.op:
            types[layer.op].add(layer.type)
    return {
        op: _implementation(kinds, is_decomposed=is_decomposed and op in _ATTENTIONS)
        for op, kinds in sorted(types.items())
    }


def _implementation(types: set[str], *, is_decomposed: bool) -> Implementation:
    if types & _PLUGIN_LAYERS:
        return "plugin"
    return "native" if types & _NATIVE_LAYERS and not is_decomposed else "decomposed"
