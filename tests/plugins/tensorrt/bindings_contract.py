"""Our plugins in NVIDIA's own bindings. Runs in its own process, beside the link stubs; prints JSON.

NVIDIA's Python templates (`tensorrt.plugin._plugin_class`) call the plugin as the builder would. The builder's
symbolic dimensions cannot be made without the builder, so `Dim` computes with numbers in their place.
"""

import json
import sys
from types import SimpleNamespace
from typing import Any

import tensorrt_bindings

sys.modules["tensorrt"] = tensorrt_bindings

import tensorrt as trt  # noqa: E402
import tensorrt.plugin._plugin_class as plugin_class  # noqa: E402
import tensorrt.plugin._tensor as plugin_tensor  # noqa: E402

from plugins.registry import PLUGIN_ATTRIBUTES, PLUGIN_SIGNATURES, SIGNATURES  # noqa: E402
from plugins.tensorrt import register as tensorrt_plugins  # noqa: E402

OPERATIONS = {
    trt.DimensionOperation.SUM: lambda a, b: a + b,
    trt.DimensionOperation.SUB: lambda a, b: a - b,
    trt.DimensionOperation.PROD: lambda a, b: a * b,
    trt.DimensionOperation.FLOOR_DIV: lambda a, b: a // b,
    trt.DimensionOperation.CEIL_DIV: lambda a, b: -(-a // b),
}


class Dim(trt.IDimensionExpr):  # type: ignore[misc]
    """A dimension with a value; the class has no constructor outside the builder."""

    value: int

    @classmethod
    def of(cls, value: int) -> "Dim":
        dim = cls.__new__(cls)
        dim.value = value
        return dim


class Builder:
    """`IExprBuilder` over numbers."""

    def constant(self, value: int) -> Dim:
        return Dim.of(value)

    def operation(self, operation: Any, a: Dim, b: Dim) -> Dim:
        return Dim.of(OPERATIONS[operation](a.value, b.value))


class Exprs(list[Any]):
    """Stands in for `DimsExprs`, which takes the builder's own dimensions only."""

    def __init__(self, length: int) -> None:
        super().__init__([None] * length)


class Setter(dict[int, Any]):
    """Receives the kernel's scalars."""

    nbSymExprs = 0  # noqa: N815  (NVIDIA's name)


plugin_class.trt.DimsExprs = Exprs
plugin_tensor.SymExprImpl = lambda expression: SimpleNamespace(
    value=expression._expr.value, is_int32=isinstance(expression, plugin_tensor.SymInt32)
)


def describe(type_: Any, shape: tuple[int, ...], dynamic: tuple[int, ...]) -> Any:
    """One tensor as the builder describes it: dimensions that vary are -1."""
    description = trt.DynamicPluginTensorDesc()
    description.desc.dims = trt.Dims(tuple(-1 if i in dynamic else size for i, size in enumerate(shape)))
    description.desc.type = type_
    description.desc.format = trt.TensorFormat.LINEAR
    return description


def call_as_builder(name: str, request: dict[str, Any]) -> dict[str, Any]:
    """Create the plugin as the ONNX parser does and go through the builder's calls in order."""
    space, version = str(PLUGIN_ATTRIBUTES["plugin_namespace"]), str(PLUGIN_ATTRIBUTES["plugin_version"])
    creator = trt.get_plugin_registry().get_creator(name, version, space)
    plugin = creator.create_plugin(
        name,
        space,
        trt.PluginFieldCollection([]),
        trt.TensorRTPhase.BUILD,
        trt.QuickPluginCreationRequest.STRICT_AOT,
    )
    types = [getattr(trt.DataType, type_) for type_ in request["types"]]
    shapes = [tuple(shape) for shape in request["shapes"]]
    output_types = plugin.get_output_data_types(types, [len(shape) for shape in shapes])
    output_shapes = plugin.get_output_shapes(
        [[Dim.of(size) for size in shape] for shape in shapes], [], Builder()
    )
    sizes = [tuple(dim.value for dim in shape) for shape in output_shapes]
    # Unless told: the first axis of q, k, v and of the outputs is dynamic, and every axis of the other inputs.
    every = [*shapes, *sizes]
    dynamic = request.get("dynamic") or [[0] if len(shape) == 3 else range(len(shape)) for shape in every]
    described = [
        describe(type_, shape, tuple(axes))
        for type_, shape, axes in zip([*types, *output_types], every, dynamic, strict=True)
    ]
    offered = plugin.get_supported_format_combinations(described, len(shapes))
    plugin.configure_plugin(described[: len(shapes)], described[len(shapes) :])
    tactics = plugin.get_valid_tactics()
    return {
        "output_types": [type_.name for type_ in output_types],
        "output_shapes": sizes,
        "combinations": len(offered) // len(described),
        "tactics": {tactic: launch_of(plugin, tactic, described, len(shapes)) for tactic in sorted(tactics)},
    }


def launch_of(plugin: Any, tactic: int, described: list[Any], num_inputs: int) -> dict[str, Any]:
    plugin.set_tactic(tactic)
    launch, scalars = SimpleNamespace(), Setter()
    plugin.get_launch_params([], described, num_inputs, launch, scalars, Builder())
    name, ptx = plugin.get_kernel(
        [description.desc for description in described[:num_inputs]],
        [description.desc for description in described[num_inputs:]],
    )
    return {
        "kernel": name,
        "ptx": ptx.decode(),
        "launch": {key: expression.value for key, expression in vars(launch).items()},
        "scalars": [scalars[i].value for i in range(scalars.nbSymExprs)],
        "scalars_are_int32": all(scalars[i].is_int32 for i in range(scalars.nbSymExprs)),
    }


def main(requests: list[dict[str, Any]]) -> dict[str, Any]:
    tensorrt_plugins.register_plugins(90, "13.0")
    tensorrt_plugins.register_plugins(90, "13.0")  # a second call of one target changes nothing
    try:
        tensorrt_plugins.register_plugins(80, "13.0")
    except RuntimeError as error:
        refusal = str(error)
    registry = trt.get_plugin_registry()
    return {
        "version": trt.__version__,
        "refusal": refusal,
        "registered": [
            signature.name
            for signature in (*SIGNATURES, *PLUGIN_SIGNATURES)
            if registry.get_creator(signature.name, "1", "qv") is not None
        ],
        "calls": [call_as_builder(request["name"], request) for request in requests],
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(json.loads(sys.argv[1]))))
