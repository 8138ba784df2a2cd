"""What a request's fields ask of the runtime: how tokens are chosen, when an answer ends, how many there are."""

from dataclasses import dataclass
from typing import Any

from engines.serving.chat import bounded_max_tokens, bounded_seconds, bounded_stop_strings
from engines.serving.generation import wished_generation
from engines.serving.limits import RequestLimits
from engines.serving.messages import bounded_messages
from engines.serving.openai.errors import api_error
from engines.serving.openai.request.schema import ChatCompletionRequest
from engines.serving.openai.request.tools import ToolWish
from export.checkpoint.generation_config import GenerationConfig
from export.errors import UserError
from export.processor.media.budget import NO_BUDGET, Budget, read_budget
from export.processor.text.template import ChatTemplate


@dataclass(frozen=True)
class Wish:
    """What a request asks, within the bounds of the server."""

    messages: list[dict[str, Any]]
    config: GenerationConfig
    seeds: tuple[int | None, ...]
    """One for each answer."""
    stop_strings: tuple[str, ...]
    timeout_seconds: float
    budget: Budget
    """Of its pictures and videos that have none of their own."""


def wish_from_request(
    asked: ChatCompletionRequest, defaults: GenerationConfig, limits: RequestLimits
) -> Wish:
    """Bound what was asked.

    Raises:
        ApiError: more than this server allows; the field.
    """
    param = "messages"
    try:
        messages = bounded_messages(asked.messages, limits)
        param = "max_tokens" if asked.max_completion_tokens is None else "max_completion_tokens"
        max_tokens = bounded_max_tokens(asked.longest, defaults, limits)
        param = "timeout"
        seconds = bounded_seconds(asked.timeout, "timeout", limits)
        param = "stop"
        stop_strings = bounded_stop_strings(asked.stop_texts, limits)
        param = "mm_processor_kwargs"
        options = asked.mm_processor_kwargs
        budget = read_budget("video", options.model_dump(), param) if options else NO_BUDGET
    except UserError as error:
        raise api_error(error, param) from None
    return Wish(
        messages,
        _generation_config(asked, defaults, max_tokens),
        _seeds(asked),
        stop_strings,
        seconds,
        budget,
    )


def template_wish(
    asked: ChatCompletionRequest, tools: ToolWish | None, template: ChatTemplate
) -> dict[str, Any]:
    """What else the chat template is asked for, as `Processor.inputs_from_messages` takes it.

    Raises:
        ApiError: a variable that it does not read, or tools beside their own field.
    """
    variables = asked.chat_template_kwargs or {}
    param = "chat_template_kwargs"
    try:
        template.require_read(variables)
        if "tools" in variables:
            raise UserError("tools have a field of their own, which reads them.", "Give them there.")
    except UserError as error:
        raise api_error(error, param) from None
    return {
        "tools": tools.tools if tools else None,
        "chat_template_kwargs": variables,
        "continue_final_message": bool(asked.continue_final_message),
    }


def _generation_config(
    asked: ChatCompletionRequest, defaults: GenerationConfig, max_tokens: int
) -> GenerationConfig:
    ngram_size = asked.no_repeat_ngram_size
    if ngram_size is None and asked.vllm_xargs:
        ngram_size = asked.vllm_xargs.no_repeat_ngram_size
    return wished_generation(
        defaults,
        max_tokens=max_tokens,
        min_tokens=asked.min_tokens,
        logit_bias=asked.logit_bias,
        ignore_eos=asked.ignore_eos,
        stop_token_ids=asked.stop_token_ids or (),
        temperature=asked.temperature,
        top_p=asked.top_p,
        top_k=None if asked.top_k is None else max(asked.top_k, 0),
        min_p=asked.min_p,
        repetition_penalty=asked.repetition_penalty,
        presence_penalty=asked.presence_penalty,
        frequency_penalty=asked.frequency_penalty,
        no_repeat_ngram_size=ngram_size,
        num_logprobs=(asked.top_logprobs or 0) if asked.logprobs else None,
    )


def _seeds(asked: ChatCompletionRequest) -> tuple[int | None, ...]:
    numbers = range(asked.n or 1)
    return tuple(None if asked.seed is None else asked.seed + number for number in numbers)
