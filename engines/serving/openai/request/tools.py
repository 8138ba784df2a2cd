"""Functions that a model may call: as its template writes them into the prompt, and read back out of its answer.

The family's templates that render tools have calls written as Hermes has them, and that is the one form read here:

    <tool_call>
    {"name": "weather", "arguments": {"city": "Berlin"}}
    </tool_call>
"""

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from engines.serving.forms import AskedForm
from engines.serving.openai.errors import ApiError
from engines.serving.openai.request.schema import ChatCompletionRequest, Tool, ToolChoice
from export.processor.text.template import ChatTemplate

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}
_ONE_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "lenient": False}


@dataclass(frozen=True)
class ToolWish:
    """What a request asks of its tools."""

    tools: tuple[dict[str, Any], ...]
    """For the template to render."""
    form: AskedForm | None = None
    """Where calls must come, or must follow their schemas."""
    max_calls: int | None = None
    """An answer ends after so many; None: any number."""


def tool_wish(asked: ChatCompletionRequest, template: ChatTemplate) -> ToolWish | None:
    """The tools of a request; None where the model is to call none.

    Raises:
        ApiError: a field of tools that nothing here follows, for this checkpoint or ever.
    """
    choice = asked.tool_choice
    if not asked.tools:
        for name, value in (("tool_choice", choice), ("parallel_tool_calls", asked.parallel_tool_calls)):
            if value not in {None, "none", "auto"}:
                raise _refusal(f"{name} is about tools, and the request has none.", name)
        return None
    names = [tool.function.name for tool in asked.tools]
    if len(set(names)) < len(names):
        raise _refusal("Two tools have one name.", "tools")
    if choice == "none":
        return None
    _require_rendered(template)
    is_single = asked.parallel_tool_calls is False
    form: AskedForm | None
    if isinstance(choice, ToolChoice):
        named = [tool for tool in asked.tools if tool.function.name == choice.function.name]
        if not named:
            raise _refusal(f"No tool is called {choice.function.name!r:.80}.", "tool_choice")
        form, is_single = _forced_calls(named, is_single=True), True
    elif choice == "required":
        form = _forced_calls(asked.tools, is_single=is_single)
    else:
        form = _calls_amid_text(asked.tools)
    tools = tuple(tool.model_dump(exclude_none=True) for tool in asked.tools)
    return ToolWish(tools, form, 1 if is_single else None)


def _require_rendered(template: ChatTemplate) -> None:
    if "tools" not in template.variables:
        raise _refusal(
            "The checkpoint's chat template renders no tools, so the model would not see them. Leave tools out.",
            "tools",
        )
    if OPEN not in template.source:
        raise _refusal(
            f"The checkpoint's chat template has calls written in another form than {OPEN}, which nothing here reads "
            "back. Leave tools out.",
            "tools",
        )


def _forced_calls(tools: Sequence[Tool], *, is_single: bool) -> AskedForm:
    """Nothing but calls."""
    more = "" if is_single else f" ({_quoted(chr(10))} call)*"
    lines = [f"start: call{more}", f"call: {_quoted(OPEN + chr(10))} {_called(tools)}", *_call_rules(tools)]
    return AskedForm("grammar", "\n".join(lines), "tool_choice")


def _calls_amid_text(tools: Sequence[Tool]) -> AskedForm | None:
    """Any text; where a call begins in it, the rest of the call follows a schema. None unless a tool is strict."""
    if not any(tool.function.strict for tool in tools):
        return None
    lines = [
        "start: call* TEXT",
        f"call: opening {_called(tools)}",
        f"opening[lazy]: TEXT {_quoted(OPEN + chr(10))}",
        r"TEXT: /(.|\n)*/",
        *_call_rules(tools),
    ]
    return AskedForm("grammar", "\n".join(lines), "tools")


def _called(tools: Sequence[Tool]) -> str:
    return f"({' | '.join(f'call_{n}' for n in range(len(tools)))}) {_quoted(chr(10) + CLOSE)}"


def _call_rules(tools: Sequence[Tool]) -> list[str]:
    rules = []
    for number, tool in enumerate(tools):
        schema = _NO_ARGUMENTS if tool.function.parameters is None else tool.function.parameters
        # One way to write a value, as everywhere; a schema's own key of that name would loosen it.
        body = json.dumps({**schema, "x-guidance": _ONE_STYLE}, ensure_ascii=False)
        head = '{"name": ' + json.dumps(tool.function.name) + ', "arguments": '
        rules.append(f'call_{number}: {_quoted(head)} arguments_{number} "}}"')
        rules.append(f"arguments_{number}: %json {body}")
    return rules


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _refusal(message: str, param: str) -> ApiError:
    return ApiError(HTTPStatus.BAD_REQUEST, message, param, "invalid_value")


class ToolCallReader:
    """Tells calls from the text of one answer while it grows.

    What is no call in the end (no JSON, no name, cut short) is text as it stood.
    White space after a call is nobody's, nor is what stands before the last one.
    """

    def __init__(self, max_calls: int | None = None) -> None:
        self._max_calls = max_calls
        self._held = ""  # not yet told: a call, or what may become one
        self._space = ""  # at the end of what was told, if more text follows
        self._is_inside = self._is_after_call = False
        self.num_calls = 0

    @property
    def is_full(self) -> bool:
        """Whether no further call is wanted."""
        return self._max_calls is not None and self.num_calls >= self._max_calls

    def push(self, text: str) -> tuple[str, list[dict[str, Any]]]:
        """Take a piece of the answer; returns the text that is certain, and the calls that are complete.

        What comes once `is_full` is dropped.
        """
        self._held += text
        told, calls = "", []
        while not self.is_full:
            head, mark, rest = self._held.partition(CLOSE if self._is_inside else OPEN)
            if not mark:
                break
            self._held = rest
            call = self._call(head) if self._is_inside else None
            if call:
                calls.append(call)
                self._is_after_call = True
            else:
                told += self._words(f"{OPEN}{head}{CLOSE}" if self._is_inside else head)
            self._is_inside = not self._is_inside
        if self.is_full:
            self._held = ""
        elif not self._is_inside:
            num_held = _unfinished_length(self._held)
            split = len(self._held) - num_held
            told += self._words(self._held[:split])
            self._held = self._held[split:]
        return told, calls

    def finish(self) -> tuple[str, list[dict[str, Any]]]:
        """The answer is over."""
        call = self._call(self._held) if self._is_inside else None
        if call:
            self._held = ""
        told = self._words((OPEN if self._is_inside and not call else "") + self._held)
        return told + ("" if self.num_calls else self._space), [call] if call else []

    def _words(self, text: str) -> str:
        """Text to tell now; white space at its end waits for what follows."""
        if self._is_after_call:
            text = text.lstrip()
            self._is_after_call = not text
        text = self._space + text
        told = text.rstrip()
        self._space = text[len(told) :]
        return told

    def _call(self, text: str) -> dict[str, Any] | None:
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):
            return None
        if not isinstance(content, dict) or not isinstance(content.get("name"), str):
            return None
        arguments = content.get("arguments", {})
        if not isinstance(arguments, dict):
            return None
        self.num_calls += 1
        return {
            "id": f"call_{uuid.uuid4().hex}",
            "type": "function",
            "function": {"name": content["name"], "arguments": json.dumps(arguments, ensure_ascii=False)},
        }


def _unfinished_length(text: str) -> int:
    """Length of the end of `text` that may begin a call."""
    for length in range(min(len(OPEN) - 1, len(text)), 0, -1):
        if OPEN.startswith(text[-length:]):
            return length
    return 0
