"""Masks of a step: together what each is alone, texts that read like special tokens, tokens that are refused."""

import threading
from pathlib import Path

import numpy as np
import pytest

from engines.runtime.tokens import masks
from engines.runtime.tokens.guided import GuideMaker
from export.errors import UserError
from export.processor.text.tokenizer import load_tokenizer

TOKENIZER = load_tokenizer(Path(__file__).parents[4] / "models" / "qwen2-vl-tiny")
END, VOCAB = 693, 720
"""More rows than there are tokens, as published tables have them."""


@pytest.fixture(scope="module")
def maker():
    return GuideMaker(TOKENIZER, (END,), VOCAB)


def written(guide, random):
    """A random text that the guide allows, and its tokens."""
    ids: list[int] = []
    while not guide.is_over:
        token_id = int(random.choice(np.flatnonzero(guide.allowed())))
        if token_id == END:
            break
        ids.append(token_id)
        guide.accept(token_id)
    return TOKENIZER.decode(ids, skip_special_tokens=False), ids


@pytest.mark.parametrize("few_bits", [0, masks._FEW_BITS], ids=["several threads", "one thread"])
def test_masks_that_are_begun_together_are_those_of_each_alone(maker, few_bits, monkeypatch):
    monkeypatch.setattr(masks, "_FEW_BITS", few_bits)

    def made():
        forms = [("regex", "[a-c]{3}x"), ("json", {"enum": [1, "a"]}), ("choice", ["yes", "no"])]
        return [maker.guides(form, content)[0] for form, content in forms]

    random = np.random.default_rng(0)
    together, alone = made(), made()
    for _ in range(3):
        together[0].begin(together)
        for one, other in zip(together, alone, strict=True):
            if one.is_over:
                assert other.is_over
                continue
            assert np.array_equal(one.allowed(), other.allowed())
            assert one.allowed().shape == (VOCAB,)
            token_id = int(random.choice(np.flatnonzero(one.allowed())))
            if token_id != END:
                one.accept(token_id)
                other.accept(token_id)


def test_what_was_begun_is_not_begun_again_and_what_is_over_not_at_all(maker):
    [guide] = maker.guides("choice", ["a"])
    guide.begin([guide])
    first = guide.allowed()
    guide.begin([guide])
    assert guide.allowed() is first
    guide.accept(int(np.flatnonzero(first)[0]))
    assert guide.is_over
    guide.begin([guide])


def test_masks_that_no_thread_has_begun_are_computed_by_who_waits_for_them(maker):
    is_free = threading.Event()
    held_up = masks._thread().submit(is_free.wait, 10)
    guides = maker.guides("regex", "[ab]", 2)
    guides[0].begin(guides)
    try:
        allowed = [TOKENIZER.id_to_token(one) for one in np.flatnonzero(guides[1].allowed()).tolist()]
        assert {"a", "b"} <= set(allowed)
        assert guides[0].allowed().any()
        assert not held_up.done()
    finally:
        is_free.set()


def test_a_form_that_is_asked_for_again_is_not_compiled_again_and_answers_do_not_share_their_places(
    monkeypatch,
):
    maker = GuideMaker(TOKENIZER, (END,), VOCAB)
    [first] = maker.guides("regex", "ab|ac")
    monkeypatch.setattr(maker, "_prepare", None)
    written(first, np.random.default_rng(0))
    again, other = maker.guides("regex", "ab|ac", 2)
    assert not again.is_over
    assert np.array_equal(again.allowed(), other.allowed())
    assert written(again, np.random.default_rng(0))[0] in {"ab", "ac"}
    assert not other.is_over


@pytest.mark.parametrize(
    "text",
    ["<|im_end|>", "<|box_start|>", "x<|box_start|>y<|im_end|>z", "<|image_pad|><|image_pad|>", "<|im"],
)
def test_a_text_that_reads_like_special_tokens_is_written_with_ordinary_ones(maker, text):
    special = {one for one, token in TOKENIZER.get_added_tokens_decoder().items() if token.special}
    for seed in range(3):
        [guide] = maker.guides("choice", [text])
        found, ids = written(guide, np.random.default_rng(seed))
        assert found == text
        assert not special & set(ids)


def test_a_grammar_that_names_a_special_token_gets_it(maker):
    [guide] = maker.guides("grammar", 'start: <|box_start|> "a" <|box_end|>')
    _, ids = written(guide, np.random.default_rng(0))
    assert [TOKENIZER.id_to_token(one) for one in (ids[0], ids[-1])] == ["<|box_start|>", "<|box_end|>"]


def test_a_token_that_is_not_allowed_is_refused(maker):
    [guide] = maker.guides("choice", ["a"])
    with pytest.raises(RuntimeError, match="does not take"):
        guide.accept(END)


@pytest.mark.parametrize(
    "grammar",
    [
        'start: s\ns: s s | s s s | "a" | ' + " | ".join(f'"{number}"' for number in range(3000)),
        "start: /((a{1,30}){1,30}){1,30}/ /((a{1,30}){1,30}){1,30}/",
    ],
    ids=["ambiguous", "many states"],
)
def test_a_form_that_runs_into_a_bound_is_the_mistake_of_who_asked_for_it(maker, grammar):
    [guide] = maker.guides("grammar", grammar)

    def follow():
        for _ in range(50):
            guide.accept(int(np.flatnonzero(guide.allowed())[0]))

    with pytest.raises(UserError, match="ran into a bound of its parser") as caught:
        follow()
    assert "\n" not in str(caught.value)
