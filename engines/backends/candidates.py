"""Adds to a decoder's graph what its tokens are chosen from, so that whole logits need not leave the device."""

from collections.abc import Iterator
from typing import Any

import onnx
from onnx import TensorProto, helper

from export.checkpoint.config import ModelConfig
from export.contract import NUM_CANDIDATES, TensorSpec, candidates_contract

_TYPES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}


def add_candidates(model: onnx.ModelProto, config: ModelConfig) -> None:
    """Add the inputs and outputs of `candidates_contract`, computed from `logits`, which stays an output.

    The sum is taken relative to the largest logit, so that it overflows nowhere, and is no number if a logit is none.
    """
    graph, contract = model.graph, candidates_contract(config)
    graph.input.extend(map(_value, contract.inputs))
    graph.output.extend(map(_value, contract.outputs))
    constants = {"k": [min(NUM_CANDIDATES, config.decoder.vocab_size)], "last": [-1], "rows": [1]}
    graph.initializer.extend(
        helper.make_tensor(f"candidates/{name}", TensorProto.INT64, [1], values)
        for name, values in constants.items()
    )
    graph.node.extend(_nodes())


def _nodes() -> Iterator[onnx.NodeProto]:
    def node(op: str, inputs: list[str], outputs: list[str], **attributes: Any) -> onnx.NodeProto:
        return helper.make_node(op, inputs, outputs, name=f"/candidates/{outputs[0]}", **attributes)

    def own(name: str) -> str:
        return f"candidates/{name}"

    yield node("TopK", ["logits", own("k")], ["top_logits", "top_ids"], axis=-1, largest=1, sorted=1)
    yield node("ReduceMax", ["logits", own("last")], [own("largest")], keepdims=1)
    yield node("Sub", ["logits", own("largest")], [own("below")])
    yield node("Exp", [own("below")], [own("weights")])
    yield node("ReduceSum", [own("weights"), own("last")], [own("sum")], keepdims=1)
    yield node("Log", [own("sum")], [own("log_sum")])
    yield node("Add", [own("largest"), own("log_sum")], [own("log_sum_exp")])
    yield node("Squeeze", [own("log_sum_exp"), own("last")], ["log_sum_exp"])
    # [B, A] ids to [B, Q, A]: the same for every asked row.
    yield node("Shape", ["logits"], [own("batch_and_rows")], start=0, end=2)
    yield node("Shape", ["asked_ids"], [own("num_asked")], start=1, end=2)
    yield node("Concat", [own("batch_and_rows"), own("num_asked")], [own("asked_shape")], axis=0)
    yield node("Unsqueeze", ["asked_ids", own("rows")], [own("asked_ids")])
    yield node("Expand", [own("asked_ids"), own("asked_shape")], [own("asked_of_rows")])
    yield node("GatherElements", ["logits", own("asked_of_rows")], ["asked_logits"], axis=2)


def _value(spec: TensorSpec) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(spec.name, _TYPES[spec.dtype], list(spec.shape))
