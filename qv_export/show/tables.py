"""A table before it is printed or becomes part of a page; numbered tensors share one row of it."""

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class Table:
    """Text in rows; an empty title continues what stands before it."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def numbered_families(
    items: Iterable[Item], name_of: Callable[[Item], str], kind_of: Callable[[Item], Hashable]
) -> list[tuple[str, Item]]:
    """`past_key.0`, `past_key.1`, ... of one kind as `past_key.0 .. 27`, with the first of them: 72B has 320.

    Args:
        items: in their order.
        name_of: an item's name.
        kind_of: everything else that a row shows; items that differ in it have rows of their own.
    """
    families: dict[Hashable, list[Item]] = {}
    for item in items:
        stem, dot, number = name_of(item).rpartition(".")
        name = stem + dot if number.isdigit() else name_of(item)
        families.setdefault((name, kind_of(item)), []).append(item)
    return [(_family_name([name_of(item) for item in family]), family[0]) for family in families.values()]


def _family_name(names: list[str]) -> str:
    return names[0] + (f" .. {names[-1].rpartition('.')[2]}" if len(names) > 1 else "")
