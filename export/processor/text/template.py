"""The checkpoint's chat template: text from a conversation.

A template is a program from someone else's checkpoint. It is compiled and rendered in a process of its own, in
Jinja2's sandbox: its time and its memory are bounded there whatever it does, and so are its size and its output.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes

from export.errors import UserError
from export.files.json_object import read_json_object
from export.files.untrusted import MAX_JSON_BYTES, read_own_bytes
from export.processor.text.template_process import TEMPLATE_PROCESS, TemplateProcessError
from export.processor.text.template_worker import make_environment

MAX_TEMPLATE_BYTES = 2**16  # several times the longest that is published; parsing one takes half a second
MAX_RENDERED_CHARACTERS = 2**24
MAX_RENDER_SECONDS = 5.0

_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class ChatTemplate:
    """One template and the named special tokens that it may ask for."""

    def __init__(self, source: str, name: str, named_tokens: Mapping[str, str]) -> None:
        if len(source.encode("utf-8", "replace")) > MAX_TEMPLATE_BYTES:
            raise UserError(f"{name}: the chat template is larger than {MAX_TEMPLATE_BYTES} bytes.")
        self.name = name
        self.source = source
        self._named_tokens = dict(named_tokens)
        self.variables = _read_variables(_checked_syntax(source, name))
        """Names that it reads, and so can be asked for."""

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        variables: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
        max_seconds: float | None = None,
    ) -> str:
        """Render a conversation of plain strings, lists and dicts.

        Args:
            messages: as the template takes them.
            variables: further ones that the template reads, such as `tools` or `add_vision_id`.
            add_generation_prompt: end where the answer begins.
            max_seconds: what it may take, where less than the bound of every template.

        Raises:
            UserError: a variable that the template does not read; it refuses the messages, is broken, or takes too long
                or too much memory.
        """
        asked = dict(variables or {})
        self.require_read(asked)
        own = {**self._named_tokens, "messages": messages, "add_generation_prompt": add_generation_prompt}
        job = {
            "source": self.source,
            "variables": {"tools": None, "documents": None} | asked | own,
            "max_characters": MAX_RENDERED_CHARACTERS,
        }
        try:
            answer = TEMPLATE_PROCESS.run(job, min(MAX_RENDER_SECONDS, max_seconds or MAX_RENDER_SECONDS))
        except TemplateProcessError as error:
            answer = {"stage": "render", "error": str(error)}
        if "error" in answer:
            did = "cannot be compiled" if answer["stage"] == "compile" else "failed on these messages"
            # Clients of a server read this: the file's name says enough, its place is not theirs to know.
            raise UserError(f"{Path(self.name).name}: the chat template {did}: {answer['error']}")
        return str(answer["text"])

    def require_read(self, names: Iterable[str]) -> None:
        """Refuse variables that nothing would follow.

        Raises:
            UserError: the template does not read them, or they are not the asker's to set.
        """
        own = {*self._named_tokens, "messages", "add_generation_prompt"}
        if unread := sorted(str(name) for name in names if name in own or name not in self.variables):
            raise UserError(
                f"The checkpoint's chat template does not read {', '.join(unread)}, so nothing would follow it.",
                "Leave it out.",
            )


def _checked_syntax(source: str, name: str) -> nodes.Node:
    """Say at once what is wrong with a template's text. It is parsed only: compiling would compute its constants."""
    environment = make_environment()
    try:
        tree = environment.parse(source)
    except (jinja2.TemplateError, RecursionError, ValueError) as error:
        raise UserError(f"{name}: the chat template cannot be compiled: {error}") from None
    unknown = {
        node.name
        for node in _all_nodes(tree)
        if (isinstance(node, nodes.Filter) and node.name not in environment.filters)
        or (isinstance(node, nodes.Test) and node.name not in environment.tests)
    }
    if unknown:
        raise UserError(
            f"{name}: the chat template cannot be compiled: it uses {', '.join(sorted(unknown)):.200}, which no "
            "Jinja2 filter or test is called."
        )
    return tree


def _read_variables(tree: nodes.Node) -> frozenset[str]:
    """Names that a template reads and nowhere sets itself."""
    names = [node for node in _all_nodes(tree) if isinstance(node, nodes.Name)]
    return frozenset(node.name for node in names if node.ctx == "load") - {
        node.name for node in names if node.ctx != "load"
    }


def _all_nodes(tree: nodes.Node) -> Iterator[nodes.Node]:
    """Jinja2's own walk is recursive, and a template may be nested deeper than Python's stack."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        waiting += node.iter_child_nodes()
        yield node


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
            return read_own_bytes(path, MAX_JSON_BYTES).decode("utf-8")
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
