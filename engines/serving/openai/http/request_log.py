"""Ids of requests, and one structured line for each: counts and seconds, never what was asked or said."""

import json
import logging
import re
import time
import uuid
from typing import TYPE_CHECKING

from starlette.types import Scope

if TYPE_CHECKING:
    from engines.serving.openai.answer.choices import ChatChoice

REQUEST_LOG = logging.getLogger("qv_export.requests")
"""At level INFO, JSON alone."""

_SOUND_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}\Z")


def request_id(scope: Scope) -> str:
    """The client's own (`x-request-id`), or a new one where it has none that is fit for a log."""
    given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
    return given.decode("ascii") if _SOUND_ID.match(given) else uuid.uuid4().hex


def log_answer(
    identifier: str,
    outcome: str,
    received: float,
    *,
    status: int = 200,
    choices: "list[ChatChoice] | None" = None,
) -> None:
    """Write the line of a request that is over.

    Args:
        identifier: the request's.
        outcome: `answered`, `left`, or an error's code.
        received: when it came, on the monotonic clock.
        status: HTTP's.
        choices: its answers.
    """
    if not REQUEST_LOG.isEnabledFor(logging.INFO):
        return
    content = {
        "request": identifier,
        "outcome": outcome,
        "status": status,
        "seconds": round(time.monotonic() - received, 6),
    }
    timings = [choice.timings for choice in choices or [] if choice.timings]
    if timings:
        first = timings[0]
        content |= {
            "finish_reasons": [choice.finish_reason for choice in choices or []],
            "prompt_tokens": first.num_prompt_tokens,
            "visual_tokens": first.num_visual_tokens,
            "reused_tokens": first.num_reused_tokens,
            "completion_tokens": sum(one.num_new_tokens for one in timings),
            "queue_seconds": round(first.queue_seconds, 6),
            "prefill_seconds": round(first.prefill_seconds, 6),
            "decode_seconds": round(max(one.decode_seconds for one in timings), 6),
        }
    REQUEST_LOG.info(json.dumps(content))
