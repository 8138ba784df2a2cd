import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.errors import UserError
from export.processor.processor import Processor
from tests.support.mrope_rule import position_ids_by_the_paper
from tests.support.pictures import encoded, moving_frames, picture, save, video_file

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def processor(checkpoint_directory):
    return Processor.from_directory(checkpoint_directory)


def user(*parts):
    return [{"role": "user", "content": list(parts)}]


def image(source):
    return {"type": "image", "image": source}


def video(source):
    return {"type": "video", "video": source}


def text(words):
    return {"type": "text", "text": words}


def kinds_of(processor, token_ids):
    letters = {processor.config.image_token_id: "i", processor.config.video_token_id: "v"}
    return "".join(letters.get(token, "t") for token in token_ids.tolist())


def test_pictures_video_and_text_become_everything_that_the_graphs_take(processor, tmp_path):
    path = save(tmp_path / "a.jpg", encoded(picture(120, 90), "JPEG"))
    film = save(tmp_path / "b.mp4", video_file(moving_frames(30)))
    inputs = processor.inputs_from_messages(
        user(image(path), text("First."), video(film), image(picture(60, 200)), text("Compare them."))
    )
    assert inputs.grids == ((1, 6, 8), (3, 20, 28), (1, 14, 4))
    num_patches = 48 + 3 * 560 + 56
    assert inputs.patches.shape == (num_patches, 1176)
    assert inputs.positions.shape == (2, num_patches)
    assert inputs.cu_seqlens.tolist() == [0, 48, 608, 1168, 1728, 1784]
    assert [array.dtype for array in (inputs.token_ids, inputs.position_ids, inputs.patches)] == [
        np.int64,
        np.int32,
        np.float32,
    ]
    assert [inputs.positions.dtype, inputs.cu_seqlens.dtype] == [np.int32, np.int32]
    kinds = kinds_of(processor, inputs.token_ids)
    assert [kinds.count(kind) for kind in "iv"] == [12 + 14, 420]
    expected, delta = position_ids_by_the_paper(kinds, inputs.grids)
    assert np.array_equal(inputs.position_ids, expected)
    assert inputs.position_delta == delta


def test_everything_together_equals_transformers(processor, checkpoint_directory):
    from transformers import AutoTokenizer
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    pictures = [picture(120, 90), picture(31, 300, "RGBA"), picture(500, 40, "P")]
    messages = user(
        image(pictures[0]), text("One."), image(pictures[1]), image(pictures[2]), text("What changed?")
    )
    inputs = processor.inputs_from_messages(messages)
    theirs = Qwen2VLImageProcessorPil.from_pretrained(checkpoint_directory)(
        images=pictures, return_tensors="np"
    )
    assert np.array_equal(inputs.patches, theirs["pixel_values"])
    assert np.array_equal(np.array(inputs.grids), theirs["image_grid_thw"])
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_directory)
    prompt: Any = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    for t, h, w in inputs.grids:
        prompt = prompt.replace("<|image_pad|>", "<|placeholder|>" * (t * h * w // 4), 1)
    prompt = prompt.replace("<|placeholder|>", "<|image_pad|>")
    assert inputs.token_ids.tolist() == tokenizer(prompt)["input_ids"]


def test_text_alone_needs_no_patches(processor):
    inputs = processor.inputs_from_messages([{"role": "user", "content": "Hello"}])
    assert inputs.patches.shape == (0, 1176)
    assert inputs.positions.shape == (2, 0)
    assert inputs.cu_seqlens.tolist() == [0]
    assert inputs.grids == ()
    assert inputs.position_delta == 0
    assert np.array_equal(inputs.position_ids, np.tile(np.arange(len(inputs.token_ids)), (3, 1)))
    assert processor.tokenizer.decode(inputs.token_ids.tolist()).endswith("user\nHello\nassistant\n")


@settings(max_examples=20)
@given(order=st.permutations(range(4)))
def test_permuting_pictures_permutes_their_patches(processor, order):
    pictures = [
        picture(width, height, seed=width) for width, height in [(60, 60), (90, 60), (60, 120), (150, 90)]
    ]
    straight = processor.inputs_from_messages(user(*map(image, pictures)))
    permuted = processor.inputs_from_messages(user(*(image(pictures[i]) for i in order)))
    assert permuted.grids == tuple(straight.grids[i] for i in order)
    rows = [
        slice(start, stop) for start, stop in zip(straight.cu_seqlens, straight.cu_seqlens[1:], strict=False)
    ]
    assert np.array_equal(permuted.patches, np.concatenate([straight.patches[rows[i]] for i in order]))
    assert np.array_equal(
        permuted.positions, np.concatenate([straight.positions[:, rows[i]] for i in order], axis=1)
    )


def test_two_conversations_apart_hold_what_one_holds_packed(processor):
    first, second = picture(60, 90), moving_frames(5, 60, 60)
    packed = processor.inputs_from_messages(user(image(first), video(second)))
    apart = [processor.inputs_from_messages(user(part)) for part in (image(first), video(second))]
    assert np.array_equal(packed.patches, np.concatenate([inputs.patches for inputs in apart]))
    lengths = np.concatenate([np.diff(inputs.cu_seqlens) for inputs in apart])
    assert np.array_equal(np.diff(packed.cu_seqlens), lengths)


def test_a_long_video_stays_within_16384_tokens(processor):
    frame = picture(640, 360)
    inputs = processor.inputs_from_messages(user(video([frame] * 100), text("Summarize.")))
    assert inputs.grids[0][0] == 50
    num_tokens = (inputs.token_ids == processor.config.video_token_id).sum()
    assert 14000 < num_tokens <= 16384
    assert inputs.position_ids.max() == inputs.position_delta + len(inputs.token_ids) - 1


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (image("/no/such.png"), r"/no/such\.png, found nothing"),
        (image(b"no picture"), "not a picture"),
        (image(picture(1, 201)), "more than 200 times"),
        (video([]), "holds no frame"),
        (video(b"no video"), "not a video"),
    ],
)
def test_what_cannot_be_used_is_one_clear_error(processor, part, message):
    with pytest.raises(UserError, match=message) as caught:
        processor.inputs_from_messages(user(part, text("What is it?")))
    assert "\n" not in str(caught.value)


def copied(checkpoint_directory, tmp_path, name, **changes):
    """The checkpoint's small files with one changed."""
    for path in checkpoint_directory.iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, tmp_path)
    content = json.loads((tmp_path / name).read_text())
    (tmp_path / name).write_text(json.dumps(content | changes))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("preprocessor_config.json", {"patch_size": 16}, "patch_size is 16, config.json says 14"),
        ("preprocessor_config.json", {"merge_size": 4}, "merge_size is 4, config.json says 2"),
        (
            "config.json",
            {"vocab_size": 600, "image_token_id": 599},
            "no token 599, config.json's image_token_id",
        ),
    ],
)
def test_files_that_contradict_each_other_are_an_error(
    checkpoint_directory, tmp_path, name, changes, message
):
    with pytest.raises(UserError, match=message):
        Processor.from_directory(copied(checkpoint_directory, tmp_path, name, **changes))


def test_placeholder_ids_come_from_the_config(checkpoint_directory, tmp_path, processor):
    # A checkpoint whose image placeholder is another token than its template's is caught, not guessed.
    directory = copied(
        checkpoint_directory, tmp_path, "config.json", image_token_id=processor.config.video_token_id - 2
    )
    with pytest.raises(UserError, match="0 image placeholders for 1 images"):
        Processor.from_directory(directory).inputs_from_messages(user(image(picture(60, 60))))


def test_the_processor_imports_neither_torch_nor_transformers(checkpoint_directory):
    modules = sorted(
        path.stem for path in (ROOT / "export" / "processor").glob("*.py") if path.stem != "__init__"
    )
    assert "processor" in modules
    program = (
        f"import sys\nfrom export.processor import {', '.join(modules)}\n"
        f"inputs = processor.Processor.from_directory({str(checkpoint_directory)!r}).inputs_from_messages("
        "[{'role': 'user', 'content': 'Hello'}])\n"
        "assert len(inputs.token_ids) > 0\n"
        "print(sorted({'torch', 'transformers', 'torchvision'} & sys.modules.keys()))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
