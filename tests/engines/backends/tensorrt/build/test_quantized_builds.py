"""Whole decoders with quantized weights, built by TensorRT-RTX on a CPU: every product reads its codes."""

import pytest

from engines.backends.tensorrt.build.builder import build_engine
from engines.backends.tensorrt.options import BuildOptions
from engines.sizing.limits import Limits
from export.bundle import open_bundle
from export.errors import UserError
from export.quantization.make import Part
from tests.support.bundles import shared_bundle

pytestmark = pytest.mark.tensorrt

LIMITS = Limits(max_context=128, max_batch=2, max_patches=64, max_segments=2)
NUM_LAYERS = 2
WAYS: dict[str, dict[Part, str]] = {
    "int4": {"decoder": "int4", "head": "int4"},
    "fp8": {"decoder": "fp8"},
}


@pytest.fixture
def bundle_of(tmp_path_factory):
    """A small bundle, by the way in which it is quantized."""
    pytest.importorskip("tensorrt_rtx_bindings", reason="needs TensorRT-RTX: pip install 'qv-export[rtx]'")
    checkpoint = {"dtype": "bfloat16", "num_hidden_layers": NUM_LAYERS, "vision_depth": 1}
    return lambda way: open_bundle(shared_bundle(tmp_path_factory, checkpoint, quantize=WAYS[way]))


def build(bundle, sm, output):
    options = BuildOptions(target="tensorrt-rtx", sm=sm)
    return build_engine(bundle, "decoder", LIMITS, options, output, lambda *_: None)


@pytest.mark.parametrize(("way", "sm"), [("int4", (80, 89, 120)), ("fp8", (89, 120))])
def test_every_product_reads_its_codes_on_every_architecture_that_has_them(way, sm, bundle_of, tmp_path):
    facts = build(bundle_of(way), sm, tmp_path / "engine")
    count = 7 * NUM_LAYERS + (2 if way == "int4" else 0)  # the tied table is looked up in, and multiplied by
    assert f"{count} of {count} products with quantized weights are computed with their codes" in facts.notes
    assert [warning.message for warning in facts.warnings if not warning.is_expected] == []


def test_8_bit_floats_are_refused_for_an_architecture_without_them(bundle_of, tmp_path):
    with pytest.raises(UserError, match=r"SM80.*--quantize int8"):
        build(bundle_of("fp8"), (80,), tmp_path / "engine")
    assert not (tmp_path / "engine").exists()
