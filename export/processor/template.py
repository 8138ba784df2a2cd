"""What text does the checkpoint's chat template make of a conversation?

A template is a program from someone else's checkpoint. It runs in Jinja2's sandbox as in Transformers (same options,
same extras), with a limit on its own size, on its output and on its time. What no limit catches is a template that
fills the memory inside one step: run checkpoints that you do not trust in a container with a memory limit.
"""

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from export.errors import UserError
from export.json_object import read_json_object

MAX_TEMPLATE_BYTES = 2**20
MAX_RENDERED_CHARACTERS = 2**24
MAX_RENDER_SECONDS = 5.0
_MAX_REPEATS = 2**20

_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class ChatTemplate:
    """One compiled template and the named special tokens that it may ask for."""

    def __init__(self, source: str, name: str, named_tokens: Mapping[str, str]) -> None:
        if len(source.encode("utf-8", "replace")) > MAX_TEMPLATE_BYTES:
            raise UserError(f"{name}: the chat template is larger than {MAX_TEMPLATE_BYTES} bytes.")
        self.name = name
        self.source = source
        self._named_tokens = dict(named_tokens)
        try:
            self._template = _environment().from_string(source)
        except (jinja2.TemplateError, RecursionError, SyntaxError, ValueError) as error:
            raise UserError(f"{name}: the chat template cannot be compiled: {error}") from None

    def render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True) -> str:
        """Render a conversation of plain strings, lists and dicts.

        Raises:
            UserError: the template refuses the messages, is broken, or runs too long.
        """
        variables = {
            **self._named_tokens,
            "messages": messages,
            "add_generation_prompt": add_generation_prompt,
        }
        parts, length = [], 0
        try:
            with _deadline(MAX_RENDER_SECONDS):
                for part in self._template.generate(variables | {"tools": None, "documents": None}):
                    parts.append(part)
                    length += len(part)
                    if length > MAX_RENDERED_CHARACTERS:
                        raise jinja2.TemplateError(
                            f"it writes more than {MAX_RENDERED_CHARACTERS} characters"
                        )
        # A template can raise whatever Python raises: division by zero, a missing key, too deep recursion.
        except Exception as error:  # noqa: BLE001
            raise UserError(
                f"{self.name}: the chat template failed on these messages: {error or type(error).__name__}"
            ) from None
        return "".join(parts)


def load_chat_template(directory: Path) -> ChatTemplate:
    """Find the checkpoint's template: `chat_template.jinja`, `chat_template.json` or in `tokenizer_config.json`.

    Raises:
        UserError: there is none, or it cannot be read or compiled.
    """
    config_file = directory / "tokenizer_config.json"
    config = read_json_object(config_file) if config_file.exists() else {}
    named_tokens = {name: _token_text(config[name]) for name in _TOKEN_NAMES if config.get(name) is not None}
    for path in (directory / "chat_template.jinja", directory / "chat_template.json", config_file):
        source = _template_source(path)
        if source is not None:
            return ChatTemplate(source, str(path), named_tokens)
    raise UserError(
        f"{directory} has no chat template: expected chat_template.jinja, chat_template.json or the key chat_template "
        "in tokenizer_config.json. Base models have none: take the Instruct checkpoint's."
    )


def _template_source(path: Path) -> str | None:
    if not path.exists():
        return None
    if path.suffix == ".jinja":
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path} cannot be read: {error}") from None
    template = read_json_object(path).get("chat_template")
    if isinstance(template, list):  # several named templates
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, Mapping)}
        template = named.get("default")
    if template is not None and not isinstance(template, str):
        raise UserError(f"{path}: chat_template must be a string, found {type(template).__name__}.")
    return template


def _token_text(value: Any) -> str:
    return str(value.get("content", "")) if isinstance(value, Mapping) else str(value)


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja2's sandbox that also refuses to repeat things without end."""

    intercepted_binops = frozenset(["*", "**"])

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        numbers = isinstance(left, int | float) and isinstance(right, int | float)
        if operator == "**" or not numbers:
            for side in (left, right):
                if isinstance(side, int) and abs(side) > (1024 if operator == "**" else _MAX_REPEATS):
                    raise jinja2.TemplateError(f"{operator} with the number {side} is not allowed")
        return super().call_binop(context, operator, left, right)


def _environment() -> jinja2.Environment:
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML, which no model has seen.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:  # noqa: A002 - the name that templates may use
    return datetime.now().strftime(format)  # noqa: DTZ005 - local time, as Transformers renders it


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """Stop Python code of this thread's templates that runs longer, even in loops that write nothing.

    A template is compiled to Python, so the interpreter's line trace sees each of its steps.
    """
    end = time.monotonic() + seconds

    def trace(frame: FrameType, _event: str, _argument: object) -> Any:
        if frame.f_code.co_filename != "<template>":
            return None
        if time.monotonic() > end:
            raise jinja2.TemplateError(f"it ran longer than {seconds:g} s")
        return trace

    previous = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(previous)
