import numpy as np
import pytest
import torch

from examples.tiny.batches import make_batch
from examples.tiny.checkpoint import write_config_files
from examples.tiny.tasks import TASKS, make_sample
from export.processor.processor import Processor


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tiny")
    write_config_files(directory)
    return Processor.from_directory(directory)


def test_a_batch_is_what_the_processor_makes_of_each_question_followed_by_its_answers(processor):
    samples = [make_sample(task, (0, i)) for task in TASKS for i in range(2)]
    batch = make_batch(samples, processor)
    shared = batch.documents[1]
    assert shared > 10
    patch_offset = 0
    for start, end, sample in zip(batch.documents[1:], batch.documents[2:], samples, strict=False):
        inputs = processor.inputs_from_messages(sample.messages())
        length = len(inputs.token_ids)
        rows = torch.cat([torch.arange(shared), torch.arange(start, end)])
        np.testing.assert_array_equal(batch.token_ids[0, rows[:length]], inputs.token_ids)
        np.testing.assert_array_equal(batch.position_ids[:, 0, rows[:length]], inputs.position_ids)
        rest = batch.token_ids[0, rows[length:]].tolist()
        assert batch.position_ids[:, 0, end - 1].tolist() == [len(rows) - 1 + inputs.position_delta] * 3
        later = "".join(
            f"\n<|im_start|>user\n{turn.prompt}<|im_end|>\n<|im_start|>assistant\n{turn.answer}<|im_end|>"
            for turn in sample.turns[1:]
        )
        said = processor.tokenizer.decode(rest, skip_special_tokens=False)
        assert said == f"{sample.answer}<|im_end|>{later}"
        patches = batch.patches[patch_offset : patch_offset + len(inputs.patches)]
        np.testing.assert_array_equal(patches, inputs.patches)
        patch_offset += len(inputs.patches)
    assert end == batch.token_ids.shape[1]
    assert patch_offset == len(batch.patches) == 4 * len(batch.things)


def test_the_loss_is_on_the_answers_alone(processor):
    samples = [make_sample(task, (1, 0)) for task in TASKS]
    batch = make_batch(samples, processor)
    assert torch.equal(batch.token_ids[0, batch.logits_index[0] + 1], batch.targets)
    turns = [(i, turn) for i, sample in enumerate(samples) for turn in sample.turns]
    assert batch.turn_samples.tolist() == [i for i, _ in turns]
    for number, (_, turn) in enumerate(turns):
        answer = batch.targets[batch.target_turns == number].tolist()
        assert processor.tokenizer.decode(answer, skip_special_tokens=False) == f"{turn.answer}<|im_end|>"


def test_what_is_told_in_place_of_pictures_has_the_same_places(processor):
    samples = [make_sample(task, (4, i)) for task in TASKS for i in range(4)]
    told, drawn = (make_batch(samples, processor, drawn=drawn) for drawn in (False, True))
    assert len(told.patches) == 0
    for name in ("token_ids", "position_ids", "positions", "things", "edges", "targets"):
        assert torch.equal(getattr(told, name).nan_to_num(0), getattr(drawn, name).nan_to_num(0)), name


def test_codes_are_spelled_letter_by_letter(processor):
    for code in ("K7QX", "THEPICTURE", "TEA", "14.06"):
        assert len(processor.tokenizer.encode(code, add_special_tokens=False).ids) == len(code)


def test_pictures_are_never_part_of_the_shared_start(processor):
    one = make_sample("read", (3, 0))
    batch = make_batch([one, one], processor)
    assert (
        batch.documents[1] < int((batch.token_ids[0] == processor.config.image_token_id).nonzero()[0, 0]) + 1
    )
    assert batch.documents[2] - batch.documents[1] == batch.documents[3] - batch.documents[2] > 5
