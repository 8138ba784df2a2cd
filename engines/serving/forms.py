"""The form of an answer that a request asks for, by whatever names its protocol has for forms."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engines.runtime.tokens.guided import Form
from export.errors import UserError

ANY_OBJECT = {"type": "object"}
"""The schema of "any JSON object"."""


@dataclass(frozen=True)
class AskedForm:
    """One wish for a form."""

    form: Form
    content: Any
    param: str
    """The field of the request that asks for it."""


def one_form(wishes: Sequence[AskedForm]) -> AskedForm | None:
    """The only one; None where the answer is free.

    Raises:
        UserError: several.
    """
    if len(wishes) > 1:
        names = ", ".join(wish.param for wish in wishes)
        raise UserError(f"An answer has one form, asked for are {names}.")
    return wishes[0] if wishes else None


def schema_from_text(content: Any, param: str) -> Any:
    """A JSON schema that may stand as text.

    Raises:
        UserError: the text is no JSON.
    """
    if not isinstance(content, str):
        return content
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{param} is not JSON: {error}.") from None
