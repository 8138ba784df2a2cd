import re
from itertools import combinations
from xml.etree import ElementTree as ET

import pytest

from qv_export.show.graph import ModuleFacts
from qv_export.show.treemap import blocks_of, kind_of, treemap

MODULES = [
    ModuleFacts("model.embed_tokens", 600, 1200),
    *(
        ModuleFacts(f"model.layers.{layer}.{name}", size, 2 * size)
        for layer in range(3)
        for name, size in (("self_attn.q_proj", 100), ("mlp.gate_proj", 300), ("input_layernorm", 1))
    ),
    ModuleFacts("model.norm", 0, 0),
]


def rectangles(svg: str) -> dict[str, tuple[float, float, float, float]]:
    """Name to x, y, width, height."""
    found = {}
    for element in ET.fromstring(svg).iter("rect"):
        [title] = element
        place = [float(element.attrib[name]) for name in ("x", "y", "width", "height")]
        found[str(title.text).partition(":")[0]] = (place[0], place[1], place[2], place[3])
    return found


def test_modules_stand_in_their_blocks() -> None:
    assert [(block.name, block.bytes) for block in blocks_of(MODULES)] == [
        ("embed_tokens", 1200),
        ("layers.0", 802),
        ("layers.1", 802),
        ("layers.2", 802),
        ("norm", 0),
    ]


def test_every_module_with_weights_has_a_rectangle_and_none_overlap() -> None:
    places = rectangles(treemap(MODULES, "weights"))
    assert set(places) == {module.name for module in MODULES if module.bytes}
    for first, second in combinations(places.values(), 2):
        apart_x = first[0] + first[2] <= second[0] + 0.1 or second[0] + second[2] <= first[0] + 0.1
        apart_y = first[1] + first[3] <= second[1] + 0.1 or second[1] + second[3] <= first[1] + 0.1
        assert apart_x or apart_y
    assert all(x >= 0 and y >= 0 and x + w <= 920 and y + h <= 480 for x, y, w, h in places.values())


def test_area_is_bytes() -> None:
    places = rectangles(treemap(MODULES, "weights"))
    area = {name: width * height for name, (_, _, width, height) in places.items()}
    for layer in range(3):
        ratio = area[f"model.layers.{layer}.mlp.gate_proj"] / area[f"model.layers.{layer}.self_attn.q_proj"]
        assert ratio == pytest.approx(3, rel=0.05)  # a little is left for titles and gaps


def test_names_from_a_file_are_escaped() -> None:
    svg = treemap([ModuleFacts("<script>alert(1)</script>", 1, 4)], "a & b")
    assert "<script>" not in svg
    assert ET.fromstring(svg).attrib["aria-label"] == "a & b"


def test_a_graph_without_weights_has_no_picture() -> None:
    assert treemap([], "empty") == ""


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        ("visual.blocks.3.attn.qkv", "attention"),
        ("visual.blocks.3.mlp.fc1", "mlp"),
        ("visual.merger.mlp.0", "mlp"),
        ("visual.patch_embed.proj", "embedding"),
        ("lm_head", "embedding"),
        ("model.layers.0.input_layernorm", "other"),
    ],
)
def test_a_module_is_coloured_by_what_it_is_for(module: str, kind: str) -> None:
    assert kind_of(module) == kind
    assert re.search(rf'class="{kind}"', treemap([ModuleFacts(module, 1, 4)], ""))
