"""Charts of errors as small SVGs without any library, so that a report is one file."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

_WIDTH = 920
_LEFT, _RIGHT, _TOP, _BOTTOM = 90, 20, 16, 52


@dataclass(frozen=True)
class Series:
    """One line of a chart."""

    name: str
    values: Sequence[float]
    css_class: str


def line_chart(
    labels: Sequence[str], series: Sequence[Series], title: str, axis: str, height: int = 300
) -> str:
    """Lines over labelled places; values that are zero lie on the floor, infinite ones on the ceiling.

    Args:
        labels: of the places.
        series: a value for each place.
        title: for who cannot see it.
        axis: what is drawn upwards; the scale is logarithmic, and says so.
        height: of the picture, in its own units.
    """
    finite = [value for line in series for value in line.values if 0 < value < math.inf]
    low, high = _decades(finite)
    plot_width, plot_height = _WIDTH - _LEFT - _RIGHT, height - _TOP - _BOTTOM

    def x(i: int) -> float:
        return _LEFT + (plot_width * i / (len(labels) - 1) if len(labels) > 1 else plot_width / 2)

    def y(value: float) -> float:
        if value <= 0:
            return _TOP + plot_height
        share = (math.log10(min(value, 10.0**high)) - low) / (high - low)
        return _TOP + plot_height * (1 - min(max(share, 0.0), 1.0))

    parts = [_grid(low, high, y), _axis_name(f"{axis}, logarithmic", _TOP + plot_height / 2)]
    step = max(1, math.ceil(len(labels) / 12))
    parts += [
        f'<text class="label" x="{x(i):.1f}" y="{height - 30}">{escape(labels[i])}</text>'
        for i in range(0, len(labels), step)
    ]
    for line in series:
        points = " ".join(f"{x(i):.1f},{y(value):.1f}" for i, value in enumerate(line.values))
        parts.append(f'<polyline class="{line.css_class}" points="{points}"/>')
        parts += [
            f'<circle class="{line.css_class}" cx="{x(i):.1f}" cy="{y(value):.1f}" r="3">'
            f"<title>{escape(labels[i])}: {line.name} {value:.3g}</title></circle>"
            for i, value in enumerate(line.values)
        ]
    parts += _legend(series, height)
    return _svg(height, title, parts)


def ratio_chart(names: Sequence[str], ratios: Sequence[float], title: str) -> str:
    """One bar a name: error as a share of what is allowed, on a logarithmic axis, the limit as a line at 1."""
    row_height, left = 21, 300
    height = _TOP + row_height * len(names) + 46
    low, high = (
        -2.0,
        max(1.0, math.ceil(max((math.log10(r) for r in ratios if 1 < r < math.inf), default=0.0))),
    )
    plot_width = _WIDTH - left - 90

    def x(value: float) -> float:
        share = (math.log10(value) - low) / (high - low) if value > 0 else 0.0
        return left + plot_width * min(max(share, 0.004), 1.0)

    bottom = _TOP + row_height * len(names)
    parts = []
    for decade in range(int(low), int(high) + 1):
        at = x(10.0**decade)
        parts += [
            f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP - 6}" y2="{bottom + 4}"/>',
            f'<text class="label" x="{at:.1f}" y="{bottom + 18}">{_share_text(decade)}</text>',
        ]
    for row, (name, ratio) in enumerate(zip(names, ratios, strict=True)):
        top = _TOP + row_height * row
        css_class = "bad" if ratio > 1 else "good"
        end = x(ratio) if ratio < math.inf else left + plot_width
        parts += [
            f'<text class="name" x="{left - 8}" y="{top + 14}">{escape(name)}</text>',
            f'<rect class="{css_class}" x="{left}" y="{top + 2}" width="{end - left:.1f}" height="{row_height - 6}"/>',
            f'<text class="value" x="{end + 5:.1f}" y="{top + 14}">{ratio:.2g}{" fails" if ratio > 1 else ""}</text>',
        ]
    parts.append(
        f'<line class="limit" x1="{x(1.0):.1f}" x2="{x(1.0):.1f}" y1="{_TOP - 6}" y2="{bottom + 4}"/>'
    )
    middle = left + plot_width / 2
    parts.append(
        f'<text class="label axis" x="{middle:.1f}" y="{bottom + 38}">error as a share of what is allowed, '
        "logarithmic; the dashed line at 1 is the limit</text>"
    )
    return _svg(height, title, parts)


def _decades(values: Sequence[float]) -> tuple[int, int]:
    if not values:
        return -8, 0
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)


def _share_text(decade: int) -> str:
    return f"{10.0**decade:g}" if decade <= 3 else f"1e{decade}"


def _axis_name(text: str, middle: float) -> str:
    return (
        f'<text class="label axis" transform="translate(16 {middle:.1f}) rotate(-90)">{escape(text)}</text>'
    )


def _grid(low: int, high: int, y: Callable[[float], float]) -> str:
    lines = []
    for decade in range(low, high + 1):
        at = y(10.0**decade)
        lines.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        lines.append(f'<text class="tick" x="{_LEFT - 8}" y="{at + 4:.1f}">1e{decade}</text>')
    return "".join(lines)


def _legend(series: Sequence[Series], height: int) -> list[str]:
    return [
        f'<text class="legend {line.css_class}" x="{_LEFT + 200 * i}" y="{height - 6}">● {escape(line.name)}</text>'
        for i, line in enumerate(series)
    ]


def _svg(height: int, title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )
