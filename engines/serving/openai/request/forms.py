"""What form a request asks its answer to have, by any of the names that clients know."""

from http import HTTPStatus
from typing import Any

from engines.runtime.tokens.guided import Form
from engines.serving.forms import ANY_OBJECT, AskedForm, one_form, schema_from_text
from engines.serving.openai.errors import ApiError, api_error
from engines.serving.openai.request.schema import ChatCompletionRequest
from export.errors import UserError


def asked_form(asked: ChatCompletionRequest, *further: AskedForm | None) -> AskedForm | None:
    """The form; None where the answer is free.

    Args:
        asked: the request.
        further: what its other fields ask for.

    Raises:
        ApiError: several, a schema that is missing or no JSON.
    """
    wishes = [*_openai(asked), *_vllm(asked), *(wish for wish in further if wish)]
    try:
        return one_form(wishes)
    except UserError as error:
        raise api_error(error, wishes[1].param) from None


def _openai(asked: ChatCompletionRequest) -> list[AskedForm]:
    wish = asked.response_format
    if wish is None or wish.type == "text":
        return []
    if wish.type == "json_object":
        return [AskedForm("json", ANY_OBJECT, "response_format")]
    if wish.json_schema is None:
        raise ApiError(
            HTTPStatus.BAD_REQUEST,
            "A response_format of type json_schema needs json_schema.",
            "response_format.json_schema",
            "invalid_value",
        )
    return [AskedForm("json", wish.json_schema.schema_, "response_format")]


def _vllm(asked: ChatCompletionRequest) -> list[AskedForm]:
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
            ("json", ANY_OBJECT if outputs.json_object else None, "structured_outputs.json_object"),
            ("regex", outputs.regex, "structured_outputs.regex"),
            ("choice", outputs.choice, "structured_outputs.choice"),
            ("grammar", outputs.grammar, "structured_outputs.grammar"),
        ]
    return [
        AskedForm(form, _content(form, content, param), param)
        for form, content, param in pairs
        if content is not None
    ]


def _content(form: Form, content: Any, param: str) -> Any:
    """VLLM takes a schema as text, too."""
    try:
        return schema_from_text(content, param) if form == "json" else content
    except UserError as error:
        raise api_error(error, param) from None
