import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from examples.tiny import train
from examples.tiny.batches import make_batch
from examples.tiny.checkpoint import read_weights, write_config_files, write_weights
from examples.tiny.contents import Codebook
from examples.tiny.optimizer import MUON_RATE, Optimizer
from examples.tiny.packed_attention import attention_over_documents
from examples.tiny.plan import STAGES, Plan
from examples.tiny.tasks import TASKS, make_sample
from export.checkpoint.config import load_config
from export.models.qwen2_vl.model import Qwen2VL
from export.processor.processor import Processor

BY_NAME = {stage.name: stage for stage in STAGES}
PLAN = Plan(tuple(replace(stage, steps=1, samples=3) for stage in BY_NAME.values()))


@pytest.fixture
def directory(tmp_path):
    write_config_files(tmp_path / "checkpoint")
    return tmp_path


def _new_model(directory):
    torch.manual_seed(0)
    model = Qwen2VL(load_config(directory / "checkpoint"))
    train.initialize(model)
    return model


def test_packed_training_logits_are_the_reference_model_s(directory):
    processor = Processor.from_directory(directory / "checkpoint")
    model = _new_model(directory)
    samples = [replace(s, turns=s.turns[:1]) for s in (make_sample(task, (0, 0)) for task in TASKS)]
    batch = make_batch(samples, processor)
    with attention_over_documents(batch.cu_seqlens.tolist(), batch.documents, "cpu"):
        visual_embeds = model.encode(batch.patches, batch.positions, batch.cu_seqlens)
        packed = train.answer_logits(model, batch, visual_embeds)
    shared = batch.documents[1]
    for i, sample in enumerate(samples):
        inputs = processor.inputs_from_messages(sample.messages())
        start, end = batch.documents[i + 1 : i + 3]
        rows = torch.cat([torch.arange(shared), torch.arange(start, end)])
        length = len(rows)
        visual_embeds = model.encode(
            *map(torch.from_numpy, (inputs.patches, inputs.positions, inputs.cu_seqlens))
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
        torch.testing.assert_close(packed[batch.target_turns == i], logits[0], rtol=1e-4, atol=1e-4)


def test_of_two_checkpoints_the_second_gives_the_vision_encoder(tmp_path):
    for number, name in enumerate(("one", "two")):
        (tmp_path / name).mkdir()
        write_weights(
            tmp_path / name,
            {key: torch.full((1,), number) for key in ("visual.x", "model.x", "lm_head.weight")},
        )
    read = read_weights((tmp_path / "one", tmp_path / "two"))
    assert {key: value.item() for key, value in read.items()} == {"visual.x": 1.0, "model.x": 0.0}
    assert read_weights(()) == {}


def test_a_checkpoint_without_weights_is_refused_before_anything_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["train", str(tmp_path / "run"), "--from", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        train.main()
    assert stop.value.code == 2
    assert f"{tmp_path} has no model.safetensors" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "vision", "language"),
    [("text", False, True), ("1 vision", True, False), ("2 all", True, True), ("3 instruct", False, True)],
)
def test_a_stage_moves_what_the_paper_trains_in_it_and_nothing_else(directory, name, vision, language):
    model = _new_model(directory)
    optimizer, codebook = Optimizer(model), Codebook(model.config.decoder.hidden_size)
    before = {key: weight.detach().clone() for key, weight in model.named_parameters()}
    plan = Plan((replace(BY_NAME[name], samples=3),))
    samples = plan.samples(0)
    batch = make_batch(
        samples, Processor.from_directory(directory / "checkpoint"), drawn=plan.stages[0].drawn
    )
    train.train_step(model, codebook, optimizer, batch, [sample.task for sample in samples], plan, 0)
    moved = {key for key, weight in model.named_parameters() if not torch.equal(weight, before[key])}
    assert any(key.startswith("visual.") for key in moved) == vision
    assert any(key.startswith("model.") for key in moved) == language


def test_words_begin_as_the_codes_that_visual_tokens_have(directory):
    model = _new_model(directory)
    train.spell_with_codes(model, directory / "checkpoint")
    tokenizer = Processor.from_directory(directory / "checkpoint").tokenizer
    codes = Codebook(model.config.decoder.hidden_size)
    for token, word in (("7", "7"), ("Ġred", "red"), ("Ġsquare", "square")):
        row = model.model.embed_tokens.weight[tokenizer.token_to_id(token)]
        assert torch.equal(row, codes.words[word])


def test_muon_moves_a_matrix_along_its_gradient_s_orthogonal_part():
    linear = torch.nn.Linear(8, 4)
    before = linear.weight.detach().clone()
    optimizer = Optimizer(linear)
    linear.weight.grad = torch.randn(4, 8)
    gradient = linear.weight.grad.clone()
    optimizer.step(0.5)
    moved = (before - linear.weight.detach()) / (0.5 * MUON_RATE)
    left, _, right = torch.linalg.svd(gradient, full_matrices=False)
    singular_values = torch.linalg.svdvals(moved)
    assert ((singular_values > 0.6) & (singular_values < 1.3)).all()
    cosine = torch.nn.functional.cosine_similarity(moved.flatten(), (left @ right).flatten(), dim=0)
    assert cosine > 0.95


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
    train.train(directory, PLAN)
    train.train(resumed, PLAN)
    entries = [
        [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        for run in (directory, resumed)
    ]
    assert [entry["stage"] for entry in entries[0]] == ["text", "1 vision", "2 all", "3 instruct"]
    assert [entry["loss"] for entry in entries[1]] == [entry["loss"] for entry in entries[0][2:]]
    weights = [(run / "checkpoint" / "model.safetensors").read_bytes() for run in (directory, resumed)]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_two_processes_share_each_step_and_keep_one_set_of_weights(directory, tmp_path):
    plan = replace(PLAN, stages=tuple(replace(stage, samples=4) for stage in PLAN.stages)).only("text")
    saved = []
    for name, processes in (("two", 2), ("one", 1)):
        shutil.copytree(directory / "checkpoint", tmp_path / name / "checkpoint")
        train.train(tmp_path / name, plan, processes=processes)
        entries = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        assert [entry["step"] for entry in entries] == list(range(plan.steps))
        assert all(np.isfinite(entry["loss"]) for entry in entries)
        saved.append(load_file(tmp_path / name / "checkpoint" / "model.safetensors"))
    # Another share of the samples, other gradients.
    assert any(not torch.equal(saved[0][name], saved[1][name]) for name in saved[0])
