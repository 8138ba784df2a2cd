"""Which tokens does the small model know? A byte-level BPE of a few hundred, trained on the tasks' own prompts.

Letters and digits of codes stay single tokens, so that an answer is spelled as it is read.
"""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from examples.random_checkpoint import SPECIAL_TOKENS, TOKEN_FLAGS, WORD_PATTERN
from examples.tiny.pictures import COLORS, SHAPES
from examples.tiny.tasks import CHINESE, PROMPTS

MAX_TOKENS = 1024


def train_tokenizer() -> dict[str, Any]:
    """The content of tokenizer.json; special tokens follow the trained ones."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=MAX_TOKENS,
        min_frequency=2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sentences(), trainer)
    content: dict[str, Any] = json.loads(tokenizer.to_str())
    added = enumerate(SPECIAL_TOKENS, start=num_trained_tokens(content))
    content["added_tokens"] = [{"id": i, "content": token, **TOKEN_FLAGS} for i, token in added]
    return content


def num_trained_tokens(tokenizer_json: dict[str, Any]) -> int:
    return len(tokenizer_json["model"]["vocab"])


def _sentences() -> Iterator[str]:
    """What the template says, and every prompt with every word that may fill it, but with no code and no item."""
    yield from ["system\nYou are a helpful assistant.", "user\n", "assistant\n"] * 10
    yield from [*CHINESE, *CHINESE.values()] * 4
    rng = np.random.default_rng(0)
    for english, chinese in PROMPTS.values():
        for prompt in english:
            for _ in range(8):
                yield prompt.format(*_words(prompt, rng, chinese=False))
        for prompt in chinese:
            for _ in range(8):
                yield prompt.format(*_words(prompt, rng, chinese=True))


def _words(prompt: str, rng: np.random.Generator, *, chinese: bool) -> list[str]:
    """A colour and a shape where two words are missing; a colour, or a number of a picture, where one is."""
    pair = [str(rng.choice(list(COLORS))), str(rng.choice(SHAPES))]
    if prompt.count("{}") == 1 and ("picture" in prompt or "第" in prompt):
        pair = [str(rng.choice(list("123")))]
    return [CHINESE.get(word, word) for word in pair] if chinese else pair
