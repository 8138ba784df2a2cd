import json
import shutil
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models

from export.errors import UserError
from export.processor.text.tokenizer import SpecialTokens, load_tokenizer

SAMPLES = [
    "Describe this image.",
    "It's 2024, isn't it?\n\n  Yes!",
    "Ünïcode é e\u0301 漢字 🙂",
    " \t\n",
    "<|im_end|>x",
]


@pytest.fixture
def as_vocabulary_files(tmp_path, checkpoint_directory):
    """The same tokenizer as vocab.json and merges.txt, as published beside tokenizer.json."""
    model = json.loads((checkpoint_directory / "tokenizer.json").read_text())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    shutil.copy(checkpoint_directory / "tokenizer_config.json", tmp_path)
    return tmp_path


def test_vocabulary_and_merges_give_the_same_tokenizer_as_tokenizer_json(
    as_vocabulary_files, checkpoint_directory
):
    from_json, from_files = load_tokenizer(checkpoint_directory), load_tokenizer(as_vocabulary_files)
    assert from_files.get_vocab() == from_json.get_vocab()
    assert {i: token.content for i, token in from_files.get_added_tokens_decoder().items()} == {
        i: token.content for i, token in from_json.get_added_tokens_decoder().items()
    }
    for text in SAMPLES:
        token_ids = from_json.encode(text).ids
        assert from_files.encode(text).ids == token_ids
        assert from_files.decode(token_ids) == from_json.decode(token_ids)


def test_encoding_equals_transformers_tokenizer(checkpoint_directory):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(checkpoint_directory)
    ours = load_tokenizer(checkpoint_directory)
    for text in SAMPLES:
        assert ours.encode(text).ids == theirs(text)["input_ids"]


def test_tokens_that_only_tokenizer_config_declares_are_added(tmp_path, checkpoint_directory):
    content = json.loads((checkpoint_directory / "tokenizer.json").read_text())
    last = content["added_tokens"].pop()
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert load_tokenizer(tmp_path).token_to_id(last["content"]) is None
    shutil.copy(checkpoint_directory / "tokenizer_config.json", tmp_path)
    assert load_tokenizer(tmp_path).token_to_id(last["content"]) == last["id"]


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"9999": {"content": "<|new|>"}}, "declared with id 9999"),
        ({"7": {"content": "<|im_end|>"}}, "declared with id 7"),
        ({"x": {"content": "<|new|>"}}, "must map ids to tokens"),
        ({"7": "<|new|>"}, "must map ids to tokens"),
        ([1], "must map ids to tokens"),
    ],
)
def test_contradicting_declarations_are_an_error(tmp_path, checkpoint_directory, declared, message):
    shutil.copy(checkpoint_directory / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": declared}))
    with pytest.raises(UserError, match=message):
        load_tokenizer(tmp_path)


def test_a_directory_without_a_tokenizer_or_with_a_broken_one_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"expected tokenizer\.json, or vocab\.json and merges\.txt"):
        load_tokenizer(tmp_path)
    (tmp_path / "vocab.json").write_text("{")
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(UserError, match="byte-level BPE"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be read as a tokenizer"):
        load_tokenizer(tmp_path)


@given(
    st.lists(
        st.sampled_from(["<|im_end|>", "<|image_pad|>", "<|", "|>", "im_end", " ", "\n", "hello"]), max_size=8
    )
)
def test_split_and_plain_encoding_together_equal_the_library(checkpoint_directory, pieces):
    tokenizer = load_tokenizer(checkpoint_directory)
    special = SpecialTokens(tokenizer)
    text = "".join(pieces)
    token_ids = []
    for before, token_id in special.split(text):
        token_ids += special.encode_plain(before) + ([] if token_id is None else [token_id])
    assert token_ids == tokenizer.encode(text).ids


def test_flags_of_added_tokens_are_followed():
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    tokenizer.add_tokens([AddedToken("<l>", lstrip=True), AddedToken("<r>", rstrip=True)])
    tokenizer.add_tokens([AddedToken("ow", single_word=True), AddedToken("<l><r>")])
    split = SpecialTokens(tokenizer).split("a <l> a<r> \n a how ow <l><r>a")
    assert split == [("a", 2), (" a", 3), ("a how ", 4), (" ", 5), ("a", None)]


def test_a_vocabulary_that_reaches_special_tokens_from_plain_text_is_refused():
    tokenizer = Tokenizer(models.WordLevel({"hello": 0, "<end>": 1, "?": 2}, unk_token="?"))
    tokenizer.add_special_tokens(["<end>"])
    special = SpecialTokens(tokenizer)
    assert special.encode_plain("hello") == [0]
    with pytest.raises(UserError, match="special tokens must not be reachable"):
        special.encode_plain("<end>")


def test_thousands_of_added_tokens_are_found_in_one_pass(checkpoint_directory):
    tokenizer = load_tokenizer(checkpoint_directory)
    tokenizer.add_tokens([AddedToken(f"<loc{number:04d}>", special=False) for number in range(6000)])
    special = SpecialTokens(tokenizer)
    text = "a <loc000 <loc0005> b " * 1000
    started = time.perf_counter()
    found = [token_id for _, token_id in special.split(text)]
    assert time.perf_counter() - started < 1
    assert found == [tokenizer.token_to_id("<loc0005>")] * 1000 + [None]
    assert sum(special.split(f"x{token}y")[0] == ("x", i) for i, token in added_texts(tokenizer)) == len(
        special.ids
    )


def added_texts(tokenizer):
    return [(i, token.content) for i, token in tokenizer.get_added_tokens_decoder().items()]


@pytest.mark.parametrize(
    ("section", "value"),
    [
        (
            "pre_tokenizer",
            {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False},
        ),
        ("normalizer", {"type": "Replace", "pattern": {"String": ""}, "content": "x"}),
    ],
)
def test_a_panic_of_the_library_is_the_users_error(tmp_path, checkpoint_directory, section, value):
    content = json.loads((checkpoint_directory / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps({**content, section: value}))
    with pytest.raises(UserError, match="tokenizer fails on the prompt"):
        SpecialTokens(load_tokenizer(tmp_path)).encode_plain("a" * 100 + "!")


def replace_with(pattern, content):
    return {"type": "Replace", "pattern": pattern, "content": content}


@pytest.mark.parametrize(
    "normalizer",
    [
        replace_with({"String": "a"}, "b" * 1_000_000),
        replace_with({"Regex": "x*"}, "b" * 300),
        {"type": "Sequence", "normalizers": [replace_with({"String": "a"}, "aa")] * 40},
        {"type": "Sequence", "normalizers": [{"type": "NFKD"}, {"type": "NFKC"}]},
    ],
)
def test_a_normalizer_that_multiplies_text_is_refused_before_it_sees_any(
    tmp_path, checkpoint_directory, normalizer
):
    content = json.loads((checkpoint_directory / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps({**content, "normalizer": normalizer}))
    with pytest.raises(UserError, match="times as long"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "normalizer",
    [
        None,
        {"type": "NFC"},
        {"type": "Sequence", "normalizers": [{"type": "NFKC"}, replace_with({"String": " "}, "\u2581")]},
        {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, replace_with({"Regex": " {2,}"}, " ")]},
        replace_with({"String": "``"}, '"'),
    ],
)
def test_normalizers_as_they_are_published_are_taken(tmp_path, checkpoint_directory, normalizer):
    content = json.loads((checkpoint_directory / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps({**content, "normalizer": normalizer}))
    assert SpecialTokens(load_tokenizer(tmp_path)).encode_plain("A  b")
