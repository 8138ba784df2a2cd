import pytest

from engines.backends.tensorrt.description import source_of


@pytest.mark.parametrize(
    ("metadata", "node", "op"),
    [
        ("[ONNX Layer: /blocks.0/attn/QvRotary/cos]", "/blocks.0/attn/QvRotary", "QvRotary"),
        (
            "[ONNX Layer: node_of_cos | /blocks.0/attn/QvRotary (QvRotary)]",
            "/blocks.0/attn/QvRotary",
            "QvRotary",
        ),
        (
            "[ONNX Layer: /blocks.0/attn/QvPatchAttention]",
            "/blocks.0/attn/QvPatchAttention",
            "QvPatchAttention",
        ),
        (
            "[ONNX Layer: /layers.1/self_attn/QvCachedAttention_1/end]",
            "/layers.1/self_attn/QvCachedAttention_1",
            "QvCachedAttention",
        ),
        ("[ONNX Layer: /layers.0/mlp/node_linear]", "/layers.0/mlp/node_linear", ""),
        ("", "", ""),
    ],
)
def test_a_layer_is_traced_to_the_node_and_the_op_that_it_came_from(metadata, node, op):
    assert source_of(metadata) == (node, op)
