"""Makes typed dataclasses of JSON objects from outside."""

import math
import types
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from export.errors import UserError

_Dataclass = TypeVar("_Dataclass")
_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def dataclass_from_json(kind: type[_Dataclass], content: Any, where: str) -> _Dataclass:
    """Make a dataclass of a JSON object, whose keys and types must be those of its fields.

    Args:
        kind: with fields of bool, int, float, str, one of them or None, tuples of them, or further dataclasses.
        content: what the JSON holds; what is left out has its default.
        where: names it in messages.

    Raises:
        UserError: unknown keys, values of another type or out of range; all of them at once.
    """
    types_of = get_type_hints(kind)
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    if not isinstance(content, dict):
        raise UserError(f"{where} must be a JSON object, found {type(content).__name__}.")
    problems = []
    if unknown := sorted(key for key in content if key not in known):
        problems.append(f"{where} has keys of {', '.join(sorted(known))}; found {', '.join(unknown)[:200]}.")
    values: dict[str, Any] = {}
    for name in known:
        if name in content:
            try:
                values[name] = _value(types_of[name], content[name], f"{where}: {name}")
            except UserError as error:
                problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    return kind(**values)


def _value(kind: Any, value: Any, where: str) -> Any:
    if is_dataclass(kind):
        return dataclass_from_json(kind, value, where)  # type: ignore[arg-type]
    if get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise UserError(f"{where} must be a list, found {value!r:.80}.")
        return tuple(_value(get_args(kind)[0], item, where) for item in value)
    allowed = get_args(kind) if get_origin(kind) is types.UnionType else (kind,)
    if not any(_is(one, value) for one in allowed):
        words = " or ".join(_WORDS.get(one, "null") for one in allowed)
        raise UserError(f"{where} must be {words}, found {value!r:.80}.")
    return value


def _is(kind: Any, value: Any) -> bool:
    if kind is float:
        return type(value) in {int, float} and -math.inf < value < math.inf
    return type(value) is kind
