import numpy as np
import pytest
import torch
from torch import nn

from export.quantization.simulated import (
    Rounding,
    round_inputs,
    rounded_in_blocks,
    rounded_to,
    rounding_inputs_of_few_bits,
    turning_ties,
)
from tests.support.quantized_forms import FORMS, K, model_with
from tests.support.quantized_sessions import rounded_input, session

X = torch.randn(2, 3, K, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("form", [form for form, linear in FORMS.items() if linear.activations is not None])
def test_the_reference_rounds_as_the_graph_does(form, tmp_path):
    linear = FORMS[form]
    scale = linear.activations if isinstance(linear.activations, float) else None
    x = X.numpy()
    bias = np.zeros(linear.shape[0], np.float32)
    [y] = session(model_with([linear], tmp_path), tmp_path).run(None, {"x": x, "bias": bias})
    expected = rounded_to(X, linear.precision, scale) @ torch.from_numpy(linear.dequantized()).T
    np.testing.assert_allclose(y, expected, atol=3e-6 * float(expected.abs().max()))
    np.testing.assert_allclose(
        rounded_to(X, linear.precision, scale), rounded_input(x, linear), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_a_tie_of_each_token_is_turned_and_nothing_else(precision):
    plain = rounded_to(X, precision, None)
    turned = rounded_to(X, precision, None, turns_a_tie=True)
    assert ((plain != turned).sum(-1) == 1).all()
    # The other code of a value between two: hardly farther from it than the nearest.
    changed = plain != turned
    farther = (X - turned).abs()[changed] / (X - plain).abs()[changed]
    assert (farther >= 1).all()
    assert farther.median() < 1.1


def test_ties_are_turned_only_meanwhile():
    model = nn.ModuleDict({"a": nn.Linear(K, 4)})
    round_inputs(model, {"a.weight": Rounding("int8", "per_token")})
    plain = model["a"](X)
    with turning_ties(model):
        assert not torch.equal(model["a"](X), plain)
    assert torch.equal(model["a"](X), plain)


def test_blocks_are_rounded_by_their_own_largest_value():
    x = torch.tensor([[127.0, 1.4, 1.27, 0.014]])
    torch.testing.assert_close(rounded_in_blocks(x, 2), torch.tensor([[127.0, 1.0, 1.27, 0.01]]))
    assert torch.equal(rounded_in_blocks(torch.zeros(1, 4), 2), torch.zeros(1, 4))


def test_only_named_modules_round_and_blocks_only_meanwhile():
    linears = {"a": nn.Linear(K, 4), "b": nn.Linear(K, 4)}
    model = nn.ModuleDict(linears)
    plain = {name: module(X) for name, module in model.items()}
    with rounding_inputs_of_few_bits(model, {"a.weight": 32}):
        assert not torch.equal(model["a"](X), plain["a"])
        assert torch.equal(model["b"](X), plain["b"])
    assert torch.equal(model["a"](X), plain["a"])
    round_inputs(model, {"b.weight": Rounding("int8", "per_token")})
    assert torch.equal(model["a"](X), plain["a"])
    torch.testing.assert_close(
        model["b"](X),
        nn.functional.linear(rounded_to(X, "int8", None), linears["b"].weight, linears["b"].bias),
    )
