"""The sizes of a graph's layers as a treemap in SVG: blocks of the model, and in each its modules."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import TypeVar

from export.wording import size_text
from qv_export.show.graph import ModuleFacts

_WIDTH, _HEIGHT = 920.0, 480.0
_GAP = 1.5
_TITLE_HEIGHT = 13.0
_LETTER_WIDTH = 6.2  # of 11 px system-ui, on average


@dataclass(frozen=True)
class Box:
    """A rectangle of the picture, in its units."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Block:
    """A repeated part of the model, such as `layers.3`, or one that stands alone, such as `embed_tokens`."""

    name: str
    modules: tuple[ModuleFacts, ...]

    @property
    def bytes(self) -> int:
        return sum(module.bytes for module in self.modules)


Sized = TypeVar("Sized", Block, ModuleFacts)


def blocks_of(modules: Iterable[ModuleFacts]) -> list[Block]:
    """Modules by block, in the graph's order."""
    return [Block(name, tuple(group)) for name, group in groupby(modules, key=lambda m: _block_name(m.name))]


def _block_name(module: str) -> str:
    parts = _local(module).split(".")
    is_numbered = len(parts) > 1 and parts[1].isdigit()
    return ".".join(parts[:2]) if is_numbered else parts[0]


def _local(module: str) -> str:
    """Without the name of the tower, which the whole graph shares."""
    return module.removeprefix("visual.").removeprefix("model.")


def kind_of(module: str) -> str:
    """What a module is for, which is its colour."""
    name = _local(module)
    if "attn" in name:
        return "attention"
    if "mlp" in name or name.startswith("merger"):
        return "mlp"
    return "embedding" if "embed" in name or "lm_head" in name else "other"


def treemap(modules: Sequence[ModuleFacts], title: str) -> str:
    """An SVG element; sizes are bytes of weights as stored. Empty for a graph without weights."""
    blocks = [block for block in blocks_of(modules) if block.bytes]
    if not blocks:
        return ""
    parts: list[str] = []
    for block, box in _arranged(blocks, Box(0, 0, _WIDTH, _HEIGHT)):
        parts += _block_parts(block, box)
    return (
        f'<svg viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )


def _block_parts(block: Block, box: Box) -> Iterator[str]:
    inner = Box(box.x + _GAP, box.y + _GAP, max(box.width - 2 * _GAP, 0.1), max(box.height - 2 * _GAP, 0.1))
    has_title = inner.height > 3 * _TITLE_HEIGHT and len(block.modules) > 1
    if has_title and (name := _fitting(block.name, inner.width)):
        yield f'<text class="block" x="{inner.x:.1f}" y="{inner.y + 10:.1f}">{escape(name)}</text>'
        inner = Box(inner.x, inner.y + _TITLE_HEIGHT, inner.width, inner.height - _TITLE_HEIGHT)
    modules = [module for module in block.modules if module.bytes]
    for module, place in _arranged(modules, inner):
        yield from _module_parts(module, place)


def _module_parts(module: ModuleFacts, box: Box) -> Iterator[str]:
    said = f"{module.name}: {module.num_values:,} values, {size_text(module.bytes)}"
    yield (
        f'<rect class="{kind_of(module.name)}" x="{box.x:.1f}" y="{box.y:.1f}" '
        f'width="{max(box.width - 0.5, 0.1):.1f}" height="{max(box.height - 0.5, 0.1):.1f}">'
        f"<title>{escape(said)}</title></rect>"
    )
    *_, outer, last = ("", *module.name.split("."))
    name = _fitting(f"{outer}.{last}" if last.isdigit() else last, box.width - 4)
    if box.height > _TITLE_HEIGHT and name:
        yield f'<text x="{box.x + 3:.1f}" y="{box.y + 11:.1f}">{escape(name)}</text>'


def _arranged(items: Sequence[Sized], box: Box) -> Iterator[tuple[Sized, Box]]:
    """Each item with a rectangle as large as its share of the box, the largest first."""
    import squarify

    ordered = sorted(items, key=lambda item: -item.bytes)
    sizes = squarify.normalize_sizes([item.bytes for item in ordered], box.width, box.height)
    places = squarify.squarify(sizes, box.x, box.y, box.width, box.height)
    for item, place in zip(ordered, places, strict=True):
        yield item, Box(place["x"], place["y"], place["dx"], place["dy"])


def _fitting(text: str, width: float) -> str:
    """Text that fits into a width, or nothing: half a name says the wrong one."""
    return text if len(text) * _LETTER_WIDTH <= width else ""
