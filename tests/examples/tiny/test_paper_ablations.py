import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from examples.tiny import batches, paper_ablations
from examples.tiny.batches import make_batch
from examples.tiny.checkpoint import write_config_files
from examples.tiny.paper_ablations import (
    FIXED_TOKENS,
    POSITIONS,
    fix_resolution,
    one_dimensional_ids,
    position_ids_by,
    train_decoder,
)
from examples.tiny.plan import Plan
from examples.tiny.tasks import TASKS, make_sample
from export.checkpoint.tensors import SINGLE_FILE as WEIGHTS
from export.models.qwen2_vl.positions import mrope_position_ids
from export.processor.processor import Processor


def test_a_fixed_resolution_gives_every_picture_about_the_same_tokens(tmp_path):
    write_config_files(tmp_path / "own")
    (tmp_path / "own" / WEIGHTS).write_bytes(b"weights")
    fix_resolution(tmp_path / "own", tmp_path / "fixed", 16)
    processor = Processor.from_directory(tmp_path / "fixed")
    sizes = {
        int(np.prod(grid)) // 4
        for i in range(20)
        for grid in processor.inputs_from_messages(make_sample("count", (0, i)).messages()).grids
    }
    assert sizes <= set(range(9, 21))  # sides are rounded to whole tokens
    assert 16 in FIXED_TOKENS
    assert (tmp_path / "fixed" / WEIGHTS).read_bytes() == b"weights"


def test_one_dimensional_positions_count_tokens_in_training_and_evaluation(tmp_path):
    write_config_files(tmp_path)
    processor = Processor.from_directory(tmp_path)
    samples = [make_sample(task, (1, 0)) for task in TASKS]
    with position_ids_by(one_dimensional_ids):
        ids = make_batch(samples, processor, drawn=False).position_ids
        inputs = processor.inputs_from_messages(samples[0].messages())
    assert (ids == ids[:1]).all()
    np.testing.assert_array_equal(inputs.position_ids[2], np.arange(len(inputs.token_ids)))
    assert inputs.position_delta == 0


@pytest.mark.parametrize("name", POSITIONS)
def test_a_decoder_learns_with_its_own_positions_and_sees_through_the_checkpoint_s_eyes(
    name, tmp_path, monkeypatch
):
    def train(directory, plan):
        assert vars(batches)["mrope_position_ids"] is POSITIONS[name]
        save_file({"visual.x": torch.zeros(1), "model.x": torch.ones(1)}, directory / "checkpoint" / WEIGHTS)

    monkeypatch.setattr(paper_ablations, "train", train)
    monkeypatch.setattr(paper_ablations, "ask", lambda directory, number: {str(directory): number})
    eyes = tmp_path / "eyes"
    eyes.mkdir()
    save_file({"visual.x": torch.full((1,), 2.0), "model.x": torch.full((1,), 3.0)}, eyes / WEIGHTS)
    assert train_decoder(name, tmp_path, eyes, Plan().scaled(0.1), 5) == {str(tmp_path / "seeing"): 5}
    assert {name: x.item() for name, x in load_file(tmp_path / "seeing" / WEIGHTS).items()} == {
        "visual.x": 2.0,
        "model.x": 1.0,
    }
    assert vars(batches)["mrope_position_ids"] is mrope_position_ids
