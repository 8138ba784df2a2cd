import copy
from typing import Any

import pytest

from export.errors import UserError
from export.models.section import Section
from export.quantization.read_scheme import read_scheme
from export.quantization.scheme import Scheme
from tests.support.quantized_checkpoints import AWQ_CONFIG, KINDS, compressed_config, gptq_config

W4A16 = KINDS["W4A16"].config


def read(content: Any) -> tuple[Scheme | None, list[str]]:
    problems: list[str] = []
    return read_scheme(Section(content, problems, "quantization_config."), "config.json"), problems


def problem_of(content: Any) -> str:
    """The one problem; every other mistake of the reader would be a second."""
    try:
        _, problems = read(content)
    except UserError as error:
        return str(error)
    assert len(problems) == 1, problems
    return problems[0]


def changed(config: Any, path: str, value: Any) -> dict[str, Any]:
    content = copy.deepcopy(dict(config))
    *parents, key = path.split("/")
    place = content
    for parent in parents:
        place = place[parent]
    place[key] = value
    return content


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_every_layout_is_read_without_a_problem(kind):
    scheme, problems = read(kind.config)
    assert problems == []
    assert str(scheme) == kind.description


def test_nothing_is_no_quantization():
    assert read({}) == (None, [])


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "places in a table"),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "quant_method 'bitsandbytes'"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "blocks of 128 x 128"),
        ({"quant_method": "mxfp4"}, "engines expand it"),
        ({"quant_method": "gguf"}, "llama.cpp"),
        (
            {"quant_method": "someone's"},
            "those of auto-round, awq, compressed-tensors, gptq, intel/auto-round are read",
        ),
        ({"quant_method": ["awq"]}, "quant_method ['awq']"),
        ({"bits": 4}, "quant_method 'unknown'"),
    ],
)
def test_what_is_not_read_is_refused_with_the_way_out(content, part):
    message = problem_of(content)
    assert part in message
    assert "Start from the unquantized checkpoint" in message


@pytest.mark.parametrize(
    ("config", "path", "value", "problem"),
    [
        (AWQ_CONFIG, "version", "gemv", "version is 'gemv'"),
        (AWQ_CONFIG, "version", 4, "version is 4"),
        (AWQ_CONFIG, "bits", 8, "bits is 8: AWQ is read in 4 bits"),
        (AWQ_CONFIG, "zero_point", False, "zero_point is False, not True"),
        (AWQ_CONFIG, "group_size", 0, "group_size must be a positive integer or -1, found 0"),
        (AWQ_CONFIG, "group_size", "128", "found '128'"),
        (AWQ_CONFIG, "modules_to_not_convert", "visual", "must be a list of names"),
        (AWQ_CONFIG, "backend", "exllama", "backend is 'exllama'"),
        (AWQ_CONFIG, "rotation", "hadamard", "rotation: not known to qv-export"),
        (gptq_config(), "bits", 3, "bits is 3: GPTQ is read in 4 and 8 bits"),
        (gptq_config(), "checkpoint_format", "marlin", "checkpoint_format is 'marlin'"),
        (gptq_config(), "is_marlin_format", True, "is_marlin_format is True"),
        (gptq_config(), "pack_dtype", "int16", "pack_dtype is 'int16'"),
        (gptq_config(), "dynamic", {"+:.*": {"bits": 8}}, "dynamic: layers with settings of their own"),
        (gptq_config(), "sym", "yes", "sym must be true or false"),
        (gptq_config(), "lora", {"rank": 4}, "lora: not known to qv-export"),
        (KINDS["auto-round"].config, "backend", "auto_round:awq", "packing_format is 'auto_round:awq'"),
        (KINDS["auto-round"].config, "sym", False, "sym is False"),
        (KINDS["auto-round"].config, "act_bits", 8, "act_bits is 8"),
        (KINDS["auto-round"].config, "extra_config", {"a": {"bits": 8}}, "extra_config: layers with settings"),
        (KINDS["auto-round"].config, "bits", 2, "bits is 2"),
        (W4A16, "format", "nvfp4-pack-quantized", "stored in the format 'nvfp4-pack-quantized'"),
        (W4A16, "config_groups/group_0/weights/num_bits", 3, "3 bits of type 'int' in the format pack-quantized"),
        (W4A16, "config_groups/group_0/weights/strategy", "block", "a scale for each 'block' of int weights"),
        (W4A16, "config_groups/group_0/weights/group_size", None, "group_size must be a positive integer"),
        (W4A16, "config_groups/group_0/weights/dynamic", True, "weights.dynamic is True"),
        (W4A16, "config_groups/group_0/weights/rotate", 1, "weights.rotate: not known"),
        (W4A16, "config_groups/group_0/input_activations", {"num_bits": 8, "strategy": "token", "dynamic": True},
         "inputs rounded beside weights in 4 bits"),
        (W4A16, "config_groups/group_0/output_activations", {"num_bits": 8}, "rounding of outputs"),
        (W4A16, "config_groups/group_0/targets", "Linear", "targets must be a list"),
        (W4A16, "config_groups", {}, "config_groups names no group"),
        (W4A16, "ignore", ["re:("], "'re:(' is no regular expression"),
        (W4A16, "kv_cache_scheme", {"num_bits": 8}, "a quantized cache of keys and values"),
        (W4A16, "transform_config", {"config_groups": {"a": 1}}, "rotations"),
        (W4A16, "sparsity_config", {"format": "sparse-24-bitmask"}, "weights without their zeros"),
        (W4A16, "moe_sparsity_config", {"a": 1}, "moe_sparsity_config"),
        (KINDS["FP8 dynamic"].config, "config_groups/group_0/weights/strategy", "block", "each 'block' of float"),
        (KINDS["FP8 dynamic"].config, "config_groups/group_0/weights/strategy", "group", "each 'group' of float"),
        (KINDS["W8A8"].config, "config_groups/group_0/input_activations/symmetric", False, "symmetric False"),
        (KINDS["W8A8"].config, "config_groups/group_0/input_activations/num_bits", 4, "inputs rounded to 4 bits"),
        (KINDS["W8A8"].config, "config_groups/group_0/input_activations/dynamic", "local", "dynamic 'local'"),
        (KINDS["W8A8"].config, "config_groups/group_0/input_activations/strategy", "group", "by 'group'"),
    ],
)  # fmt: skip
def test_a_setting_that_would_be_read_wrongly_is_refused_by_its_name(config, path, value, problem):
    assert problem in problem_of(changed(config, path, value))


def test_autoawqs_own_names_are_read():
    scheme, problems = read(
        {"quant_method": "awq", "w_bit": 4, "q_group_size": 64, "version": "GEMM", "zero_point": True}
    )
    assert problems == []
    assert str(scheme) == "AWQ: int4 in groups of 64, asymmetric"


def test_a_group_may_have_a_format_of_its_own():
    content = compressed_config("mixed-precision", {"num_bits": 4, "strategy": "group", "group_size": 64})
    content["config_groups"]["group_0"]["format"] = "pack-quantized"
    assert read(content)[1] == []


def test_a_layer_has_the_scheme_of_its_own_name_before_a_pattern_before_all():
    content = compressed_config("int-quantized", {})
    groups = content["config_groups"]
    groups["packed"] = copy.deepcopy(groups["group_0"]) | {"targets": [r"re:.*layers\.1\..*"]}
    groups["packed"]["weights"] |= {"num_bits": 4, "strategy": "group", "group_size": 32}
    groups["packed"]["format"] = "pack-quantized"
    groups["one"] = copy.deepcopy(groups["packed"]) | {"targets": ["model.layers.1.mlp.up_proj"]}
    groups["one"]["weights"] |= {"group_size": 16}
    scheme, problems = read(content)
    assert problems == []
    assert scheme is not None
    sizes = {
        module: layer.group_size
        for module in (
            "model.layers.0.mlp.up_proj",
            "model.layers.1.mlp.down_proj",
            "model.layers.1.mlp.up_proj",
        )
        if (layer := scheme.of(module, module))
    }
    assert list(sizes.values()) == [None, 32, 16]


@pytest.mark.parametrize(
    ("entry", "left_out"),
    [
        ("visual.merger.mlp.0", True),
        ("model.visual.merger.mlp.0", True),
        ("re:.*visual.*", True),
        ("re:visual.*", True),
        ("visual.merger", False),
        ("re:merger.*", False),
        ("model.merger.mlp.0", False),
    ],
)
def test_a_list_names_modules_exactly_or_by_a_pattern(entry, left_out):
    scheme, _ = read(compressed_config("int-quantized", {}) | {"ignore": [entry]})
    assert scheme is not None
    assert (scheme.of("visual.merger.mlp.0", "visual.merger.mlp.0") is None) == left_out
