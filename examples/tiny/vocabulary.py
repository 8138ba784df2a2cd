"""The small model's tokens: a byte-level BPE of a few hundred, trained on the tasks' own prompts.

Letters and digits of codes stay single tokens, so that an answer is spelled as it is read.
"""

import json
from collections.abc import Iterator
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from examples.random_checkpoint import SPECIAL_TOKENS, TOKEN_FLAGS, WORD_PATTERN
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
    """What the template says, every prompt, and every word that may fill one, but no code and no item.

    Chinese prompts come in pieces, so that no token grows across a word that fills them.
    """
    yield from ["system\nYou are a helpful assistant.", "user\n", "assistant\n"] * 10
    yield from [*CHINESE, *CHINESE.values()] * 16
    yield from [f" {word}" for word in CHINESE if word.isalpha()] * 16
    for english, chinese in PROMPTS.values():
        yield from [prompt.replace("{}", "") for prompt in english] * 8
        yield from [piece for prompt in chinese for piece in prompt.split("{}")] * 8
