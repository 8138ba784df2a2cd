"""Requests of the Triton model's clients: tensors in, a request that may run out.

Everything in a request is hostile until checked: sizes before decoding, picture headers before pixels. All problems of
a request come in one message, for that request alone.
"""

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

from engines.runtime.answer import Request
from engines.runtime.tokens.guided import Form, Guide, GuideMaker
from engines.serving.chat import (
    ChatRequest,
    MakeReader,
    Problems,
    Receipt,
    bounded_max_tokens,
    bounded_seconds,
    bounded_stop_strings,
    model_inputs,
)
from engines.serving.forms import AskedForm, one_form
from engines.serving.generation import wished_generation
from engines.serving.json_text import parse_bounded_json
from engines.serving.limits import MAX_FIELD_BYTES, RequestLimits
from engines.serving.media.fetching import Fetcher
from engines.serving.media.request_media import RequestMedia
from engines.serving.messages import read_messages
from engines.serving.room import Room
from engines.serving.triton.interface import CHAT_INPUTS, ServerTensor
from engines.serving.triton.tensors import (
    Tensors,
    flag,
    number,
    strings,
    text,
    texts,
    whole_number,
    whole_numbers,
)
from export.checkpoint.generation_config import GenerationConfig
from export.errors import UserError
from export.processor.media.budget import NO_BUDGET, Budget, read_budget
from export.processor.processor import Processor

_OTHER_NAMES = {
    "max_new_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "prompt": "messages",
    "timeout": "timeout_seconds",
    "response_format": "json_schema",
    "guided_json": "json_schema",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
}
"""What other servers call the inputs of this one."""
_SAMPLING = (
    *("temperature", "top_p", "top_k", "min_p"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty", "no_repeat_ngram_size"),
)


def parse_request(
    tensors: Tensors,
    processor: Processor,
    defaults: GenerationConfig,
    limits: RequestLimits,
    fetcher: Fetcher | None = None,
    make_reader: MakeReader | None = None,
    receipt: Receipt | None = None,
    parameters: Iterable[str] = (),
    guides: GuideMaker | None = None,
    room: Room | None = None,
) -> ChatRequest:
    """Check a request and make it ready for the scheduler.

    Args:
        tensors: of `interface.CHAT_INPUTS`; optional ones may be missing or empty.
        processor: the bundle's.
        defaults: the checkpoint's way of choosing tokens, where the client does not say.
        limits: what one request may hold.
        fetcher: for web addresses; None refuses them all.
        make_reader: what decodes media, from what would decode them here and the request's seconds; None: here.
        receipt: when it came, and whether its client still waits; None: now, and always.
        parameters: names of what the client asks for beside the tensors.
        guides: for answers of a given form; None: made for this one request.
        room: where large requests are read one at a time; None: this one is alone.

    Raises:
        UserError: whatever is wrong with it; all problems that can be told apart, in one message.
        CancelledError: the client left meanwhile.
    """
    receipt, timeout_seconds, budget = receipt or Receipt(), limits.timeout_seconds, NO_BUDGET
    problems = Problems()
    with problems.collected():
        refuse_parameters(parameters, CHAT_INPUTS)
    with problems.collected():
        config = _generation_config(tensors, defaults, limits)
    with problems.collected():
        is_streamed = bool(flag(tensors, "stream"))
    with problems.collected():
        seed = whole_number(tensors, "seed")
        timeout_seconds = bounded_seconds(number(tensors, "timeout_seconds"), "timeout_seconds", limits)
    with problems.collected():
        stop_strings = bounded_stop_strings(texts(tensors, "stop"), limits)
    with problems.collected():
        skip_special_tokens = flag(tensors, "skip_special_tokens") is not False
    with problems.collected():
        guide = _guide(tensors, guides or guide_maker(processor, defaults))
    with problems.collected():
        budget = _budget(tensors)
    with problems.collected():
        template = _template_wish(tensors, processor)
    with problems.collected():
        messages = _messages(
            tensors, limits, room or Room(limits.max_message_bytes), timeout_seconds, receipt
        )
        media = RequestMedia(
            [bytes(file) for file in strings(tensors, "media")],
            limits,
            fetcher,
            deadline=receipt.at + timeout_seconds,
            is_cancelled=receipt.is_cancelled,
            budget=budget,
        )
        media.fetch_together(messages)
        messages = [media.resolved(message) for message in messages]
        media.check()
    problems.raise_if_any()
    left_seconds = receipt.left_seconds(timeout_seconds)
    inputs = model_inputs(messages, media, processor, limits, left_seconds, make_reader, template)
    request = Request(inputs, config, seed, guide)
    return ChatRequest(request, stop_strings, timeout_seconds, skip_special_tokens, is_streamed)


def guide_maker(processor: Processor, defaults: GenerationConfig) -> GuideMaker:
    """What makes guides of a bundle's answers; what it prepares once is kept in it."""
    return GuideMaker(processor.tokenizer, defaults.eos_token_ids, processor.config.decoder.vocab_size)


def refuse_parameters(names: Iterable[str], inputs: Sequence[ServerTensor]) -> None:
    """Refuse what a client asks for and nothing here follows: the generate extension makes parameters of unknown keys.

    Args:
        names: of the request's parameters; those of the server's own begin with "triton_".
        inputs: that the model takes.

    Raises:
        UserError: there are any; all of them by name, each with the input that may be meant.
    """
    known = [tensor.name for tensor in inputs]
    unknown = [name for name in names if not name.startswith("triton_")]
    if unknown:
        told = [_told(name, known) for name in sorted(unknown)[:16]]
        raise UserError(f"Nothing here follows {', '.join(told)}. This model takes {', '.join(known)}.")


def _told(name: str, known: Sequence[str]) -> str:
    meant = _OTHER_NAMES.get(name) or next(iter(difflib.get_close_matches(name.lower(), known, 1)), None)
    return f"{name[:60]} (meant {meant}?)" if meant in known else name[:60]


# --- the answer -----------------------------------------------------------------------------------------


def _generation_config(
    tensors: Tensors, defaults: GenerationConfig, limits: RequestLimits
) -> GenerationConfig:
    sampling: dict[str, Any] = {name: number(tensors, name) for name in _SAMPLING}
    biases = text(tensors, "logit_bias")
    return wished_generation(
        defaults,
        max_tokens=bounded_max_tokens(whole_number(tensors, "max_tokens"), defaults, limits),
        min_tokens=whole_number(tensors, "min_tokens"),
        logit_bias=None if biases is None else _json_object(biases, "logit_bias"),
        ignore_eos=flag(tensors, "ignore_eos"),
        stop_token_ids=whole_numbers(tensors, "stop_token_ids"),
        **sampling,
    )


def _json_object(content: str, name: str) -> dict[str, Any]:
    found = _parsed(content, name)
    if not isinstance(found, dict):
        raise UserError(f"{name} must be a JSON object, found {type(found).__name__}.")
    return found


def _parsed(content: str, name: str) -> Any:
    most = MAX_FIELD_BYTES
    return parse_bounded_json(
        content.encode(), name, max_bytes=most, max_text_bytes=most, max_structure_bytes=most
    )


def _asked_object(tensors: Tensors, name: str) -> dict[str, Any]:
    content = text(tensors, name)
    return {} if content is None else _json_object(content, name)


def _budget(tensors: Tensors) -> Budget:
    """Of pictures and videos that have none of their own."""
    return read_budget("video", _asked_object(tensors, "mm_processor_kwargs"), "mm_processor_kwargs")


def _template_wish(tensors: Tensors, processor: Processor) -> dict[str, Any]:
    """What else the chat template is asked for, as `Processor.inputs_from_messages` takes it."""
    variables = _asked_object(tensors, "chat_template_kwargs")
    listed = text(tensors, "tools")
    tools = None if listed is None else _parsed(listed, "tools")
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise UserError(f"tools must be a JSON list of objects, found {tools!r:.80}.")
    processor.template.require_read([*variables, *([] if tools is None else ["tools"])])
    return {
        "tools": tools,
        "chat_template_kwargs": variables,
        "continue_final_message": bool(flag(tensors, "continue_final_message")),
    }


def _guide(tensors: Tensors, guides: GuideMaker) -> Guide | None:
    """What the answer must look like."""
    wishes: list[AskedForm] = []
    schema, choices = text(tensors, "json_schema"), texts(tensors, "choice")
    if schema is not None:
        wishes.append(AskedForm("json", _json_object(schema, "json_schema"), "json_schema"))
    if choices:
        wishes.append(AskedForm("choice", choices, "choice"))
    forms: tuple[Form, ...] = ("regex", "grammar")
    given = ((form, text(tensors, form)) for form in forms)
    wishes += [AskedForm(form, content, form) for form, content in given if content is not None]
    form = one_form(wishes)
    if form is None:
        return None
    try:
        [guide] = guides.guides(form.form, form.content)
    except UserError as error:
        raise UserError(f"{form.param}: {error}") from None
    return guide


# --- messages -------------------------------------------------------------------------------------------


def _messages(
    tensors: Tensors, limits: RequestLimits, room: Room, seconds: float, receipt: Receipt
) -> list[dict[str, Any]]:
    found = strings(tensors, "messages")
    if len(found) != 1:
        raise UserError(f"messages must hold one JSON text, found {len(found)}.")
    with room.lane(len(found[0]), seconds, receipt.is_cancelled):
        return read_messages(found[0], limits)
