"""Each published relative's configuration, with its own widths and fewer layers, becomes a checked bundle."""

import json
from pathlib import Path
from typing import Any

import onnx
import pytest

from examples.random_checkpoint import SIZES, write_checkpoint
from export.bundle import open_bundle
from export.checkpoint.config import ModelConfig, load_config
from export.exporter import export_checkpoint
from tests.support.relatives import RELATIVES, Relative

pytestmark = pytest.mark.slow
DOCS = Path(__file__).parents[2] / "docs" / "checkpoints.md"
FEW_LAYERS: dict[str, Any] = {"num_hidden_layers": 2, "vision_depth": 2}


def write_relative(directory: Path, relative: Relative, **sizes: Any) -> Path:
    """Weights that are holes in files: the widths are the real ones, and drawing them would take gigabytes."""
    layout: Any = relative.layout
    arguments = {**relative.sizes, **sizes}
    checkpoint = write_checkpoint(directory, size=relative.size, layout=layout, sparse=True, **arguments)
    path = checkpoint / "config.json"
    content = json.loads(path.read_text()) | relative.config
    if relative.layout == "nested" and relative.config.get("tie_word_embeddings", True) is None:
        content["text_config"]["tie_word_embeddings"] = SIZES[relative.size].tie_word_embeddings
    path.write_text(json.dumps(content))
    return checkpoint


def widths(config: ModelConfig) -> tuple[object, ...]:
    """What decides the graphs, but for how often a layer stands in them."""
    decoder, vision = config.decoder, config.vision
    return (
        *(decoder.hidden_size, decoder.intermediate_size, decoder.num_attention_heads, decoder.head_dim),
        *(decoder.num_key_value_heads, decoder.vocab_size, decoder.tie_word_embeddings),
        *(vision.embed_dim, vision.num_heads, vision.hidden_size),
    )


def test_the_table_of_the_documentation_lists_every_relative():
    text = DOCS.read_text(encoding="utf-8")
    assert [name for name in RELATIVES if f"| {name} |" not in text] == []


@pytest.mark.parametrize("name", RELATIVES)
def test_a_relative_of_its_full_size_opens(name, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    from export.checkpoint.tensors import open_checkpoint

    relative = RELATIVES[name]
    checkpoint = open_checkpoint(write_relative(tmp_path / "checkpoint", relative))
    assert not checkpoint.notes
    assert checkpoint.config.decoder.num_hidden_layers == relative.sizes.get(
        "num_hidden_layers", SIZES[relative.size].num_hidden_layers
    )


DISTINCT = (
    "Qwen2-VL-2B, -Instruct",
    "Qwen2-VL-72B, -Instruct",
    "MinerU2.5-Pro-2605-1.2B",
    "any of them, stretched by YaRN",
)
"""Between them every set of widths in the table, and YaRN."""


@pytest.mark.parametrize("name", DISTINCT)
def test_a_relative_with_two_layers_exports(name, tmp_path: Path):
    checkpoint = write_relative(tmp_path / "checkpoint", RELATIVES[name], **FEW_LAYERS)
    export_checkpoint(checkpoint, tmp_path / "bundle", weights="link")
    bundle = open_bundle(tmp_path / "bundle")
    assert bundle.config.decoder == load_config(checkpoint).decoder
    decoder = onnx.load(bundle.graph("decoder"), load_external_data=False).graph
    logits = next(value for value in decoder.output if value.name == "logits")
    assert logits.type.tensor_type.shape.dim[-1].dim_value == bundle.config.decoder.vocab_size


def test_the_exported_ones_stand_for_all(tmp_path: Path):
    found = {
        name: widths(load_config(write_relative(tmp_path / str(i), relative, **FEW_LAYERS)))
        for i, (name, relative) in enumerate(RELATIVES.items())
    }
    assert set(found.values()) == {found[name] for name in DISTINCT}
