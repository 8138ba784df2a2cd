"""The parts of a checkpoint's weights that ranks have, against the weights themselves."""

import numpy as np
import onnx_ir as ir
import pytest

from examples.random_checkpoint import write_checkpoint
from export.checkpoint.tensors import open_checkpoint
from export.dtypes import numpy_dtype
from export.errors import UserError
from export.models.families import family_of
from export.weights.safetensors_file import read_safetensors_header
from export.weights.sliced import Sliced
from export.weights.stored import ir_dtype
from export.weights.values import mapped_values, read_values


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def checkpoint(request, tmp_path_factory):
    directory = write_checkpoint(
        tmp_path_factory.mktemp("sliced"),
        dtype=request.param,
        vocab_size=509,
        hidden_size=192,
        num_attention_heads=12,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    return open_checkpoint(directory)


def parts_of(checkpoint, name, num_ranks):
    """A weight's values on each rank, as a graph points at them."""
    parts = []
    for rank in range(num_ranks):
        source = Sliced(checkpoint, rank, num_ranks)
        stored = checkpoint.tensors[name]
        part = family_of("qwen2_vl").slice_of(
            name, source.config, checkpoint.config.decoder.num_key_value_heads
        )
        sizes = list(stored.shape)
        if part is not None:
            sizes[part.axis] = part.stop - part.start
        graph = ir.Graph([], [], nodes=[])
        source.value(graph, name, ir.Shape(sizes), ir_dtype(stored.dtype))
        pointed = graph.initializers[name].const_value
        assert pointed is not None
        tensor = ir.to_proto(pointed)
        parts.append(mapped_values(tensor, stored.path.parent, numpy_dtype(stored.dtype)))
    return parts


AXES = {
    "q_proj.weight": 0, "q_proj.bias": 0, "gate_proj.weight": 0, "up_proj.weight": 0, "o_proj.weight": 1,
    "down_proj.weight": 1,
}  # fmt: skip


@pytest.mark.parametrize("num_ranks", [2, 4])
@pytest.mark.parametrize("leaf", AXES)
def test_the_parts_of_all_ranks_side_by_side_are_the_weight(checkpoint, leaf, num_ranks):
    [name] = [name for name in checkpoint.tensors if name.endswith(leaf) and ".layers.1." in name]
    parts = parts_of(checkpoint, name, num_ranks)
    whole = read_values(checkpoint.tensors[name])
    assert len({part.shape for part in parts}) == 1
    assert np.array_equal(np.concatenate(parts, axis=AXES[leaf]), whole)


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "lm_head.weight"])
@pytest.mark.parametrize("num_ranks", [2, 4])
def test_a_vocabulary_that_does_not_divide_overlaps_on_the_last_rank_alone(checkpoint, name, num_ranks):
    whole = read_values(checkpoint.tensors[name])
    parts = parts_of(checkpoint, name, num_ranks)
    size = -(-509 // num_ranks)
    assert [len(part) for part in parts] == [size] * num_ranks
    assert np.array_equal(np.concatenate(parts[:-1]), whole[: size * (num_ranks - 1)])
    assert np.array_equal(parts[-1], whole[-size:])


@pytest.mark.parametrize("leaf", ["k_proj.weight", "k_proj.bias", "v_proj.weight"])
def test_ranks_beyond_the_heads_of_keys_share_them_with_their_neighbours(checkpoint, leaf):
    [name] = [name for name in checkpoint.tensors if name.endswith(leaf) and ".layers.1." in name]
    whole = read_values(checkpoint.tensors[name])
    first, second = whole[:16], whole[16:]
    parts = parts_of(checkpoint, name, 4)
    for part, expected in zip(parts, [first, first, second, second], strict=True):
        assert np.array_equal(part, expected)


def test_no_byte_of_the_files_is_needed_but_their_headers(checkpoint):
    stored = {tensor.name for path in checkpoint.weight_files for tensor in read_safetensors_header(path)}
    graph = ir.Graph([], [], nodes=[])
    source = Sliced(checkpoint, 1, 2)
    source.value(graph, "model.norm.weight", ir.Shape((192,)), ir.DataType.FLOAT)
    assert "model.norm.weight" in stored
    assert isinstance(graph.initializers["model.norm.weight"].const_value, ir.ExternalTensor)
    assert set(source.files()) == set(checkpoint.weight_files)


@pytest.mark.parametrize("num_ranks", [3, 5, 8, 24])
def test_sizes_that_do_not_divide_are_refused_with_those_that_do(checkpoint, num_ranks):
    with pytest.raises(
        UserError, match=f"--tensor-parallel {num_ranks}: the decoder's 12 heads over 2"
    ) as told:
        Sliced(checkpoint, 0, num_ranks)
    assert told.value.remedy == "Give 2 or 4 or 6 or 12."
