"""Which functions make a canonical graph one that TensorRT-RTX compiles to its native layers?"""

from collections.abc import Iterable

import onnx

from plugins.cached_attention import onnx_functions as cached_attention
from plugins.onnx import native_layers
from plugins.patch_attention import onnx_functions as patch_attention
from plugins.registry import CACHED_ATTENTION, OP_DOMAIN, PATCH_ATTENTION, ROTARY
from plugins.rotary import onnx_functions as rotary


def choose_bodies(model: onnx.ModelProto, *, is_decomposable: bool = False) -> None:
    """Replace the bodies of our ops in place; nodes, weights, inputs and outputs stay.

    The model still passes the checker, and ONNX Runtime computes the same with it, slowly.

    Args:
        model: a canonical graph, vision or decoder.
        is_decomposable: see the ops' bodies; for float32, which has no fused attention.

    Raises:
        ValueError: the graph has both attentions: its native ones would need two functions of one name.
    """
    kept = [function for function in model.functions if function.domain != OP_DOMAIN]
    names = {function.name for function in model.functions if function.domain == OP_DOMAIN}
    chosen = list(_functions(names, is_decomposable=is_decomposable))
    del model.functions[:]
    model.functions.extend([*kept, *chosen])


def _functions(names: set[str], *, is_decomposable: bool) -> Iterable[onnx.FunctionProto]:
    attentions = {PATCH_ATTENTION.name, CACHED_ATTENTION.name}
    if attentions <= names:
        raise ValueError(f"expected a vision or a decoder graph, found {sorted(attentions)} in one")
    if ROTARY.name in names:
        yield rotary.tensorrt_rtx()
    if PATCH_ATTENTION.name in names:
        yield patch_attention.tensorrt_rtx(is_decomposable=is_decomposable)
        yield native_layers.native_attention(is_causal=False)
    if CACHED_ATTENTION.name in names:
        yield cached_attention.tensorrt_rtx(is_decomposable=is_decomposable)
        yield native_layers.native_attention(is_causal=True)
        yield native_layers.kv_cache_update()
