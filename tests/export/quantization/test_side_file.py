import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from export.errors import UserError
from export.quantization.side_file import stored_linears, write_quantized
from export.weights.safetensors_file import read_safetensors_header
from tests.support.quantized import random_linear

LINEARS = {
    "a.int4.weight": random_linear("int4"),
    "b.int4_asymmetric_ordered.weight": random_linear("int4", asymmetric=True, ordered=False),
    "c.int4_odd.weight": random_linear("int4", (7, 9), 3),
    "d.int8_row.weight": random_linear("int8", num_blocks=1, activations="per_token"),
    "e.int8_group.weight": random_linear("int8", asymmetric=True),
    "f.fp8_static.weight": random_linear("fp8", num_blocks=1, activations=0.25),
    "g.fp8_token.weight": random_linear("fp8", num_blocks=1, activations="per_token"),
}
SHAPES = {name: linear.shape for name, linear in LINEARS.items()}


@pytest.fixture
def path(tmp_path):
    write_quantized(tmp_path / "quantized.safetensors", LINEARS, LINEARS.__getitem__)
    return tmp_path / "quantized.safetensors"


def test_every_kind_is_read_back_as_it_was(path):
    stored = stored_linears(read_safetensors_header(path), SHAPES)
    assert stored.keys() == LINEARS.keys()
    for name, linear in LINEARS.items():
        if name.startswith("e."):
            linear = linear.in_planes()  # no consumer multiplies by 8-bit codes in blocks
        read = stored[name].read()
        assert (read.precision, read.block, read.activations) == (
            linear.precision,
            linear.block,
            linear.activations,
        )
        for part in ("codes", "scales", "zeros", "order"):
            np.testing.assert_array_equal(
                getattr(read, part), getattr(linear, part), err_msg=f"{name} {part}"
            )
        np.testing.assert_array_equal(read.dequantized(), linear.dequantized())


def test_the_header_alone_says_what_each_is(path):
    stored = stored_linears(read_safetensors_header(path), SHAPES)
    facts = {
        name.partition(".")[0]: (layer.precision, layer.block, layer.is_symmetric, layer.activations)
        for name, layer in stored.items()
    }
    assert facts == {
        "a": ("int4", 16, True, None),
        "b": ("int4", 16, False, None),
        "c": ("int4", 3, True, None),
        "d": ("int8", 64, True, "per_token"),
        "e": ("int4", 16, False, None),
        "f": ("fp8", 64, True, "static"),
        "g": ("fp8", 64, True, "per_token"),
    }


def test_an_order_that_leaves_an_input_out_is_refused(path, tmp_path):
    with safe_open(path, framework="pt") as file:
        parts = {name: file.get_tensor(name) for name in file.keys() if name.startswith("b.")}  # noqa: SIM118
    parts["b.int4_asymmetric_ordered.weight.order"][0] = 7
    save_file(parts, tmp_path / "wrong.safetensors")
    stored = stored_linears(read_safetensors_header(tmp_path / "wrong.safetensors"), SHAPES)
    with pytest.raises(UserError, match="must hold every input once"):
        stored["b.int4_asymmetric_ordered.weight"].read()


def test_the_safetensors_package_reads_the_file_too(path):
    with safe_open(path, framework="np") as file:
        np.testing.assert_array_equal(
            file.get_tensor("d.int8_row.weight.codes"), LINEARS["d.int8_row.weight"].codes.T
        )
        assert file.get_tensor("a.int4.weight.codes").shape == (64, 12)


@pytest.mark.parametrize(
    ("scales", "expected"),
    [
        ([1.0, 0.5], "bfloat16"),
        ([1.0, 1 + 2**-10], "float16"),
        ([1.0, 1 + 2**-20], "float32"),
        ([1e30, 1 + 2**-10], "float32"),
        ([1e30, 2.0**99], "float32"),
    ],
)
def test_scales_lie_in_the_narrowest_dtype_that_holds_them(tmp_path, scales, expected):
    linear = random_linear("int8", (2, 4), 1)
    linear.scales[:] = np.array(scales, np.float32)[:, None]
    write_quantized(tmp_path / "one.safetensors", ["one.weight"], lambda _: linear)
    stored = stored_linears(read_safetensors_header(tmp_path / "one.safetensors"), {"one.weight": (2, 4)})
    assert stored["one.weight"].parts["scales"].dtype == expected
    np.testing.assert_array_equal(stored["one.weight"].read().scales, linear.scales)


def test_one_layer_at_a_time_is_asked_for(tmp_path):
    alive: list[str] = []

    def linear_of(name):
        alive.append(name)
        return LINEARS[name]

    write_quantized(tmp_path / "q.safetensors", LINEARS, linear_of)
    assert alive == list(LINEARS)


def test_parts_that_are_not_those_of_the_model_are_listed_at_once(path):
    shapes = {**SHAPES, "a.int4.weight": (24, 72), "d.int8_row.weight": (24, 65)}
    del shapes["f.fp8_static.weight"]
    with pytest.raises(UserError) as caught:
        stored_linears(read_safetensors_header(path), shapes)
    message = str(caught.value)
    assert "a.int4.weight.codes: uint8 [64, 12], expected uint8 [72, 12]" in message
    assert "d.int8_row.weight.codes: int8 [64, 24], expected uint8 [65, 12] or int8 [65, 24]" in message
    assert "f.fp8_static.weight.scales: part of no quantized layer" in message


def test_a_missing_part_and_blocks_that_do_not_divide_are_named(path):
    tensors = [tensor for tensor in read_safetensors_header(path) if tensor.name != "a.int4.weight.scales"]
    with pytest.raises(UserError) as caught:
        stored_linears(tensors, {**SHAPES, "e.int8_group.weight": (24, 66)})
    assert "a.int4.weight.scales: missing" in str(caught.value)
    assert "e.int8_group.weight.scales: 8 blocks do not divide 66 inputs" in str(caught.value)
