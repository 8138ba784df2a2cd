"""Fits a canonical graph to ONNX Runtime's CUDA provider: bodies by dtype, and detours where it has no kernel.

Types are those of the provider's kernels, as registered in ONNX Runtime 1.31's source (docs/OperatorKernels.md there).
"""

from pathlib import Path

import onnx
from onnx import TensorProto, helper

from engines.backends.onnxruntime.graph import replace_bodies, use_weights_as_stored
from engines.backends.onnxruntime_cuda.kernels import uncovered
from engines.session import EngineError
from export.checkpoint.config import ModelConfig
from export.errors import UserError
from plugins.cached_attention import onnx_functions as cached_attention
from plugins.patch_attention import onnx_functions as patch_attention
from plugins.rotary import onnx_functions as rotary

_WITHOUT_BFLOAT16 = ("Pad",)
"""Operators of the canonical graphs whose CUDA kernel takes float32 and float16, but not bfloat16."""


def load_graph(path: Path, config: ModelConfig, dtype: str) -> onnx.ModelProto:
    """Read a canonical graph without its weights and fit it to ONNX Runtime on a GPU.

    Args:
        path: `vision.onnx` or `decoder.onnx` of a bundle.
        config: of the model.
        dtype: what the graph computes in.

    Raises:
        UserError: weights that are codes, for which there is no path here.
        EngineError: an operator would be computed on the host.
    """
    model = onnx.load(path, load_external_data=False)
    if any(node.op_type == "DequantizeLinear" for node in model.graph.node):
        raise UserError(
            f"{path}: target onnxruntime-cuda computes no quantized weights. Export the checkpoint without --quantize, "
            "or use --target onnxruntime or a TensorRT target."
        )
    choose_bodies(model, config, dtype)
    use_weights_as_stored(model)
    _detour(model)
    _take_float32_patches(model)
    if missing := uncovered(model):
        raise EngineError(f"{path}: ONNX Runtime has no CUDA kernel for {', '.join(missing)}.")
    return model


def choose_bodies(model: onnx.ModelProto, config: ModelConfig, dtype: str) -> None:
    """Replace the functions of our ops by bodies whose kernels the CUDA provider has in a dtype.

    Cached attention: `GroupQueryAttention` has float16 and bfloat16 and no float32, for which standard `Attention`
    with `TensorScatter` is taken. Patch attention: `MultiHeadAttention` has all three; its flash kernel takes head
    sizes that are multiples of 8. Rotary: `RotaryEmbedding` wants sines in the dtype of what it turns, so all is cast
    to float32.
    """
    decoder = config.decoder
    if dtype == "float32":
        attention = cached_attention.portable()
    else:
        attention = cached_attention.onnxruntime_cuda(
            decoder.num_attention_heads, decoder.num_key_value_heads
        )
    replace_bodies(
        model,
        [
            rotary.onnxruntime_cuda(),
            patch_attention.onnxruntime_cuda(config.vision.num_heads, dtype),
            attention,
        ],
    )


def _detour(model: onnx.ModelProto) -> None:
    """Let operators without a bfloat16 kernel compute in float32: they only move values, so nothing is rounded."""
    graph, nodes = model.graph, list[onnx.NodeProto]()
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info)}
    for node in graph.node:
        if node.op_type not in _WITHOUT_BFLOAT16 or types.get(node.output[0]) != TensorProto.BFLOAT16:
            nodes.append(node)
            continue
        # Of `Pad` the values and, where there is one, the constant.
        low = [at for at in (0, 2) if at < len(node.input) and node.input[at]]
        for at in low:
            cast = f"{node.name}/float32_{at}"
            nodes.append(helper.make_node("Cast", [node.input[at]], [cast], name=cast, to=TensorProto.FLOAT))
            node.input[at] = cast
        result, wide = node.output[0], f"{node.name}/float32"
        node.output[0] = wide
        narrow = helper.make_node("Cast", [wide], [result], name=f"{wide}_back", to=TensorProto.BFLOAT16)
        nodes += [node, narrow]
    del graph.node[:]
    graph.node.extend(nodes)


def _take_float32_patches(model: onnx.ModelProto) -> None:
    """Cast patches on the device: the host would take longer to cast them than the bus to carry twice the bytes."""
    for value in model.graph.input:
        element_type = value.type.tensor_type.elem_type
        if value.name == "patches" and element_type != TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
            for node in model.graph.node:
                node.input[:] = ["patches/cast" if name == "patches" else name for name in node.input]
            cast = helper.make_node(
                "Cast", ["patches"], ["patches/cast"], name="patches/cast", to=element_type
            )
            model.graph.node.insert(0, cast)
