"""The requests that the fuzzer sends: random sentences of a grammar, right, wrong and hostile.

Every choice comes from one generator, so a seed gives the same requests again. About half break no rule of the
transport, of JSON, of the chat format, of numbers or of files; their budgets and forms may still contradict each other,
which a server must refuse by name. The others break one or more rules.
"""

import base64
import functools
import io
import json
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from engines.serving.triton.interface import CHAT_INPUTS
from tests.support.pictures import moving_frames, video_file

CONTROL_TOKENS = (
    "<|im_start|>",
    "<|im_end|>",
    "<|image_pad|>",
    "<|vision_start|>",
    "<|endoftext|>",
    "<|video_pad|>",
)
WORDS = (
    "what",
    "is",
    "in",
    "this",
    "picture",
    "\u00fcber",
    "\u4f60\u597d",
    "\U0001f600",
    "\u0301",
    "\u202e",
    "{{",
    "%s",
    "\\",
    "'",
)
NUMBERS: tuple[Any, ...] = (
    0,
    1,
    -1,
    0.5,
    2**31,
    -(2**63),
    2**80,
    1e30,
    math.nan,
    math.inf,
    True,
    None,
    "1",
    [],
    {},
    [1, 2],
)
ADDRESSES = (
    "file:///etc/passwd",
    "/etc/passwd",
    "../../model.py",
    "http://127.0.0.1:8000/v2",
    "https://169.254.169.254/a",
    "gopher://x/",
    "data:image/png,AAAA",
    "data:image/png;base64,",
    "media:0",
    "media:-1",
    "media:99999999999",
    "media:\u0661",
)
TYPES = {
    tensor.name: {"TYPE_STRING": "BYTES"}.get(tensor.data_type, tensor.data_type.removeprefix("TYPE_"))
    for tensor in CHAT_INPUTS
}
"""Inputs of the model and their types over gRPC."""
SANE: dict[str, tuple[Any, ...]] = {
    "temperature": (0.0, 0.7, 1.5), "top_p": (0.1, 0.9, 1.0), "top_k": (0, 1, 20), "repetition_penalty": (1.0, 1.2),
    "min_p": (0.0, 0.3), "presence_penalty": (-2.0, 1.0), "frequency_penalty": (-1.0, 2.0),
    "no_repeat_ngram_size": (0, 2), "logit_bias": ('{"33": -100}', "{}"), "min_tokens": (0, 2),
    "ignore_eos": (True, False), "stop_token_ids": ([33], [5, 6]), "skip_special_tokens": (True, False),
    "seed": (0, 7, 2**40), "stop": (["e"], ["zz", "\u4f60"]), "timeout_seconds": (0.02, 1.0, 60.0),
    "stream": (True, False),
    "chat_template_kwargs": ("{}", '{"add_vision_id": true}', '{"add_vision_id": false}', '{"mood": 1}'),
    "mm_processor_kwargs": (
        '{"max_pixels": 3136}', '{"fps": 1, "max_frames": 4}', '{"video_start": 0.5}', '{"nframes": 4, "fps": 1}', "[]",
    ),
    "continue_final_message": (False, False, False, True),
}  # fmt: skip
FORMS: dict[str, tuple[Any, ...]] = {
    "json_schema": (
        '{"type": "object", "properties": {"a": {"type": "integer"}}}',
        '{"type": "nonsense"}',
        "{",
    ),
    "regex": ("[0-9]{2}", "(", "(a*)*b"),
    "choice": (["yes", "no"], [""]),
    "grammar": ('root ::= "yes"', "root ::= missing"),
}
"""Of the answer: some right, some that nothing can follow."""
BUDGETS: dict[str, tuple[Any, ...]] = {
    "min_pixels": (784, 3136), "max_pixels": (3136, 50_000), "resized_height": (56, 28), "resized_width": (56, 84),
    "fps": (1.0, 4), "nframes": (2, 4), "min_frames": (2, 4), "max_frames": (4, 8), "video_start": (0.0, 0.5),
    "video_end": (1.0, 2.5), "total_pixels": (100_000, 10**6), "detail": ("low", "auto", "high", "huge"),
}  # fmt: skip
"""Beside a picture or video, alone or against each other."""
UNKNOWN = ("unknown", "id", "parameters", "max_new_tokens", "n", "logprobs", "Temperature")
"""Keys that are no inputs."""
MAX_NEW_TOKENS = 8


@dataclass(frozen=True)
class Case:
    """One request, and how its client behaves."""

    mark: str
    """A word of this request alone, in its text: found in what another client gets, it is a leak."""
    fields: dict[str, Any]
    body: bytes
    """Of HTTP. Not always the fields as JSON."""
    is_grpc: bool
    leaves_after: int | None
    """Lines or responses after which the client hangs up; None reads all."""


def random_case(random: Random) -> Case:
    """The next request."""
    mark = f"mark{random.getrandbits(48):012x}"
    is_sane = random.random() < 0.5
    fields = _fields(random, mark, is_sane=is_sane)
    body = json.dumps(fields, default=lambda data: data.decode("latin-1")).encode()
    if not is_sane and random.random() < 0.2:
        body = damaged(random, body)
    leaves_after = random.randrange(3) if random.random() < 0.1 else None
    return Case(mark, fields, body, _fits_grpc(fields) and random.random() < 0.3, leaves_after)


def damaged(random: Random, data: bytes) -> bytes:
    """Cut, doubled, emptied, or with some bytes changed."""
    kind = random.randrange(4)
    if kind == 0:
        return data[: random.randrange(len(data) + 1)]
    if kind == 1:
        return data + data[random.randrange(len(data) + 1) :]
    if kind == 2:
        return b""
    changed = bytearray(data)
    for _ in range(random.randint(1, 8)):
        if changed:
            changed[random.randrange(len(changed))] = random.randrange(256)
    return bytes(changed)


# --- the grammar ------------------------------------------------------------------------------------


def _fields(random: Random, mark: str, *, is_sane: bool) -> dict[str, Any]:
    media: list[bytes] = []
    messages: Any = [
        _message(random, mark, media, role, is_sane=is_sane) for role in _roles(random, is_sane=is_sane)
    ]
    text = json.dumps(messages)
    if not is_sane and random.random() < 0.15:
        text = random.choice(
            ["", "{", "null", "[]", "[[]]", '"x"', "[" * 20_000, text[:-1], text + text, "\x00"]
        )
    fields: dict[str, Any] = {"messages": text, "max_tokens": random.randint(1, MAX_NEW_TOKENS)}
    if media:
        fields["media"] = media
    for name, values in SANE.items():
        if random.random() < 0.1:
            fields[name] = random.choice(values)
    for name in random.sample(sorted(FORMS), random.choice([0] * 8 + [1, 1, 2])):
        fields[name] = random.choice(FORMS[name])
    if not is_sane:
        for _ in range(random.randrange(3)):
            fields[random.choice([*TYPES, *UNKNOWN])] = random.choice(NUMBERS)
        if random.random() < 0.1:
            del fields[random.choice(list(fields))]
    return fields


def _roles(random: Random, *, is_sane: bool) -> Sequence[Any]:
    sane = random.choice([["user"], ["system", "user"], ["user", "assistant", "user"], ["user", "assistant"]])
    if is_sane or random.random() < 0.7:
        return sane
    return random.choice(
        [
            *([], ["user"] * 300, ["<|im_start|>"], [None], [7], ["assistant"], ["user", "system"]),
            *(["narrator"], ["r" * 1_000_000], [{}], [["user"]], ["developer", "user"], ["user", "tool"]),
        ]
    )


def _message(random: Random, mark: str, media: list[bytes], role: Any, *, is_sane: bool) -> Any:
    text = {"type": "text", "text": f"{mark} {_text(random)}"}
    if role != "user":
        return {"role": role, "content": text["text"]}
    content: list[Any] = [
        _picture_part(random, media, is_sane=is_sane) for _ in range(random.choice([0, 0, 1, 2]))
    ]
    content.append(text)
    if not is_sane:
        extra: list[Any] = random.choice(
            [
                [],
                [None, 7, [], "text"],
                [{}],
                [{"type": "text"}],
                [{"type": "text", "text": random.choice(NUMBERS)}],
                [{"type": random.choice([*CONTROL_TOKENS, "audio", None, 1]), "text": mark}],
                [{"type": random.choice([{}, [], [[]], {"a": 1}]), "text": mark}],
                [{"type": "text", "text": mark, "k" * random.choice([1, 50_000]): None}],
                [{"type": "text", "text": ""}] * random.choice([1, 2000, 50_000]),
                [{"type": "image", "image": random.choice(ADDRESSES)}],
                [{"type": "input_image", "image_url": random.choice(ADDRESSES)}],
                [{"type": "video", "video": random.choice([*ADDRESSES, "AAAA"])}],
                [{"type": "image_url", "image_url": {"url": random.choice(ADDRESSES)}}],
                [{"type": "image", "image": random.choice(NUMBERS), "min_pixels": 2**70}],
                [{"type": "text", "text": "long " * 3000}],
                [{"type": "video", "video": [random.choice(ADDRESSES)] * random.choice([0, 1, 3])}],
                content * 40,
            ]
        )
        content += extra
    return {"role": role, "content": content}


def _text(random: Random) -> str:
    return " ".join(random.choice([*WORDS, *CONTROL_TOKENS]) for _ in range(random.randrange(12)))


def _picture_part(random: Random, media: list[bytes], *, is_sane: bool) -> dict[str, Any]:
    kind = "video" if random.random() < 0.1 else "image"
    if kind == "video" and is_sane and random.random() < 0.3:
        return {"type": "video", "video": _frames(random)}
    data = _film() if kind == "video" else _picture_file(random)
    if not is_sane and random.random() < 0.6:
        data = random.choice(
            [damaged(random, data), _png_header(40_000, 40_000), _png_header(2**31 - 1, 1), _text_bomb()]
        )
    budget = {
        name: random.choice(BUDGETS[name])
        for name in random.sample(sorted(BUDGETS), random.choice([0, 0, 1, 2]))
    }
    if not is_sane and budget and random.random() < 0.3:
        budget[random.choice(list(budget))] = random.choice(NUMBERS)
    return {**_spelt(random, media, kind, data), **budget}


def _spelt(random: Random, media: list[bytes], kind: str, data: bytes) -> dict[str, Any]:
    """A picture or video in one of the dialects."""
    if random.random() < 0.5:
        media.append(data)
        source = f"media:{len(media) - 1}"
    else:
        encoded = base64.b64encode(data).decode()
        spellings = [encoded, encoded.rstrip("="), base64.urlsafe_b64encode(data).decode()]
        source = random.choice([*spellings, f"data:{kind}/png;base64,{encoded}", f"DATA:;base64,{encoded}"])
    return random.choice(
        [
            {"type": kind, kind: source},
            {"type": kind, "url": source},
            {"type": f"{kind}_url", f"{kind}_url": {"url": source, "detail": None}},
            {"type": f"{kind}_url", f"{kind}_url": source},
            {"type": f"input_{kind}", f"{kind}_url": source},
        ]
    )


def _frames(random: Random) -> list[str]:
    """A film as a list of pictures."""
    data = _picture_file(random)
    return [base64.b64encode(data).decode()] * random.randint(1, 4)


@functools.cache
def _film() -> bytes:
    """Three seconds, 56 x 56."""
    return video_file(moving_frames(12, 56, 56), fps=4)


def _picture_file(random: Random) -> bytes:
    """Noise of 28 to 112 pixels a side, some of it grey, with transparency or a palette."""
    height, width = (random.randint(28, 112) for _ in range(2))
    noise = np.random.default_rng(random.getrandbits(32)).integers(0, 256, (height, width, 3), np.uint8)
    mode, kind = random.choice(
        [("RGB", "png"), ("L", "png"), ("RGBA", "png"), ("P", "gif"), ("RGB", "jpeg"), ("CMYK", "jpeg")]
    )
    file = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(file, kind)
    return file.getvalue()


def _png_header(width: int, height: int) -> bytes:
    """A PNG that promises many pixels and holds none."""
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + _chunk(b"IEND", b"")
    )


@functools.cache
def _text_bomb() -> bytes:
    """A PNG whose text chunk grows to 16 MB when it is read."""
    file = io.BytesIO()
    Image.new("RGB", (28, 28)).save(file, "png")
    head, tail = file.getvalue()[:33], file.getvalue()[33:]
    return head + _chunk(b"zTXt", b"x\x00\x00" + zlib.compress(bytes(16 << 20))) + tail


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _fits_grpc(fields: dict[str, Any]) -> bool:
    """Whether the fields can be tensors at all: gRPC's client checks types that HTTP's leaves to the server."""
    return all(name in TYPES and _fits(TYPES[name], value) for name, value in fields.items())


def _fits(kind: str, value: Any) -> bool:
    values = value if isinstance(value, list) else [value]
    if kind == "BOOL":
        return all(type(one) is bool for one in values)
    if kind == "BYTES":
        return all(isinstance(one, str | bytes) for one in values)
    if kind == "FP32":
        return all(type(one) in {int, float} for one in values)
    bits = 31 if kind == "INT32" else 63
    return all(type(one) is int and -(2**bits) <= one < 2**bits for one in values)
