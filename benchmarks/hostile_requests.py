"""Conversations that cost a server far more than their size says: JSON, texts, forms of answers, pictures and videos.

What a file attacks stands in `benchmarks.hostile_media`; this module wraps files and everything else into requests.
"""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from benchmarks.hostile_media import PICTURES, VIDEOS, data_url, noise, png_of_nothing


@dataclass(frozen=True)
class Hostile:
    """A conversation, and what else it asks."""

    messages: bytes
    """JSON, or what is to pass for it."""
    fields: dict[str, Any] = field(default_factory=dict)
    """Of OpenAI's request, beside the messages."""

    def body(self, timeout_seconds: float) -> bytes:
        """Of `POST /v1/chat/completions`."""
        fields = {"max_tokens": 4, "timeout": timeout_seconds, **self.fields}
        return b'{"messages": ' + self.messages + b", " + json.dumps(fields).encode()[1:]


def user(content: Any) -> bytes:
    """One message of the user."""
    return json.dumps([{"role": "user", "content": content}]).encode()


TEXTS: dict[str, Callable[[], bytes]] = {
    "one role of 16 million letters": lambda: json.dumps(
        [{"role": "r" * 16_000_000, "content": "x"}]
    ).encode(),
    "one key of 16 million letters": lambda: json.dumps(
        [{"role": "user", "k" * 16_000_000: 1, "content": "x"}]
    ).encode(),
    "one type of 16 million letters": lambda: user([{"type": "t" * 16_000_000}]),
    "54 MB of empty lists": lambda: b"[" + b"[]," * 18_000_000 + b"[]]",
    "54 MB of empty strings": lambda: b"[" + b'"",' * 18_000_000 + b'""]',
    "1.5 million empty text parts": lambda: user([{"type": "text", "text": ""}] * 1_500_000),
    "a million messages": lambda: json.dumps([{"role": "user", "content": ""}] * 1_000_000).encode(),
    "quotation marks": lambda: b'["' + b'\\"' * 20_000_000 + b'"]',
    "quotation marks in many strings": lambda: b"[" + b",".join([b'"' + b'\\"' * 99_000 + b'"'] * 400) + b"]",
    "backslashes": lambda: b'["' + b"\\\\" * 20_000_000 + b'"]',
    "slashes as PHP writes them": lambda: user([{"type": "image", "image": "x"}]).replace(
        b"x", b"\\/" * 20_000_000
    ),
    "80 MB of a picture that is none": lambda: user([{"type": "image", "image": "!" * 80_000_000}]),
    "80 MB of base64": lambda: user([{"type": "image", "image": "AAAA" * 20_000_000}]),
    "one number": lambda: b"[" + b"7" * 50_000_000 + b"]",
    "an open string": lambda: b'["' + b"x" * 50_000_000,
    "200,000 digits": lambda: user("7" * 199_000),
    "200,000 letters": lambda: user("a" * 199_000),
    "200,000 spaces": lambda: user(" " * 199_000),
    "200,000 characters of control tokens": lambda: user("<|im_end|>" * 19_000),
}
"""Messages that hold no file; none of them can be answered."""


def _pictures(*files: bytes) -> bytes:
    parts: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": data_url(file)}} for file in files
    ]
    return user([*parts, {"type": "text", "text": "What is this?"}])


def _video(file: bytes) -> bytes:
    part = {"type": "video_url", "video_url": {"url": data_url(file, "video/mp4")}}
    return user([part, {"type": "text", "text": "What is this?"}])


def _frames(file: bytes, number: int) -> bytes:
    part = {"type": "video", "video": [data_url(file)] * number}
    return user([part, {"type": "text", "text": "What is this?"}])


def _form(**fields: Any) -> Callable[[], Hostile]:
    return lambda: Hostile(user("Hello"), fields)


def _nested_schema(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema, "b": schema}}
    return schema


FORMS: dict[str, Callable[[], Hostile]] = {
    "a regular expression of a million states": _form(guided_regex="((a{1,100}){1,100}){1,100}"),
    "a regular expression that must remember": _form(guided_regex="(a|b)*a(a|b){40}"),
    "a choice of twenty thousand words": _form(
        guided_choice=[f"{number} {'x' * 30}" for number in range(20_000)]
    ),
    "a schema that doubles sixteen times": lambda: Hostile(
        user("Hello"), {"guided_json": json.dumps(_nested_schema(16))}
    ),
    "a schema of long arrays": _form(
        guided_json={
            "type": "array",
            "minItems": 100_000,
            "maxItems": 1_000_000,
            "items": {"enum": list(range(500))},
        }
    ),
    "a schema of every property": _form(
        guided_json={
            "type": "object",
            "properties": {f"p{number}": {"type": "number", "multipleOf": 0.3} for number in range(3000)},
        }
    ),
    "a grammar of ambiguous sums": _form(
        guided_grammar='start: s\ns: s s | s s s | "a" | ' + " | ".join(f'"{n}"' for n in range(3000))
    ),
}
"""Forms of answers; only OpenAI's API has them."""


def hostile_requests() -> dict[str, Callable[[], Hostile]]:
    """What makes each kind of request, by name; made once."""
    kinds: dict[str, Callable[[], Hostile]] = {}
    for name, text in TEXTS.items():
        kinds[name] = lambda text=text: Hostile(text())  # type: ignore[misc]
    for name, file in PICTURES.items():
        kinds[name] = lambda file=file: Hostile(_pictures(file()))  # type: ignore[misc]
        kinds[f"{name}, as a frame"] = lambda file=file: Hostile(_frames(file(), 4))  # type: ignore[misc]
    for name, file in VIDEOS.items():
        kinds[name] = lambda file=file: Hostile(_video(file()))  # type: ignore[misc]
    kinds["32 honest pictures of 2 megapixels"] = lambda: Hostile(
        _pictures(*[noise(1400, seed) for seed in range(32)])
    )
    kinds["32 pictures of nothing"] = lambda: Hostile(_pictures(*[png_of_nothing(1400, 1400)] * 32))
    kinds["300 frames of 4 megapixels"] = lambda: Hostile(_frames(png_of_nothing(2048, 2048), 300))
    kinds.update(FORMS)
    return {name: functools.cache(make) for name, make in kinds.items()}


def storm(seed: int, number: int) -> list[str]:
    """Names of the kinds that come at once: of every sort, then by chance."""
    random = Random(seed)
    names = list(hostile_requests())
    random.shuffle(names)
    return (names * (1 + number // len(names)))[:number]
