"""The quantized layers of a checkpoint as its tool stored them: found among its tensors, checked by their headers."""

from collections.abc import Mapping
from dataclasses import dataclass

from export.errors import UserError
from export.quantization.layouts import awq, compressed, gptq
from export.quantization.linear import Precision, QuantizedLinear
from export.quantization.scheme import LayerScheme, Scheme
from export.weights.safetensors_file import StoredTensor
from export.weights.values import read_values

_LAYOUTS = {"awq": awq, "gptq": gptq, "compressed": compressed}
CODE_SUFFIXES = (".qweight", ".weight_packed")
"""Of names that no weight in floating point has."""

_FLOATS = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class PackedLinear:
    """One quantized layer in the layout of the tool that made it."""

    name: str
    """Published, of its weight: `model.layers.0.mlp.up_proj.weight`."""
    shape: tuple[int, int]
    """[N, K]."""
    scheme: LayerScheme
    parts: Mapping[str, StoredTensor]
    """By the layout's names, such as `qweight`."""

    @property
    def precision(self) -> Precision:
        return "fp8" if self.scheme.kind == "float" else "int4" if self.scheme.bits == 4 else "int8"

    def read(self) -> QuantizedLinear:
        """Its values.

        Raises:
            UserError: values that contradict the configuration.
            OSError: the file cannot be read.
        """
        values = {part: read_values(stored) for part, stored in self.parts.items()}
        try:
            linear: QuantizedLinear = _LAYOUTS[self.scheme.layout].linear_from_parts(
                values, self.scheme, self.shape
            )
        except UserError as error:
            module = self.name.removesuffix(".weight")
            raise UserError(
                f"{module} cannot be read: {error} Start from the unquantized checkpoint."
            ) from None
        return linear


def take_packed(
    found: dict[str, StoredTensor], shapes: Mapping[str, tuple[int, ...]], scheme: Scheme, problems: list[str]
) -> dict[str, PackedLinear]:
    """Take the tensors of quantized layers out of `found`.

    Args:
        found: every stored tensor by its published name.
        shapes: what each weight of the model must be.
        scheme: how the checkpoint says that it is quantized.
        problems: told of layers whose tensors do not fit, or that the lists of the configuration leave out.

    Returns:
        By the published name of the weight.
    """
    taken: dict[str, PackedLinear] = {}
    for module, parts in _modules(found, scheme).items():
        name = f"{module}.weight"
        shape = shapes.get(name)
        if shape is None or len(shape) != 2:
            continue  # what is not part of the model is told with the rest
        for part in parts:
            del found[f"{module}.{part}"]
        stored_module = next(iter(parts.values())).name.rpartition(".")[0]
        layer = scheme.of(module, stored_module)
        if layer is None:
            problems.append(
                f"{module}: stored quantized, although quantization_config leaves it out: correct its list of names"
            )
            continue
        wrong = _part_problems(parts, layer, (shape[0], shape[1]))
        problems += [f"{module}.{problem}" for problem in wrong]
        taken[name] = PackedLinear(name, (shape[0], shape[1]), layer, parts)
        _take_zero_bias(found, f"{module}.bias", shapes, problems)
    return taken


def _modules(found: Mapping[str, StoredTensor], scheme: Scheme) -> dict[str, dict[str, StoredTensor]]:
    """Tensors of quantized layers by module and part; a weight in floating point beside nothing else is none."""
    names = {part for group in scheme.groups for part in _LAYOUTS[group.scheme.layout].PARTS}
    modules: dict[str, dict[str, StoredTensor]] = {}
    for name, tensor in found.items():
        module, _, part = name.rpartition(".")
        if part in names:
            modules.setdefault(module, {})[part] = tensor
    return {
        module: parts
        for module, parts in modules.items()
        if parts.keys() != {"weight"} or parts["weight"].dtype not in _FLOATS
    }


def _part_problems(
    parts: Mapping[str, StoredTensor], scheme: LayerScheme, shape: tuple[int, int]
) -> list[str]:
    num_inputs = shape[1]
    group_size = scheme.group_size or num_inputs
    if num_inputs % group_size:
        return [f"weight: groups of {group_size} do not divide its {num_inputs} inputs, which is not read"]
    expected = _LAYOUTS[scheme.layout].expected_parts(scheme, shape, num_inputs // group_size)
    problems = [f"{part}: not part of {scheme}" for part in parts if part not in expected]
    for part, what in expected.items():
        if part in parts:
            problem = what.problem(parts[part].dtype, parts[part].shape)
            problems += [f"{part}: {problem}"] if problem else []
        elif not what.is_optional:
            problems.append(f"{part}: missing, expected shape {list(what.shape)}")
    return problems


def _take_zero_bias(
    found: dict[str, StoredTensor], name: str, shapes: Mapping[str, tuple[int, ...]], problems: list[str]
) -> None:
    """Tools store a bias for layers that have none: of zeros it changes nothing."""
    if name in shapes or name not in found:
        return
    stored = found.pop(name)
    if stored.dtype not in _FLOATS or read_values(stored).any():
        problems.append(f"{name}: not part of Qwen2-VL, and not all zero (in {stored.path.name})")
