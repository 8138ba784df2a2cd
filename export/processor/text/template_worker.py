"""A process that compiles and renders chat templates, with a bound on its memory and its time.

A template is a program from someone else's checkpoint. It runs in Jinja2's sandbox as in Transformers (same options,
same extras), which keeps it from files and modules but not from filling the memory or from running for ever.
"""

import json
import os
import resource
import signal
import sys
from datetime import datetime
from typing import Any, BinaryIO

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

_LENGTH_BYTES = 4
_MAX_REPEATS = 2**20


def main(memory_bytes: int) -> None:
    """Answer jobs from stdin on stdout until stdin ends; both are JSON behind its length.

    Args:
        memory_bytes: what templates may take beyond what the process starts with.
    """
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    _confine(memory_bytes)
    templates: dict[str, jinja2.Template] = {}
    while (job := read_message(requests)) is not None:
        # Of itself: a server that was killed cannot end it any more.
        signal.setitimer(signal.ITIMER_REAL, job["seconds"] + 1)
        answer = _answer(job, templates)
        signal.setitimer(signal.ITIMER_REAL, 0)
        write_message(answers, answer)


def read_message(stream: BinaryIO) -> Any:
    """The next message; None at the end."""
    length = stream.read(_LENGTH_BYTES)
    return json.loads(stream.read(int.from_bytes(length))) if len(length) == _LENGTH_BYTES else None


def write_message(stream: BinaryIO, message: Any) -> None:
    data = json.dumps(message).encode()
    stream.write(len(data).to_bytes(_LENGTH_BYTES) + data)
    stream.flush()


def make_environment() -> jinja2.Environment:
    """Jinja2 as Transformers sets it up, without the one function that writes text of its own."""
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    del environment.globals["lipsum"]
    return environment


def _answer(job: dict[str, Any], templates: dict[str, jinja2.Template]) -> dict[str, Any]:
    """The rendered `text`, or the `error` that ended it, by the stage that it ended."""
    source = job["source"]
    try:
        if source not in templates:
            templates.clear()
            templates[source] = make_environment().from_string(source)
    # Constants are computed while a template is compiled: it can raise whatever Python raises.
    except Exception as error:  # noqa: BLE001
        return {"stage": "compile", "error": _summary(error)}
    try:
        return {"text": _rendered(templates[source], job["variables"], job["max_characters"])}
    except Exception as error:  # noqa: BLE001
        return {"stage": "render", "error": _summary(error)}


def _rendered(template: jinja2.Template, variables: dict[str, Any], max_characters: int) -> str:
    parts, length = [], 0
    for part in template.generate(variables):
        parts.append(part)
        length += len(part)
        if length > max_characters:
            raise jinja2.TemplateError(f"it writes more than {max_characters} characters")
    return "".join(parts)


def _summary(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "it needs more memory than a template may take"
    return (str(error) or type(error).__name__)[:500]


def _confine(memory_bytes: int) -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # the kernel ends it, whatever C code runs
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends us
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    if sys.platform == "linux":
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - no more modules in here
            memory_bytes += int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    for kind, most in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_NOFILE, 16)):
        resource.setrlimit(kind, (most, most))


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja2's sandbox that also refuses at once to repeat things without end."""

    intercepted_binops = frozenset(["*", "**"])

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        numbers = isinstance(left, int | float) and isinstance(right, int | float)
        if operator == "**" or not numbers:
            for side in (left, right):
                if isinstance(side, int) and abs(side) > (1024 if operator == "**" else _MAX_REPEATS):
                    raise jinja2.TemplateError(f"{operator} with the number {side} is not allowed")
        return super().call_binop(context, operator, left, right)


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
