import json

import numpy as np

from examples.tiny import batches, paper_ablations
from examples.tiny.batches import make_batch
from examples.tiny.checkpoint import write_config_files
from examples.tiny.paper_ablations import (
    FIXED_TOKENS,
    Variant,
    fix_resolution,
    one_dimensional_ids,
    positions_of,
    run_variant,
)
from examples.tiny.plan import Plan
from examples.tiny.tasks import TASKS, make_sample
from export.processor.positions import mrope_position_ids
from export.processor.processor import Processor
from export.processor.settings import PIXELS_PER_TOKEN


def test_a_fixed_resolution_gives_every_picture_about_the_same_tokens(tmp_path):
    write_config_files(tmp_path)
    fix_resolution(tmp_path, 16)
    processor = Processor.from_directory(tmp_path)
    sizes = {
        int(np.prod(grid)) // 4
        for i in range(20)
        for grid in processor.inputs_from_messages(make_sample("count", (0, i)).messages()).grids
    }
    assert sizes <= set(range(9, 21))  # sides are rounded to whole tokens
    assert 16 in FIXED_TOKENS


def test_one_dimensional_positions_count_tokens_in_training_and_evaluation(tmp_path):
    write_config_files(tmp_path)
    processor = Processor.from_directory(tmp_path)
    samples = [make_sample(task, (1, 0)) for task in TASKS]
    with positions_of(Variant("", has_mrope=False)):
        ids = make_batch(samples, processor, drawn=False).position_ids
        inputs = processor.inputs_from_messages(samples[0].messages())
    assert (ids == ids[:1]).all()
    np.testing.assert_array_equal(inputs.position_ids[2], np.arange(len(inputs.token_ids)))
    assert inputs.position_delta == 0


def test_a_variant_is_trained_with_its_own_positions_and_resolution(tmp_path, monkeypatch):
    seen = []

    def train(directory, plan):
        settings = json.loads((directory / "checkpoint" / "preprocessor_config.json").read_text())
        seen.append(
            (vars(batches)["mrope_position_ids"] is one_dimensional_ids, settings["max_pixels"], plan)
        )

    monkeypatch.setattr(paper_ablations, "train", train)
    monkeypatch.setattr(paper_ablations, "accuracies", lambda checkpoint, number: {"read": number})
    plan = Plan().scaled(0.1)
    assert run_variant(tmp_path, Variant("", tokens=6, has_mrope=False), plan, 5) == {"read": 5}
    assert seen == [(True, 6 * PIXELS_PER_TOKEN, plan)]
    assert vars(batches)["mrope_position_ids"] is mrope_position_ids
