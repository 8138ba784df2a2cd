"""The shipped checkpoint keeps what its card promises."""

from pathlib import Path

import numpy as np
import pytest
import torch

from examples.tiny.evaluate import BATCH, accuracy, answers, held_out
from examples.tiny.reference_sessions import open_reference
from examples.tiny.tasks import make_sample
from export.checkpoint.tensors import open_checkpoint
from export.models.qwen2_vl.model import load_reference
from export.processor.processor import Processor

DIRECTORY = Path("models/qwen2-vl-tiny")
MAX_BYTES = 16_000_000

pytestmark = pytest.mark.skipif(not DIRECTORY.exists(), reason="models/qwen2-vl-tiny is not in this checkout")


def test_the_directory_is_small_and_in_bfloat16():
    assert sum(path.stat().st_size for path in DIRECTORY.iterdir()) <= MAX_BYTES
    assert {tensor.dtype for tensor in open_checkpoint(DIRECTORY).tensors.values()} == {"bfloat16"}


def test_the_tokenizer_is_the_one_that_the_examples_train(tmp_path):
    from examples.tiny.checkpoint import write_config_files

    write_config_files(tmp_path)
    assert {path.name for path in DIRECTORY.iterdir()} - {path.name for path in tmp_path.iterdir()} == {
        "README.md",
        "model.safetensors",
    }
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (DIRECTORY / path.name).read_bytes(), path.name


@pytest.mark.parametrize(
    ("task", "least"),
    [
        ("direction", 0.9),
        ("order", 0.85),
        ("pictures", 0.85),
        ("read", 0.85),
        ("count", 0.8),
        ("receipt", 0.75),
        ("box", 0.65),
    ],
)
def test_it_answers_questions_it_never_saw(task, least):
    processor, sessions = Processor.from_directory(DIRECTORY), open_reference(DIRECTORY, BATCH)
    samples = held_out(task, 32)
    inputs = [processor.inputs_from_messages(sample.messages()) for sample in samples]
    assert accuracy(samples, answers(inputs, processor, DIRECTORY, sessions)) >= least


def test_transformers_loads_it_and_says_the_same():
    from transformers import Qwen2VLForConditionalGeneration

    inputs = Processor.from_directory(DIRECTORY).inputs_from_messages(make_sample("read", (99, 0)).messages())
    theirs = Qwen2VLForConditionalGeneration.from_pretrained(DIRECTORY, dtype=torch.float32).eval()
    ours = load_reference(DIRECTORY)
    token_ids = torch.from_numpy(inputs.token_ids)[None]
    length = token_ids.shape[1]
    with torch.inference_mode():
        expected = theirs(
            input_ids=token_ids,
            attention_mask=torch.ones_like(token_ids),
            pixel_values=torch.from_numpy(inputs.patches),
            image_grid_thw=torch.tensor(inputs.grids),
            mm_token_type_ids=(token_ids == ours.config.image_token_id).int(),
        ).logits
        visual_embeds = ours.encode(
            *map(torch.from_numpy, (inputs.patches, inputs.positions, inputs.cu_seqlens))
        )
        actual, _ = ours.decode(
            token_ids,
            visual_embeds,
            torch.from_numpy(inputs.position_ids)[:, None],
            torch.tensor([0]),
            torch.tensor([length]),
            torch.arange(length)[None],
            ours.new_cache(1, length),
        )
    np.testing.assert_allclose(actual.numpy(), expected.numpy(), atol=2e-3)
