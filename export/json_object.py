"""How is a JSON file from outside read?"""

import json
from pathlib import Path
from typing import Any

from export.errors import UserError


def read_json_object(path: Path) -> dict[str, Any]:
    """Parse a file that must hold one JSON object.

    Raises:
        UserError: the file cannot be read or holds something else.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(
            f"{path} not found: expected a Qwen2-VL checkpoint's directory with this file."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    return parse_json_object(text, str(path))


def parse_json_object(text: str, source: str) -> dict[str, Any]:
    """Parse text that must be one JSON object; `source` names it in messages.

    Raises:
        UserError: it is something else.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{source} cannot be read as JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{source} must hold a JSON object, found {type(content).__name__}.")
    return content
