import json
import shutil

import pytest
import torch

from examples.tiny import train
from examples.tiny.batches import make_batch
from examples.tiny.checkpoint import write_config_files
from examples.tiny.plan import Plan
from examples.tiny.tasks import TASKS, make_sample
from export.config import load_config
from export.processor.processor import Processor
from export.reference.model import Qwen2VL

PLAN = Plan(
    steps=4, samples_per_step=4, text_until=1, vision_until=2, easiest_until=2, hardest_from=3, instruct=0.25
)


@pytest.fixture
def directory(tmp_path):
    write_config_files(tmp_path / "checkpoint")
    return tmp_path


def test_packed_training_logits_are_the_reference_model_s(directory):
    processor = Processor.from_directory(directory / "checkpoint")
    torch.manual_seed(0)
    model = Qwen2VL(load_config(directory / "checkpoint"))
    train.initialize(model)
    samples = [make_sample(task, (0, 0)) for task in TASKS]
    batch = make_batch(samples, processor)
    object.__setattr__(batch, "patches", batch.patches.float())
    packed = train.answer_logits(model, batch)
    shared = batch.documents[1]
    for i, sample in enumerate(samples):
        inputs = processor.inputs_from_messages(sample.messages())
        start, end = batch.documents[i + 1 : i + 3]
        rows = torch.cat([torch.arange(shared), torch.arange(start, end)])
        length = len(rows)
        visual_embeds = model.encode(
            torch.from_numpy(inputs.patches).bfloat16().float(),
            torch.from_numpy(inputs.positions),
            torch.from_numpy(inputs.cu_seqlens),
        )
        logits, _ = model.decode(
            batch.token_ids[:, rows],
            visual_embeds,
            batch.position_ids[:, :, rows],
            torch.tensor([0]),
            torch.tensor([length]),
            torch.arange(len(inputs.token_ids) - 1, length - 1)[None],
            model.new_cache(1, length),
        )
        torch.testing.assert_close(packed[batch.target_documents == i], logits[0], rtol=1e-4, atol=1e-4)


def test_stages_freeze_what_the_paper_freezes(directory):
    model = Qwen2VL(load_config(directory / "checkpoint"))
    for stage, vision, language in [
        ("text", 0, 1),
        ("1 vision", 1, 0),
        ("2 all", 1, 1),
        ("3 instruct", 0, 1),
    ]:
        train.freeze(model, stage)
        assert all(weight.requires_grad == bool(vision) for weight in model.visual.parameters())
        assert all(weight.requires_grad == bool(language) for weight in model.model.parameters())


def test_a_killed_run_goes_on_as_if_nothing_had_happened(directory, tmp_path_factory, monkeypatch):
    resumed = tmp_path_factory.mktemp("resumed")
    shutil.copytree(directory / "checkpoint", resumed / "checkpoint")
    save = train.save

    def save_and_copy(target, optimizer, step):
        save(target, optimizer, step)
        if step == 2:
            shutil.copyfile(target / "state.pt", resumed / "state.pt")

    monkeypatch.setattr(train, "SAVE_EVERY_STEPS", 2)
    monkeypatch.setattr(train, "save", save_and_copy)
    train.train(0, 1, directory, PLAN, None)
    train.train(0, 1, resumed, PLAN, None)
    entries = [
        [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        for run in (directory, resumed)
    ]
    assert [entry["stage"] for entry in entries[0]] == ["text", "1 vision", "2 all", "3 instruct"]
    assert [entry["loss"] for entry in entries[1]] == [entry["loss"] for entry in entries[0][2:]]
    weights = [(run / "checkpoint" / "model.safetensors").read_bytes() for run in (directory, resumed)]
    assert weights[0] == weights[1]
