"""The rotary embedding that a `config.json` asks for: base, sections of M-RoPE, YaRN's stretch.

Read as Transformers 5.23 reads it (`modeling_rope_utils.py`), in both spellings: `rope_scaling` with `type`, and
`rope_parameters` with `rope_type`. A type that is not computed is refused, and so is every key that has no effect.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from export.models.configuration import YarnConfig
from export.models.section import Section

DEFAULT_THETA = 1_000_000.0
_PLAIN = "default"
_YARN_KEYS = (
    *("factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow"),
    *("mscale", "mscale_all_dim", "truncate"),
)


@dataclass(frozen=True)
class Rope:
    """What the decoder's rotary embedding is made from."""

    theta: float
    mrope_section: tuple[int, int, int]
    yarn: YarnConfig | None


def read_rope(text: Section, head_dim: int, max_position_embeddings: int) -> Rope:
    """Read the rotary embedding out of the decoder's section; problems go into its list."""
    rope = _rope_section(text)
    kind = rope.get("rope_type", _PLAIN)
    theta = text.number("rope_theta", DEFAULT_THETA)
    inner_theta = rope.number("rope_theta", theta)
    if "rope_theta" in text.content and inner_theta != theta:
        rope.problem(
            f"rope_theta {inner_theta:g} contradicts rope_theta {theta:g} beside it: keep the one meant"
        )
    for section in (text, rope):
        section.one_of("partial_rotary_factor", (1,))
    rope.one_of("mrope_interleaved", (False,))
    sections = _mrope_section(rope, head_dim)
    yarn = None
    if kind == "yarn":
        yarn = _read_yarn(rope, text, max_position_embeddings)
    elif kind == _PLAIN:
        _refuse_yarn_keys(rope)
    else:
        rope.problem(
            f"rope_type {kind!r} is not computed: it must be default, mrope or yarn. "
            "Without it the model is another one, so it cannot be passed over"
        )
        return Rope(inner_theta, sections, None)
    if unread := sorted(rope.unread()):
        rope.problem(f"{', '.join(unread)}: not part of rope type {kind}. Remove it, or correct the type")
    return Rope(inner_theta, sections, yarn)


def _rope_section(text: Section) -> Section:
    """Both spellings as one section, typed by `rope_type`; where both are there, they must agree."""
    merged: dict[str, Any] = {}
    found = [name for name in ("rope_scaling", "rope_parameters") if text.get(name)]
    for name in found:
        content = text.get(name)
        if not isinstance(content, Mapping):
            text.problem(f"{name} must be an object, found {content!r}")
            continue
        content = _typed_once(Section(content, text.problems, f"{name}."))
        for key in sorted(merged.keys() & content.keys()):
            if merged[key] != content[key]:
                text.problem(
                    f"rope_scaling.{key} {merged[key]!r} contradicts rope_parameters.{key} {content[key]!r}: "
                    "keep the one meant"
                )
        merged = content | merged
    return Section(merged, text.problems, f"{found[0]}." if found else "")


def _typed_once(rope: Section) -> dict[str, Any]:
    """The object's content with its type under `rope_type` alone. M-RoPE is said by its sections: "mrope" is plain."""
    stated = {
        key: _PLAIN if (kind := rope.get(key)) == "mrope" else kind
        for key in ("rope_type", "type")
        if rope.get(key) is not None
    }
    if len(set(map(repr, stated.values()))) > 1:
        rope.problem(
            f"rope_type {stated['rope_type']!r} contradicts type {stated['type']!r}: keep the one meant"
        )
    others = {key: value for key, value in rope.content.items() if key not in stated}
    return others if not stated else {**others, "rope_type": next(iter(stated.values()))}


def _mrope_section(rope: Section, head_dim: int) -> tuple[int, int, int]:
    match rope.get("mrope_section"):
        case [int(temporal), int(height), int(width)] if min(temporal, height, width) >= 0 and (
            2 * (temporal + height + width) == head_dim
        ):
            return (temporal, height, width)
        case other:
            rope.problem(
                f"mrope_section must be three integers that sum to head_dim / 2 = {head_dim // 2}, found {other!r}"
            )
            return (head_dim // 2, 0, 0)


def _refuse_yarn_keys(rope: Section) -> None:
    """A stretch that is stated beside another type is either a forgotten type or a forgotten stretch."""
    stated = [
        key for key in _YARN_KEYS if rope.get(key) is not None and (key, rope.get(key)) != ("factor", 1)
    ]
    if stated:
        rope.problem(
            f"{', '.join(stated)} would need rope_type 'yarn', which is not stated. Add it, or remove what it needs"
        )


def _read_yarn(rope: Section, text: Section, max_position_embeddings: int) -> YarnConfig:
    """Transformers' `_compute_yarn_parameters`, up to the tables."""
    name = "original_max_position_embeddings"
    stated = text.integer(name, max_position_embeddings)
    original = rope.integer(name, stated)
    if name in text.content and original != stated:
        rope.problem(f"{name} {original} contradicts {name} {stated} beside it: keep the one meant")
    factor = rope.number("factor", max(1.0, max_position_embeddings / original), minimum=1.0)
    if rope.get("factor") is None and factor == 1.0:
        rope.problem(f"factor is missing, and {name} {original} leaves nothing to stretch")
    mscale, mscale_all_dim = (
        rope.number(key, 1.0) if rope.get(key) else None for key in ("mscale", "mscale_all_dim")
    )
    implied = _temperature(factor)
    if mscale and mscale_all_dim:
        implied = _temperature(factor, mscale) / _temperature(factor, mscale_all_dim)
    yarn = YarnConfig(
        factor=factor,
        original_max_position_embeddings=original,
        attention_factor=rope.number("attention_factor", implied),
        beta_fast=rope.number("beta_fast", 32.0) if rope.get("beta_fast") else 32.0,
        beta_slow=rope.number("beta_slow", 1.0) if rope.get("beta_slow") else 1.0,
        truncate=rope.flag("truncate", True),
    )
    if yarn.beta_fast < yarn.beta_slow:
        rope.problem(f"beta_fast {yarn.beta_fast:g} must be at least beta_slow {yarn.beta_slow:g}")
    return yarn


def _temperature(factor: float, mscale: float = 1.0) -> float:
    """The paper's 0.1 ln(s) + 1 (section 3.4)."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0
