"""A folder of pictures as conversations: each picture with a question about it."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from export.files.untrusted import read_named_text
from export.processor.video.frames import PICTURE_SUFFIXES

DEFAULT_PROMPT = "Describe this picture."


def prompted_pictures(directory: Path) -> Iterator[tuple[Path, list[dict[str, Any]]]]:
    """Each picture of a folder, by name, and messages that ask what the `.txt` beside it says, or `DEFAULT_PROMPT`.

    Raises:
        UserError: a prompt that cannot be read.
    """
    for picture in sorted(directory.iterdir()):
        if picture.suffix.lower() in PICTURE_SUFFIXES:
            text = picture.with_suffix(".txt")
            prompt = read_named_text(text).strip() if text.is_file() else DEFAULT_PROMPT
            yield picture, [user_message(prompt, [picture])]


def user_message(prompt: str, images: Iterable[Path]) -> dict[str, Any]:
    """One user turn: pictures, then the text."""
    parts: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
    return {"role": "user", "content": [*parts, {"type": "text", "text": prompt}]}
