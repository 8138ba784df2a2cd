"""Questions that no two clients ask alike: some words, and for every second one a picture of its own."""

import io
from typing import Any

import numpy as np
from PIL import Image

WORDS = (
    "what",
    "is",
    "in",
    "this",
    "picture",
    "how",
    "many",
    "red",
    "or",
    "small",
    "squares",
    "are",
    "left",
    "of",
)


def bench_question(number: int) -> list[dict[str, Any]]:
    """Messages with 8 to 40 words, and for every second number a picture that no other number has.

    Pictures are noise of 56 to 196 pixels a side, as PNG bytes: 4 to 49 visual tokens.
    """
    random = np.random.default_rng(number)
    text = " ".join(random.choice(WORDS, random.integers(8, 41)).tolist())
    content: list[dict[str, Any]] = [{"type": "text", "text": text}]
    if number % 2:
        height, width = random.integers(2, 8, 2) * 28
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "png")
        content.insert(0, {"type": "image", "image": file.getvalue()})
    return [{"role": "user", "content": content}]
