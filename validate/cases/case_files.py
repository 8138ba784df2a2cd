"""Cases that a user brings: a JSON file of conversations, or a folder of pictures."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from export.errors import UserError
from export.files.json_object import parse_json
from export.files.untrusted import read_named_text
from export.processor.processor import Processor
from export.processor.text.conversation import with_paths_from
from export.processor.text.picture_folder import prompted_pictures
from export.processor.video.frames import PICTURE_SUFFIXES
from validate.cases.prompts import PreparedCase


def load_cases(path: Path, processor: Processor) -> list[PreparedCase]:
    """One case for each conversation or picture, prompts as the processor makes them.

    Args:
        path: a JSON list of objects with `name` and `messages` (the Hugging Face chat format; relative paths start at
            the file), or a folder of pictures, each with its prompt in a `.txt` of the same name if there is one.
        processor: the bundle's.

    Raises:
        UserError: nothing usable there, or a conversation or picture that cannot be used, named.
    """
    conversations = list(_folder(path) if path.is_dir() else _file(path))
    if not conversations:
        raise UserError(
            f"{path} holds no pictures ({', '.join(sorted(PICTURE_SUFFIXES))}).", "Give another --cases."
        )
    names = [name for name, _ in conversations]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise UserError(
            f"{path}: case names must differ, found {', '.join(sorted(repeated))} more than once."
        )
    return [_prepared(path, name, messages, processor) for name, messages in conversations]


def _prepared(path: Path, name: str, messages: Any, processor: Processor) -> PreparedCase:
    try:
        return PreparedCase(name, (processor.inputs_from_messages(messages),))
    except UserError as error:
        raise UserError(f"{path}, case {name!r}: {error}") from None


def _folder(path: Path) -> Iterator[tuple[str, Any]]:
    for picture, messages in prompted_pictures(path):
        yield _safe_name(picture.stem), messages


def _file(path: Path) -> Iterator[tuple[str, Any]]:
    content = parse_json(read_named_text(path), str(path))
    if not isinstance(content, list):
        raise UserError(f"{path} must hold a JSON list of cases, found {type(content).__name__}.")
    for number, case in enumerate(content):
        if (
            not isinstance(case, dict)
            or case.keys() != {"name", "messages"}
            or not isinstance(case["name"], str)
        ):
            raise UserError(
                f'{path}, case {number}: must be an object with "name" and "messages" and nothing else.'
            )
        yield _safe_name(case["name"]), with_paths_from(case["messages"], path.parent)


def _safe_name(name: str) -> str:
    """A name that is also a file's: records are kept under it. Apart from the built-in cases by its prefix."""
    return "my_" + (re.sub(r"[^\w.-]+", "_", name).strip("._") or "case")
