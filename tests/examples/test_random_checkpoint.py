import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file
from tokenizers import Tokenizer
from transformers import AutoTokenizer, Qwen2VLForConditionalGeneration

from examples.random_checkpoint import (
    SIZES,
    SPECIAL_TOKENS,
    key_in_layout,
    tensor_shapes,
    train_tokenizer,
    write_checkpoint,
)

CHAT: Any = [
    {
        "role": "user",
        "content": [{"type": "image"}, {"type": "video"}, {"type": "text", "text": "What is this?"}],
    },
    {"role": "assistant", "content": "A dog."},
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "And 这张图片?"}]},
]


def load_with_transformers(directory: Path) -> Any:
    """The model, after a check that Transformers found every key and only these."""
    loaded: Any = Qwen2VLForConditionalGeneration.from_pretrained(
        directory, dtype="float32", output_loading_info=True
    )
    model, report = loaded
    assert not any(
        report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
    )
    return model.eval()


@torch.no_grad()
def logits_of(model):
    """Logits of a prompt with one image of 4 x 6 patches between text tokens."""
    config = model.config
    image = [config.vision_start_token_id, *[config.image_token_id] * 6, config.vision_end_token_id]
    token_ids = torch.tensor([[5, 6, *image, 7, 8, 9]])
    return model(
        input_ids=token_ids,
        pixel_values=torch.from_numpy(np.random.default_rng(0).standard_normal((24, 1176), dtype=np.float32)),
        image_grid_thw=torch.tensor([[1, 4, 6]]),
        mm_token_type_ids=(token_ids == config.image_token_id).int(),
    ).logits


@pytest.mark.parametrize("layout", ["published", "nested"])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "tied"),
    [(4, 4, 32, True), (4, 2, 64, False), (6, 1, 32, True), (8, 1, 128, False)],
)
def test_transformers_loads_every_shape_in_both_layouts(tmp_path, layout, heads, kv_heads, head_dim, tied):
    write_checkpoint(
        tmp_path,
        layout=layout,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        hidden_size=heads * head_dim,
        tie_word_embeddings=tied,
        vision_depth=3,
    )
    model = load_with_transformers(tmp_path)
    assert model.config.text_config.rope_parameters["mrope_section"] == [
        head_dim // 8, head_dim * 3 // 16, head_dim * 3 // 16
    ]  # fmt: skip
    assert len(model.model.visual.blocks) == 3
    logits = logits_of(model)
    assert logits.isfinite().all()
    assert 0.3 < logits.std() < 3, "1 / sqrt(fan_in) keeps activations at scale one"


@pytest.mark.parametrize("seed", [0, 1])
def test_greedy_generation_does_not_fall_into_one_token(tmp_path, seed):
    model = load_with_transformers(write_checkpoint(tmp_path, dtype="float32", seed=seed))
    model.generation_config.eos_token_id = None
    prompt = torch.arange(20)[None] * 7
    answer = model.generate(input_ids=prompt, do_sample=False, max_new_tokens=32)[0, 20:]
    assert len(set(answer.tolist())) > 12


def test_layouts_and_shards_hold_the_same_model(tmp_path):
    published = write_checkpoint(tmp_path / "published", dtype="float32")
    nested = write_checkpoint(tmp_path / "nested", dtype="float32", layout="nested", shards=3)
    assert len(list(nested.glob("model-*-of-00003.safetensors"))) == 3
    assert torch.equal(
        logits_of(load_with_transformers(published)), logits_of(load_with_transformers(nested))
    )


def test_index_maps_every_key_to_the_file_that_holds_it(tmp_path):
    write_checkpoint(tmp_path, layout="nested", shards=4)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    tensors = {name: load_file(tmp_path / name) for name in set(index["weight_map"].values())}
    assert {key: file for file, held in tensors.items() for key in held} == index["weight_map"]
    assert (
        sum(t.nbytes for held in tensors.values() for t in held.values()) == index["metadata"]["total_size"]
    )


def test_no_value_is_symmetric_by_accident(tmp_path):
    tensors = load_file(write_checkpoint(tmp_path, dtype="float32") / "model.safetensors")
    for name, tensor in tensors.items():
        assert tensor.std() > 0, f"{name} is constant"
        if "norm" in name and name.endswith("weight"):
            assert abs(tensor.mean() - 1) < 0.1, f"{name} is not around one"
    flat = [tensor.ravel()[:8].tobytes() for tensor in tensors.values()]
    assert len(set(flat)) == len(flat), "two tensors share their random numbers"


def test_weights_follow_the_seed_and_low_precision_rounds_the_same_numbers(tmp_path):
    files = {
        (seed, dtype): load_file(
            write_checkpoint(tmp_path / f"{seed}-{dtype}", seed=seed, dtype=dtype) / "model.safetensors"
        )
        for seed, dtype in [(0, "float32"), (1, "float32"), (0, "bfloat16"), (0, "float16")]
    }
    name = "model.layers.0.mlp.down_proj.weight"
    single = files[0, "float32"][name]
    assert not np.array_equal(single, files[1, "float32"][name])
    assert np.array_equal(single.astype(ml_dtypes.bfloat16), files[0, "bfloat16"][name])
    assert np.array_equal(single.astype(np.float16), files[0, "float16"][name])


def test_writing_twice_gives_the_same_bytes(tmp_path):
    first, second = (write_checkpoint(tmp_path / name) for name in "ab")
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir())
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)


def test_special_tokens_have_the_ids_that_the_config_states(tmp_path):
    write_checkpoint(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    transformers_tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    for key, token in [
        ("image_token_id", "<|image_pad|>"),
        ("video_token_id", "<|video_pad|>"),
        ("vision_start_token_id", "<|vision_start|>"),
        ("vision_end_token_id", "<|vision_end|>"),
        ("bos_token_id", "<|endoftext|>"),
        ("eos_token_id", "<|im_end|>"),
    ]:
        assert tokenizer.encode(token).ids == [config[key]]
        assert transformers_tokenizer.encode(token) == [config[key]]


def test_full_size_tokenizer_has_the_published_ids_and_a_text_for_every_id():
    content = train_tokenizer(SIZES["2b"].first_special_id)
    tokenizer = Tokenizer.from_str(json.dumps(content))
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == list(range(151643, 151657))
    assert all(tokenizer.id_to_token(i) for i in range(151657))


@pytest.mark.parametrize(
    "text", ["What's in Picture 12?", "请描述 café\r\n\n  <|im_end|> 🙂", "e\u0301 composes"]
)
def test_text_survives_the_tokenizer_up_to_nfc(tmp_path, text):
    tokenizer = Tokenizer.from_file(str(write_checkpoint(tmp_path) / "tokenizer.json"))
    decoded = tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False)
    assert decoded == text.replace("e\u0301", "é")


@pytest.mark.parametrize(
    ("add_vision_id", "first", "second"), [(False, "", ""), (True, "Picture 1: ", "Picture 2: ")]
)
def test_chat_template_says_what_the_family_says(tmp_path, add_vision_id, first, second):
    tokenizer = AutoTokenizer.from_pretrained(write_checkpoint(tmp_path))
    rendered = tokenizer.apply_chat_template(
        CHAT, tokenize=False, add_generation_prompt=True, add_vision_id=add_vision_id
    )
    video = "Video 1: " if add_vision_id else ""
    assert rendered == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n{first}<|vision_start|><|image_pad|><|vision_end|>"
        f"{video}<|vision_start|><|video_pad|><|vision_end|>What is this?<|im_end|>\n"
        "<|im_start|>assistant\nA dog.<|im_end|>\n"
        f"<|im_start|>user\n{second}<|vision_start|><|image_pad|><|vision_end|>And 这张图片?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("size", "parameters"), [("2b", 2_208_985_600), ("7b", 8_291_375_616), ("72b", 73_405_560_320)]
)
def test_full_sizes_count_the_published_parameters(size, parameters):
    assert sum(int(np.prod(shape)) for shape in tensor_shapes(SIZES[size]).values()) == parameters


def test_sparse_72b_has_every_tensor_and_takes_no_disk(tmp_path):
    write_checkpoint(tmp_path, size="72b", sparse=True)
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(tmp_path.glob("*.safetensors")):
        assert path.stat().st_size > 1_000_000_000
        assert path.stat().st_blocks * 512 < 1_000_000
        with safe_open(path, "np") as file:
            shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert shapes == tensor_shapes(SIZES["72b"])


def test_keys_of_the_nested_layout_are_transformers_module_paths():
    assert key_in_layout("visual.merger.ln_q.bias", "nested") == "model.visual.merger.ln_q.bias"
    assert key_in_layout("model.norm.weight", "nested") == "model.language_model.norm.weight"
    assert key_in_layout("lm_head.weight", "nested") == "lm_head.weight"


def test_script_runs_from_any_directory_and_says_that_weights_are_random(tmp_path):
    script = Path(__file__).parents[2] / "examples" / "random_checkpoint.py"
    command = [sys.executable, str(script), "made", "--dtype", "float16", "--layout", "nested"]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "RANDOM weights" in finished.stdout
    assert json.loads((tmp_path / "made" / "config.json").read_text())["dtype"] == "float16"


def test_noise_never_replaces_weights_that_are_there(tmp_path):
    write_checkpoint(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match="holds a checkpoint already"):
        write_checkpoint(tmp_path, seed=1)
    assert (tmp_path / "model.safetensors").read_bytes() == before
