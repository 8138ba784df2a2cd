"""Makes typed dataclasses of JSON from outside: keys and types are those of the fields, all problems are told at once.

A field's type may carry a `Check`: `Annotated[int, Check("a size", is_count)]` says what else must hold, in words.
"""

import functools
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from export.errors import UserError
from export.files.checks import is_number

_Dataclass = TypeVar("_Dataclass")
_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}


@dataclass(frozen=True)
class Check:
    """What a value must be beyond its type."""

    words: str
    """As in: `size must be <words>`. They stand for whatever is wrong inside of the value too."""
    holds: Callable[[Any], bool] = lambda _: True
    """Asked about the JSON value once its type is right."""


def dataclass_from_json(kind: type[_Dataclass], content: Any, where: str) -> _Dataclass:
    """Make a dataclass of a JSON object; what is left out has its default.

    Args:
        kind: see `read_dataclass`.
        content: what the JSON holds.
        where: names it in messages.

    Raises:
        UserError: unknown or missing keys, values of another type or out of range; all of them at once.
    """
    problems: list[str] = []
    if not isinstance(content, dict):
        raise UserError(f"{where} must be an object, found {content!r:.80}.")
    made = read_dataclass(kind, content, problems)
    if made is None:
        raise UserError("\n".join(f"{where}: {problem}." for problem in problems))
    return made


def read_dataclass(
    kind: type[_Dataclass], content: Any, problems: list[str], where: str = "", *, whole: bool = False
) -> _Dataclass | None:
    """Make a dataclass of a JSON object, or say why not; exactly one of the two.

    Args:
        kind: with fields of bool, int, float, str, literals, one of them or None, lists (tuples) and objects
            (mappings) of them, further dataclasses, or anything (Any).
        content: what the JSON holds.
        problems: grows by what is wrong, each without a full stop.
        where: stands before a field's name in them.
        whole: no key may be left out, here and inside.
    """
    before = len(problems)
    values = read_fields(kind, content, problems, where, whole=whole)
    if len(problems) > before:
        return None
    try:
        return kind(**values)
    except UserError as error:  # a value out of its range
        problems.append(str(error).removesuffix("."))
        return None


def read_fields(
    kind: type, content: Any, problems: list[str], where: str = "", *, whole: bool = False
) -> dict[str, Any]:
    """The fields of a dataclass that a JSON object has and that are right, by name. Args as `read_dataclass`."""
    if not isinstance(content, dict):
        problems.append(f"{where.removesuffix(': ') or 'it'} must be an object, found {content!r:.80}")
        return {}
    known: dict[str, Field[Any]] = {field.name: field for field in fields(kind)}
    if unknown := sorted(content.keys() - known):
        problems.append(
            f"{where}unknown keys {', '.join(unknown)[:200]}; known are {', '.join(sorted(known))}"
        )
    if missing := sorted(
        name for name, field in known.items() if name not in content and (whole or not _has_default(field))
    ):
        problems.append(f"{where}missing keys {', '.join(missing)}")
    types_of, values = _types_of(kind), {}
    for name in [name for name in known if name in content]:
        found: list[str] = []
        value = _value(types_of[name], content[name], found, f"{where}{name}", whole=whole)
        if not found:
            values[name] = value
        problems += found
    return values


def field_problems(instance: Any) -> list[str]:
    """What the values of a dataclass are not that their fields' checks ask for, each without a full stop."""
    return [
        f"{name} must be {check.words}, found {value!r:.80}"
        for name, kind in _types_of(instance.__class__).items()
        if get_origin(kind) is Annotated
        for check in get_args(kind)[1:]
        if not check.holds(value := getattr(instance, name))
    ]


@functools.cache
def _types_of(kind: type) -> Mapping[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _has_default(field: "Field[Any]") -> bool:
    return field.default is not MISSING or field.default_factory is not MISSING


def _value(kind: Any, value: Any, problems: list[str], where: str, *, whole: bool) -> Any:
    """The value as its field has it; meaningless where a problem was added."""
    if get_origin(kind) is Annotated:
        inner, check = get_args(kind)
        found: list[str] = []
        made = _value(inner, value, found, where, whole=whole)
        if found or not check.holds(value):
            problems.append(f"{where} must be {check.words}, found {value!r:.80}")
        return made
    if is_dataclass(kind):
        return read_dataclass(kind, value, problems, f"{where}: ", whole=whole)  # type: ignore[arg-type]
    origin = get_origin(kind)
    if inner := next(filter(is_dataclass, get_args(kind)), None) if origin is types.UnionType else None:
        return None if value is None else _value(inner, value, problems, where, whole=whole)
    if origin is tuple:
        return _items(get_args(kind)[0], value, problems, where, whole=whole)
    if origin is Mapping:
        return _entries(get_args(kind)[1], value, problems, where, whole=whole)
    if not _is(kind, value):
        problems.append(f"{where} must be {_words(kind)}, found {value!r:.80}")
    return float(value) if kind is float and type(value) is int else value


def _items(kind: Any, value: Any, problems: list[str], where: str, *, whole: bool) -> tuple[Any, ...]:
    if not isinstance(value, list):
        problems.append(f"{where} must be a list, found {value!r:.80}")
        return ()
    return tuple(_value(kind, item, problems, where, whole=whole) for item in value)


def _entries(kind: Any, value: Any, problems: list[str], where: str, *, whole: bool) -> dict[str, Any]:
    if not isinstance(value, dict):
        problems.append(f"{where} must be an object, found {value!r:.80}")
        return {}
    return {
        name: _value(kind, item, problems, f"{where}: {name:.80}", whole=whole)
        for name, item in value.items()
    }


def _is(kind: Any, value: Any) -> bool:
    if kind is Any:
        return True
    if get_origin(kind) is types.UnionType:
        return any(_is(one, value) for one in get_args(kind))
    if get_origin(kind) is Literal:
        return type(value) is str and value in get_args(kind)
    if kind is float:
        return is_number(value)
    return type(value) is kind


def _words(kind: Any) -> str:
    if get_origin(kind) is types.UnionType:
        return " or ".join(_words(one) for one in get_args(kind))
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    return _WORDS.get(kind, "null")
