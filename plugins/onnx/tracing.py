"""A call of one of our ops becomes one node of the exported graph."""

from collections.abc import Sequence

import torch

from plugins.registry import OP_DOMAIN, OpSignature


def symbolic_call(
    signature: OpSignature, inputs: Sequence[torch.Tensor], like: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """Emit one `qv::<name>` node while `torch.export` traces; its outputs have the shapes and dtypes of `like`."""
    assert len(inputs) == len(signature.inputs)
    assert len(like) == len(signature.outputs)
    outputs = torch.onnx.ops.symbolic_multi_out(
        f"{OP_DOMAIN}::{signature.name}",
        list(inputs),
        attrs=dict(signature.attributes),
        dtypes=[tensor.dtype for tensor in like],
        shapes=[tensor.shape for tensor in like],
        version=1,
    )
    return list(outputs)
