import numpy as np
import pytest

from examples.tiny.ablations import (
    read_at,
    remove_first_boundary,
    stop_time,
    swap_rows_and_columns,
    zero_temporal_section,
)
from examples.tiny.checkpoint import write_config_files
from examples.tiny.tasks import make_sample
from export.models.qwen2_vl import decoder
from export.processor.processor import Processor


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tiny")
    write_config_files(directory)
    return Processor.from_directory(directory)


@pytest.mark.parametrize("task", ["direction", "order"])
def test_stopped_time_changes_the_temporal_ids_of_the_video_alone(processor, task):
    for seed in range(8):
        sample = make_sample(task, (0, seed))
        inputs = processor.inputs_from_messages(sample.messages())
        stopped = stop_time(sample, inputs)
        is_video = inputs.token_ids == processor.config.video_token_id
        assert len(set(inputs.position_ids[0, is_video])) == inputs.grids[0][0] > 1
        assert len(set(stopped.position_ids[0, is_video])) == 1
        np.testing.assert_array_equal(stopped.position_ids[1:], inputs.position_ids[1:])
        np.testing.assert_array_equal(stopped.position_ids[:, ~is_video], inputs.position_ids[:, ~is_video])


def test_time_cannot_stop_in_pictures(processor):
    sample = make_sample("read", (0, 0))
    inputs = processor.inputs_from_messages(sample.messages())
    assert stop_time(sample, inputs) is inputs


def test_swapped_rows_and_removed_boundaries(processor):
    sample = make_sample("pictures", (0, 1))
    inputs = processor.inputs_from_messages(sample.messages())
    np.testing.assert_array_equal(swap_rows_and_columns(sample, inputs).positions, inputs.positions[[1, 0]])
    offsets = inputs.cu_seqlens.tolist()
    assert remove_first_boundary(sample, inputs).cu_seqlens.tolist() == [0, *offsets[2:]]


def test_the_temporal_frequencies_are_zero_only_inside_the_context(processor):
    config = processor.config.decoder
    with zero_temporal_section():
        frequencies, axis_of = decoder.mrope_tables(config)
    intact, _ = decoder.mrope_tables(config)
    assert frequencies[axis_of == 0].tolist() == [0.0] * config.mrope_section[0]
    assert frequencies[axis_of != 0].tolist() == intact[axis_of != 0].tolist()
    assert (intact > 0).all()


@pytest.mark.parametrize("size", [(28, 28), (140, 56), (1000, 100)])
def test_texts_of_the_resolution_curve_have_exactly_the_asked_size(size):
    (medium,) = read_at(size, 0).media
    assert medium.frames[0].shape == (size[1], size[0], 3)
