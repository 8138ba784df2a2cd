"""Faults of a decoder that is divided among ranks: a part of another rank, a sum too few, a term too many."""

from collections.abc import Callable

import onnx
from onnx import helper

from export.checkpoint.config import ModelConfig
from export.weights.slices import METADATA_KEY, Columns, columns_text
from plugins.registry import ALL_GATHER, ALL_REDUCE
from validate.self_test.mutations import Edit, Mutation, NoSuchNodeError


def rank_mutations(config: ModelConfig, num_ranks: int) -> list[Mutation]:
    """The suite for a group of so many ranks; none for one. Args: config: the whole model's."""
    if num_ranks == 1:
        return []
    layer = config.decoder.num_hidden_layers - 1
    at, of = f"/layers.{layer}", f"model.layers.{layer}"
    gate = "prefill_logits.worst_token_error"
    # Where the vocabulary does not divide, what the last rank has twice is cut out after the gather.
    joined = "/project/Concat_1" if config.decoder.vocab_size % num_ranks else "/project/joined"

    def fault(name: str, meaning: str, node: str, edit: Edit, rank: int | None = None) -> Mutation:
        return Mutation(name, meaning, gate, node, "decoder", edit, rank)

    return [
        fault(
            "columns_of_another_rank",
            "the second rank has the first one's columns",
            f"{at}/mlp/down_proj/MatMul",
            _first_columns(f"{of}.mlp.down_proj.weight"),
            1,
        ),
        fault(
            "rows_of_another_rank",
            "the second rank has the first one's rows",
            f"{at}/mlp/up_proj/MatMul",
            _rows_before(f"{of}.mlp.up_proj.weight"),
            1,
        ),
        fault(
            "stale_part",
            "the second rank has a part of another layer",
            f"{at}/mlp/gate_proj/MatMul",
            _weight_of(f"{of}.mlp.gate_proj.weight", "model.layers.0.mlp.gate_proj.weight"),
            1,
        ),
        fault(
            "heads_of_another_rank",
            "keys of the second rank are the first one's heads",
            f"{at}/self_attn/k_proj/Add",
            _rows_before(f"{of}.self_attn.k_proj.weight"),
            1,
        ),
        fault(
            "sum_missing",
            "every rank goes on with its own part of a layer's sum",
            f"{at}/Add_1",
            _no_sum(f"{at}/{ALL_REDUCE.name}_1"),
        ),
        fault(
            "residual_in_every_part",
            "what stands beside a sum is summed, too, once a rank (as a bias would be)",
            f"{at}/Add_1",
            _residual_inside(f"{at}/{ALL_REDUCE.name}_1", f"{at}/Add_1"),
        ),
        fault(
            "ranks_gathered_backwards",
            "the vocabulary's parts are joined in the reverse order of ranks",
            joined,
            _gathered_backwards(f"/project/{ALL_GATHER.name}", num_ranks),
        ),
    ]


def _weight(graph: onnx.GraphProto, name: str) -> onnx.TensorProto:
    found: onnx.TensorProto | None = next((one for one in graph.initializer if one.name == name), None)
    if found is None:
        raise NoSuchNodeError(name)
    return found


def _node(graph: onnx.GraphProto, name: str) -> tuple[int, onnx.NodeProto]:
    found = next(((i, node) for i, node in enumerate(graph.node) if node.name == name), None)
    if found is None:
        raise NoSuchNodeError(name)
    return found


def _first_columns(name: str) -> Edit:
    def edit(graph: onnx.GraphProto) -> None:
        weight = _weight(graph, name)
        columns = Columns.from_text(columns_text(weight) or "")
        assert columns is not None, name
        first = Columns(columns.rows, columns.columns, 0, columns.stop - columns.start)
        for entry in weight.metadata_props:
            if entry.key == METADATA_KEY:
                entry.value = first.to_text()

    return edit


def _placed(name: str, change: Callable[[dict[str, str]], dict[str, str]]) -> Edit:
    """Let a weight point elsewhere."""

    def edit(graph: onnx.GraphProto) -> None:
        weight = _weight(graph, name)
        place = change({entry.key: entry.value for entry in weight.external_data})
        del weight.external_data[:]
        for key, value in place.items():
            weight.external_data.add(key=key, value=value)

    return edit


def _rows_before(name: str) -> Edit:
    """As many rows further up in the file."""
    return _placed(name, lambda place: {**place, "offset": str(int(place["offset"]) - int(place["length"]))})


def _weight_of(name: str, other: str) -> Edit:
    def edit(graph: onnx.GraphProto) -> None:
        place = {entry.key: entry.value for entry in _weight(graph, other).external_data}
        _placed(name, lambda _: place)(graph)

    return edit


def _no_sum(name: str) -> Edit:
    def edit(graph: onnx.GraphProto) -> None:
        _, node = _node(graph, name)
        node.op_type, node.domain = "Identity", ""
        del node.attribute[:]

    return edit


def _residual_inside(sum_name: str, add_name: str) -> Edit:
    """Instead of x + sum(part), sum(part + x)."""

    def edit(graph: onnx.GraphProto) -> None:
        position, summed = _node(graph, sum_name)
        _, add = _node(graph, add_name)
        inside = f"{sum_name}/with_residual"
        (residual,) = [name for name in add.input if name != summed.output[0]]
        part = helper.make_node("Add", [summed.input[0], residual], [inside], name=inside)
        summed.input[0] = inside
        add.op_type = "Identity"
        del add.input[:]
        add.input.append(summed.output[0])
        graph.node.insert(position, part)

    return edit


def _gathered_backwards(name: str, num_ranks: int) -> Edit:
    def edit(graph: onnx.GraphProto) -> None:
        position, gather = _node(graph, name)
        given = gather.output[0]
        gather.output[0] = f"{name}/in_order"
        parts = [f"{name}/part_{rank}" for rank in range(num_ranks)]
        split = helper.make_node(
            "Split", [gather.output[0]], parts, name="/project/split", num_outputs=num_ranks
        )
        joined = helper.make_node("Concat", parts[::-1], [given], name="/project/joined", axis=0)
        graph.node.insert(position + 1, joined)
        graph.node.insert(position + 1, split)

    return edit
