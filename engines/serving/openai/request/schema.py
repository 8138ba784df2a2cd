"""The fields of a chat completion request, as OpenAI and vLLM spell them. Others are refused by name."""

import difflib
from http import HTTPStatus
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from engines.serving.generation import MAX_BIASES, MAX_STOP_TOKEN_IDS, MAX_TOKEN_ID
from engines.serving.json_text import parse_bounded_json
from engines.serving.limits import MAX_FIELD_BYTES, RequestLimits
from engines.serving.openai.errors import ApiError
from export.checkpoint.generation_config import MAX_LOGPROBS
from export.errors import UserError

_OTHER_NAMES = {
    "max_new_tokens": "max_completion_tokens",
    "timeout_seconds": "timeout",
    "prompt": "messages",
    "add_vision_id": "chat_template_kwargs",
    "max_pixels": "mm_processor_kwargs",
    "min_pixels": "mm_processor_kwargs",
}
"""What other interfaces call the fields of this one."""
_Bias = Annotated[float, Field(ge=-100, le=100)]
_TokenId = Annotated[int, Field(ge=0, le=MAX_TOKEN_ID)]


class _Fields(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(_Fields):
    include_usage: bool = False
    continuous_usage_stats: bool = False
    """With `include_usage`: in every chunk, as vLLM tells it and load generators ask."""
    include_obfuscation: Literal[False] | None = None


class VllmArguments(_Fields):
    """Of a logits processor that vLLM's users add (`vllm_xargs`)."""

    no_repeat_ngram_size: int | None = Field(None, ge=0)
    debug: Literal[False] | None = None


class JsonSchema(_Fields):
    """As OpenAI names it; the schema itself is followed whether `strict` or not."""

    name: str
    schema_: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(_Fields):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StructuredOutputs(_Fields):
    """As vLLM names it: one of them."""

    json_: dict[str, Any] | str | None = Field(None, alias="json")
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: Literal[True] | None = None


class Function(_Fields):
    """What a model may call, as OpenAI names it."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """A JSON schema of its arguments; None: it has none."""
    strict: bool | None = None
    """Whether arguments must follow the schema."""


class Tool(_Fields):
    type: Literal["function"]
    function: Function


class FunctionName(_Fields):
    name: str


class ToolChoice(_Fields):
    """The one function that must be called."""

    type: Literal["function"]
    function: FunctionName


class MediaOptions(_Fields):
    """Budgets of all pictures and videos of a request, as vLLM names the field and qwen-vl-utils its keys."""

    min_pixels: int | None = None
    max_pixels: int | None = None
    resized_height: int | None = None
    resized_width: int | None = None
    fps: float | None = None
    nframes: int | None = None
    min_frames: int | None = None
    max_frames: int | None = None
    video_start: float | None = None
    video_end: float | None = None
    total_pixels: int | None = None


class ChatCompletionRequest(_Fields):
    """What `POST /v1/chat/completions` takes. None means the checkpoint's own way, or the server's."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=16)

    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    """-1 and 0 switch it off."""
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], _Bias] | None = Field(
        None, max_length=MAX_BIASES
    )
    """By token id."""
    no_repeat_ngram_size: int | None = Field(None, ge=0)
    vllm_xargs: VllmArguments | None = None
    min_tokens: int | None = Field(None, ge=0)
    ignore_eos: bool | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    seed: int | None = Field(None, ge=0)
    stop: str | list[str] | None = None
    stop_token_ids: list[_TokenId] | None = Field(None, max_length=MAX_STOP_TOKEN_IDS)
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    """vLLM's older names of `structured_outputs`."""
    tools: list[Tool] | None = Field(None, min_length=1, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    mm_processor_kwargs: MediaOptions | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    """Variables of the checkpoint's template, such as `add_vision_id`."""
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None
    skip_special_tokens: bool | None = None
    timeout: float | None = Field(None, gt=0)

    # They ask for nothing that would change the answer.
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    metadata: dict[str, str] | None = Field(None, max_length=16)
    # What is always so here may be said.
    service_tier: Literal["auto", "default"] | None = None
    store: Literal[False] | None = None
    best_of: Literal[1] | None = None
    echo: Literal[False] | None = None
    use_beam_search: Literal[False] | None = None
    include_stop_str_in_output: Literal[False] | None = None
    modalities: list[Literal["text"]] | None = None

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs is told where logprobs is true alone")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is for an answer that is streamed (stream)")
        if self.add_generation_prompt is not None and self.add_generation_prompt is bool(
            self.continue_final_message
        ):
            raise ValueError(
                "add_generation_prompt and continue_final_message exclude each other, and need one"
            )
        return self

    @property
    def longest(self) -> int | None:
        """Tokens of the answer at most, by OpenAI's new name or by its old one."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def stop_texts(self) -> list[str]:
        """What ends the answer."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


def parse_body(data: bytes | bytearray, limits: RequestLimits) -> ChatCompletionRequest:
    """Read the body of a request; its messages are bounded and resolved later.

    Raises:
        ApiError: no JSON object, fields that nobody follows, values of another type or out of range: all at once.
    """
    try:
        content = parse_bounded_json(
            data,
            "The body",
            max_bytes=max_body_bytes(limits),
            max_text_bytes=limits.max_text_bytes + MAX_FIELD_BYTES,
            max_structure_bytes=limits.max_structure_bytes + MAX_FIELD_BYTES,
        )
    except UserError as error:
        raise ApiError(HTTPStatus.BAD_REQUEST, str(error), code="invalid_json") from None
    if not isinstance(content, dict):
        raise ApiError(
            HTTPStatus.BAD_REQUEST,
            f'The body must be a JSON object like {{"messages": [...]}}, found {type(content).__name__}.',
            code="invalid_json",
        )
    try:
        return ChatCompletionRequest.model_validate(content)
    except ValidationError as error:
        raise _refusal(error) from None


def max_body_bytes(limits: RequestLimits) -> int:
    """The largest body that is read."""
    return limits.max_message_bytes + MAX_FIELD_BYTES


def _refusal(error: ValidationError) -> ApiError:
    problems = error.errors(include_url=False, include_context=False)
    lines = [_line(problem) for problem in problems[:16]]
    if len(problems) > len(lines):
        lines.append(f"and {len(problems) - len(lines)} more")
    first = problems[0]
    unknown = first["type"] == "extra_forbidden"
    return ApiError(
        HTTPStatus.BAD_REQUEST,
        "\n".join(lines),
        _path(first["loc"]) or str(first["msg"]).removeprefix("Value error, ").partition(" ")[0],
        "unsupported_parameter" if unknown else "invalid_value",
    )


def _line(problem: Any) -> str:
    where = _path(problem["loc"])
    if problem["type"] == "extra_forbidden":
        meant = _meant(where) if len(problem["loc"]) == 1 else None
        return f"{where}: nothing here follows it{f' (meant {meant}?)' if meant else ''}. Remove it."
    if problem["type"] == "missing":
        return f"{where}: is missing."
    if problem["type"] == "value_error":  # two fields that do not agree
        return f"{problem['msg'].removeprefix('Value error, ')}."
    message = problem["msg"]
    return f"{where}: {message[:1].lower()}{message[1:]}, found {problem['input']!r:.80}."


def _meant(name: str) -> str | None:
    """The field that someone may have had in mind."""
    near = difflib.get_close_matches(name.lower(), ChatCompletionRequest.model_fields, 1)
    return _OTHER_NAMES.get(name) or next(iter(near), None)


def _path(location: tuple[int | str, ...]) -> str:
    return ".".join(str(step)[:64] for step in location)
