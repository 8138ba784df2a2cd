"""Registers our plugins in a process that builds TensorRT engines."""

from plugins.cached_attention import tensorrt_plugin as cached_attention_plugin
from plugins.patch_attention import tensorrt_plugin as patch_attention_plugin
from plugins.rotary import tensorrt_plugin as rotary_plugin

PLUGINS = (rotary_plugin, patch_attention_plugin, cached_attention_plugin)

_registered: list[tuple[int, str]] = []


def register_plugins(compute_capability: int, driver_cuda: str) -> None:
    """Put our plugins into TensorRT's registry, before a graph is parsed.

    Nodes that carry `plugins.registry.PLUGIN_ATTRIBUTES` become these plugins then. Call it only in a process that
    uses the module `tensorrt`: in one that uses TensorRT-RTX, a plugin chosen by the parser aborts the process.

    Args:
        compute_capability: architecture of the engines, x 10, e.g. 90. 80 for engines with hardware compatibility
            level AMPERE_PLUS: PTX for 80 runs on all newer GPUs.
        driver_cuda: the oldest CUDA version whose driver will load the engines, e.g. "13.0".

    Raises:
        ImportError: the module `tensorrt` is not there.
        RuntimeError: another target is registered already; TensorRT keeps a plugin for the life of the process.
    """
    target = (compute_capability, driver_cuda)
    if _registered:
        if _registered[0] != target:
            raise RuntimeError(
                f"plugins are registered for (sm, driver) {_registered[0]} already; build for {target} in a new process"
            )
        return
    for plugin in PLUGINS:
        plugin.register(compute_capability, driver_cuda)
    _registered.append(target)
