"""What form a request asks its answer to have, by any of the names that clients know."""

import json
from http import HTTPStatus
from typing import Any

from engines.runtime.tokens.guided import Form
from engines.serving.openai.errors import ApiError
from engines.serving.openai.schema import ChatCompletionRequest

_ANY_OBJECT = {"type": "object"}


def asked_form(asked: ChatCompletionRequest) -> tuple[Form, Any, str] | None:
    """The form, its content, and the field that asks for it; None where the answer is free.

    Raises:
        ApiError: several, a schema that is missing or no JSON.
    """
    wishes = [*_openai(asked), *_vllm(asked)]
    if len(wishes) > 1:
        names = ", ".join(param for _, _, param in wishes)
        raise _refusal(f"An answer has one form, asked for are {names}.", wishes[1][2])
    return wishes[0] if wishes else None


def _openai(asked: ChatCompletionRequest) -> list[tuple[Form, Any, str]]:
    wish = asked.response_format
    if wish is None or wish.type == "text":
        return []
    if wish.type == "json_object":
        return [("json", _ANY_OBJECT, "response_format")]
    if wish.json_schema is None:
        raise _refusal(
            "A response_format of type json_schema needs json_schema.", "response_format.json_schema"
        )
    return [("json", wish.json_schema.schema_, "response_format")]


def _vllm(asked: ChatCompletionRequest) -> list[tuple[Form, Any, str]]:
    found: list[tuple[Form, Any, str]] = []
    outputs = asked.structured_outputs
    pairs: list[tuple[Form, Any, str]] = [
        ("json", asked.guided_json, "guided_json"),
        ("regex", asked.guided_regex, "guided_regex"),
        ("choice", asked.guided_choice, "guided_choice"),
        ("grammar", asked.guided_grammar, "guided_grammar"),
    ]
    if outputs is not None:
        pairs += [
            ("json", outputs.json_, "structured_outputs.json"),
            ("json", _ANY_OBJECT if outputs.json_object else None, "structured_outputs.json_object"),
            ("regex", outputs.regex, "structured_outputs.regex"),
            ("choice", outputs.choice, "structured_outputs.choice"),
            ("grammar", outputs.grammar, "structured_outputs.grammar"),
        ]
    for form, content, param in pairs:
        if content is not None:
            found.append((form, _object(content, param) if form == "json" else content, param))
    return found


def _object(content: Any, param: str) -> Any:
    """VLLM takes a schema as text, too."""
    if not isinstance(content, str):
        return content
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _refusal(f"{param} is not JSON: {error}.", param) from None


def _refusal(message: str, param: str) -> ApiError:
    return ApiError(HTTPStatus.BAD_REQUEST, message, param, "invalid_value")
